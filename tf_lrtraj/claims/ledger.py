"""The ledger: every claim with its verdict, computed from the records of a reproduction.

`Study` reads a workdir and judges every claim once.  `write_ledger` writes `ledger.json` from it,
with the same bytes for equal records: keys are sorted, numbers are rounded to six significant
digits, and there are no times, paths or versions.  The page of a reproduction is made from the same
study.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tf_lrtraj.claims import (
    average_prediction,
    averages_and_decays,
    convexity,
    minibatch,
    missing_gain,
    one_step,
    optimum,
    reach,
    several_points,
    shared_basin,
    stationary_state,
    swa,
    time_scales,
    trade_off,
)
from tf_lrtraj.claims.layout import ONCE
from tf_lrtraj.claims.records_reader import NotMeasured, Records
from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_JUDGED,
    NOT_MEASURED,
    NOT_RUN,
    VERDICTS,
    Claim,
    Condition,
    ExtraNumber,
    Judgement,
    Part,
)
from tf_lrtraj.records import RecordError, write_atomically
from tf_lrtraj.records.strict_json import encode
from tf_lrtraj.values import one_of

FORMAT = 2
LEDGER = "ledger.json"
DIGITS = 6  # significant, of every number in the ledger
# One module for each group of claims; its CLAIMS are the claims.
_MODULES: tuple[Any, ...] = (
    optimum,
    swa,
    averages_and_decays,
    several_points,
    average_prediction,
    trade_off,
    missing_gain,
    stationary_state,
    time_scales,
    minibatch,
    one_step,
    shared_basin,
    convexity,
    reach,
)


def _place(claim: Claim) -> tuple[int, int]:
    return "BASO".index(claim.id[0]), int(claim.id[1:])


CLAIMS: tuple[Claim, ...] = tuple(
    sorted((claim for module in _MODULES for claim in module.CLAIMS), key=_place)
)


def chosen(ids: Iterable[str]) -> tuple[Claim, ...]:
    """Returns the claims with these ids, in the ledger's order.

    Raises:
        ValueError: for an unknown id.

    >>> [claim.id for claim in chosen(["B3", "A1"])]
    ['B3', 'A1']
    """
    known = one_of([claim.id for claim in CLAIMS])
    wanted = {known.check("claims", claim) for claim in ids}
    return tuple(claim for claim in CLAIMS if claim.id in wanted)


def judge(claim: Claim, records: Records) -> Judgement:
    """Judges a claim by the records; it never passes if a record is missing or damaged."""
    if not records.judges(claim.id):
        return Judgement(NOT_RUN, f"The scale {records.scale} does not measure this claim.")
    lacking = records.lacking(claim.needs)
    try:
        if lacking:
            raise NotMeasured.files(lacking)
        _check_seeds(claim, records)
        found = claim.judge(records)
    except NotMeasured as error:
        return Judgement(NOT_MEASURED, error.reason)
    except RecordError as error:
        return Judgement(INCONCLUSIVE, f"A record cannot be used: {error}")
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        # Each record has the right form, but together they do not fit (such as different lengths).
        said = f"{type(error).__name__}: {error}"
        reason = f"The records ({', '.join(claim.records)}) do not fit together: {said}"
        return Judgement(INCONCLUSIVE, reason)
    if not records.judged:
        reason = "A smoke test: numbers and figures, no verdicts."
        return dataclasses.replace(found, verdict=NOT_JUDGED, reason=reason)
    return found


def _check_seeds(claim: Claim, records: Records) -> None:
    """Checks the number of seeds: one seed decides nothing about networks, except a smoke test."""
    for task in claim.needs:
        count = len(records.expected_seeds(task))
        if records.judged and task not in ONCE and count < claim.seeds:
            raise NotMeasured(
                f"{count} seed of {task}, where {claim.seeds} or more are needed: seeds are the "
                "unit of a sentence about networks."
            )


class Study:
    """A reproduction's records with the judgement of every claim.

    Args:
        folder: its workdir.
        claims: the claims to judge.

    Attributes:
        records: the reader of its files.
        judgements: claim → `Judgement`, in the ledger's order.

    Raises:
        RecordError: if there is no such folder, or its configuration is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], claims: Sequence[Claim] = CLAIMS) -> None:
        self.records = Records(folder)
        self.judgements = {claim: judge(claim, self.records) for claim in claims}

    def ledger(self) -> dict[str, Any]:
        """The verdicts as plain data; see `make_ledger`."""
        entries = [_entry(claim, found, self.records) for claim, found in self.judgements.items()]
        counts = collections.Counter(entry["verdict"] for entry in entries)
        return {
            "format": FORMAT,
            "scale": self.records.scale,
            "claims": entries,
            "counts": {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]},
        }


