"""How well decays are told from constant-rate runs, on a folder of loss curves.

    python benchmarks/decay_forecasts.py FOLDER              # two minutes of CPU; prints the table
    python benchmarks/decay_forecasts.py FOLDER --priors     # the constants that the folder gives

FOLDER holds constant.csv (run, step, loss, loss_mean500, loss_best_window) and
cooldown_ends.csv (base, lr, T, n, shape, rerun, full_loss), made from the logs of
github.com/fabian-sp/lr-scheduling (MIT; Schaipp, Hägele et al. 2025, arXiv 2501.18965), and
cooldown_curves.csv (base, lr, T, n, shape, rerun, step, loss) for the multi-power law.

Every prediction of a run uses constants of *other* base runs: model, corpus and rate.  The
multi-power law (Luo et al. 2025, arXiv 2503.12811) is fitted to the same constant curve and the
same known decay, whose whole curve it sees.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import csv
import dataclasses
import math
import pathlib
import time
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import optimize

from tf_lrtraj import theory
from tf_lrtraj.theory.constant_curve import ConstantCurve
from tf_lrtraj.theory.decay_shapes import as_shape
from tf_lrtraj.theory.missing_share import ANY_RUN, LANGUAGE_MODELS, Priors, missing_growth

# The full validation loss less the 32-batch loss of the curves, by corpus.
OFFSETS = {"slim": 0.036, "open": 0.005}
SHAPES = {"linear": "linear", "sqrt": "one_minus_sqrt"}
INSIDE = 0.4  # of T: decays that count
EARLIEST = 5000  # steps: earlier ends are too early for a window law, as the data's README says
WINDOW, MOST = 500, 5000  # steps of a logged window; the longest union of them
BEST = 0.23  # of T: the length of the best union, which the logs do not tell
WARM_UP = 300  # steps
RERUN = 3.5e-4  # by which reruns with the same seed differ, relative to the loss


@dataclasses.dataclass(frozen=True)
class End:
    """The end of a trained decay, on the scale of the curves."""

    length: int
    step: int
    shape: str
    loss: float
    points: np.ndarray  # [N, 2] steps and losses along it

    @property
    def part(self) -> float:
        return self.length / self.step

    def known(self, rate: float) -> tuple:
        return (self.shape, self.length, self.step, self.loss, rate)


@dataclasses.dataclass
class Base:
    """A base run: its curve, its averages (may be none) and its decays."""

    name: str
    rate: float
    steps: np.ndarray
    losses: np.ndarray
    averages: list[tuple[int, int, float]]
    ends: list[End]

    @property
    def run(self) -> str:
        return self.name.rsplit("-", 1)[0]


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def read(folder: pathlib.Path) -> list[Base]:
    """All base runs of a folder."""
    points: dict[tuple, list] = {}
    for row in rows(folder / "cooldown_curves.csv"):
        key = tuple(row[name] for name in ("base", "T", "n", "shape", "rerun"))
        points.setdefault(key, []).append((float(row["step"]), float(row["loss"])))
    ends: dict[str, list[End]] = {}
    rates: dict[str, float] = {}
    for row in rows(folder / "cooldown_ends.csv"):
        loss = float(row["full_loss"]) - OFFSETS[row["base"].split("-")[0]]
        key = tuple(row[name] for name in ("base", "T", "n", "shape", "rerun"))
        along = np.array(points.get(key, [])).reshape(-1, 2)
        end = End(int(row["n"]), int(row["T"]), SHAPES[row["shape"]], loss, along)
        ends.setdefault(row["base"], []).append(end)
        rates[row["base"]] = float(row["lr"])
    curves: dict[str, list[dict[str, str]]] = {}
    for row in rows(folder / "constant.csv"):
        curves.setdefault(row["run"], []).append(row)
    found = []
    for name, table in curves.items():
        run = name.rsplit("-", 1)[0]
        if run not in ends:
            continue
        steps = np.array([float(row["step"]) for row in table])
        losses = np.array([float(row["loss"]) for row in table])
        averages = windows(table)
        inside = [e for e in ends[run] if e.step <= steps[-1] + 500]
        found.append(Base(name, rates[run], steps, losses, averages, inside))
    return found


def windows(table: list[dict[str, str]]) -> list[tuple[int, int, float]]:
    """(length, step, loss) of the logged averages, each where it was fresh."""
    found, seen = [], set()
    for row in table:
        step = int(row["step"]) // WINDOW * WINDOW
        if not row["loss_mean500"] or step in seen:
            continue
        seen.add(step)
        found.append((WINDOW, step, float(row["loss_mean500"])))
        length = best_length(step)
        if length > WINDOW:
            found.append((length, step, float(row["loss_best_window"])))
    return found


def best_length(step: int) -> int:
    return min(MOST, WINDOW * max(1, round(BEST * step / WINDOW)))


# --- Constants from other runs -------------------------------------------------------------


def fit_priors(bases: Sequence[Base], refit: bool = False) -> Priors:
    """Constants of `bases`: the gain's law from their decays, M from those with averages.

    φ, how M grows with λn, is the package's own unless `refit`: few runs hardly tell it.
    """
    found = fit_law(bases)
    tried = np.geomspace(0.1, 2.0, 14) if refit else [math.exp(LANGUAGE_MODELS.slowness[0])]
    slowness, missing, width = fit_missing(bases, found, tried)
    return dataclasses.replace(
        found,
        missing=(missing, width),
        slowness=(math.log(slowness), LANGUAGE_MODELS.slowness[1]),
    )


def fit_law(bases: Sequence[Base]) -> Priors:
    """p, κ and s by least squares on log gains, each rate with its own level."""
    groups = [(b, [e for e in b.ends if e.part <= INSIDE and e.step >= EARLIEST]) for b in bases]
    groups = [(b, its) for b, its in groups if its]
    curves = {b.name: ConstantCurve(b.steps, b.losses) for b, _ in groups}

    def residuals(parameters: np.ndarray) -> np.ndarray:
        power, bend, summed = parameters
        left = []
        for base, its in groups:
            gains = []
            line = as_shape("linear", 1).numbers(power, summed)[1]
            for end in its:
                f, k = as_shape(end.shape, end.length).numbers(power, summed)
                raw = curves[base.name].levels([end.step - f * end.length]).losses[0]
                at = math.log(end.length / 5000.0)
                gains.append(
                    math.log((raw - end.loss) * line / k) - power * at - 0.5 * bend * at**2
                )
            left += (np.array(gains) - np.mean(gains)).tolist()
        prior = [
            (parameters[i] - mean) / width * 0.01
            for i, (mean, width) in enumerate([(0.17, 0.1), (0.0, 0.1), (0.66, 0.3)])
        ]
        return np.array(left + prior)

    found = optimize.least_squares(residuals, [0.17, -0.03, 0.6], diff_step=1e-4).x
    levels, left, measured = [], [], []
    line = as_shape("linear", 1).numbers(found[0], found[2])[1]
    for base, its in groups:
        logs = []
        for end in its:
            f, k = as_shape(end.shape, end.length).numbers(found[0], found[2])
            gain = curves[base.name].levels([end.step - f * end.length]).losses[0] - end.loss
            at = math.log(end.length / 5000.0)
            logs.append(math.log(gain * line / k) - found[0] * at - 0.5 * found[1] * at**2)
            if len(its) > 1:
                measured.append(RERUN * end.loss / gain)
        if len(its) > 1:
            scale = math.sqrt(len(its) / (len(its) - 1))
            left += (scale * (np.array(logs) - np.mean(logs))).tolist()
        shift = LANGUAGE_MODELS.rate_power * math.log(base.rate / 1e-3)
        levels.append(float(np.mean(logs)) - shift)
    law = math.sqrt(max(np.mean(np.square(left)) - np.mean(np.square(measured)), 1e-6))
    return dataclasses.replace(
        LANGUAGE_MODELS,
        power=(float(found[0]), LANGUAGE_MODELS.power[1]),
        bend=(float(found[1]), LANGUAGE_MODELS.bend[1]),
        summed_power=(float(found[2]), LANGUAGE_MODELS.summed_power[1]),
        gain=(float(np.mean(levels)), float(np.std(levels, ddof=1))),
        law=law,
    )


def fit_missing(
    bases: Sequence[Base], law: Priors, tried: Iterable[float]
) -> tuple[float, float, float]:
    """φ, M at λn = 2.5, and its standard deviation from decay to decay."""
    reaches, losses, names = [], [], []
    for base in bases:
        for end in base.ends:
            if not base.averages or end.part > INSIDE or end.step < EARLIEST:
                continue
            if end.shape != "linear":
                continue
            reaches.append(base.rate * end.length)
            losses.append(average_loss(base, end, law) - end.loss)
            names.append(base.run)
    reach, missing, name = np.array(reaches), np.array(losses), np.array(names)
    best: tuple[float, float, float, float] | None = None
    for slowness in tried:
        growth = missing_growth(slowness * reach) / missing_growth(slowness * 2.5)
        scaled = missing / growth
        means = np.array([scaled[name == n].mean() for n in sorted(set(names))])
        spread = float(np.std(scaled / means.mean()))
        if best is None or spread < best[0]:
            best = (spread, float(slowness), float(means.mean()), spread * float(means.mean()))
    assert best is not None
    return best[1:]


def latest(base: Base, end: End) -> list[tuple[int, int, float]]:
    """The averages logged last before an end, shortest first."""
    step = max(a[1] for a in base.averages if a[1] <= end.step)
    return [a for a in base.averages if a[1] == step]


def average_loss(base: Base, end: End, law: Priors) -> float:
    """The loss of the average of an end's own length, between the two logged lengths."""
    f = as_shape("linear", 1).numbers(law.power[0], law.summed_power[0])[0]
    curve = ConstantCurve(base.steps, base.losses)
    its = latest(base, end)
    lengths = np.array([a[0] for a in its], np.float64)
    raw = curve.levels(end.step - f * lengths).losses
    gains = np.log(raw - np.array([a[2] for a in its]))
    slope = (gains[-1] - gains[0]) / math.log(lengths[-1] / lengths[0])
    gain = math.exp(gains[-1] + slope * math.log(end.length / lengths[-1]))
    return float(curve.levels([end.step - f * end.length]).losses[0] - gain)


