r"""Makes the power table of a scale from the records of a pilot: effect, scatter, sample size.

  python tools/power_table.py --pilot=DIR --seeds=3 --claims=S1,S4 --out=configs/power_NAME.json

Every part that the pilot's ledger has over two seeds or more becomes a row.  The measured value is
the expected effect, and the half-width of the interval gives the scatter of one seed.  With several
pilots, a part comes from the first pilot that has it.  The scale's configuration reads the file,
and `tf_lrtraj.claims.power` computes the expected half-width.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
from typing import Any

from tf_lrtraj import claims, records
from tf_lrtraj.claims.layout import ONCE
from tf_lrtraj.statistics import student


def rows(study: claims.Study, seeds: int) -> list[dict[str, Any]]:
    """Returns the rows of `config.power` for a number of seeds.

    Of a part that is judged at several places, the one with the largest scatter.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for claim, judgement in study.judgements.items():
        if claim.seeds < 2 or all(task in ONCE for task in claim.needs):
            continue
        count = min(
            len(study.records.expected_seeds(task)) for task in claim.needs if task not in ONCE
        )
        for part in judgement.parts:
            value, low, high = part.interval
            half = 0.5 * (high - low)
            if count < 2 or not math.isfinite(half) or not math.isfinite(value):
                continue
            scatter = half * math.sqrt(count) / student(count - 1.0, part.wanted.level)
            key = claim.id, part.wanted.name
            if key not in found or scatter > found[key]["scatter"]:
                numbers = {"expected": f"{value:.3g}", "scatter": f"{scatter:.3g}"}
                found[key] = {
                    "claim": claim.id,
                    "part": part.wanted.name,
                    **{name: float(text) for name, text in numbers.items()},
                    "count": seeds,
                }
    return list(found.values())


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pilot", required=True, action="append", help="the workdir of a pilot; may be repeated"
    )
    parser.add_argument("--claims", help="ids of the claims, with commas; by default all")
    parser.add_argument("--seeds", type=int, required=True, help="of the scale that is planned")
    parser.add_argument("--out", required=True, help="the file to write")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error(f"--seeds must be at least 2. Received: {given.seeds}")
    try:
        wanted = claims.chosen(given.claims.split(",")) if given.claims else claims.CLAIMS
        tables = [rows(claims.Study(pilot, wanted), given.seeds) for pilot in given.pilot]
    except records.RecordError as error:
        parser.error(f"--pilot: {error}")
    except ValueError as error:
        parser.error(f"--claims: {error}")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in itertools.chain(*tables):
        found.setdefault((row["claim"], row["part"]), row)
    order = [(claim.id, one.name) for claim in wanted for one in claim.wanted]
    table = [found[place] for place in order if place in found]
    text = ",\n".join(f" {json.dumps(row)}" for row in table)
    records.write_atomically(pathlib.Path(given.out), f"[\n{text}\n]\n")
    print(f"{given.out}: {len(table)} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
