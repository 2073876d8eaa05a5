"""SWA, FGE and conventional training at equal budgets, by their authors' procedure.

Three runs a seed, which share what they have in common (Izmailov et al. 2018, arXiv 1803.05407,
and their published code; Garipov et al. 2018, arXiv 1802.10026):

* "conventional": the base rate until half of the budget, then on a line to a hundredth of it at
  nine tenths, then constant;
* "swa_constant": the same shape over the steps before `start`, but down to SWA's own rate, at
  which it goes on to the end; from `start` on a model is collected every `every` steps;
* "cyclical": leaves it at `start` under the cyclical rate; models are collected at cycle ends.

SWA is the mean of the weights collected, FGE that of the predictions of the cyclical run's.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_lrtraj import rates
from tf_lrtraj.averaging import Ensemble
from tf_lrtraj.averaging.post_hoc import combine
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import training_runs
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.state_files import read_arrays, write_arrays
from tf_lrtraj.study.task import Sizes, Task
from tf_lrtraj.study.trainer import Run, arrays_of

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
    "trade_off_steps",
    "training_steps",
]

SETS = ("train_part", "test")
COLLECTED = "collected"
_CONVENTIONAL_END = 0.01  # of the base rate
_DECAY = np.linspace(0.5, 1.0, 11)  # shares of the budget whose states are kept


class Times(NamedTuple):
    """Numbers of steps at which something happens.

    Attributes:
        total: the budget.
        fork: where SWA's run leaves the conventional one.
        start: from where models are collected.
        every: steps between the models that SWA at constant rate collects.
        length: of a cycle.
    """

    total: int
    fork: int
    start: int
    every: int
    length: int

    @property
    def ends(self) -> list[int]:
        """Of the cycles."""
        return list(range(self.start + self.length, self.total + 1, self.length))

    @property
    def decay(self) -> list[int]:
        """Steps along the conventional run's decay whose states are kept."""
        return sorted({round(share * self.total) for share in _DECAY})


def budget_steps(config: Mapping[str, Any]) -> int:
    """Steps of every method."""
    return int(config["budget"]["steps"] or training_runs.total_steps(config))


