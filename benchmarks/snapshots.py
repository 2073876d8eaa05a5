"""How long a training step waits for a snapshot of ResNet-34's weights, and how long it is written.

    python benchmarks/snapshots.py           # writes benchmarks/results/snapshots.json
    python benchmarks/snapshots.py --quick   # two rounds of a small model, writes nothing

One process per Keras backend, one after another.  A round measures every case once, in turn:

* `waits`: the call that takes a snapshot, which copies the weights; another thread writes them;
* `written`: from the end of that call until the file stands, and nothing else runs;
* `at once`: copying and writing in the calling thread, as it would be without the other one;
* the same without waiting for the disk (`fsync`), on the same file system.

The share of a round is `waits / written`.  Medians over rounds, with the intervals in which they
lie at 95 %.  A pause before each case lets threads of the one before come to rest.  The copy is
bound by memory and the write by the disk, so a machine that does other work lengthens the first
more than the second: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

RESULT = pathlib.Path(__file__).parent / "results" / "snapshots.json"
BACKENDS = ("tensorflow", "jax", "torch")
ENCODINGS = ("exact", "int16", "int8")
PAUSE = 0.2


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def worker(folder: pathlib.Path, rounds: int, width: int) -> dict[str, Any]:
    """{case: seconds of every round}, on the backend that runs."""
    from tf_lrtraj import backend
    from tf_lrtraj.averaging.snapshot_recorder import ModelSnapshots, recorded_variables
    from tf_lrtraj.averaging.snapshots import Timetable
    from tf_lrtraj.models import resnet

    model = resnet(34, 1000, (64, 64, 3), stem="imagenet", width=width, seed=0)
    timetable = Timetable(1, limit=2, when_full="drop_oldest")
    held = {e: ModelSnapshots(model, folder / e, timetable, e) for e in ENCODINGS}
    variables = [variable for variable, _ in recorded_variables(model)]
    times: dict[str, list[float]] = {}
    step = 0

    def measured(name: str, call: Callable[[], Any]) -> None:
        times.setdefault(name, []).append(seconds(call))

    for round_number in range(rounds + 1):
        for encoding, snapshots in held.items():
            for synced in (True, False):
                label = encoding if synced else f"{encoding}, no fsync"
                with mock.patch.object(os, "fsync", os.fsync if synced else lambda _: None):
                    step += 1
                    time.sleep(PAUSE)
                    measured(f"{label}: waits", lambda s=snapshots, n=step: s.write(n))
                    measured(f"{label}: written", snapshots.wait)
                    step += 1
                    time.sleep(PAUSE)
                    measured(
                        f"{label}: at once",
                        lambda s=snapshots, n=step: s.writer.write(
                            n, backend.to_numpy(backend.values(variables))
                        ),
                    )
        if round_number == 0:  # fills caches
            times.clear()
    numbers = sum(int(np.prod(v.shape)) for v in variables)
    return {"numbers": numbers, "bytes": {e: held[e].bytes_each for e in held}, "seconds": times}


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of seconds and of shares, with their intervals."""
    from tf_lrtraj.statistics import Median

    def of(values: Any) -> dict[str, float]:
        found = Median(values).interval()
        return {"median": found.value, "low": found.low, "high": found.high}

    rows: dict[str, Any] = {}
    for label in dict.fromkeys(name.split(": ")[0] for name in times):
        waits, written, at_once = (
            np.array(times[f"{label}: {what}"]) for what in ("waits", "written", "at once")
        )
        rows[label] = {
            "waits": of(waits),
            "written": of(written),
            "at once": of(at_once),
            "waits over written": of(waits / written),
            "waits over at once": of(waits / at_once),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of a small model")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--folder", help="where files are written; a temporary one by default")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds, width = (2, 8) if arguments.quick else (arguments.rounds, 64)
    if arguments.worker:
        print(json.dumps(worker(pathlib.Path(arguments.worker), rounds, width)))
        return
    from tf_lrtraj import records

    found: dict[str, Any] = {"rounds": rounds, "cpus": os.cpu_count(), "backends": {}}
    found["load"] = os.getloadavg()[0]  # before it starts
    for backend in BACKENDS:
        folder = tempfile.mkdtemp(prefix="snapshots-", dir=arguments.folder)
        command = [sys.executable, __file__, f"--worker={folder}", f"--rounds={rounds}"]
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        try:
            done = subprocess.run(
                [*command, *(["--quick"] if arguments.quick else [])],
                env=environment, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        finally:
            shutil.rmtree(folder)
        told = json.loads(done.stdout.splitlines()[-1])
        found |= {"numbers": told["numbers"], "bytes": told["bytes"]}
        found["backends"][backend] = rows = summary(told["seconds"])
        print(f"\n{backend}, {told['numbers'] / 1e6:.1f} million numbers")
        for label, row in rows.items():
            share = row["waits over written"]
            print(
                f"  {label:<18} waits {1e3 * row['waits']['median']:6.1f} ms  "
                f"written {1e3 * row['written']['median']:6.1f} ms  "
                f"at once {1e3 * row['at once']['median']:6.1f} ms  "
                f"share {share['median']:.3f} [{share['low']:.3f}, {share['high']:.3f}]",
                flush=True,
            )
    if not arguments.quick:
        records.write_json(RESULT, found)
        print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
