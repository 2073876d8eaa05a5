"""What batch norm's mode does to a run on one device and on replicas, at equal global batch.

    python benchmarks/batch_norm_modes.py    # writes benchmarks/results/batch_norm_modes.json

A ResNet-8 of width 8 on the embedded digits, 100 steps of 48 images, on 1, 2 and 4 logical CPUs,
with statistics of each replica's own and with synchronised ones, these in float64 too.  The same
average (exponential, decay 0.9) is evaluated under every policy.  Then the first step alone is
looked at: how far the gradient is from that of one device, and how many inputs of ReLUs have
another sign.  Printed as tables in Markdown.
"""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lrtraj import records
from tf_lrtraj.runs.assembly import assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.run_config import default_config, validate
from tf_lrtraj.training.objective import per_example_loss
from tf_lrtraj.training.step import make_train_steps
from tf_lrtraj.training.strategies import make_strategy, split_cpu

RESULT = pathlib.Path(__file__).parent / "results" / "batch_norm_modes.json"
STEPS, AVERAGE, IMAGES = 100, "ema", 48
# Batch norm's statistics for the evaluation → (weights, policy).
EVALUATED = {
    "raw, running": ("raw", "running"),
    "raw, recompute": ("raw", "recompute"),
    "average, recompute": (AVERAGE, "recompute"),
    "average, average": (AVERAGE, "average"),
    "average, copy": (AVERAGE, "copy"),
}


def settings(synchronized: bool) -> dict[str, Any]:
    config = default_config()
    config.update_from_flattened_dict(
        {
            "data.batch_size": IMAGES,
            "data.augmentation": "crop",
            "model.width": 8,
            "model.batch_norm.synchronized": synchronized,
            "schedule.constant": 0.05,
            "total": f"{STEPS} steps",
            "batch_norm.batches": 10,
        }
    )
    # The policy that keeps statistics beside the weights; the others need nothing of their own.
    config.averages = {AVERAGE: {"kernel": "Exponential", "decay": 0.9, "batch_norm": "average"}}
    return validate(config)


def assembled(replicas: int, synchronized: bool, dtype: str) -> tuple[Any, Any]:
    """The strategy, and data, model and averages under it."""
    config = settings(synchronized)
    config["model"]["dtype"] = dtype  # configurations do not offer float64
    name = "one_device" if replicas == 1 else "mirrored"
    strategy = make_strategy(name, 0 if replicas == 1 else replicas)
    return strategy, assemble(config, load_dataset(config), strategy)


def run(replicas: int, synchronized: bool, dtype: str) -> dict[str, Any]:
    strategy, assembly = assembled(replicas, synchronized, dtype)
    steps = make_train_steps(
        strategy,
        assembly.model,
        assembly.optimizer,
        assembly.averages,
        batch_size=IMAGES,
    )
    assert assembly.averages is not None
    steps(iter(assembly.train_batches(0)), 0, STEPS)
    found: dict[str, Any] = {
        "replicas": replicas,
        "synchronized": synchronized,
        "dtype": dtype,
    }
    for key, (weights, policy) in EVALUATED.items():
        values = assembly.evaluator.weights(weights, STEPS, policy)
        result = assembly.evaluator.evaluate(values, assembly.eval_batches("test"))
        found[key] = result.values
    statistics = [v for v in assembly.model.non_trainable_variables if "moving" in v.name]
    copies = [
        np.concatenate([np.ravel(part) for part in parts])
        for parts in zip(
            *(
                [np.asarray(one) for one in strategy.experimental_local_results(v.value)]
                for v in statistics
            ),
            strict=True,
        )
    ]
    found["statistics_apart"] = max(relative(copy, copies[0]) for copy in copies)
    found["weights"] = np.concatenate(
        [np.ravel(np.asarray(v)) for v in assembly.model.trainable_variables]
    )
    found["statistics"] = copies[0]
    return found


