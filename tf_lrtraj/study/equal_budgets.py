"""SWA, FGE and conventional training at equal budgets, by their authors' procedure.

Each seed has three runs, which share their common first steps (Izmailov et al. 2018, arXiv
1803.05407, and their published code; Garipov et al. 2018, arXiv 1802.10026):

* "conventional": the base rate for half of the budget, then a linear decay to a hundredth of it at
  nine tenths, then constant;
* "swa_constant": the same shape over the steps before `start`, but down to SWA's rate, which is
  kept to the end; from `start` on a model is collected every `every` steps;
* "cyclical": continues it from `start` at the cyclical rate; models are collected at cycle ends.

SWA is the mean of the collected weights, FGE the mean of the predictions of the cyclical run's
models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_lrtraj import rates
from tf_lrtraj.averaging import Ensemble
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.runs.config_checks import refusal
from tf_lrtraj.study import study_points, training_runs
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.state_files import read_arrays, write_arrays
from tf_lrtraj.study.task import ONCE, Sizes, task
from tf_lrtraj.study.trainer import Run, Watch

__all__ = [
    "RUNS",
    "TASKS",
    "Times",
    "annealed",
    "average",
    "budget",
    "collected",
    "conventional",
    "cyclical",
    "independent",
    "swa_constant",
    "times",
    "trade_off_images",
    "trade_off_points",
    "training_steps",
]

SETS = ("train_part", "test")
COLLECTED = "collected"
_CONVENTIONAL_END = 0.01  # of the base rate
_DECAY = np.linspace(0.5, 1.0, 11)  # shares of the budget at which states are kept


class Times(NamedTuple):
    """The steps of the procedure.

    Attributes:
        total: the budget.
        fork: the step at which SWA's run leaves the conventional one.
        start: the step from which models are collected.
        every: steps between the models that SWA at constant rate collects.
        length: the length of a cycle.
    """

    total: int
    fork: int
    start: int
    every: int
    length: int

    @property
    def ends(self) -> list[int]:
        """The steps at which cycles end."""
        return list(range(self.start + self.length, self.total + 1, self.length))

    @property
    def decay(self) -> list[int]:
        """The steps of the conventional run's decay at which states are kept."""
        return sorted({round(share * self.total) for share in _DECAY})


def budget_steps(config: Mapping[str, Any]) -> int:
    """Returns the number of steps of every method."""
    return int(config["budget"]["steps"] or training_runs.total_steps(config))