# --- The multi-power law -------------------------------------------------------------------


class MultiPower:
    """The multi-power law, fitted to a constant curve and one decay.

    L = L₀ + A S₁^-α - B Σ Δη_k G(η_k^-γ S_k), G(x) = 1 - (1 + Cx)^-β, with S₁ the sum of rates so
    far and S_k that from k on; sums and rates in units of the constant rate, thousands of steps.
    """

    def __init__(self, base: Base, known: End) -> None:
        used = base.steps >= 2000
        summed = 1e-3 * (base.steps[used] - 0.5 * WARM_UP)
        at = np.append(known.points[:, 0], known.step)
        seen = np.append(known.points[:, 1], known.loss)[at > known.step - known.length]
        terms = self._terms(known, at[at > known.step - known.length])
        weight = math.sqrt(summed.size / seen.size)

        def residuals(logs: np.ndarray) -> np.ndarray:
            level, size, power = np.exp(logs[:3])
            constant = np.log((level + size * summed**-power) / base.losses[used])
            return np.append(constant, weight * np.log(self._losses(logs, terms) / seen))

        starts = [
            np.log([2.7, 0.9, 0.4, drop, gamma, c, 0.3])
            for drop in (0.15, 0.5)
            for gamma in (0.3, 0.7)
            for c in (0.3, 3.0)
        ]
        fits = [
            optimize.least_squares(
                residuals, start, loss="huber", f_scale=1e-3, max_nfev=400, bounds=(-12.0, 6.0)
            )
            for start in starts
        ]
        self._logs = min(fits, key=lambda fit: fit.cost).x

    def __call__(self, end: End) -> float:
        """The loss at the end of another decay."""
        return float(self._losses(self._logs, self._terms(end, np.array([float(end.step)])))[0])

    @staticmethod
    def _terms(end: End, at: np.ndarray) -> tuple[np.ndarray, ...]:
        """S₁ [N], S_k [N, 100], falls [N, 100] and rates [100] at steps of a decay."""
        done = np.linspace(0.0, 1.0, 101)
        rate = 1.0 - (done if end.shape == "linear" else np.sqrt(done))
        place = end.step - end.length + done * end.length
        middle = 0.5 * (rate[1:] + rate[:-1])
        summed = 1e-3 * np.concatenate([[0.0], np.cumsum(middle * np.diff(place))])
        here = np.interp(at, place, summed)
        ahead = np.maximum(here[:, None] - summed[:-1], 0.0)
        falls = (rate[:-1] - rate[1:]) * (place[1:] <= at[:, None] + 1e-9)
        return 1e-3 * (end.step - end.length - 0.5 * WARM_UP) + here, ahead, falls, middle

    @staticmethod
    def _losses(logs: np.ndarray, terms: tuple[np.ndarray, ...]) -> np.ndarray:
        summed, ahead, falls, rates = terms
        level, size, power, drop, gamma, c, beta = np.exp(logs)
        gained = 1.0 - (1.0 + c * rates**-gamma * ahead) ** -beta
        found: np.ndarray = level + size * summed**-power - drop * np.sum(falls * gained, axis=1)
        return found


