#!/usr/bin/env python3
"""Hands generated inputs to every entry point; none may be refused in any but a clean way.

  tools/fuzz.py                               20,000 inputs; writes results/fuzzing
  tools/fuzz.py --inputs=2000 --seed=7 --output=/tmp/fuzzing
  tools/fuzz.py --only=snapshots,reports --per_target=1000 --output=

Clean: the input is used, or refused by an error the package documents, with a message that
names a value or a file, within 20 s of processor time and 500 MB of memory; after a refusal every
file is as it was.  A program ends with a code other than 0 and one line "PROGRAM: error: …".

Inputs are drawn by hypothesis from the seed.  One that is not refused cleanly is shrunk and
printed, and the exit code is 1.  Targets that were done go on where a stopped run with the same
output left off.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import platform
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
from fuzzing import judge, targets  # noqa: E402
from tqdm import tqdm  # noqa: E402

import tf_lrtraj  # noqa: E402
from tf_lrtraj import records  # noqa: E402

FEWEST = 300  # inputs of a target in a run of 20,000


def main() -> int:
    options = _options()
    chosen = [
        t
        for t in targets.all_targets()
        if not options.only or any(part in t.name for part in options.only.split(","))
    ]
    if not chosen:
        print(f"tools/fuzz.py: error: no target is named {options.only!r}", file=sys.stderr)
        return 2
    counts = _counts(chosen, options)
    output = pathlib.Path(options.output) if options.output else None
    found: dict[str, Any] = {}
    if output is not None and (output / "partial.json").exists():
        partial = records.read_json(output / "partial.json")
        if partial["seed"] == options.seed and partial["counts"] == counts:
            found = partial["targets"]
            print(f"going on after {len(found)} of {len(chosen)} targets")
    failures = [name for name, entry in found.items() if entry["failure"]]
    bar = tqdm(total=sum(counts.values()), unit="input", disable=None)
    for target in chosen:
        if target.name in found:
            bar.update(counts[target.name])
            continue
        bar.set_description(target.name[:30])
        found[target.name] = _one(target, counts[target.name], options.seed, bar)
        if found[target.name]["failure"]:
            failures.append(target.name)
            tqdm.write(found[target.name]["failure"], file=sys.stderr)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            records.write_json(
                output / "partial.json",
                {"seed": options.seed, "counts": counts, "targets": found},
            )
    bar.close()
    targets.clean_up()
    record = _record(found, options.seed)
    for name, entry in found.items():
        print(f"{entry['inputs']:>7}  {name}: {entry['outcomes']}")
    print(f"{record['inputs']:,} inputs, {record['failures']} failures")
    if output is not None:
        records.write_json(output / "record.json", record)
        records.write_atomically(output / "README.md", _page(record))
        (output / "partial.json").unlink()
        print(f"written: {output / 'record.json'}, {output / 'README.md'}")
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="in all")
    parser.add_argument("--per_target", type=int, default=0, help="instead: of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="parts of names of targets, by commas")
    parser.add_argument(
        "--output", default=str(ROOT / "results/fuzzing"), help="folder; '' for none"
    )
    return parser.parse_args()


def _counts(chosen: list[judge.Target], options: argparse.Namespace) -> dict[str, int]:
    if options.per_target:
        return {t.name: options.per_target for t in chosen}
    fewest = min(FEWEST, options.inputs // len(chosen))
    left = max(options.inputs - fewest * len(chosen), 0)
    # Cheap targets share what is left over.
    shares = {t.name: max(t.share - 0.5, 0.0) for t in chosen}
    whole = sum(shares.values()) or 1.0
    return {name: fewest + -int(-left * share // whole) for name, share in shares.items()}


def _one(target: judge.Target, count: int, seed: int, bar: Any) -> dict[str, Any]:
    outcomes: collections.Counter[str] = collections.Counter()
    began, failure, rounds = time.process_time(), "", 0
    # Hypothesis stops early where it finds few different inputs; another seed finds others.
    while outcomes.total() < count and rounds < 20 and not failure:
        wanted = count - outcomes.total()
        try:
            outcomes += judge.fuzz(target, wanted, seed + 1000 * rounds, bar.update)
        except judge.Fault as fault:
            failure = str(fault)
        rounds += 1
    return {
        "inputs": outcomes.total(),
        "outcomes": dict(sorted(outcomes.items())),
        "failure": failure,
        "seconds": round(time.process_time() - began, 1),
    }


def _record(found: dict[str, Any], seed: int) -> dict[str, Any]:
    outcomes: collections.Counter[str] = collections.Counter()
    for entry in found.values():
        outcomes.update(entry["outcomes"])
    return {
        "command": f"tools/fuzz.py --seed={seed}",
        "seed": seed,
        "inputs": sum(entry["inputs"] for entry in found.values()),
        "failures": sum(bool(entry["failure"]) for entry in found.values()),
        "outcomes": dict(outcomes.most_common()),
        "targets": found,
        "seconds": round(sum(entry["seconds"] for entry in found.values()), 1),
        "most_memory_mb": round(judge.most_memory() / 2**20),
        "versions": {
            "tf_lrtraj": tf_lrtraj.__version__,
            "hypothesis": hypothesis.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _page(record: dict[str, Any]) -> str:
    lines = [
        "# Generated inputs and what became of them",
        "",
        f"`{record['command']}` hands generated inputs to every entry point: configurations,",
        "flags, tables, files of records, snapshots, models, checkpoints. Each is used, or refused",
        "by an error that says what is wrong, within 20 s of processor time and 500 MB of memory,",
        "and leaves no file written, changed or deleted; anything else counts as a failure.",
        "`tools/fuzzing` says how inputs are made and judged; past failures are kept as tests in",
        "`tests/fuzz`. This page is written by the command from `record.json`.",
        "",
        f"**{record['inputs']:,} inputs, {record['failures']} failures**, "
        f"{record['seconds'] / 60:.1f} minutes of processor time.",
        "",
        "| entry point | inputs | used | refused |",
        "|---|--:|--:|---|",
    ]
    for name, entry in record["targets"].items():
        used = entry["outcomes"].get("used", 0)
        refused = ", ".join(
            f"{n} {kind}" for kind, n in entry["outcomes"].items() if kind != "used"
        )
        lines.append(f"| {name} | {entry['inputs']:,} | {used:,} | {refused} |")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines += ["", f"Seed {record['seed']}; {versions}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
