"""How fast averages become schedules and schedules averages, against single compiled passes.

    python benchmarks/equivalence.py            # writes benchmarks/results/equivalence.json
    python benchmarks/equivalence.py --quick    # a tenth of the length, writes nothing

Every ratio is the median over repeats of (time of ours / time of the yardstick), the two
measured one after the other.

Yardsticks:
- maps between weights and schedules at T updates: one triangular band solve of BLAS of the same
  length (two bands with momentum), a single compiled pass over the data;
- the gradient of a loss curve with respect to all rates: the loss curve itself;
- the plain Python loop of the same recursion, for scale.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import pathlib
from types import SimpleNamespace

import numpy as np
from scipy.linalg import blas

# A sibling script: its timing is the same for all benchmarks of the theory.
from theory import compare, processor  # type: ignore[import-not-found]

from tf_lrtraj import kernels, records
from tf_lrtraj import theory as maps
from tf_lrtraj.theory.schedule_fit import loss_curve, loss_curve_gradient

RESULT = pathlib.Path(__file__).parent / "results" / "equivalence.json"


def bench_maps(num_steps: int, repeats: int) -> dict:
    weights = kernels.Exponential(1.0 - 1e-5).weights(num_steps)
    falling = np.linspace(0.2, 0.01, num_steps)
    schedule = maps.schedule_from_weights(weights, falling, 0.5)
    pass_one = np.full((2, num_steps), 0.5, order="F")
    pass_two = np.full((3, 2 * num_steps), 0.3, order="F")
    one, two = np.ones(num_steps), np.ones(2 * num_steps)

    def single() -> None:
        blas.dtbsv(1, pass_one, one, diag=1)

    def double() -> None:
        blas.dtbsv(2, pass_two, two, diag=1)

    cases = {
        "schedule from weights, frozen gradients": (
            lambda: maps.schedule_from_weights(weights, 0.2),
            single,
        ),
        "schedule from weights, one curvature, varying base": (
            lambda: maps.schedule_from_weights(weights, falling, 0.5),
            single,
        ),
        "weights from schedule, one curvature, varying base": (
            lambda: maps.weights_from_schedule(schedule, falling, 0.5),
            single,
        ),
        "schedule from weights, one curvature, momentum": (
            lambda: maps.schedule_from_weights(weights, falling, 0.5, 0.9),
            double,
        ),
    }
    return {
        f"{name}, T = {num_steps}": compare(ours, bare, repeats)
        for name, (ours, bare) in cases.items()
    }


def bench_loop(num_steps: int, repeats: int) -> dict:
    weights = kernels.Exponential(0.999).weights(num_steps)
    base = np.linspace(0.2, 0.01, num_steps)

    def loop() -> np.ndarray:
        # Same formula as ours; the textbook 1 - a Σ w cancels to nothing on runs this long.
        effect, before, schedule = 0.0, float(weights.sum()), np.empty(num_steps)
        for j in range(num_steps - 1, -1, -1):
            contraction = 1.0 - base[j + 1] * 0.5 if j + 1 < num_steps else 0.0
            effect = weights[j + 1] + contraction * effect
            before = before - weights[j + 1]
            schedule[j] = base[j] * effect / (before + effect)
        return schedule

    found = maps.schedule_from_weights(weights, base, 0.5)
    np.testing.assert_allclose(found[-1000:], loop()[-1000:], rtol=1e-9)
    name = f"schedule from weights against a Python loop, T = {num_steps}"
    return {name: compare(lambda: maps.schedule_from_weights(weights, base, 0.5), loop, repeats)}


def bench_gradient(num_steps: int, repeats: int) -> dict:
    model = SimpleNamespace(curvatures=np.geomspace(1e-3, 1, 20), noise_variances=np.ones(20))
    rates, start, slopes = np.linspace(0.9, 0.01, num_steps), np.ones(20), np.ones(num_steps + 1)
    return {
        f"gradient of the loss curve, 20 curvatures, T = {num_steps}": compare(
            lambda: loss_curve_gradient(model, rates, start, slopes),
            lambda: loss_curve(model, rates, start),
            repeats,
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the length, no file")
    arguments = parser.parse_args()
    num_steps, repeats = (100_000, 5) if arguments.quick else (1_000_000, 9)
    found = {
        "command": "python benchmarks/equivalence.py",
        "machine": {"processor": processor(), "numpy": np.__version__},
        "target_seconds": 1.0,
        "results": {
            **bench_maps(num_steps, repeats),
            **bench_loop(num_steps // 10, 3),
            **bench_gradient(num_steps // 100, repeats),
        },
    }
    for name, result in found["results"].items():
        print(f"{result['ratio']:8.3f} x  {result['seconds']:8.4f} s  {name}")
    if not arguments.quick:
        RESULT.parent.mkdir(exist_ok=True)
        records.write_json(RESULT, found)


if __name__ == "__main__":
    main()