# --- The table -----------------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
    """Errors of predictions, in per cent of the loss and of the gain, and whether bands held."""

    errors: list[float] = dataclasses.field(default_factory=list)
    of_gain: list[float] = dataclasses.field(default_factory=list)
    held: list[bool] = dataclasses.field(default_factory=list)

    def add(self, loss: float, end: End, gain: float, band: tuple[float, float] | None) -> None:
        self.errors.append(100.0 * (loss - end.loss) / end.loss)
        self.of_gain.append(100.0 * (loss - end.loss) / gain)
        if band is not None:
            self.held.append(band[0] <= end.loss <= band[1])

    def line(self, name: str) -> str:
        errors, gains = np.abs(self.errors), np.abs(self.of_gain)
        bands = f"{np.mean(self.held):8.0%}" if self.held else f"{'':>8}"
        return (
            f"{name:<58}{errors.size:>5}{np.median(errors):>9.3f}{errors.max():>9.3f}"
            f"{np.median(gains):>9.1f}{bands}"
        )


def answer(base: Base, ends: Sequence[End], known: Sequence[End], priors: Priors) -> list:
    return theory.what_if(
        base.steps,
        base.losses,
        base.rate,
        [(end.shape, end.length, end.step) for end in ends],
        base.averages,
        [end.known(base.rate) for end in known],
        priors=priors,
    )