def times(config: Mapping[str, Any], num_train: int) -> Times:
    """When what happens: whole cycles, the last of which ends with the budget.

    Raises:
        ConfigError: if two cycles do not fit.
    """
    settings, total = config["budget"], budget_steps(config)
    every = settings["every"] or max(num_train // config["batch_size"], 1)
    length = settings["cycle"] * every
    cycles = max(round((1.0 - settings["swa_start"]) * total / length), 2)
    start = total - cycles * length
    if start < 4:
        raise ConfigError(
            f"`config.budget.cycle` must be so short that 2 cycles of {every} times as many steps "
            f"leave 4 of the budget of {total}. Received: {settings['cycle']}"
        )
    return Times(total, start // 2, start, every, length)


def annealed(rate: float, count: int, over: int, low: float) -> np.ndarray:
    """[count] rates: `rate` until half of `over` steps, on a line to `low` of it at nine tenths.

    >>> annealed(1.0, 11, over=10, low=0.2).round(2).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    """
    share = np.clip((np.arange(count) / over - 0.5) / 0.4, 0.0, 1.0)
    return np.asarray(rate * (1.0 - (1.0 - low) * share))


# Runs -----------------------------------------------------------------------------------------


def _times(bench: Bench) -> Times:
    return times(bench.config, bench.problem.num_train)


def conventional(bench: Bench, seed: int) -> Run:
    """The conventional run from scratch, made if it is not there yet."""
    at = _times(bench)
    found = annealed(bench.config["learning_rate"], at.total, at.total, _CONVENTIONAL_END)
    keep = (at.fork, *at.decay)
    return _finished(bench, seed, "conventional", None, 0, found, keep=keep)


def swa_constant(bench: Bench, seed: int) -> Run:
    """SWA's run at its constant rate, made if it is not there yet."""
    at, low = _times(bench), bench.config["budget"]["swa_rate"]
    found = annealed(bench.config["learning_rate"], at.total, at.start, low)[at.fork :]
    return _finished(
        bench, seed, "swa_constant", conventional, at.fork, found, keep=(at.start,), every=at.every
    )


def cyclical(bench: Bench, seed: int) -> Run:
    """The run under the cyclical rate, made if it is not there yet."""
    at = _times(bench)
    formula = rates.Cyclical(*_high_and_low(bench.config), length=at.length)
    found = rates.as_array(formula, at.total - at.start)
    return _finished(bench, seed, "cyclical", swa_constant, at.start, found, every=at.length)


def _high_and_low(config: Mapping[str, Any]) -> tuple[float, float]:
    settings, rate = config["budget"], config["learning_rate"]
    return settings["swa_rate"] * rate, settings["low"] * rate


def _finished(
    bench: Bench,
    seed: int,
    name: str,
    source: Callable[[Bench, int], Run] | None,
    first: int,
    found: np.ndarray,
    keep: tuple[int, ...] = (),
    every: int | None = None,
) -> Run:
    """A run that leaves `source` at step `first`; collects from its `start` on if `every` is given.

    The rate that the optimizer had at each step is kept in `rates-*.npz`.
    """
    config, at = bench.config, _times(bench)
    made_before: list[Run] = []
    run = Run(
        bench.trainer,
        bench.state_folder(name, seed),
        first,
        found,
        config["momentum"],
        seed,
        lambda: made_before[0].state(first) if made_before else bench.initial(seed),
        keep=keep,
        segment=config["segment"],
        snapshots=() if every is None else ((COLLECTED, every, at.start, at.total),),
        log_every=config["log_every"],
    )
    if source is not None and not run.path(run.last).exists():
        made_before.append(source(bench, seed))
    used: list[_RatesUsed] = []

    def callbacks(low: int, high: int) -> list[keras.callbacks.Callback]:
        used[:] = [_RatesUsed()]
        return list(used)

    def done(low: int, high: int) -> None:
        write_arrays(_rates_file(run, low), {"rates": np.array(used[0].rates)})

    bench.finish(run, f"seed {seed}: {name}", callbacks, done)
    return run


class _RatesUsed(keras.callbacks.Callback):
    """Notes the rate that the optimizer has after each of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        rate = self.model.optimizer.learning_rate
        self.rates.append(float(keras.ops.convert_to_numpy(rate)))


def _rates_file(run: Run, low: int) -> pathlib.Path:
    return run.folder / f"rates-{low:09d}.npz"


def optimizer_rates(run: Run) -> np.ndarray:
    """[n] the rate that the optimizer had at each step of a run."""
    files = sorted(run.folder.glob("rates-*.npz"))
    return np.concatenate([read_arrays(path)["rates"] for path in files])


# What they collect ----------------------------------------------------------------------------

# Kind of SWA → its run.
RUNS: dict[str, Callable[[Bench, int], Run]] = {
    "swa_constant": swa_constant,
    "swa_cyclical": cyclical,
}


def collected(bench: Bench, seed: int, kind: str) -> tuple[Snapshots, list[int]]:
    """(snapshots of the run, steps of the models it collected); both from the disk.

    The first snapshot is the model at `start`, before anything was collected.
    """
    snapshots = Snapshots(RUNS[kind](bench, seed).folder / COLLECTED)
    return snapshots, [int(step) for step in snapshots.steps[1:]]


def average(
    bench: Bench, seed: int, kind: str, counts: Sequence[int] | None = None
) -> dict[int, list[np.ndarray]]:
    """Number of models → the mean of so many collected first: weights, then statistics.

    Args:
        kind: "swa_constant" or "swa_cyclical".
        counts: the numbers; None for that of all.
    """
    snapshots, steps = collected(bench, seed, kind)
    counts = [len(steps)] if counts is None else counts
    place = np.arange(len(snapshots))
    weights = {str(n): np.where((place >= 1) & (place <= n), 1.0 / n, 0.0) for n in counts}
    return {int(n): arrays for n, arrays in combine(snapshots, weights, progress=False).items()}


def trade_off_points(bench: Bench, seed: int) -> list[tuple[str, str, list[np.ndarray]]]:
    """(family, label, trainable weights) of points that trade training loss for test loss.

    "average": SWA of the first 2, 4, … and of all models collected, of both kinds; "decay": the
    conventional run from the beginning of its decay to the end, whose training losses reach from
    above those of the averages to below.  (Iterates at SWA's rate are not: theirs are all above.)
    """
    count = len(bench.model.trainable_variables)
    found: list[tuple[str, str, list[np.ndarray]]] = []
    for kind in RUNS:
        means = average(bench, seed, kind, _doubling(len(collected(bench, seed, kind)[1])))
        found += [("average", f"{kind} of {n}", arrays[:count]) for n, arrays in means.items()]
    run = conventional(bench, seed)
    return found + [
        ("decay", f"step {step}", arrays_of(run.state(step))[:count])
        for step in _times(bench).decay
    ]


def _doubling(most: int) -> list[int]:
    """2, 4, 8, …, and `most`.

    >>> _doubling(9), _doubling(4)
    ([2, 4, 8, 9], [2, 4])
    """
    return sorted({2**k for k in range(1, most.bit_length()) if 2**k <= most} | {most})


# Tasks ----------------------------------------------------------------------------------------


def budget(bench: Bench, seed: int) -> None:
    """Scores of every method, under every batch-norm policy where averages need one."""
    config, at = bench.config, _times(bench)
    count = len(bench.model.trainable_variables)
    rows: list[dict[str, Any]] = []

    def add(method: str, arrays: Sequence[Any], policy: str = "recompute", **more: Any) -> None:
        recomputed = policy == "recompute"
        kept = arrays[:count] if recomputed else arrays
        scored = bench.scorer.score(kept, SETS if recomputed else SETS[1:], policy)
        rows.extend({"method": method, "member": -1, **more, **row} for row in scored)

    add("conventional", arrays_of(conventional(bench, seed).state()))
    members: list[list[np.ndarray]] = []
    for kind, single in (("swa_constant", "constant_iterate"), ("swa_cyclical", "fge_member")):
        snapshots, steps = collected(bench, seed, kind)
        (mean,) = average(bench, seed, kind).values()
        last: list[np.ndarray] = []
        for member, step in enumerate(step for step in steps if step in at.ends):
            last = snapshots.read(step)
            add(single, last, member=member, step=step)
            if single == "fge_member":
                members.append(last)
        add(kind, mean)
        add(kind, mean, "average")
        add(kind, [*mean[:count], *last[count:]], "copy")
        add(f"{kind}_last", last)
        add(f"{kind}_last", last, "running")
    rows += _ensemble(bench, "fge", members)
    high, low = _high_and_low(config)
    about = {
        **at._asdict(),
        "swa_rate": config["budget"]["swa_rate"],
        "cycle": {"length": at.length, "high": high, "low": low, "first_step": at.start},
        "members": len(members),
    }
    run = cyclical(bench, seed)
    used, ends = optimizer_rates(run), collected(bench, seed, "swa_cyclical")[1]
    bench.store("budget", seed, rows, about, optimizer_rates=used, collected=ends)


def independent(bench: Bench, seed: int) -> None:
    """The ensemble of the conventional runs of all seeds, which costs as many budgets."""
    members = [
        arrays_of(conventional(bench, other).state()) for other in range(bench.config["seeds"])
    ]
    rows = _ensemble(bench, "independent", members)
    bench.store("independent", seed, rows, {"members": len(members)})


def _ensemble(
    bench: Bench, method: str, members: Sequence[Sequence[np.ndarray]]
) -> list[dict[str, Any]]:
    settings = bench.config["evaluate"]
    count = len(bench.model.trainable_variables)
    ensemble = Ensemble(
        bench.model,
        [m[:count] for m in members],
        logits=True,
        batch_norm_data=bench.problem.x_train[: settings["batch_norm_images"]],
        batch_size=settings["batch_size"],
    )
    rows = []
    for name in SETS:
        x, y = bench.problem.images(name, settings["part"])
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


def training_steps(config: Mapping[str, Any]) -> dict[str, int]:
    """Run → its steps, to within the rounding to whole cycles."""
    total, start = budget_steps(config), config["budget"]["swa_start"]
    return {
        "conventional": total,
        "swa_constant": round((1.0 - 0.5 * start) * total),
        "cyclical": round((1.0 - start) * total),
    }


trade_off_steps = training_steps  # of the runs that `trade_off_points` reads


def trade_off_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    """Images of scoring `trade_off_points`."""
    at = times(config, sizes.train)
    models = (len(at.ends), (at.total - at.start) // at.every)
    return float((sum(len(_doubling(n)) for n in models) + len(at.decay)) * sizes.some)


def _images(config: Mapping[str, Any], sizes: Sizes) -> float:
    cycles = len(times(config, sizes.train).ends)
    whole = 1 + 3 * cycles + 4  # of single runs, members and their ensemble, and of averages
    return float(whole * sizes.some + 6 * sizes.test)


def _independent_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return {"conventional": budget_steps(config)}


def _independent_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return float(config["seeds"] * sizes.some)


TASKS = (
    Task("budget", budget, "SWA, FGE and conventional training", (), training_steps, _images),
    Task(
        "independent",
        independent,
        "ensemble of independent runs",
        after=("budget",),
        steps=_independent_steps,
        images=_independent_images,
        across=True,
    ),
)
