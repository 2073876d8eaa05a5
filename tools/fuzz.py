#!/usr/bin/env python3
"""Passes generated inputs to every entry point; each must be used or refused cleanly.

  tools/fuzz.py                               20,000 inputs; writes results/fuzzing
  tools/fuzz.py --inputs=2000 --seed=7 --output=/tmp/fuzzing
  tools/fuzz.py --only=snapshots,reports --per_target=1000 --output=

A refusal is clean if the package documents the error, the message names a value or a file, and it
takes at most 20 s of processor time and 500 MB of memory.  All files must be unchanged after it.  A
program must end with a code other than 0 and one line "PROGRAM: error: …".

Hypothesis draws the inputs from the seed.  An input that is not refused cleanly is shrunk and
printed, and the exit code is 1.  An interrupted run continues after its finished targets if it is
started with the same options, output and code.  results/fuzzing is reserved for whole runs; partial
runs need another output.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
from fuzzing import judge, targets  # noqa: E402
from tqdm import tqdm  # noqa: E402

import tf_lrtraj  # noqa: E402
from tf_lrtraj import records  # noqa: E402

RESULTS = ROOT / "results/fuzzing"
WHOLE = 20_000  # inputs of a whole run
FEWEST = 300  # of them for a target


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
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
    code = _code()
    asked = {"seed": options.seed, "counts": counts, "code": code, "sources": _sources()}
    found = {} if output is None else _done(output, asked)
    if found:
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
            records.write_json(output / "partial.json", {"asked": asked, "targets": found})
    bar.close()
    targets.clean_up()
    record = _record(found, options, code)
    for name, entry in found.items():
        print(f"{entry['inputs']:>7}  {name}: {entry['outcomes']}")
    print(f"{record['inputs']:,} inputs, {record['failures']} failures")
    if output is not None:
        records.write_json(output / "record.json", record)
        records.write_atomically(output / "README.md", _page(record))
        (output / "partial.json").unlink()
        print(f"written: {output / 'record.json'}, {output / 'README.md'}")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=WHOLE, help="in all")
    parser.add_argument("--per_target", type=int, default=0, help="instead: of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="parts of names of targets, by commas")
    parser.add_argument("--output", default=str(RESULTS), help="folder; '' for none")
    return parser


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    part = options.only or options.per_target or options.inputs < WHOLE
    if part and options.output and pathlib.Path(options.output).resolve() == RESULTS.resolve():
        parser.error(
            f"--output must be another folder than {RESULTS}, or '' for none, for less than all "
            f"targets and {WHOLE:,} inputs. Received: {_command(options)}"
        )
    return options


def _command(options: argparse.Namespace) -> str:
    """Returns the command line of a run: its seed, and the options that are not the defaults."""
    usual = vars(_parser().parse_args([]))
    given = {n: v for n, v in vars(options).items() if v != usual[n] or n == "seed"}
    return shlex.join(["tools/fuzz.py", *(f"--{name}={value}" for name, value in given.items())])


def _code(root: pathlib.Path = ROOT) -> dict[str, Any]:
    """Returns the commit of the code and whether files differ from it; "unknown" without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments, "--", "tf_lrtraj", "tools"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("log", "-1", "--format=%h")
        return {"commit": commit or "unknown", "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "changed": False}


def _sources() -> str:
    """Computes a checksum of the code, which may change without a commit."""
    digest = hashlib.sha256()
    for folder in ("tf_lrtraj", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _done(output: pathlib.Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the finished targets of an interrupted run with the same inputs and code."""
    if not (output / "partial.json").exists():
        return {}
    partial = records.read_json(output / "partial.json", dict[str, Any])
    return partial["targets"] if partial.get("asked") == asked else {}


def _counts(chosen: list[judge.Target], options: argparse.Namespace) -> dict[str, int]:
    if options.per_target:
        return {t.name: options.per_target for t in chosen}
    fewest = min(FEWEST, options.inputs // len(chosen))
    left = max(options.inputs - fewest * len(chosen), 0)
    # Cheap targets share the remaining inputs.
    shares = {t.name: max(t.share - 0.5, 0.0) for t in chosen}
    whole = sum(shares.values()) or 1.0
    return {name: fewest + -int(-left * share // whole) for name, share in shares.items()}


def _one(target: judge.Target, count: int, seed: int, bar: Any) -> dict[str, Any]:
    outcomes: collections.Counter[str] = collections.Counter()
    began, failure, rounds = time.process_time(), "", 0
    # Hypothesis stops early if it finds few different inputs; another seed finds others.
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


def _record(
    found: dict[str, Any], options: argparse.Namespace, code: dict[str, Any]
) -> dict[str, Any]:
    outcomes: collections.Counter[str] = collections.Counter()
    for entry in found.values():
        outcomes.update(entry["outcomes"])
    return {
        "command": _command(options),
        "options": {n: v for n, v in vars(options).items() if n != "output"},
        "seed": options.seed,
        **code,
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
    only = record.get("options", {}).get("only")  # records of old have no options and no commit
    reach = "some of the entry points" if only else "every entry point"
    lines = [
        "# Generated inputs and what became of them",
        "",
        f"`{record['command']}` hands generated inputs to {reach}: configurations,",
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
    if "commit" in record:
        differ = ", with files that differ from it" if record["changed"] else ""
        versions = f"commit {record['commit']}{differ}; {versions}"
    lines += ["", f"Seed {record['seed']}; {versions}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
