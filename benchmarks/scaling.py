"""What averages, batch-norm recomputation, probes and snapshots cost as models and replicas grow.

    python benchmarks/scaling.py            # measures, writes benchmarks/results/scaling.json
    python benchmarks/scaling.py --tables   # prints tables: that file's, and those computed

Measured: one update of 1 and of 4 averages (float32), and of one kept in float64, for networks from
78 thousand to 21.8 million weights; a forward pass and a pass that takes batch-norm moments over
a training step; writing a snapshot and a checkpoint.  The model `seconds = a * variables +
bytes / b` is fitted to the updates (least squares of relative errors) and its errors are told.

Extrapolated, by bytes alone: the same on accelerators whose bandwidth their makers state, and
for a model of 1e9 weights.  Nothing of the second part has been measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

RESULT = pathlib.Path(__file__).parent / "results" / "scaling.json"
NETWORKS = {  # depth, width, stem
    "ResNet-8, width 16": (8, 16, "cifar"),
    "ResNet-20, width 16": (20, 16, "cifar"),
    "ResNet-8, width 64": (8, 64, "cifar"),
    "ResNet-18": (18, 64, "imagenet"),
    "ResNet-34": (34, 64, "imagenet"),
}
STEP_NETWORK = (8, 16, "cifar")
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Machine:
    """What its maker states of one chip; the share of its peak that training reaches is assumed."""

    name: str
    replicas: int
    flops: float  # per second, bfloat16
    bandwidth: float  # bytes per second, of its own memory
    link: float  # bytes per second into and out of one chip, between chips
    utilisation: float = 0.35


# NVIDIA's data sheet of the H100 SXM; Google's page of TPU v5e: 4 links of 400 Gbit/s, of which
# a ring over a slice of 2 x 4 chips uses two.
MACHINES = (
    Machine("8 H100 (SXM)", 8, 989e12, 3.35e12, 450e9),
    Machine("TPU v5e, 8 chips", 8, 197e12, 819e9, 100e9),
)
RESNET34 = {"weights": 21_797_672, "batch_norm_channels": 8_512, "forward_flops": 7.34e9}
HOST_LINK, DISK = 55e9, 2e9  # PCIe 5 x16 and a local NVMe disk, bytes per second, assumed


# What the arithmetic moves ---------------------------------------------------------------------


def update_bytes(weights: int, single: int = 0, double: int = 0, rings: int = 0) -> int:
    """Bytes one update reads and writes: each weight once, each running average twice.

    A ring (window, two-point) only writes one slot.
    """
    return weights * (4 + 8 * single + 16 * double + 4 * rings)


def state_bytes(weights: int, single: int = 0, double: int = 0, copies: int = 0) -> int:
    """Bytes that averages hold on every replica; `copies` counts the slots of all rings."""
    return weights * (4 * single + 8 * double + 4 * copies)


def all_reduce_bytes(weights: int, replicas: int) -> float:
    """Bytes each replica sends for a sum over all of them, by a ring."""
    return 2 * (replicas - 1) / replicas * 4 * weights


# Measuring -------------------------------------------------------------------------------------


def quartiles(values: Iterable[float]) -> dict[str, float]:
    low, median, high = np.percentile(list(values), [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def seconds(call: Callable[[], Any], repeats: int, wait: Callable[[], Any] = lambda: None) -> float:
    """Seconds of one call; `wait` returns when the device has done what was asked of it."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - began) / repeats


def update_of(model: Any, decays: list[float]) -> tuple[Callable[[], None], Callable[[], Any]]:
    """An update of so many averages, and what waits for it."""
    from tf_lrtraj import backend, kernels
    from tf_lrtraj.averaging import AverageState

    variables = list(model.trainable_variables)
    state = AverageState(variables, {str(d): kernels.Exponential(d) for d in decays})
    update = backend.compiled_update(state.update, model, state.variables, variables)
    step = backend.scalars(np.asarray(5))
    return lambda: update(step), lambda: backend.to_numpy(backend.values(state.variables[-1:]))


