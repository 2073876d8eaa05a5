#!/usr/bin/env python
"""Trains a tiny network for 20,000 steps with all features, and checks for growth of resources.

Averages, snapshots with a limit, probes, checkpoints, evaluation and TensorBoard are enabled.  At
every logged row the process records its resident memory, its open files, its Python objects, and
the number and size of the files in the workdir.  `CRITERIA` below, which were fixed before any run,
require:

  memory   a line fitted to the last 75 % of the samples rises by at most 10 MB in 10,000 steps
  files    the number of files never exceeds the limit of the settings, which does not depend on
           the number of steps (except for one file per measured probe)
  open     no more files are open in the last quarter of the run than in the second

Examples:

  tools/long_run.py                          # about 10 minutes on 2 cores; into results/long_run
  tools/long_run.py --steps=600 --out=/tmp/l # a short run
  tools/long_run.py --page                   # redraw page and figure from the record
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import platform
import sys
import tempfile
import time
from importlib import metadata
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
CRITERIA = {"megabytes_per_10000_steps": 10.0, "skipped_share": 0.25}
SNAPSHOTS, CHECKPOINTS = 16, 2  # at most so many are kept
EVERY = {"log": 50, "evaluate": 500, "checkpoint": 250, "snapshot": 10, "probe": 2500}


def get_config(steps: int = 20_000) -> Any:
    from tf_lrtraj.runs.run_config import default_config

    config = default_config()
    config.name = "a long run"
    config.data.batch_size = 8
    config.data.augmentation = "crop"
    config.model.width = 1
    config.optimizer.momentum = 0.5
    config.total = f"{steps} steps"
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.999},
        "swa": {"kernel": "Uniform", "start": steps // 2, "every": 5},
        "two_point": {"kernel": "TwoPoint", "gap": 20, "batch_norm": "average"},
    }
    config.batch_norm.batches = 2
    config.evaluate.every = f"{min(EVERY['evaluate'], steps // 4)} steps"
    config.checkpoint.every = f"{min(EVERY['checkpoint'], steps // 8)} steps"
    config.checkpoint.keep = CHECKPOINTS
    config.snapshots.every = f"{EVERY['snapshot']} steps"
    config.snapshots.limit = SNAPSHOTS
    probe = min(EVERY["probe"], steps // 3)
    config.probes = {"gradients": {"every": f"{probe} steps", "batches": 3}, "distance": {}}
    config.log_every = f"{EVERY['log']} steps"
    config.threads = 1
    return config


def files_allowed(steps: int) -> int:
    """Returns the largest allowed number of files in a workdir, temporary ones included."""
    probes = steps // min(EVERY["probe"], steps // 3) + 2
    named = 6  # config, run, schedule, metrics, timing, report
    return named + (SNAPSHOTS + 2) + 5 * (CHECKPOINTS + 1) + probes + 4 + 1 + 2


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def watch(workdir: pathlib.Path, steps: int) -> dict[str, Any]:
    """Runs the training and returns {name: samples} at every logged row."""
    from tf_lrtraj.runs import train_run
    from tf_lrtraj.training.evaluation import Evaluator
    from tf_lrtraj.training.log import RunLog
    from tf_lrtraj.training.strategies import make_strategy

    names = ("step", "seconds", "rss", "descriptors", "objects", "files", "bytes", "traces")
    samples: dict[str, list[float]] = {name: [] for name in names}
    began, real, evaluators = time.perf_counter(), RunLog.train, []

    def sampled(log: Any, step: int, *args: Any) -> None:
        real(log, step, *args)
        sizes = [path.stat().st_size for path in workdir.rglob("*") if path.is_file()]
        functions = [f for e in evaluators for f in (e._evaluate_batch, e._moments)]
        found = {
            "step": step,
            "seconds": round(time.perf_counter() - began, 2),
            "rss": resident(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "objects": len(gc.get_objects()) if step % 500 == 0 else -1,
            "files": len(sizes),
            "bytes": sum(sizes),
            "traces": sum(f.experimental_get_tracing_count() for f in functions),
        }
        for name, value in found.items():
            samples[name].append(value)

    made = Evaluator.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        evaluators.append(self)

    RunLog.train, Evaluator.__init__ = sampled, noted  # type: ignore[method-assign]
    try:
        plain, dataset = train_run.prepare(get_config(steps), workdir)
        strategy = make_strategy("one_device")
        train_run.run(plain, dataset, workdir, strategy, "one_device", tell=lambda text: None)
    finally:
        RunLog.train, Evaluator.__init__ = real, made  # type: ignore[method-assign]
    return samples


def judge(samples: dict[str, Any], steps: int) -> dict[str, Any]:
    """Applies `CRITERIA` to the samples."""
    import numpy as np

    step, rss = np.array(samples["step"]), np.array(samples["rss"]) / 1e6
    late = step > CRITERIA["skipped_share"] * steps
    slope, start = np.polyfit(step[late], rss[late], 1)
    quarter = np.array(samples["descriptors"])[step > 0.75 * steps]
    second = np.array(samples["descriptors"])[(step > 0.25 * steps) & (step <= 0.5 * steps)]
    found = {
        "megabytes_per_10000_steps": round(1e4 * slope, 3),
        "resident_megabytes": [round(float(rss[late][0]), 1), round(float(rss[-1]), 1)],
        "most_files": int(max(samples["files"])),
        "files_allowed": files_allowed(steps),
        "descriptors": [int(second.max()), int(quarter.max())],
        "traces": [int(np.array(samples["traces"])[late][0]), int(samples["traces"][-1])],
    }
    holds = {
        "memory": found["megabytes_per_10000_steps"] <= CRITERIA["megabytes_per_10000_steps"],
        "files": found["most_files"] <= found["files_allowed"],
        "open": found["descriptors"][1] <= found["descriptors"][0],
    }
    return {**found, "line": [slope, start], "holds": holds}


def draw(record: dict[str, Any]) -> str:
    """Returns the figure as SVG."""
    import io

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "long run"
    import numpy as np
    from matplotlib import pyplot as plt

    samples, judged = record["samples"], record["judged"]
    step = np.array(samples["step"])
    figure, axes = plt.subplots(3, 1, figsize=(7, 7), sharex=True, constrained_layout=True)
    late = step > CRITERIA["skipped_share"] * record["steps"]
    axes[0].plot(step, np.array(samples["rss"]) / 1e6, lw=1, label="resident memory")
    slope, start = judged["line"]
    label = f"line through the last 75 %: {judged['megabytes_per_10000_steps']:+.2f} MB per 10,000"
    axes[0].plot(step[late], slope * step[late] + start, "--", lw=1, label=label)
    axes[0].set_ylabel("MB")
    axes[1].plot(step, samples["files"], lw=1, label="files in the workdir")
    axes[1].axhline(judged["files_allowed"], ls="--", lw=1, color="gray", label="allowed")
    axes[1].plot(step, samples["descriptors"], lw=1, label="open files of the process")
    axes[1].set_ylim(0)
    axes[2].plot(step, np.array(samples["bytes"]) / 1e6, lw=1, label="size of the workdir")
    axes[2].set_ylabel("MB")
    axes[2].set_ylim(0)
    axes[2].set_xlabel("step")
    for axis in axes:
        axis.legend(loc="lower right", fontsize=8)
        axis.grid(alpha=0.3)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()


def page(record: dict[str, Any]) -> str:
    judged, samples = record["judged"], record["samples"]
    yes = {True: "yes", False: "NO"}
    low, high = judged["resident_megabytes"]
    return "\n".join(
        [
            f"# {record['steps']:,} steps with everything on",
            "",
            f"Made by `{record['command']}`; `tools/long_run.py --help` says what was on and what",
            "must hold, which was fixed beforehand.",
            "",
            "| criterion | found | allowed | holds |",
            "|---|---|---|---|",
            f"| memory | {judged['megabytes_per_10000_steps']:+.2f} MB per 10,000 steps "
            f"({low:.0f} MB after a quarter of the run, {high:.0f} MB at the end) "
            f"| {CRITERIA['megabytes_per_10000_steps']:.0f} MB "
            f"| {yes[judged['holds']['memory']]} |",
            f"| files in the workdir | at most {judged['most_files']} | {judged['files_allowed']} "
            f"| {yes[judged['holds']['files']]} |",
            f"| open files of the process | {judged['descriptors'][1]} in the last quarter "
            f"| {judged['descriptors'][0]}, as in the second | {yes[judged['holds']['open']]} |",
            "",
            f"The evaluation's functions were traced {judged['traces'][1]} times in all, "
            f"{judged['traces'][0]} of them in the first quarter. The workdir ended with "
            f"{samples['bytes'][-1] / 1e6:.1f} MB, after {samples['seconds'][-1]:.0f} s of wall "
            "clock on a machine that did other work besides.",
            "",
            "![memory, files and size over the run](long_run.svg)",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in record["machine"].items()),
            "",
        ]
    )


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if "model name" in line]
    return {
        "processor": names[0] if names else "",
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000, help="how many (20,000)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "long_run")
    parser.add_argument("--workdir", type=pathlib.Path, help="a temporary folder by default")
    parser.add_argument("--page", action="store_true", help="only draw, from the record")
    given = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(ROOT))
    from tf_lrtraj.records import write_atomically, write_json

    given.out.mkdir(parents=True, exist_ok=True)
    if given.page:
        record = json.loads((given.out / "record.json").read_text())
    else:
        from tf_lrtraj.bin import common

        common.keep_freed_memory()  # as the training program does
        common.configure_threads(1, True)
        with tempfile.TemporaryDirectory() as temporary:
            samples = watch((given.workdir or pathlib.Path(temporary)).resolve(), given.steps)
        record = {
            "command": "tools/long_run.py" + f" --steps={given.steps}" * (given.steps != 20_000),
            "steps": given.steps,
            "machine": machine(),
            "samples": samples,
        }
    record["judged"] = judge(record["samples"], record["steps"])
    write_json(given.out / "record.json", record)
    write_atomically(given.out / "long_run.svg", draw(record))
    write_atomically(given.out / "README.md", page(record))
    print(page(record))
    return 0 if all(record["judged"]["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
