"""What batch norm's mode does to a run on one device and on replicas, at equal global batch.

    python benchmarks/batch_norm_modes.py    # writes benchmarks/results/batch_norm_modes.json

A ResNet-8 of width 8 on the embedded digits, 100 steps of 48 images, on 1, 2 and 4 logical CPUs,
with statistics of each replica's own and with synchronised ones.  The same average (exponential,
decay 0.9) is evaluated under every policy.  Printed as a table in Markdown.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.experiments.assembly import assemble, load_dataset
from tf_lrtraj.experiments.config import default_config, validate
from tf_lrtraj.training.step import make_train_steps
from tf_lrtraj.training.strategies import make_strategy, split_cpu

RESULT = pathlib.Path(__file__).parent / "results" / "batch_norm_modes.json"
STEPS, AVERAGE = 100, "ema"
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
            "data.batch_size": 48,
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


def run(replicas: int, synchronized: bool) -> dict[str, Any]:
    config = settings(synchronized)
    name = "one_device" if replicas == 1 else "mirrored"
    strategy = make_strategy(name, 0 if replicas == 1 else replicas)
    assembly = assemble(config, load_dataset(config), strategy)
    steps = make_train_steps(
        strategy,
        assembly.model,
        assembly.optimizer,
        assembly.averages,
        batch_size=config["data"]["batch_size"],
    )
    assert assembly.averages is not None
    steps(iter(assembly.train_batches(0)), assembly.averages.plan(1, STEPS))
    found: dict[str, Any] = {"replicas": replicas, "synchronized": synchronized}
    for key, (weights, policy) in EVALUATED.items():
        values = assembly.evaluator.weights(weights, STEPS, policy)
        result = assembly.evaluator.evaluate(values, assembly.eval_batches("test"))
        found[key] = {"loss": result.loss, "accuracy": result.accuracy}
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


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """The norm of the difference, over the norm of the reference."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def table(rows: list[dict[str, Any]]) -> str:
    header = ["batch norm", "replicas", "weights", "statistics", "between replicas", *EVALUATED]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row in rows:
        cells = [
            "synchronised" if row["synchronized"] else "each replica's own",
            str(row["replicas"]),
            *(f"{row[key]:.1e}" for key in ("weights", "statistics", "statistics_apart")),
            *(f"{row[key]['loss']:.4f} ({row[key]['accuracy']:.1%})" for key in EVALUATED),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    split_cpu(4)
    rows = [run(count, synchronized) for synchronized in (False, True) for count in (1, 2, 4)]
    alone = rows[0]
    weights, statistics = alone["weights"], alone["statistics"]
    for row in rows:
        row["weights"] = relative(row["weights"], weights)
        row["statistics"] = relative(row["statistics"], statistics)
    RESULT.parent.mkdir(exist_ok=True)
    records.write_json(
        RESULT, {"command": "python benchmarks/batch_norm_modes.py", "steps": STEPS, "rows": rows}
    )
    print(table(rows))


if __name__ == "__main__":
    main()
