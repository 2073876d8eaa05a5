"""Averages against schedules: equivalent runs, emulated decays, lower rates, and test loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import kernels, rates, theory
from tf_lrtraj.averaging.post_hoc import snapshot_weights
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.study import equal_budgets, iterates, study_points, training_runs
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import Sizes, base_run, task
from tf_lrtraj.study.trainer import Run
from tf_lrtraj.theory.estimate import SpectrumEstimate

__all__ = [
    "DECAYS",
    "EQUIVALENCES",
    "TASKS",
    "along_steps",
    "curvature_free_rates",
    "decay_rates",
    "decays",
    "emulated",
    "equivalent",
    "loss_match_rates",
    "lower_rates",
    "running",
    "trade_off",
]

# The curvature-free schedule, under which a run ends at the average for frozen gradients; and the
# schedule whose expected loss is that of the average at every step.
EQUIVALENCES = ("curvature_free", "loss_match")
DECAYS = ("cosine", "linear", "one_minus_sqrt")


def curvature_free_rates(config: Mapping[str, Any], kernel: kernels.Kernel, end: int) -> np.ndarray:
    """Returns the [n] rates from `fork_step` on of a run that should end at the average."""
    weights, horizon = np.zeros(end + 1), config["horizon"]
    weights[-horizon - 1 :] = kernel.weights(horizon)
    found = theory.schedule_from_weights(weights, config["learning_rate"], 0.0, config["momentum"])
    return found[training_runs.fork_step(config, end) :]


def loss_match_rates(
    config: Mapping[str, Any], kernel: kernels.Kernel, found: SpectrumEstimate
) -> np.ndarray:
    """Returns the [horizon] rates of a run with the running average's expected loss at every step.

    They are for the effective rate without momentum, which is valid for slow modes.
    """
    horizon, rest = config["horizon"], 1.0 - config["momentum"]
    base = config["learning_rate"] / rest
    target = found.model.expected_loss_of_average(kernel, np.full(horizon, base), found.initial)
    weights = kernel.weights(horizon)
    fitted = theory.best_schedule(found.model, target, base, found.initial, weights=weights)
    return fitted * rest


def predicted_excess(
    config: Mapping[str, Any], kernel: kernels.Kernel, schedule: np.ndarray, found: SpectrumEstimate
) -> tuple[float, float]:
    """Returns the model's expected excess loss of the average and of the run under the schedule."""
    effective = 1.0 / (1.0 - config["momentum"])
    horizon = config["horizon"]
    constant = np.full(horizon, config["learning_rate"] * effective)
    average = found.model.expected_loss_of_average(kernel, constant, found.initial)[-1]
    run = found.model.expected_loss(schedule[-horizon:] * effective, found.initial)[-1]
    return float(average), float(run)


def along_steps(config: Mapping[str, Any]) -> list[int]:
    """Returns evenly spaced steps of the last horizon, with its end, whose iterates are kept."""
    end, kept = training_runs.total_steps(config), config["horizon"] // config["horizon_every"]
    places = config["along"]["places"]
    before = [round(kept * i / places) for i in reversed(range(places))]
    return [end - count * config["horizon_every"] for count in before]