def first_step(replicas: int, dtype: str) -> dict[str, np.ndarray]:
    """The inputs of all ReLUs and the gradient of the first batch, with synchronised statistics."""
    strategy, assembly = assembled(replicas, True, dtype)
    model = assembly.model
    with strategy.scope():
        relus = [
            layer.input for layer in model.layers if isinstance(layer, keras.layers.Activation)
        ]
        watched = keras.Model(model.input, [*relus, model.output])

    def replica(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            *inputs, logits = watched(images, training=True)
            loss = tf.reduce_sum(per_example_loss(labels, logits)) / IMAGES
        return inputs, tape.gradient(loss, [v.value for v in model.trainable_variables])

    @tf.function
    def both(images: Any, labels: Any) -> Any:
        inputs, gradients = strategy.run(replica, args=(images, labels))
        gathered = [tf.concat(strategy.experimental_local_results(x), 0) for x in inputs]
        return gathered, [strategy.reduce("SUM", g, axis=None) for g in gradients]

    inputs, gradients = both(*next(iter(assembly.train_batches(0))))
    return {
        "inputs": np.concatenate([np.ravel(x) for x in inputs]),
        "gradient": np.concatenate([np.ravel(g) for g in gradients]),
    }


def first_step_rows() -> list[dict[str, Any]]:
    rows = []
    for dtype in ("float32", "float64"):
        alone = first_step(1, dtype)
        for count in (2, 4):
            here = first_step(count, dtype)
            other = (here["inputs"] > 0) != (alone["inputs"] > 0)
            rows.append(
                {
                    "dtype": dtype,
                    "replicas": count,
                    "gradient": relative(here["gradient"], alone["gradient"]),
                    "inputs": alone["inputs"].size,
                    "largest_difference": float(np.abs(here["inputs"] - alone["inputs"]).max()),
                    "other_sign": int(other.sum()),
                    "on_one_device": alone["inputs"][other].tolist(),
                    "here": here["inputs"][other].tolist(),
                }
            )
    return rows


def first_step_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | replicas | gradient | inputs of ReLUs, largest difference | of another sign |",
        "|---|---:|---:|---:|---|",
    ]
    for row in rows:
        there = ", ".join(
            f"{one:.1e} → {other:.1e}"
            for one, other in zip(row["on_one_device"], row["here"], strict=True)
        )
        lines.append(
            f"| {row['dtype']} | {row['replicas']} | {row['gradient']:.1e} "
            f"| {row['largest_difference']:.1e} "
            f"| {row['other_sign']} of {row['inputs']:,}{': ' * bool(there)}{there} |"
        )
    return "\n".join(lines)


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """The norm of the difference, over the norm of the reference."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def table(rows: list[dict[str, Any]]) -> str:
    header = ["batch norm", "replicas", "weights", "statistics", "between replicas", *EVALUATED]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row in rows:
        cells = [
            _mode(row),
            str(row["replicas"]),
            *(f"{row[key]:.1e}" for key in ("weights", "statistics", "statistics_apart")),
            *(f"{row[key]['loss']:.4f} ({row[key]['accuracy']:.1%})" for key in EVALUATED),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mode(row: dict[str, Any]) -> str:
    mode = "synchronised" if row["synchronized"] else "each replica's own"
    return mode + ", float64" * (row["dtype"] == "float64")


def main() -> None:
    split_cpu(4)
    modes = [(False, "float32"), (True, "float32"), (True, "float64")]
    rows = [run(count, *mode) for mode in modes for count in (1, 2, 4)]
    alone = {row["dtype"]: row for row in rows[::-1] if row["replicas"] == 1}
    kept = {dtype: (row["weights"], row["statistics"]) for dtype, row in alone.items()}
    for row in rows:
        weights, statistics = kept[row["dtype"]]
        row["weights"] = relative(row["weights"], weights)
        row["statistics"] = relative(row["statistics"], statistics)
    first = first_step_rows()
    RESULT.parent.mkdir(exist_ok=True)
    command = "python benchmarks/batch_norm_modes.py"
    records.write_json(
        RESULT, {"command": command, "steps": STEPS, "rows": rows, "first_step": first}
    )
    print(table(rows), first_step_table(first), sep="\n\n")


if __name__ == "__main__":
    main()