def make_ledger(folder: str | os.PathLike[str], claims: Sequence[Claim] = CLAIMS) -> dict[str, Any]:
    """Returns the verdicts of a reproduction as plain data.

    Args:
        folder: its workdir.
        claims: the claims to judge.

    Returns:
        `format`, `scale` (the configuration's name), `claims` (a list of dicts, in order) and
        `counts` (verdict → number of claims).  Each claim has its `parts`, dicts of `name`, `what`,
        `value`, `low`, `high`, `wanted` (`low` and `high`, None for no bound) and `verdict`; its
        `conditions`, the same with `met`; and `numbers`, which do not affect the verdict.

        A record that is damaged, of another shape or not finite makes the claims that need it
        "inconclusive", and the reason names the file and the fault; other claims are not affected.

    Raises:
        RecordError: if there is no such folder, or its configuration is damaged.
    """
    return Study(folder, claims).ledger()


def _entry(claim: Claim, found: Judgement, records: Records) -> dict[str, Any]:
    command = records.config.get("command", "lrtraj-reproduce")
    judged = found.verdict != NOT_JUDGED
    return {
        "id": claim.id,
        "title": claim.title,
        "sentence": claim.sentence,
        "source": claim.source,
        "experiment": claim.experiment,
        "needs": list(claim.needs),
        "records": list(claim.records),
        "argument": claim.argument,
        "verdict": found.verdict,
        "parts": [
            {
                **_number(part),
                "wanted": {"low": part.wanted.low, "high": part.wanted.high},
                "verdict": part.verdict if judged else NOT_JUDGED,
            }
            for part in found.parts
        ],
        "conditions": [
            {
                **_number(condition),
                "wanted": {"low": condition.low, "high": condition.high},
                "met": condition.is_met,
            }
            for condition in found.conditions
        ],
        "numbers": [_number(told) for told in found.numbers],
        "reason": found.reason,
        "notes": list(found.notes),
        "command": f"{command} --claims={claim.id}",
    }


def _number(found: Part | Condition | ExtraNumber) -> dict[str, Any]:
    ends = {key: rounded(value) for key, value in found.interval._asdict().items()}
    return {"name": found.name, "what": found.what, **ends}


def rounded(value: float) -> float:
    """Rounds a number to six significant digits, so that rounding errors do not show.

    >>> rounded(0.1 + 0.2), rounded(1234567.8), rounded(-0.0)
    (0.3, 1234570.0, 0.0)
    """
    value = float(value)
    if not math.isfinite(value):
        return value
    return float(f"{value:.{DIGITS}g}") + 0.0


def ledger_bytes(ledger: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a ledger's file."""
    text = json.dumps(encode(ledger), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def write_ledger(study: Study) -> pathlib.Path:
    """Writes `ledger.json` to the workdir atomically and returns its path.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = study.records.folder / LEDGER
    write_atomically(path, ledger_bytes(study.ledger()))
    return path


def ledger_text(ledger: Mapping[str, Any], width: int = 110) -> str:
    """Returns a ledger as a table for a terminal: claim, verdict, title, and the reason."""
    lines = [f"{'claim':<6}{'verdict':<23}what is claimed, and why the verdict"]
    room = max(width - 29, 30)
    for entry in ledger["claims"]:
        title, *more = (row for key in ("title", "reason") for row in _wrapped(entry[key], room))
        lines.append(f"{entry['id']:<6}{entry['verdict']:<23}{title}")
        lines += [" " * 29 + row for row in more]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in ledger["counts"].items() if count)
    return "\n".join([*lines, f"scale {ledger['scale']}: {counts}"])


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
