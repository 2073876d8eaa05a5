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
    swa,
    time_scales,
    trajectory,
)
from tf_lrtraj.claims.records_reader import NotRun, Records
from tf_lrtraj.claims.statistics import Interval
from tf_lrtraj.claims.verdicts import INCONCLUSIVE, NOT_RUN, REPRODUCED, VERDICTS, Claim, Judgement
from tf_lrtraj.records import RecordError, write_atomically
from tf_lrtraj.records.strict_json import encode

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
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        # Each part is of the right form, and together they are not (lengths that differ, say).
        said = f"{type(error).__name__}: {error}"
        reason = f"The records ({', '.join(claim.records)}) do not fit together: {said}"
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