def _followed(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(config["along"]["averages"] or config["averages"])


def _equivalent_steps(config: Mapping[str, Any]) -> dict[str, int]:
    steps = base_run(config)
    for end in training_runs.ends(config):
        tail = end - training_runs.fork_step(config, end)
        steps |= {f"equivalent-{name}-{end}": tail for name in config["averages"]}
    return steps | {"loss_match": len(_followed(config)) * int(config["horizon"])}


def _equivalent_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    averages, followed = len(config["averages"]), len(_followed(config))
    whole = averages * (2 * config["places"] - 1) + followed
    along = 4 * followed * config["along"]["places"]
    return float(whole * sizes.all + along * (sizes.some - sizes.test))


@task(
    "runs under equivalent schedules",
    after=("sweep", "averages"),
    steps=_equivalent_steps,
    images=_equivalent_images,
)
def equivalent(session: Session, seed: int) -> None:
    """Scores each average and the run under its equivalent schedule at the end of each horizon.

    The averages of `config.along` are also compared along the last horizon, with the run under that
    schedule and with the run that should match their loss.
    """
    config = session.config
    found = iterates.estimate(session, seed)
    followed = _followed(config)
    rows: list[dict[str, Any]] = []
    along: list[dict[str, Any]] = []
    predicted = [{"average": "raw", "of": "raw", "excess": float(found.excess.sum())}]
    for end in training_runs.ends(config):
        for name, kernel_config in config["averages"].items():
            kernel = kernels.from_config(kernel_config)
            follow = end == training_runs.total_steps(config) and name in followed
            schedules = {"curvature_free": curvature_free_rates(config, kernel, end)}
            if follow:
                schedules["loss_match"] = loss_match_rates(config, kernel, found)
            for kind, schedule in schedules.items():
                label = {"average": name, "equivalence": kind}
                run = training_runs.fork(
                    session,
                    seed,
                    f"equivalent-{name}-{kind}-{end}",
                    end - len(schedule),
                    schedule,
                    keep=tuple(along_steps(config)) if follow else (),
                )
                rows += session.score(run.arrays(), iterates.ALL, **label, of="run", end=end)
                if follow:
                    along += _along(session, seed, run, kernel, label)
                    excess = predicted_excess(config, kernel, schedule, found)
                    for of, value in zip(("average", "run"), excess, strict=True):
                        predicted.append({**label, "of": of, "excess": value})
        rows += _averages(session, seed, end)
    about = {
        "estimates": {
            "curvature": found.curvature,
            "curvatures": found.curvatures.tolist(),
            "noise_variances": found.noise_variances.tolist(),
            "excess": found.excess.tolist(),
            "unresolved": found.unresolved,
            "set": "train_part",
        },
        "predicted": predicted,
        "kernels": config["averages"],
        "begin": training_runs.total_steps(config) - config["horizon"],
        "horizon": config["horizon"],
    }
    session.store("equivalent", seed, rows, about, along=along)


def _averages(session: Session, seed: int, end: int) -> list[dict[str, Any]]:
    """Returns rows of the averages over a horizon; those of the last are already scored."""
    label: dict[str, Any] = {"equivalence": "none", "of": "average", "end": end}
    if end == training_runs.total_steps(session.config):
        known = session.read("averages", seed)["rows"]
        chosen = [r for r in known if r["policy"] == "recompute" and r["average"] != "raw"]
        return [{**row, **label} for row in chosen]
    rows = []
    for name, arrays in training_runs.averages(session, seed, end).items():
        rows += session.score(arrays, iterates.ALL, average=name, **label)
    return rows


def _along(
    session: Session, seed: int, run: Run, kernel: kernels.Kernel, label: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns rows of a run and of its averages along the last horizon."""
    steps = along_steps(session.config)
    if label["equivalence"] == "curvature_free":
        averages = emulated(session, seed, run.rates, run.first, steps)
    else:
        averages = running(session, seed, kernel, steps)
    rows = []
    for step in steps:
        for of, weights in (("run", run.arrays(step)), ("average", averages.pop(step))):
            rows += session.score(weights, iterates.PART[:1], **label, of=of, step=step)
    return rows


def emulated(
    session: Session, seed: int, schedule: np.ndarray, first: int, steps: Sequence[int]
) -> dict[int, list[np.ndarray]]:
    """Returns averages of snapshots that emulate a run under `schedule` from `first`, at `steps`.

    The snapshots are those of the horizon that ends with the schedule.
    """
    config = session.config
    end = first + len(schedule)
    snapshots = session.snapshots(seed, which=training_runs.horizon_name(config, end))
    base = np.full(end, config["learning_rate"])
    whole = np.concatenate([base[:first], schedule])
    wanted = {}
    for step in steps:
        weights = theory.weights_from_schedule(whole[:step], base[:step], 0.0, config["momentum"])
        # The weights before the snapshots are negligible powers of the momentum.
        early = weights[: snapshots.steps[0]].sum()
        weights[: snapshots.steps[0]] = 0.0
        weights[-1] += early
        wanted[step] = weights
    return _built(snapshots, wanted)


def running(
    session: Session, seed: int, kernel: kernels.Kernel, steps: Sequence[int]
) -> dict[int, list[np.ndarray]]:
    """Returns the average over the last horizon at `steps`."""
    config = session.config
    begin = training_runs.total_steps(config) - config["horizon"]
    snapshots = session.snapshots(seed, which="horizon")
    wanted = {}
    for step in steps:
        wanted[step] = np.zeros(step + 1)
        wanted[step][begin:] = kernel.weights(step - begin)
    return _built(snapshots, wanted)


def _built(snapshots: Snapshots, wanted: Mapping[int, np.ndarray]) -> dict[int, list[np.ndarray]]:
    """Returns step → weighted sum of iterates, interpolated between those that were kept."""
    weights = {
        step: snapshot_weights(snapshots.steps, row, step).weights for step, row in wanted.items()
    }
    return dict(study_points.averaged(snapshots, weights))


def decay_rates(config: Mapping[str, Any], name: str) -> np.ndarray:
    """Returns [horizon] rates that decay to 0."""
    base, horizon = config["learning_rate"], config["horizon"]
    formulas = {
        "cosine": rates.Cosine(start=base, steps=horizon),
        "linear": rates.Linear(start=base, steps=horizon),
        "one_minus_sqrt": rates.OneMinusSqrt(start=base, hold=0, steps=horizon),
    }
    return rates.as_array(formulas[name], horizon)


def _decay_run(session: Session, seed: int, name: str, end: int) -> Run:
    schedule = decay_rates(session.config, name)
    first = end - len(schedule)
    last = end == training_runs.total_steps(session.config)
    keep = tuple(first + count for count in _decay_places(session.config)) if last else ()
    return training_runs.fork(session, seed, f"decay-{name}-{end}", first, schedule, keep=keep)


def _decay_places(config: Mapping[str, Any]) -> list[int]:
    """Returns the steps since the beginning of a decay at which its trade-off is scored."""
    places = config["trade_off"]["places"]
    return [round(config["horizon"] * i / places) for i in range(1, places + 1)]


def _decays_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return base_run(config) | {"decays": config["places"] * len(DECAYS) * config["horizon"]}


@task(
    "decays, trained and emulated",
    steps=_decays_steps,
    images=lambda config, sizes: (
        config["places"] * (2 * len(DECAYS) + config["raw_iterates"]) * sizes.all
    ),
)
def decays(session: Session, seed: int) -> None:
    """Scores trained decays, the same decays emulated from constant-rate iterates, and iterates."""
    config = session.config
    training_runs.base(session, seed)
    rows: list[dict[str, Any]] = []
    for end in training_runs.ends(config):
        for name in DECAYS:
            schedule = decay_rates(config, name)
            run = _decay_run(session, seed, name, end)
            built = emulated(session, seed, schedule, run.first, [end])
            for of, weights in (("trained", run.arrays()), ("emulated", built[end])):
                rows += session.score(weights, iterates.ALL, decay=name, of=of, end=end)
        snapshots = session.snapshots(seed, which=training_runs.horizon_name(config, end))
        kept = snapshots.steps[snapshots.steps >= end - config["horizon"]]
        for place in np.linspace(0, len(kept) - 1, config["raw_iterates"]).round().astype(int):
            step = int(kept[place])
            label: dict[str, Any] = {"decay": "none", "of": "raw", "end": end, "step": step}
            rows += session.score(snapshots.read(step), iterates.ALL, **label)
    session.store("decays", seed, rows, {"snapshot_every": config["horizon_every"]})


def lower_rate_run(session: Session, seed: int, factor: float) -> Run:
    """Returns a run at `factor` times the base rate, from the end of the burn-in; trains it."""
    config = session.config
    return training_runs.fork(
        session,
        seed,
        f"rate-{factor:g}",
        config["burn_in"],
        np.full(config["window"], factor * config["learning_rate"]),
        every=config["every"],
    )


def _lower_rates_steps(config: Mapping[str, Any]) -> dict[str, int]:
    points = config["many_points"]["points"]
    return base_run(config) | {f"rate-{1.0 / n:g}": int(config["window"]) for n in points}


@task(
    "runs at lower constant rates",
    steps=_lower_rates_steps,
    images=lambda config, sizes: (
        config["late_iterates"] * len(config["many_points"]["points"]) * sizes.some
    ),
)
def lower_rates(session: Session, seed: int) -> None:
    """Scores late single iterates of runs at 1/n of the rate, for the averages of n points."""
    config, rows = session.config, []
    for points in config["many_points"]["points"]:
        run = lower_rate_run(session, seed, 1.0 / points)
        snapshots = session.snapshots(seed, run.folder.name)
        label = {"points": points, "learning_rate": config["learning_rate"] / points}
        for step in iterates.spaced(config, config["late_iterates"], share=0.25):
            rows += session.score(snapshots.read(step), iterates.PART, **label, step=step)
    session.store("lower_rates", seed, rows)


# Test against training loss ---------------------------------------------------------------------


def _trade_off_steps(config: Mapping[str, Any]) -> dict[str, int]:
    if config["trade_off"]["of"] == "window":
        return _decays_steps(config) | _lower_rates_steps(config)
    return equal_budgets.training_steps(config)


def _trade_off_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    if config["trade_off"]["of"] == "window":
        return float(len(DECAYS) * config["trade_off"]["places"] * sizes.some)
    return equal_budgets.trade_off_images(config, sizes)


@task("test against training loss", steps=_trade_off_steps, images=_trade_off_images)
def trade_off(session: Session, seed: int) -> None:
    """Scores training and test loss of averages, of lower rates and of decays."""
    if session.config["trade_off"]["of"] == "window":
        rows = _of_window(session, seed)
    else:
        rows = []
        for family, label, weights in equal_budgets.trade_off_points(session, seed):
            rows += session.score(weights, iterates.PART, family=family, label=label)
    session.store("trade_off", seed, rows)


def _of_window(session: Session, seed: int) -> list[dict[str, Any]]:
    """Returns averages of distant points and single iterates with scores, and states of decays."""
    config, rows = session.config, []
    many = iterates.many_points.measured(session, seed)["rows"]
    gap = max(row["gap"] for row in many)
    for row in many:
        if row["policy"] != "recompute":
            continue
        if row["points"] == 1:
            rows += [_labelled(row, "rate", "1"), _labelled(row, "decay", "0")]
        elif row["gap"] == gap:
            rows.append(_labelled(row, "average", f"{row['points']}"))
    for row in lower_rates.measured(session, seed)["rows"]:
        rows.append(_labelled(row, "rate", f"1/{row['points']}"))
    for name in DECAYS:
        run = _decay_run(session, seed, name, training_runs.total_steps(config))
        for i, count in enumerate(_decay_places(config), 1):
            label = {"family": "decay", "label": f"{i}/{config['trade_off']['places']}"}
            rows += session.score(run.arrays(run.first + count), iterates.PART, **label)
    return rows


def _labelled(row: Mapping[str, Any], family: str, label: str) -> dict[str, Any]:
    chosen = {key: row[key] for key in ("set", "loss", "accuracy")}
    return {"family": family, "label": label, **chosen}


TASKS = (equivalent, decays, lower_rates, trade_off)
