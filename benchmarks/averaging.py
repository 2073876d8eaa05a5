"""What averages add to a training, by this package and by others, measured side by side.

    pip install torch jax timm ema-pytorch optax
    python benchmarks/averaging.py            # 8 minutes; writes benchmarks/results/averaging.*
    python benchmarks/averaging.py --quick    # two rounds, writes nothing

One worker process per Keras backend holds the models and makes one call of a case at a time, in
turn with the others, so that all share the machine's moods (`averaging_cases.py` says what the
cases are).  A round measures every case once: a pause, since threads of an earlier case (torch's,
by OpenMP) keep a core busy for milliseconds after their work, one call to fill the caches, and
the median of three calls.  Every other round goes through the cases backwards.

What averages add to a step is its time less that of the same step without averages, in the same
round; an update on its own adds its time.  Ratios are to a plain pass over the weights,
`b += c·(w - b)` compiled on its own, by the same backend in the same round.  It streams 12 bytes
per weight; averages in the optimizer's step find the weights in the cache and need 8.  Over
rounds: medians, and the intervals in which they lie at 95 %.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_lrtraj import records
from tf_lrtraj.statistics import Interval, Median

RESULTS = pathlib.Path(__file__).parent / "results"
BACKENDS = ("tensorflow", "torch", "jax")
PAUSE, CALLS = 0.03, 3  # seconds before a case; timed calls of it in a round
OURS = ("AveragedOptimizer", "WeightAveraging")


# In a worker -----------------------------------------------------------------------------------


def worker() -> None:
    """Reads names of cases from standard input, runs each, and writes its seconds."""
    from tf_lrtraj.bin.common import keep_freed_memory

    keep_freed_memory()
    import averaging_cases

    cases = {case.name: case for case in averaging_cases.all_cases()}
    for case in cases.values():
        for _ in range(2):
            case.call()
    keys = ("name", "network", "group", "tool", "averages")
    print(json.dumps([{key: getattr(c, key) for key in keys} for c in cases.values()]), flush=True)
    for line in sys.stdin:
        call = cases[line.rstrip("\n")].call
        began = time.perf_counter()
        call()
        print(time.perf_counter() - began, flush=True)


# In the parent ---------------------------------------------------------------------------------


class Worker:
    """A process that times cases on one backend.

    Attributes:
        cases: what it can time, as dicts of `name`, `network`, `group`, `tool` and `averages`.
        seconds: name of a case → its time in each round so far.
    """

    def __init__(self, backend: str) -> None:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.cases: list[dict[str, Any]] = []
        self.seconds: dict[str, list[float]] = {}

    def wait_until_ready(self) -> None:
        line = self._out.readline()
        if not line:
            raise SystemExit("A worker ended before it was ready: its message is above.")
        self.cases = json.loads(line)
        self.seconds = {case["name"]: [] for case in self.cases}

    def measure(self, name: str) -> None:
        time.sleep(PAUSE)
        self._call(name)
        self.seconds[name].append(statistics.median(self._call(name) for _ in range(CALLS)))

    def _call(self, name: str) -> float:
        self._in.write(name + "\n")
        self._in.flush()
        return float(self._out.readline())

    def stop(self) -> None:
        self._in.close()
        self._process.wait()

    # What was measured ------------------------------------------------------------------------

    def times(self, name: str) -> np.ndarray:
        return np.array(self.seconds[name])

    def rows(self) -> Iterator[dict[str, Any]]:
        """What each case with averages adds, [rounds] each of `added` and `plain`.

        `plain` is a plain pass over ResNet-34's weights, `step` the step without averages
        (None for updates on their own).
        """
        alone = {(c["network"], c["group"]): c["name"] for c in self.cases if not c["tool"]}
        for case in self.cases:
            if not case["tool"]:
                continue
            step = alone[case["network"], case["group"]] if case["group"] else None
            added = self.times(case["name"]) - (0.0 if step is None else self.times(step))
            yield {
                **case,
                "added": added,
                "plain": self.times("plain pass"),
                "step": None if step is None else self.times(step),
            }


def interval(values: np.ndarray) -> dict[str, float]:
    return Median(values).interval()._asdict()


def in_words(one: dict[str, float], digits: int = 2) -> str:
    found = Interval(**one)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def run(minutes: float | None) -> tuple[dict[str, Worker], int]:
    """Measures until the minutes are over; two rounds where there are none.

    Returns:
        (worker by backend, number of rounds)
    """
    began = time.monotonic()
    workers = {backend: Worker(backend) for backend in BACKENDS}
    for backend in tqdm(BACKENDS, desc="workers build and compile"):
        workers[backend].wait_until_ready()
    rounds, longest = 0, 0.0
    with tqdm(desc="rounds") as progress:
        while rounds < 2 or (
            minutes is not None and time.monotonic() + longest < began + 60 * minutes
        ):
            round_began = time.monotonic()
            for one in workers.values():
                for case in one.cases[:: -1 if rounds % 2 else 1]:
                    one.measure(case["name"])
            longest = max(longest, time.monotonic() - round_began)
            rounds += 1
            progress.update()
    for one in workers.values():
        one.stop()
    return workers, rounds


def summary(workers: dict[str, Worker]) -> dict[str, Any]:
    """Medians and intervals of everything that is quoted."""
    measured = {backend: list(one.rows()) for backend, one in workers.items()}
    torch, tensorflow = workers["torch"], workers["tensorflow"]
    floor = torch.times("floor")
    rows = [
        {
            "backend": backend,
            **{key: row[key] for key in ("network", "group", "tool", "averages")},
            "milliseconds": interval(1e3 * row["added"]),
            "over_plain_pass": interval(row["added"] / row["plain"]),
            "share_of_step": None if row["step"] is None else interval(row["added"] / row["step"]),
        }
        for backend, found in measured.items()
        for row in found
    ]
    lending = tensorflow.times("borrow and return") / tensorflow.times("weights copied twice")
    swapping = tensorflow.times("Keras SwapEMAWeights, swap and back")
    return {
        "rows": rows,
        "milliseconds_of_plain_pass": {
            b: interval(1e3 * one.times("plain pass")) for b, one in workers.items()
        },
        "plain_pass_over_flat_vectors": {
            b: interval(one.times("plain pass") / floor) for b, one in workers.items()
        },
        "ours_over_peers": [one for found in measured.items() for one in beside_peers(*found)],
        "borrow_over_copying_twice": interval(lending),
        "swap_over_copying_twice": interval(swapping / tensorflow.times("weights copied twice")),
    }


def beside_peers(backend: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What one average adds to an update here over what it adds by each peer, round by round.

    Not to a step of ResNet-20, where the difference may be lost in the step's own scatter.
    """
    ours = {
        (row["network"], row["group"]): row["added"]
        for row in rows
        if row["tool"] == "AveragedOptimizer" and row["averages"] == 1
    }
    for row in rows:
        if row["tool"].startswith(OURS) or not row["network"].startswith("update"):
            continue
        group = row["group"] or "eager"  # updates on their own are of torch
        yield {
            "backend": backend,
            **{key: row[key] for key in ("group", "tool")},
            "ratio": interval(ours[row["network"], group] / row["added"]),
        }


