"""Averages of snapshots against the disk: memory, and streaming rate side by side.

    python benchmarks/post_hoc.py              # 200 snapshots of ResNet-34's size, 17 GB in a
                                               # temporary folder; writes results/post_hoc.json
    python benchmarks/post_hoc.py --quick      # few and small, writes nothing

The snapshots are written first and deleted at the end.  Then the same files are read in
alternating rounds by a plain loop of `readinto` into one buffer (the yardstick) and by
`combine` (checksums, decoding and sums of one average, then of three).  Before every round
each file is dropped from the page cache with posix_fadvise, which asks and does not force, so the
share of pages still cached is measured (mincore) and reported.  Memory is the growth of the
process's peak resident size during `combine`, in a fresh process.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import ctypes
import json
import mmap
import pathlib
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.averaging.post_hoc import combine, memory_bytes
from tf_lrtraj.averaging.snapshots import Snapshots, SnapshotWriter, Timetable, VariableSpec

RESULT = pathlib.Path(__file__).parent / "results" / "post_hoc.json"
MEMORY_BAR, RATE_BAR = 4.0, 0.5


def resnet34_variables() -> list[VariableSpec]:
    """The parameters and batch-norm statistics of ResNet-34 with 1000 classes (ImageNet stem)."""
    found: list[VariableSpec] = []

    def add(*shape: int, role: str = "trainable") -> None:
        found.append(VariableSpec(f"variable_{len(found)}", shape, "float32", role))

    def convolution(size: int, inputs: int, outputs: int) -> None:
        add(size, size, inputs, outputs)
        add(outputs)
        add(outputs)
        channels.append(outputs)

    channels: list[int] = []
    convolution(7, 3, 64)
    inputs = 64
    for outputs, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            if block == 0 and inputs != outputs:
                convolution(1, inputs, outputs)
            convolution(3, inputs, outputs)
            convolution(3, outputs, outputs)
            inputs = outputs
    add(512, 1000)
    add(1000)
    for outputs in channels:
        add(outputs, role="statistic")
        add(outputs, role="statistic")
    return found


def small_variables() -> list[VariableSpec]:
    return [
        VariableSpec(f"v{i}", (n,), "float32", "trainable")
        for i, n in enumerate((500_000, 64, 300_000))
    ]


def write(folder: pathlib.Path, variables: list[VariableSpec], count: int) -> float:
    """Writes the snapshots; seconds."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(v.shape, np.float32) for v in variables]
    writer = SnapshotWriter(folder, variables, Timetable(1))
    begin = time.perf_counter()
    for step in range(count):
        values[step % len(values)] += 0.01
        writer.write(step, values)
    return time.perf_counter() - begin


def drop(paths: list[pathlib.Path]) -> float:
    """Drops files from the page cache; the share of their pages that is still there."""
    os.sync()
    cached = pages = 0
    libc = ctypes.CDLL(None, use_errno=True)
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.fileno()).st_size
            count = -(-size // mmap.PAGESIZE)
            # A private mapping is writable for ctypes to take its address; nothing is written.
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as view:
                start = ctypes.c_char.from_buffer(view)
                there = (ctypes.c_ubyte * count)()
                if libc.mincore(
                    ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), there
                ):
                    return float("nan")
                cached += int(np.count_nonzero(np.frombuffer(there, np.uint8) & 1))
                pages += count
                del start
    return cached / pages


def plain_read(paths: list[pathlib.Path]) -> float:
    """Seconds to read all files, one after the other, into one buffer of 1 MiB."""
    buffer = memoryview(bytearray(1 << 20))
    begin = time.perf_counter()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def our_pass(snapshots: Snapshots, averages: int) -> float:
    rows = np.random.default_rng(1).uniform(0.5, 1.5, (averages, len(snapshots)))
    weights = {f"a{i}": row / row.sum() for i, row in enumerate(rows)}
    begin = time.perf_counter()
    combine(snapshots, weights, progress=False)
    return time.perf_counter() - begin


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(folder: str, averages: int) -> None:
    """In a process of its own: prints the growth of the peak resident size as JSON."""
    snapshots = Snapshots(folder)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    before = pages * mmap.PAGESIZE  # what is resident now, which the peak so far may exceed
    our_pass(snapshots, averages)
    print(json.dumps(peak_bytes() - before))


def memory(folder: pathlib.Path, averages: int) -> int:
    done = subprocess.run(
        [
            sys.executable,
            str(pathlib.Path(__file__).resolve()),
            "--memory_of",
            str(folder),
            str(averages),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few small snapshots; no record")
    parser.add_argument("--snapshots", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        measure_memory(arguments.memory_of[0], int(arguments.memory_of[1]))
        return
    variables = small_variables() if arguments.quick else resnet34_variables()
    count = 12 if arguments.quick else arguments.snapshots
    size = sum(v.size for v in variables)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="post_hoc_", dir=arguments.folder))
    try:
        free = shutil.disk_usage(folder).free
        if free < 1.1 * 4 * size * count:
            sys.exit(f"{4 * size * count / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        print(f"writing {count} snapshots of {size:,} values to {folder}", flush=True)
        seconds = write(folder / "snapshots", variables, count)
        snapshots = Snapshots(folder / "snapshots")
        found = run(snapshots, arguments.rounds)
        found["write_MB_per_s"] = count * snapshots.nbytes / seconds / 1e6
    finally:
        shutil.rmtree(folder)
    trainable = sum(v.size for v in variables if v.role == "trainable")
    found |= {
        "command": "python benchmarks/post_hoc.py",
        "snapshots": count,
        "values": size,
        "trainable_values": trainable,
        "bars": {"copies": MEMORY_BAR, "rate": RATE_BAR},
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }
    if not arguments.quick:
        RESULT.parent.mkdir(exist_ok=True)
        records.write_json(RESULT, found)
        print(f"written: {RESULT}")


def run(snapshots: Snapshots, rounds: int) -> dict[str, Any]:
    paths = [snapshots.path(int(step)) for step in snapshots.steps]
    total = sum(path.stat().st_size for path in paths)
    copy = 4 * snapshots.num_weights
    found: dict[str, Any] = {"memory": {}, "rates": {}, "cached_share": []}
    for averages in (1, 3):
        grown = memory(snapshots.folder, averages)
        found["memory"][f"{averages} averages"] = {
            "peak_growth_bytes": grown,
            "copies": grown / copy,
            "stated_bytes": memory_bytes(snapshots, averages),
        }
        print(f"{averages} averages: peak grows by {grown / copy:.2f} float32 copies", flush=True)
    names = {"plain": 0, "1 average": 1, "3 averages": 3}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, averages in names.items():
            found["cached_share"].append(drop(paths))
            seconds = our_pass(snapshots, averages) if averages else plain_read(paths)
            rates[name].append(total / seconds / 1e6)
            print(f"{name:<12}{rates[name][-1]:8.0f} MB/s", flush=True)
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates["plain"], strict=True)]
        found["rates"][name] = {
            "MB_per_s": statistics.median(values),
            "MB_per_s_range": [min(values), max(values)],
            "of_plain": statistics.median(ratios),
            "of_plain_range": [min(ratios), max(ratios)],
        }
    for name in list(names)[1:]:
        print(f"{name}: {found['rates'][name]['of_plain']:.2f} of the plain loop's rate")
    print(f"still cached before a round: at most {max(found['cached_share']):.1%} of the pages")
    return found


if __name__ == "__main__":
    main()
