"""What averages keep of decays, and how well decays are told, from the records of claim O3.

    python benchmarks/own_decays.py results/reproduction_cifar10_resnet8   # prints three tables

Forecasts: for each seed and rate, `theory.what_if` gets the losses of single iterates of the run at
constant rate, those of the means of its last iterates, and either no cooldown or one (`--known`
updates, at the same end).  It is asked for the cooldowns of all other lengths, which were trained.
Losses are of the same training images.  The curve has few points, because the claim needs few, so
its noise dominates; one more row leaves the averages out.  `--momentum=0.9` tells it the momentum
of the runs, too.

Shares: of the gain of each cooldown, the part that the mean of the same iterates has, with standard
errors over seeds, beside the share in the quadratic model of fixed curvature, by exact moments,
with the run's momentum in Keras' and in PyTorch's form, and without (at the same effective rate).
Curvatures are log-uniform up to 1.

Short averages: their training loss at the full rate again, from the end of the longest cooldown and
from the average of the same updates, beside the run that went on; means and standard errors over
seeds.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from tf_lrtraj import records, statistics, theory

MOMENTUM = 0.9  # of these runs
AFTER = (100, 200, 300, 500, 1000, 2000)  # updates after the cooldown
PATHS = {"constant": "constant rate", "from_average": "average", "from_cooldown": "cooldown's end"}
CASES = ("no cooldown known", "one known", "one known, no averages")


def losses(record: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """Returns the rows of training losses with these values."""
    wanted["set"] = "train_part"
    return [r for r in record["rows"] if all(r.get(k) == v for k, v in wanted.items())]


def forecasts(
    record: dict[str, Any],
    rate: float,
    case: str,
    known_length: int,
    shortest: int,
    momentum: float,
) -> list[dict[str, float]]:
    """Returns a row for each cooldown that is asked for, at the last place of a rate."""
    end = max(row["end"] for row in record["rows"])
    raw = {row["step"]: row["loss"] for row in losses(record, rate=rate, of="raw")}
    ends = {row["length"]: row["loss"] for row in losses(record, rate=rate, of="cooldown", end=end)}
    means = losses(record, rate=rate, of="average", end=end)
    averages = [(row["length"], end, row["loss"]) for row in means]
    known = [("linear", known_length, end, ends[known_length], rate)]
    lengths = [length for length in ends if length != known_length and length >= shortest]
    steps = np.array(sorted(raw))
    answers = theory.what_if(
        steps,
        np.array([raw[step] for step in steps]),
        rate,
        [("linear", length, end) for length in lengths],
        [] if "no averages" in case else averages,
        [] if case == CASES[0] else known,
        momentum=momentum,
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


def gains(record: dict[str, Any], rate: float) -> dict[int, tuple[float, float]]:
    """Returns {length: (gain of the cooldown, gain of the average)}, means over places."""
    raw = np.mean([row["loss"] for row in losses(record, rate=rate, of="raw")])
    found = {}
    for length in sorted({row["length"] for row in losses(record, rate=rate, of="cooldown")}):
        cooldown, average = (
            raw - np.mean([r["loss"] for r in losses(record, rate=rate, of=of, length=length)])
            for of in ("cooldown", "average")
        )
        found[length] = float(cooldown), float(average)
    return found


def quadratic_share(
    rate: float, length: int, momentum: float, convention: str = "keras", settle: int = 1000
) -> float:
    """Returns the share in the quadratic model, from its stationary state."""
    curvatures = np.geomspace(1e-4, 1.0, 40)
    model = theory.QuadraticModel(curvatures, np.ones(40))
    start = model.stationary_variance(rate, momentum)
    constant = np.full(settle + length, rate)
    decaying = constant.copy()
    decaying[settle:] *= 1.0 - np.arange(length) / length
    last, window = np.zeros((2, constant.size + 1))
    last[-1], window[-length:] = 1.0, 1.0 / length

    def loss(weights: np.ndarray, rates: np.ndarray) -> float:
        found = theory.average_moments(
            weights,
            curvatures,
            np.ones(40),
            rates,
            np.zeros(40),
            momentum=momentum,
            convention=convention,
            initial_variances=start,
        )
        return 0.5 * float(curvatures @ found.variance)

    raw = loss(last, constant)
    return (raw - loss(window, constant)) / (raw - loss(last, decaying))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=pathlib.Path, help="of the reproduction")
    parser.add_argument("--known", type=int, default=200, help="updates of the known cooldown")
    parser.add_argument("--shortest", type=int, default=0, help="shortest cooldown asked for")
    parser.add_argument("--momentum", type=float, default=0.0, help="that what_if is told")
    options = parser.parse_args()
    folder = options.folder
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
            rows = [
                row
                for record in found
                for row in forecasts(
                    record, rate, case, options.known, options.shortest, options.momentum
                )
            ]
            loss, gain = (np.abs([row[key] for row in rows]) for key in ("loss", "gain"))
            print(
                f"| {rate:g} | {case} | {len(rows)} | {np.median(loss):.2f}, {loss.max():.2f} "
                f"| {np.median(gain):.1f}, {gain.max():.1f} "
                f"| {100.0 * np.mean([row['inside'] for row in rows]):.0f} % |"
            )

    print(
        "\n| rate | updates | gain of the cooldown, nats | share | model with momentum |"
        " with PyTorch's | without | missing loss against the model with momentum, nats |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for rate in rates:
        seeds = [gains(record, rate) for record in found]
        for length in seeds[0]:
            cooldown, average = np.array([gain[length] for gain in seeds]).T
            share, error = statistics.mean_and_se(average / cooldown)
            with_momentum = quadratic_share(rate, length, MOMENTUM)
            in_torch = quadratic_share(rate, length, MOMENTUM, "pytorch")
            without = quadratic_share(rate / (1.0 - MOMENTUM), length, 0.0)
            missing, scatter = statistics.mean_and_se(with_momentum * cooldown - average)
            print(
                f"| {rate:g} | {length:,} | {cooldown.mean():.3f} | {share:.3f} ± {error:.3f} "
                f"| {with_momentum:.3f} | {in_torch:.3f} | {without:.3f} "
                f"| {missing:.4f} ± {scatter:.4f} |"
            )
    paths = [
        records.read_json(path) for path in sorted(folder.glob("measured/cooldown_path/seed*.json"))
    ]
    print(f"\n| updates | {' | '.join(PATHS.values())} |\n|---|---|---|---|")
    for after in AFTER:
        cells = []
        for of in PATHS:
            step = paths[0]["about"]["end"] + after
            each = [losses(path, of=of, step=step)[0]["loss"] for path in paths]
            mean, error = statistics.mean_and_se(np.array(each))
            cells.append(f"{mean:.3f} ± {error:.3f}")
        print(f"| {after:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