def page(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    passes = found["milliseconds_of_plain_pass"].items()
    lines = [
        "# What averages add to a training",
        "",
        f"Of `python benchmarks/averaging.py`: {found['rounds']} rounds on {found['cores']} "
        "cores, medians and the intervals in which they lie at 95 %. A plain pass over the "
        "weights of ResNet-34 takes "
        + ", ".join(f"{one['value']:.1f} ms on {backend}" for backend, one in passes)
        + ".",
        "",
    ]
    networks = list(dict.fromkeys(row["network"] for row in found["rows"]))
    for network in networks:
        rows = [row for row in found["rows"] if row["network"] == network]
        shares = all(row["share_of_step"] is not None for row in rows)
        last = "share of the step, %" if shares else "over a plain pass"
        lines += [f"## {network[0].upper()}{network[1:]}", ""]
        lines += [f"| backend | tool | averages | added, ms | {last} |", "|---|---|---:|---:|---:|"]
        for row in rows:
            where = f"{row['backend']}, {row['group']}" if row["group"] else row["backend"]
            tool = row["tool"] if row["group"] else f"{row['tool']} (update on its own)"
            if shares:
                share = {key: 100 * value for key, value in row["share_of_step"].items()}
                ratio = in_words(share, 1)
            else:
                ratio = in_words(row["over_plain_pass"])
            added = in_words(row["milliseconds"])
            lines.append(f"| {where} | {tool} | {row['averages']} | {added} | {ratio} |")
        lines.append("")
    lines += ["## One average by `AveragedOptimizer` over one by another tool, of an update", ""]
    lines += ["| backend | tool | ratio |", "|---|---|---:|"]
    lines += [
        f"| {one['backend']}, {one['group'] or 'eager'} | {one['tool']} | "
        f"{in_words(one['ratio'])} |"
        for one in found["ours_over_peers"]
    ]
    lines += [
        "",
        "Borrowing an average and returning it, over copying the weights twice, on TensorFlow: "
        f"{in_words(found['borrow_over_copying_twice'])}; Keras' `SwapEMAWeights` there and back: "
        f"{in_words(found['swap_over_copying_twice'])}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds; writes nothing")
    parser.add_argument("--minutes", type=float, default=7.5, help="of the whole measurement")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    workers, rounds = run(None if options.quick else options.minutes)
    found = {"rounds": rounds, "cores": len(os.sched_getaffinity(0)), **summary(workers)}
    text = page(found)
    print(text)
    if not options.quick:
        records.write_json(RESULTS / "averaging.json", found)
        (RESULTS / "averaging.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