def without_cooldown(bases: list[Base], priors: dict[str, Priors]) -> list[str]:
    lines = []
    for name, chosen in (
        ("no decay known", lambda end: end.step >= EARLIEST),
        ("  decays of a fifth of the steps", lambda end: end.step >= EARLIEST and end.part == 0.2),
        ("  runs too early for averages (T of 3,000 and 3,650)", lambda end: end.step < EARLIEST),
    ):
        ours, proxy = Tally(), Tally()
        for base in bases:
            ends = [e for e in base.ends if e.part <= INSIDE and e.shape == "linear" and chosen(e)]
            if not base.averages or not ends:
                continue
            for end, found in zip(ends, answer(base, ends, [], priors[base.run]), strict=True):
                ours.add(found.loss, end, found.raw - end.loss, (found.low, found.high))
                proxy.add(latest(base, end)[-1][2], end, found.raw - end.loss, None)
        if ours.errors:
            lines.append(ours.line(name))
            lines.append(proxy.line("    the best logged average as it is"))
    return lines


def any_run(bases: list[Base]) -> str:
    """The same with nothing assumed but shares, whatever the run."""
    tally = Tally()
    for base in bases:
        ends = [e for e in base.ends if e.part <= INSIDE and e.shape == "linear"]
        ends = [e for e in ends if e.step >= EARLIEST]
        if base.averages and ends:
            for end, found in zip(ends, answer(base, ends, [], ANY_RUN), strict=True):
                tally.add(found.loss, end, found.raw - end.loss, (found.low, found.high))
    return tally.line("no decay known, nothing assumed but shares")


def continuation(bases: list[Base]) -> str:
    """How far curves cut short, and continued, lie from what came."""
    errors = []
    for base in bases:
        whole = ConstantCurve(base.steps, base.losses)
        for cut in (7000, 10_000, 14_000, 20_000, 30_000, 40_000):
            kept = base.steps <= cut
            for ahead in (1.125 * cut, 1.25 * cut):
                if ahead < 0.97 * base.steps[-1]:
                    found = ConstantCurve(base.steps[kept], base.losses[kept]).levels([ahead])
                    seen = whole.levels([ahead]).losses[0]
                    errors.append(100.0 * (found.losses[0] - seen) / seen)
    return (
        f"curves continued by an eighth and a quarter: mean error {np.mean(errors):+.3f} % of the "
        f"loss, root mean square {np.sqrt(np.mean(np.square(errors))):.3f} ({len(errors)})"
    )