def interleaved(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    for case in cases.values():
        case()  # traces and compiles
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, case in cases.items():
            times[name].append(case())
        print(f"round {number + 1} of {rounds}", flush=True)
    return times


def measure_updates(rounds: int) -> list[dict[str, Any]]:
    from tf_lrtraj.models import resnet

    rows, cases = [], {}
    for name, (depth, width, stem) in NETWORKS.items():
        size = (32, 32, 3) if stem == "cifar" else (224, 224, 3)
        model = resnet(depth, 10 if stem == "cifar" else 1000, size, stem=stem, width=width, seed=0)
        weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        kinds = {
            "1 average": ([0.9], {"single": 1}),
            "4 averages": ([0.9, 0.99, 0.999, 0.9995], {"single": 4}),
            "1 in float64": ([0.99999], {"double": 1}),
        }
        for kind, (decays, parts) in kinds.items():
            (call, wait), key = update_of(model, decays), f"{name}: {kind}"
            repeats = max(1, 2_000_000 // weights)
            cases[key] = lambda call=call, repeats=repeats, wait=wait: seconds(call, repeats, wait)
            rows.append(
                {
                    "network": name,
                    "averages": kind,
                    "weights": weights,
                    "variables": len(model.trainable_variables),
                    "bytes": update_bytes(weights, **parts),
                    "key": key,
                }
            )
    times = interleaved(cases, rounds)
    for row in rows:
        row["seconds"] = quartiles(times[row.pop("key")])
    return rows


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """`seconds = a * variables + bytes / b`, least squares of relative errors."""
    from scipy.optimize import nnls

    measured = np.array([row["seconds"]["median"] for row in rows])
    design = np.array([[row["variables"], row["bytes"]] for row in rows]) / measured[:, None]
    scale = design.max(axis=0)
    solution = nnls(design / scale, np.ones(len(rows)))[0] / scale
    errors = design @ solution - 1
    return {
        "seconds_per_variable": float(solution[0]),
        "bytes_per_second": float(1 / solution[1]),
        "median_relative_error": float(np.median(np.abs(errors))),
        "largest_relative_error": float(np.abs(errors).max()),
    }


def measure_passes(rounds: int) -> dict[str, Any]:
    """A forward pass and a pass for moments, over a training step."""
    import keras
    import tensorflow as tf

    from tf_lrtraj import backend
    from tf_lrtraj.models import resnet
    from tf_lrtraj.training.evaluation import Evaluator
    from tf_lrtraj.training.step import make_replica_step

    depth, width, stem = STEP_NETWORK
    model = resnet(depth, 10, (32, 32, 3), stem=stem, width=width, seed=0)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(BATCH, 32, 32, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 10, BATCH), tf.int32)
    step = tf.function(make_replica_step(model, optimizer, None, batch_size=BATCH))
    evaluator = Evaluator(tf.distribute.get_strategy(), model)
    parts = (model.trainable_variables, model.non_trainable_variables)
    weights = [backend.values(part) for part in parts]
    batch = (images, labels, tf.ones(BATCH))
    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: step(images, labels, {})[0]["loss"].numpy(),
        "forward": lambda: evaluator._evaluate_batch(weights, batch, True)["loss"][0].numpy(),
        "moments": lambda: tf.nest.flatten(evaluator._moments(*weights, images))[0].numpy(),
    }
    times = interleaved(
        {name: (lambda call=call: seconds(call, 20)) for name, call in calls.items()}, rounds
    )
    return {
        f"{name} over step": quartiles(np.array(times[name]) / np.array(times["step"]))
        for name in ("forward", "moments")
    }


def measure_disk(rounds: int) -> dict[str, Any]:
    """Rates at which ResNet-34's weights become a snapshot and a checkpoint."""
    from tf_lrtraj.averaging.snapshot_recorder import ModelSnapshots
    from tf_lrtraj.averaging.snapshots import Timetable
    from tf_lrtraj.models import resnet
    from tf_lrtraj.training.checkpoints import Checkpointer

    model = resnet(34, 1000, (224, 224, 3), stem="imagenet", width=64, seed=0)
    size = sum(4 * int(np.prod(v.shape)) for v in model.variables)
    with tempfile.TemporaryDirectory() as name:
        folder, steps = pathlib.Path(name), iter(range(10**6))
        calls: dict[str, Callable[[], Any]] = {}
        for encoding in ("exact", "int8"):
            snapshots = ModelSnapshots(model, folder / encoding, Timetable(1), encoding)
            calls[f"snapshot, {encoding}"] = lambda snapshots=snapshots: (
                snapshots.write(next(steps)),
                snapshots.wait(),
            )
        checkpointer = Checkpointer(folder / "checkpoints", {"model": model.variables}, keep=1)
        calls["checkpoint"] = lambda: checkpointer.save(next(steps), {})

        def plain() -> None:
            with open(folder / "plain", "wb") as file:
                file.write(b"\0" * size)
                file.flush()
                os.fsync(file.fileno())

        calls["the same bytes, written and synced"] = plain
        cases = {n: (lambda call=call: seconds(call, 1)) for n, call in calls.items()}
        times = interleaved(cases, rounds)
    return {
        "bytes": size,
        "seconds": {name: quartiles(values) for name, values in times.items()},
    }


# Tables ----------------------------------------------------------------------------------------


def megabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def milliseconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(record: dict[str, Any]) -> dict[str, str]:
    """What was measured, as tables, from the record alone."""
    model = record["model"]

    def predicted(variables: int, count: float) -> float:
        return model["seconds_per_variable"] * variables + count / model["bytes_per_second"]

    measured = [
        [
            row["network"],
            row["averages"],
            f"{row['weights']:,}",
            megabytes(row["bytes"]),
            f"{milliseconds(row['seconds']['median'])} "
            f"[{milliseconds(row['seconds']['low'])}, {milliseconds(row['seconds']['high'])}]",
            milliseconds(predicted(row["variables"], row["bytes"])),
        ]
        for row in record["updates"]
    ]
    passes = [
        [name, f"{v['median']:.2f} [{v['low']:.2f}, {v['high']:.2f}]"]
        for name, v in record["passes"].items()
    ]
    disk = [
        [
            name,
            f"{milliseconds(v['median'])} [{milliseconds(v['low'])}, {milliseconds(v['high'])}]",
            f"{record['disk']['bytes'] / v['median'] / 1e6:.0f} MB/s",
        ]
        for name, v in record["disk"]["seconds"].items()
    ]
    return {
        "updates": table(
            ["network", "averages", "weights", "bytes moved", "measured [quartiles]", "the model"],
            measured,
        ),
        "passes": table(["pass", "share of a step [quartiles]"], passes),
        "disk": table(["what", "seconds [quartiles]", "rate of the weights"], disk),
    }


def computed() -> dict[str, str]:
    """The tables of docs/scaling.md that follow from bytes alone."""
    return {"imagenet": imagenet_table(), "billion": billion_table()}


def imagenet_table() -> str:
    """ResNet-34 on ImageNet, 1,024 images a step."""
    weights, channels = RESNET34["weights"], RESNET34["batch_norm_channels"]
    rows = []
    for machine in MACHINES:
        images = 1024 / machine.replicas
        step = 3 * RESNET34["forward_flops"] * images / (machine.flops * machine.utilisation)
        one = update_bytes(int(weights), single=1) / machine.bandwidth
        four = update_bytes(int(weights), single=4) / machine.bandwidth
        double = update_bytes(int(weights), double=1) / machine.bandwidth
        gradients = all_reduce_bytes(int(weights), machine.replicas) / machine.link
        moments = all_reduce_bytes(int(2 * channels), machine.replicas)
        rows.append(
            [
                machine.name,
                milliseconds(step),
                f"{milliseconds(one)} ({one / step:.1%})",
                f"{milliseconds(four)} ({four / step:.1%})",
                f"{milliseconds(double)} ({double / step:.1%})",
                milliseconds(gradients),
                "0",
                f"{moments / 1e3:.0f} kB",
            ]
        )
    head = ["machine", "a step", "1 average", "4 averages", "1 in float64"]
    head += ["gradients' all-reduce", "averages' communication", "moments of one batch"]
    return table(head, rows)


def billion_table() -> str:
    """One EMA of 1e9 float32 weights."""
    weights = 10**9
    rows = []
    for machine in MACHINES:
        whole = state_bytes(weights, single=1)
        moved = update_bytes(weights, single=1)
        offloaded = 4 * weights / HOST_LINK
        rows.append(
            [
                machine.name,
                f"{megabytes(whole)}, {milliseconds(moved / machine.bandwidth)}",
                f"{megabytes(whole / machine.replicas)}, "
                f"{milliseconds(moved / machine.replicas / machine.bandwidth)}",
                f"0, {milliseconds(offloaded)} of transfer",
                f"{megabytes(4 * weights)}, {milliseconds(4 * weights / DISK)}",
                f"{megabytes(weights)}, {milliseconds(weights / DISK)}",
            ]
        )
    head = ["machine", "a copy on every chip", "sharded over the chips", "on the host"]
    return table([*head, "a snapshot", "a snapshot in int8"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tables", action="store_true", help="print the tables, measure nothing")
    options = parser.parse_args()
    if not options.tables:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        updates = measure_updates(options.rounds)
        record = {
            "command": f"python benchmarks/scaling.py --rounds={options.rounds}",
            "rounds": options.rounds,
            "cores": len(os.sched_getaffinity(0)),
            "tensorflow": tf.__version__,
            "updates": updates,
            "model": fit(updates),
            "passes": measure_passes(options.rounds),
            "disk": measure_disk(options.rounds),
        }
        RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found = computed()
    if RESULT.exists():
        record = json.loads(RESULT.read_text(encoding="utf-8"))
        print(json.dumps(record["model"], indent=1))
        found = {**tables(record), **found}
    for name, text in found.items():
        print(f"\n<!-- {name} -->\n{text}")


if __name__ == "__main__":
    main()
