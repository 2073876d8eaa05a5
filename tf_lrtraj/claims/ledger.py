"""The ledger: every claim with its verdict, made from the records of a reproduction alone.

`make_ledger` reads a workdir and gives plain data; `write_ledger` writes it as `ledger.json`,
byte by byte the same for equal records: keys sorted, numbers rounded to six significant
digits, no time, path or version in it.
"""

from __future__ import annotations

import collections
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tf_lrtraj.claims import (
    basin,
    equivalence,
    minibatch,
    one_step,
    optimum,
    prediction,
    several_points,
    stationarity,
    swa,
    time_scales,
    trajectory,
)
from tf_lrtraj.claims.records_reader import NotRun, Records
from tf_lrtraj.claims.statistics import Interval
from tf_lrtraj.claims.verdicts import INCONCLUSIVE, NOT_RUN, REPRODUCED, VERDICTS, Claim, Judgement
from tf_lrtraj.records import RecordError, write_atomically
from tf_lrtraj.records.files import encode

FORMAT = 1
LEDGER = "ledger.json"
DIGITS = 6  # significant, of every number in the ledger
_MODULES = (
    minibatch,
    one_step,
    basin,
    trajectory,
    equivalence,
    several_points,
    prediction,
    time_scales,
    swa,
    optimum,
)


def _place(claim: Claim) -> tuple[int, int]:
    return "BAS".index(claim.id[0]), int(claim.id[1:])


CLAIMS: tuple[Claim, ...] = tuple(
    sorted((claim for module in _MODULES for claim in module.CLAIMS), key=_place)
)


def chosen(ids: Iterable[str]) -> tuple[Claim, ...]:
    """The claims of these ids, in the ledger's order.

    Raises:
        ValueError: for an id that there is not.

    >>> [claim.id for claim in chosen(["B3", "A1"])]
    ['B3', 'A1']
    """
    wanted = set(ids)
    known = {claim.id for claim in CLAIMS}
    if not wanted <= known:
        raise ValueError(
            f"`claims` must be among {', '.join(c.id for c in CLAIMS)}. "
            f"Received: {', '.join(sorted(wanted - known))}"
        )
    return tuple(claim for claim in CLAIMS if claim.id in wanted)


def judge(claim: Claim, records: Records) -> Judgement:
    """What the records say of a claim; never a pass where one is missing or damaged."""
    lacking = records.lacking(claim.needs)
    try:
        if lacking:
            raise NotRun(lacking)
        return claim.judge(records)
    except NotRun as error:
        reason = f"Not run: {', '.join(error.names)} missing."
        return Judgement(NOT_RUN, "", {}, reason)
    except RecordError as error:
        reason = f"A record cannot be used: {error}"
        return Judgement(INCONCLUSIVE, "", {}, reason)


def make_ledger(folder: str | os.PathLike[str], claims: Sequence[Claim] = CLAIMS) -> dict[str, Any]:
    """The verdicts of a reproduction, as plain data.

    Args:
        folder: its workdir.
        claims: those to judge.

    Returns:
        `format`, `scale` (the configuration's name), `claims` (a list of dicts, in order) and
        `counts` (verdict → number of claims).  A record that is damaged, of another shape or
        not finite makes the claims that need it "inconclusive", with the file and what is
        wrong with it as the reason: one bad file must not hide every other verdict.

    Raises:
        RecordError: if there is no such folder, or its configuration is damaged.
    """
    records = Records(folder)
    entries = [_entry(claim, judge(claim, records), records) for claim in claims]
    counts = collections.Counter(entry["verdict"] for entry in entries)
    return {
        "format": FORMAT,
        "scale": records.scale,
        "claims": entries,
        "counts": {verdict: counts.get(verdict, 0) for verdict in VERDICTS},
    }


def _entry(claim: Claim, found: Judgement, records: Records) -> dict[str, Any]:
    command = records.config.get("command", "lrtraj-reproduce")
    return {
        "id": claim.id,
        "sentence": claim.sentence,
        "source": claim.source,
        "experiment": claim.experiment,
        "needs": list(claim.needs),
        "records": list(claim.records),
        "threshold": claim.threshold,
        "argument": claim.argument,
        "verdict": found.verdict,
        "statistic": found.statistic,
        "numbers": {name: _interval(value) for name, value in found.numbers.items()},
        "reason": found.reason,
        "notes": list(found.notes),
        "figures": [claim.id],
        "command": f"{command} --claims={claim.id}",
    }


def _interval(found: Interval) -> dict[str, float]:
    return {name: rounded(value) for name, value in found._asdict().items()}


def rounded(value: float) -> float:
    """A number with six significant digits; what differs by rounding errors is written alike.

    >>> rounded(0.1 + 0.2), rounded(1234567.8), rounded(-0.0)
    (0.3, 1234570.0, 0.0)
    """
    value = float(value)
    if not math.isfinite(value):
        return value
    return float(f"{value:.{DIGITS}g}") + 0.0


