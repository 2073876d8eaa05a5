"""Writes the record of tools/torture.py as a document."""

from __future__ import annotations

import collections
from typing import Any


def _kill_in_words(attempt: dict[str, Any]) -> str:
    kill = attempt["kill"]
    words = {
        "none": lambda: "none",
        "time": lambda: f"time, {kill['share']:.0%}",
        "term": lambda: (
            f"SIGTERM, {kill['share']:.0%}" + (", then SIGKILL" if "grace" in kill else "")
        ),
        "write": lambda: f"write {kill['at']}",
        "inside": lambda: f"inside {kill['stage']} {kill['at']}, {1000 * kill['delay']:.0f} ms",
    }
    return words[kill["kind"]]()


def page(record: dict[str, Any]) -> str:
    """Returns the README.md of the record."""
    trials = record["trials"]
    same = sum(trial["identical"] for trial in trials)
    attempts = [attempt for trial in trials for attempt in trial["attempts"]]
    killed = collections.Counter(a["kill"]["kind"] for a in attempts if a["ended"] == "SIGKILL")
    stopped = sum(a["ended"] == 75 for a in attempts)
    resumed = collections.Counter(a["started_from"] for t in trials for a in t["attempts"][1:])
    cpu = sum(trial["cpu_seconds"] for trial in trials)
    whole = record["undisturbed"]
    lines = [
        "# A run killed at random moments",
        "",
        f"**{same} of {len(trials)} trials ended identical to the bit with the undisturbed run.**",
        "",
        f"Made by `{record['command']}`; `tools/torture.py --help` says how. Compared are "
        "metrics, every tensor of every checkpoint, snapshots, probe records, weights of saved "
        "models, configuration, schedule, TensorBoard's scalars, and that no other file is left.",
        "",
        "| | |",
        "|---|---|",
        f"| trials | {len(trials)} of {record['wanted']}, seed {record['seed']} |",
        f"| SIGKILLs | {sum(killed.values())}: "
        + ", ".join(f"{count} of kind {kind}" for kind, count in sorted(killed.items()))
        + " |",
        f"| SIGTERMs answered with exit code 75 | {stopped} |",
        "| checkpoints resumed from | "
        + ", ".join(f"step {step}: {count}" for step, count in sorted(resumed.items()))
        + " |",
        f"| processor time | {cpu / max(len(trials), 1):.1f} s per trial; "
        f"{whole['cpu_seconds']:.1f} s for the undisturbed run |",
        f"| operations on files in the undisturbed run | {whole['operations']} |",
        f"| way of starting | {record['way']} |",
        f"| commit | {record.get('commit', 'unknown')} |",
        f"| undisturbed run, forked against fresh process | {record['fork_equals_fresh']} |",
        *(f"| {key} | {value} |" for key, value in record["machine"].items()),
        "",
        "| trial | kill | resumed from step | moment | identical |",
        "|---|---|---|---|---|",
    ]
    for trial in trials:
        for number, attempt in enumerate(trial["attempts"][:-1]):
            after = trial["attempts"][number + 1]
            lines.append(
                f"| {trial['trial'] if number == 0 else ''} | {_kill_in_words(attempt)} "
                f"| {after['started_from']} | {attempt['moment']} "
                f"| {('yes' if trial['identical'] else 'NO') if number == 0 else ''} |"
            )
        for problem in trial["problems"]:
            lines.append(f"| | | | {problem} | |")
    return "\n".join(lines) + "\n"