def times(config: Mapping[str, Any], num_train: int) -> Times:
    """Returns the steps of the procedure: whole cycles, the last of which ends with the budget.

    Raises:
        ConfigError: if two cycles do not fit.
    """
    settings, total = config["budget"], budget_steps(config)
    every = settings["every"] or max(num_train // config["batch_size"], 1)
    length = settings["cycle"] * every
    cycles = max(round((1.0 - settings["swa_start"]) * total / length), 2)
    start = total - cycles * length
    if start < 4:
        raise refusal(
            "budget.cycle",
            f"so short that 2 cycles of {every} times as many steps leave 4 of the budget of "
            f"{total}",
            settings["cycle"],
        )
    return Times(total, start // 2, start, every, length)


def annealed(rate: float, count: int, over: int, low: float) -> np.ndarray:
    """Returns [count] rates: `rate` for half of `over` steps, then linear to `low` at nine tenths.

    >>> annealed(1.0, 11, over=10, low=0.2).round(2).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    """
    share = np.clip((np.arange(count) / over - 0.5) / 0.4, 0.0, 1.0)
    return np.asarray(rate * (1.0 - (1.0 - low) * share))


# Runs -----------------------------------------------------------------------------------------


def _times(session: Session) -> Times:
    return times(session.config, session.problem.num_train)


def conventional(session: Session, seed: int) -> Run:
    """Returns the conventional run from scratch; trains it if needed."""
    at = _times(session)
    found = annealed(session.config["learning_rate"], at.total, at.total, _CONVENTIONAL_END)
    return _finished(session, session.run("conventional", seed, found, keep=(at.fork, *at.decay)))


def swa_constant(session: Session, seed: int) -> Run:
    """Returns SWA's run at its constant rate; trains it if needed."""
    at, low = _times(session), session.config["budget"]["swa_rate"]
    found = annealed(session.config["learning_rate"], at.total, at.start, low)[at.fork :]
    run = session.run(
        "swa_constant",
        seed,
        found,
        first=at.fork,
        start=lambda: conventional(session, seed).state(at.fork),
        keep=(at.start,),
        snapshots=((COLLECTED, at.every, at.start, at.total),),
    )
    return _finished(session, run, conventional)


def cyclical(session: Session, seed: int) -> Run:
    """Returns the run at the cyclical rate; trains it if needed."""
    at = _times(session)
    formula = rates.Cyclical(*_high_and_low(session.config), length=at.length)
    run = session.run(
        "cyclical",
        seed,
        rates.as_array(formula, at.total - at.start),
        first=at.start,
        start=lambda: swa_constant(session, seed).state(at.start),
        snapshots=((COLLECTED, at.length, at.start, at.total),),
    )
    return _finished(session, run, swa_constant)


def _high_and_low(config: Mapping[str, Any]) -> tuple[float, float]:
    settings, rate = config["budget"], config["learning_rate"]
    return settings["swa_rate"] * rate, settings["low"] * rate


def _finished(
    session: Session, run: Run, source: Callable[[Session, int], Run] | None = None
) -> Run:
    """Trains the missing steps of the run that it leaves, and then those of a run.

    The trainer has one model, so one run must not be trained in the middle of another.
    """
    if source is not None and not run.path(run.last).exists():
        source(session, run.order_seed)
    return session.finish(run, f"seed {run.order_seed}: {run.folder.name}", _RatesUsed())


class _Rates(keras.callbacks.Callback):
    """Records the optimizer's rate after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        rate = self.model.optimizer.learning_rate
        self.rates.append(float(keras.ops.convert_to_numpy(rate)))


class _RatesUsed(Watch):
    """Stores the optimizer's rates of each segment in `rates-*.npz`."""

    def __init__(self) -> None:
        self._noted = _Rates()

    def callbacks(self, low: int, high: int) -> list[keras.callbacks.Callback]:
        self._noted = _Rates()
        return [self._noted]

    def done(self, run: Run, low: int, high: int) -> None:
        write_arrays(run.folder / f"rates-{low:09d}.npz", {"rates": np.array(self._noted.rates)})


def optimizer_rates(run: Run) -> np.ndarray:
    """Returns the [n] rates of the optimizer at each step of a run."""
    files = sorted(run.folder.glob("rates-*.npz"))
    return np.concatenate([read_arrays(path)["rates"] for path in files])


# Collected models -----------------------------------------------------------------------------

# Kind of SWA → its run.
RUNS: dict[str, Callable[[Session, int], Run]] = {
    "swa_constant": swa_constant,
    "swa_cyclical": cyclical,
}


def collected(session: Session, seed: int, kind: str) -> tuple[Snapshots, list[int]]:
    """Returns (snapshots of the run, steps of the collected models), read from disk.

    The first snapshot is the model at `start`, before anything was collected.
    """
    snapshots = Snapshots(RUNS[kind](session, seed).folder / COLLECTED)
    return snapshots, [int(step) for step in snapshots.steps[1:]]


def average(
    session: Session, seed: int, kind: str, counts: Sequence[int] | None = None
) -> dict[int, list[np.ndarray]]:
    """Returns number of models → mean of the first models collected: weights, then statistics.

    Args:
        kind: "swa_constant" or "swa_cyclical".
        counts: numbers of models; None for all.
    """
    snapshots, steps = collected(session, seed, kind)
    counts = [len(steps)] if counts is None else counts
    place = np.arange(len(snapshots))
    weights = {n: np.where((place >= 1) & (place <= n), 1.0 / n, 0.0) for n in counts}
    return dict(study_points.averaged(snapshots, weights))


def trade_off_points(session: Session, seed: int) -> list[tuple[str, str, list[np.ndarray]]]:
    """Yields (family, label, weights) of points whose training and test losses are compared.

    "average": SWA of the first 2, 4, … and of all collected models, of both kinds.  "decay": the
    conventional run from the beginning of its decay to the end, whose training losses range from
    above those of the averages to below.  (Iterates at SWA's rate all have higher losses.)
    """
    found: list[tuple[str, str, list[np.ndarray]]] = []
    for kind in RUNS:
        means = average(session, seed, kind, _doubling(len(collected(session, seed, kind)[1])))
        found += [("average", f"{kind} of {n}", arrays) for n, arrays in means.items()]
    run = conventional(session, seed)
    return found + [("decay", f"step {step}", run.arrays(step)) for step in _times(session).decay]


def _doubling(most: int) -> list[int]:
    """2, 4, 8, …, and `most`.

    >>> _doubling(9), _doubling(4)
    ([2, 4, 8, 9], [2, 4])
    """
    return sorted({2**k for k in range(1, most.bit_length()) if 2**k <= most} | {most})


def trade_off_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    """Returns the number of images for scoring `trade_off_points`."""
    at = times(config, sizes.train)
    models = (len(at.ends), (at.total - at.start) // at.every)
    return float((sum(len(_doubling(n)) for n in models) + len(at.decay)) * sizes.some)


# Tasks ----------------------------------------------------------------------------------------


def training_steps(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns run → its steps, up to the rounding to whole cycles."""
    total, start = budget_steps(config), config["budget"]["swa_start"]
    return {
        "conventional": total,
        "swa_constant": round((1.0 - 0.5 * start) * total),
        "cyclical": round((1.0 - start) * total),
    }


def _images(config: Mapping[str, Any], sizes: Sizes) -> float:
    cycles = len(times(config, sizes.train).ends)
    whole = 1 + 3 * cycles + 4  # single runs, members and their ensemble, and averages
    return float(whole * sizes.some + 6 * sizes.test)


@task("SWA, FGE and conventional training", steps=training_steps, images=_images)
def budget(session: Session, seed: int) -> None:
    """Scores every method, and averages under every batch-norm policy."""
    config, at = session.config, _times(session)
    rows: list[dict[str, Any]] = []

    def add(method: str, arrays: Any, policy: str = "recompute", **more: Any) -> None:
        sets = SETS if policy == "recompute" else SETS[1:]
        rows.extend(session.score(arrays, sets, policy, method=method, **{"member": -1, **more}))

    add("conventional", conventional(session, seed).arrays())
    members: list[list[np.ndarray]] = []
    for kind, single in (("swa_constant", "constant_iterate"), ("swa_cyclical", "fge_member")):
        snapshots, steps = collected(session, seed, kind)
        (mean,) = average(session, seed, kind).values()
        last: list[np.ndarray] = []
        for member, step in enumerate(step for step in steps if step in at.ends):
            last = snapshots.read(step)
            add(single, last, member=member, step=step)
            if single == "fge_member":
                members.append(last)
        add(kind, mean)
        add(kind, mean, "average")
        add(kind, [*session.trainable(mean), *last[session.num_trainable :]], "copy")
        add(f"{kind}_last", last)
        add(f"{kind}_last", last, "running")
    rows += _ensemble(session, "fge", members)
    high, low = _high_and_low(config)
    about = {
        **at._asdict(),
        "swa_rate": config["budget"]["swa_rate"],
        "cycle": {"length": at.length, "high": high, "low": low, "first_step": at.start},
        "members": len(members),
    }
    used = optimizer_rates(cyclical(session, seed))
    ends = collected(session, seed, "swa_cyclical")[1]
    session.store("budget", seed, rows, about, optimizer_rates=used, collected=ends)


@task(
    "ensemble of independent runs",
    after=("budget",),
    steps=lambda config: {"conventional": budget_steps(config)},
    images=lambda config, sizes: config["seeds"] * sizes.some,
    seeds_of=ONCE,
    across=True,
)
def independent(session: Session, seed: int) -> None:
    """Scores the ensemble of the conventional runs of all seeds, which costs as many budgets."""
    members = [conventional(session, other).arrays() for other in range(session.config["seeds"])]
    rows = _ensemble(session, "independent", members)
    session.store("independent", seed, rows, {"members": len(members)})


def _ensemble(
    session: Session, method: str, members: Sequence[Sequence[np.ndarray]]
) -> list[dict[str, Any]]:
    settings = session.config["evaluate"]
    ensemble = Ensemble(
        session.model,
        [session.trainable(arrays) for arrays in members],
        logits=True,
        batch_norm_data=session.problem.x_train[: settings["batch_norm_images"]],
        batch_size=settings["batch_size"],
    )
    rows = []
    for name in SETS:
        x, y = session.problem.images(name, settings["part"])
        found = ensemble.predict(x)
        chosen = found[np.arange(len(y)), y]
        rows.append(
            {
                "method": method,
                "member": -1,
                "set": name,
                "loss": float(-np.log(np.maximum(chosen, 1e-30)).mean()),
                "accuracy": float((found.argmax(axis=1) == y).mean()),
                "images": len(y),
                "policy": "recompute",
            }
        )
    return rows


TASKS = (budget, independent)