def ledger_bytes(ledger: Mapping[str, Any]) -> bytes:
    """A ledger as it stands in the file."""
    text = json.dumps(encode(ledger), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def write_ledger(folder: str | os.PathLike[str], claims: Sequence[Claim] = CLAIMS) -> pathlib.Path:
    """Writes `ledger.json` into the workdir, whole or not at all; returns its path.

    Raises:
        RecordError: as `make_ledger`.
        OSError: if the folder cannot be written.
    """
    path = pathlib.Path(folder) / LEDGER
    write_atomically(path, ledger_bytes(make_ledger(folder, claims)))
    return path


def ledger_text(ledger: Mapping[str, Any], width: int = 110) -> str:
    """A ledger as a table for a terminal: claim, verdict, and what decided it."""
    lines = [f"{'claim':<6}{'verdict':<23}what decided it"]
    room = max(width - 29, 30)
    for entry in ledger["claims"]:
        passed = entry["verdict"] == REPRODUCED
        rows = _wrapped(entry["statistic" if passed else "reason"].split(), room)
        lines.append(f"{entry['id']:<6}{entry['verdict']:<23}{rows[0]}")
        lines += [" " * 29 + row for row in rows[1:]]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in ledger["counts"].items() if count)
    return "\n".join([*lines, f"scale {ledger['scale']}: {counts}"])


def _wrapped(words: Sequence[str], room: int) -> list[str]:
    rows = [""]
    for word in words:
        if rows[-1] and len(rows[-1]) + 1 + len(word) > room:
            rows.append("")
        rows[-1] += f" {word}" if rows[-1] else word
    return rows


def claims_page(claims: Sequence[Claim] = CLAIMS) -> str:
    """docs/claims.md: every claim with what decides it, from the claims' own texts."""
    lines = [_HEAD, *_stationarity()]
    for claim in claims:
        reads = [f"`{name}`" for name in claim.records]
        lines += [
            f"## {claim.id}. {claim.sentence}",
            "",
            f"- Source: {claim.source}",
            f"- Measured: {claim.experiment}",
            f"- Records: {', '.join(reads)}",
            f"- Threshold: {claim.threshold}",
            f"- Why: {claim.argument}",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _stationarity() -> list[str]:
    loss, norm = (100 * x for x in (stationarity.LOSS_LIMIT, stationarity.NORM_LIMIT))
    return [
        "## When a run counts as stationary",
        "",
        "Each test is the change of something from the first to the last step of the window, along a "
        "straight line through the means of ten blocks, whose scatter about it gives the error "
        "whatever the autocorrelation within them. It is passed if the change is small (within the "
        "limit) and either its whole 95 % interval lies within the limit or it is not resolved from "
        "0. A noisy series whose estimate exceeds the limit does not pass.",
        "",
        f"- Mini-batch loss of the base run: {loss:g} % of itself; for A2 and A3 a quarter of the "
        "difference between the run at rate λ and that at λ/n, if that is less. Averages weigh the "
        "window from its middle, so they feel half of a drift, an eighth of that difference.",
        f"- Full training loss of single iterates of the base run: {loss:g} %.",
        f"- Squared norm of the weights: {norm:g} %, as the effective rate of weights before batch "
        "norm goes as one over it, and rates that are compared differ by a factor of 2.",
        "- B4: the loss of the run without momentum, likewise, and its change in one update against a "
        "quarter of the best held-out gain of one step, which moves the crossing by a sixteenth.",
        "- B8: the exponent from the first halves of the runs against that from the second.",
        "- B9: growth of the squared displacement with lag to a power below "
        f"{stationarity.GROWTH_LIMIT:g} (for B7 that is the claim).",
        "",
    ]


_HEAD = """# Claims and what decides them

This page is made from the texts in `tf_lrtraj.claims`; a test keeps it in step with them:

    python -c "import tf_lrtraj.claims as c; print(c.claims_page(), end='')" > docs/claims.md

Thresholds were set and argued before any run was looked at. A part of a claim holds only if its
whole interval (95 %, Student's over three seeds or more, otherwise over blocks, batches or
iterates within runs) lies on the right side of its threshold, and fails only if the whole
interval lies on the wrong side. A claim is *reproduced* if all parts hold, *not reproduced* if
one fails, *inconclusive* otherwise. It is inconclusive too if a condition of the measurement is
not met: claims about a stationary state (B4, B7, B8, B9, A2, A3) are not judged on runs that
still drift, though what was measured is told. A missing record gives *not run at this scale*; one
that is damaged, of another shape or not finite gives *inconclusive* with the file's name. What is
compared on one run's own images, without any draw, is exact and has no interval.
"""
