"""How well decays of this project's own networks are told, from the records of claim O3.

    python benchmarks/own_decays.py results/reproduction_cifar10_resnet8   # prints the table

For each seed and rate, `theory.what_if` gets the losses of single iterates of the run at constant
rate, those of the means of its last iterates, and either no cooldown or one (KNOWN updates, at the
same end).  It is asked for the cooldowns of all other lengths, which were trained.  Losses are of
the same training images.  The curve has few points, because the claim needs few, so its noise
dominates; one more row leaves the averages out.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from tf_lrtraj import records, theory

KNOWN = 200  # updates of the cooldown that is known
CASES = ("no cooldown known", "one known", "one known, no averages")


def losses(record: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """Returns the rows of training losses with these values."""
    wanted["set"] = "train_part"
    return [r for r in record["rows"] if all(r.get(k) == v for k, v in wanted.items())]


def forecasts(record: dict[str, Any], rate: float, case: str) -> list[dict[str, float]]:
    """Returns a row for each cooldown that is asked for, at the last place of a rate."""
    end = max(row["end"] for row in record["rows"])
    raw = {row["step"]: row["loss"] for row in losses(record, rate=rate, of="raw")}
    ends = {row["length"]: row["loss"] for row in losses(record, rate=rate, of="cooldown", end=end)}
    means = losses(record, rate=rate, of="average", end=end)
    averages = [(row["length"], end, row["loss"]) for row in means]
    known = [("linear", KNOWN, end, ends[KNOWN], rate)]
    lengths = [length for length in ends if length != KNOWN]
    steps = np.array(sorted(raw))
    answers = theory.what_if(
        steps,
        np.array([raw[step] for step in steps]),
        rate,
        [("linear", length, end) for length in lengths],
        [] if "no averages" in case else averages,
        [] if case == CASES[0] else known,
    )
    level = float(np.mean([raw[step] for step in steps]))
    return [
        {
            "length": length,
            "loss": 100.0 * (answer.loss - ends[length]) / ends[length],
            "gain": 100.0 * (answer.loss - ends[length]) / (level - ends[length]),
            "inside": answer.low <= ends[length] <= answer.high,
        }
        for length, answer in zip(lengths, answers, strict=True)
    ]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=pathlib.Path, help="of the reproduction")
    folder = parser.parse_args().folder
    found = [
        records.read_json(path) for path in sorted(folder.glob("measured/cooldown_gain/seed*.json"))
    ]
    if not found:
        parser.error(f"no measured/cooldown_gain/seed*.json. Received: {folder}")
    rates = sorted({row["rate"] for row in found[0]["rows"]}, reverse=True)
    heads = ("rate", "known", "cooldowns", "error, % of the loss: median, worst",
             "% of the gain: median, worst", "in the 90 % band")  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|")
    for rate in rates:
        for case in CASES:
            rows = [row for record in found for row in forecasts(record, rate, case)]
            loss, gain = (np.abs([row[key] for row in rows]) for key in ("loss", "gain"))
            print(
                f"| {rate:g} | {case} | {len(rows)} | {np.median(loss):.2f}, {loss.max():.2f} "
                f"| {np.median(gain):.1f}, {gain.max():.1f} "
                f"| {100.0 * np.mean([row['inside'] for row in rows]):.0f} % |"
            )


if __name__ == "__main__":
    main()