def one_known(bases: list[Base], priors: dict[str, Priors], laws: bool) -> list[str]:
    tallies = {name: Tally() for name in ("all", "curve", "averages", "sqrt", "mpl", "ours_mpl")}
    for base in bases:
        ends = [e for e in base.ends if e.part <= INSIDE and e.step >= EARLIEST]
        for known in ends:
            others = [e for e in ends if e is not known]
            if not others or known.shape != "linear":
                continue
            found = answer(base, others, [known], priors[base.run])
            law = MultiPower(base, known) if laws and known.part == 0.2 else None
            for end, one in zip(others, found, strict=True):
                band, gain = (one.low, one.high), one.raw - end.loss
                twin = (end.step, end.length) == (known.step, known.length)
                if twin and end.shape != "linear":
                    tallies["sqrt"].add(one.loss, end, gain, band)
                    continue
                if twin:
                    continue  # a rerun of the known decay
                for kind in ("all", "averages" if base.averages else "curve"):
                    tallies[kind].add(one.loss, end, gain, band)
                if law is not None:
                    tallies["ours_mpl"].add(one.loss, end, gain, band)
                    tallies["mpl"].add(law(end), end, gain, None)
    names = {
        "all": "one linear decay known, all others of that rate",
        "curve": "  no averages",
        "averages": "  with averages",
        "sqrt": "1-√ from the linear decay of the same length and end",
        "ours_mpl": "one decay of a fifth of the steps known: this package",
        "mpl": "    the multi-power law on the same data",
    }
    return [tallies[kind].line(name) for kind, name in names.items() if tallies[kind].errors]


def regret(bases: list[Base], priors: dict[str, Priors]) -> list[str]:
    """What choosing the length by the prediction costs, over the trained lengths."""
    ours, fifth = [], []
    for base in bases:
        groups: dict[int, list[End]] = {}
        for end in base.ends:
            if end.shape == "linear":
                groups.setdefault(end.step, []).append(end)
        knowns = [e for e in base.ends if e.part <= INSIDE and e.shape == "linear"]
        for step, ends in groups.items():
            allowed = [e for e in ends if e.part <= 0.6]
            if len(allowed) < 3 or step < EARLIEST:
                continue
            best = min(end.loss for end in ends)
            fifth += [100.0 * (e.loss - best) / best for e in ends if e.part == 0.2]
            for known in knowns:
                found = answer(base, allowed, [known], priors[base.run])
                chosen = allowed[int(np.argmin([one.loss for one in found]))]
                ours.append(100.0 * (chosen.loss - best) / best)
    return [
        f"regret of the chosen length, one decay known: mean {np.mean(ours):.3f} % of the loss, "
        f"worst {max(ours):.3f} ({len(ours)} choices); always a fifth: mean {np.mean(fifth):.3f} %"
    ]


def speed(base: Base) -> str:
    end = int(base.steps[-1])
    decays = [
        (shape, length, end + (length if now else 0))
        for shape in ("linear", "one_minus_sqrt")
        for now in (False, True)
        for length in np.linspace(0.02 * end, 0.38 * end, 25).astype(int).tolist()
    ]
    begin = time.perf_counter()
    theory.what_if(base.steps, base.losses, base.rate, decays, base.averages)
    seconds = time.perf_counter() - begin
    return f"{len(decays)} decays with bands, {base.steps.size} points: {seconds:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="of the three CSV files")
    parser.add_argument("--priors", action="store_true", help="print the constants and end")
    parser.add_argument("--no-multi-power", action="store_true", help="leave that law out")
    arguments = parser.parse_args()
    bases = read(arguments.folder)
    if arguments.priors:
        print(fit_priors(bases))
        return
    runs = sorted({base.run for base in bases})
    priors = {run: fit_priors([b for b in bases if b.run != run]) for run in runs}
    print(
        f"{'per cent of the loss':<58}{'ends':>5}{'median':>9}{'worst':>9}{'% gain':>9}{'90 %':>8}"
    )
    for line in without_cooldown(bases, priors):
        print(line, flush=True)
    print(any_run(bases))
    for line in one_known(bases, priors, not arguments.no_multi_power):
        print(line)
    for line in regret(bases, priors):
        print(line)
    print(continuation(bases))
    print(speed(max((b for b in bases), key=lambda b: (bool(b.averages), b.steps.size))))
    print(speed(max((b for b in bases if not b.averages), key=lambda b: b.steps.size)))


if __name__ == "__main__":
    main()
