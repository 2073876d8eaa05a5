"""How fast the theory is, against the least work anyone could do, in one process.

    python benchmarks/theory.py            # two minutes of CPU; writes results/theory.json
    python benchmarks/theory.py --quick    # fewer steps, half a minute, writes nothing

Every ratio is the median over repeats of (time of ours / time of the yardstick), the two
measured one after the other, so that a slower moment of the machine slows down both.  Times
are CPU seconds of the one thread in use, which other programs on the machine disturb least.

Yardsticks:
- moments: the bare recursion of the raw iterate's second moments and loss in NumPy, as one
  would write it, against the losses of the raw iterate, an EMA, SWA and a two-point average;
- Monte Carlo: drawing the same number of normal variables in blocks of the same size.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import pathlib
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy

from tf_lrtraj import kernels, records, theory
from tf_lrtraj.theory.moments import loss_curves

RESULT = pathlib.Path(__file__).parent / "results" / "theory.json"
MODES = 10_000


def seconds(function: Callable[[], Any]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def compare(ours: Callable[[], Any], yardstick: Callable[[], Any], repeats: int) -> dict:
    """Seconds of both and their ratio, medians over alternating repeats."""
    pairs = [(seconds(ours), seconds(yardstick)) for _ in range(repeats)]
    ratios = [mine / bare for mine, bare in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "seconds": statistics.median(mine for mine, _ in pairs),
        "yardstick_seconds": statistics.median(bare for _, bare in pairs),
        "repeats": repeats,
    }


def show(name: str, result: dict) -> dict:
    print(f"{result['ratio']:6.2f} x  {result['seconds']:8.3f} s  {name}", flush=True)
    return result


def bare_recursion(a: np.ndarray, noise: np.ndarray, rates: np.ndarray) -> np.ndarray:
    second = np.ones_like(a)
    losses = np.empty(len(rates) + 1)
    losses[0] = 0.5 * a @ second
    for t, rate in enumerate(rates):
        second = (1.0 - rate * a) ** 2 * second + rate**2 * a**2 * noise
        losses[t + 1] = 0.5 * a @ second
    return losses


def bench_moments(num_steps: int, repeats: int, gaps: tuple[int, ...] = (100, 1000)) -> dict:
    a = np.geomspace(1e-4, 1.0, MODES)
    noise, start = np.ones(MODES), np.ones(MODES)
    schedules = {
        "constant rate": np.full(num_steps, 0.5),
        "cosine": 0.25 * (1.0 + np.cos(np.pi * np.arange(num_steps) / num_steps)) + 1e-3,
    }
    found = {}
    for schedule, rates in schedules.items():
        for gap in gaps:
            named = {
                "ema": kernels.Exponential(0.999),
                "swa": kernels.Uniform(start=num_steps // 2),
                "two_point": kernels.TwoPoint(gap),
            }
            curves: dict[str, np.ndarray] = {}

            def ours(rates=rates, named=named, curves=curves):
                curves.update(loss_curves(a, noise, rates, start, named))

            def bare(rates=rates, curves=curves):
                curves["bare"] = bare_recursion(a, noise, rates)

            result = compare(ours, bare, repeats)
            np.testing.assert_allclose(curves["raw"], curves["bare"], rtol=1e-9)
            name = f"raw, EMA, SWA, two-point (gap {gap}), {schedule}, {num_steps} steps"
            found[name] = show(name, result)
    return found


def bench_memory() -> dict:
    """Peak bytes beyond the curves returned, for a run and one twice as long."""
    a = np.geomspace(1e-4, 1.0, 2000)
    named = {
        "ema": kernels.Exponential(0.99),
        "swa": kernels.Uniform(),
        "two_point": kernels.TwoPoint(50),
        "window": kernels.Window(50),
    }
    found = {}
    for num_steps in (1500, 3000):
        rates = np.linspace(0.5, 0.1, num_steps)
        tracemalloc.start()
        curves = loss_curves(a, np.ones(2000), rates, np.ones(2000), named)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found[f"{num_steps} steps"] = {
            "peak_bytes": peak,
            "bytes_returned": sum(curve.nbytes for curve in curves.values()),
        }
    short, long = found.values()
    found["growth_bytes_per_step"] = (long["peak_bytes"] - short["peak_bytes"]) / 1500
    return found


def bench_monte_carlo(repeats: int) -> dict:
    size, runs, num_steps = 100, 1000, 200
    model = theory.QuadraticModel(np.geomspace(0.01, 1.0, size), np.ones(size))
    rates, start = np.full(num_steps, 0.5), np.ones(size)

    def draw():
        random = np.random.default_rng(0)
        block = np.empty((163, size))
        for _ in range(num_steps * runs * size // block.size):
            random.standard_normal(out=block)

    cases = {
        "raw": {},
        "raw and EMA": {"ema": kernels.Exponential(0.9)},
        "raw, EMA and two-point": {"ema": kernels.Exponential(0.9), "two": kernels.TwoPoint(20)},
    }
    return {
        name: show(
            f"Monte Carlo, {name}",
            compare(lambda n=named: model.simulate(rates, start, runs, 0, n), draw, repeats),
        )
        for name, named in cases.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps; nothing is written")
    arguments = parser.parse_args()
    moments = bench_moments(2000, 3) if arguments.quick else bench_moments(10_000, 5)
    if not arguments.quick:
        moments |= bench_moments(100_000, 1, gaps=(100,))
    found = {
        "command": "python benchmarks/theory.py",
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "blas_threads": os.environ["OMP_NUM_THREADS"],
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "moments": {"modes": MODES, "target_ratio": 4.0, "results": moments},
        "monte_carlo": {"target_ratio": 1.5, "results": bench_monte_carlo(7)},
        "memory": bench_memory(),
    }
    print(f"memory per step beyond 1500: {found['memory']['growth_bytes_per_step']:.0f} bytes")
    if not arguments.quick:
        RESULT.parent.mkdir(exist_ok=True)
        records.write_json(RESULT, found)


def processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
