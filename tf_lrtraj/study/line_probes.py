"""Tasks: losses of single batches along a step and between iterates, and their gradients."""

from __future__ import annotations

import numpy as np

from tf_lrtraj import probes, seeds
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.vectors import joined
from tf_lrtraj.study import study_points, training_runs, trajectories
from tf_lrtraj.study.probe_settings import images_of, iterate_pairs
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import PROBE_SEEDS, base_run, task

__all__ = ["TASKS"]

SETS = {"held_out_set": "test", "others_set": "train"}


@task("losses along one step", images=images_of("line"), seeds_of=PROBE_SEEDS, probes=("line-*",))
def line(session: Session, seed: int) -> None:
    """Measures losses along the gradient of each batch: `line-<step>.npz`.

    The batches are the same at every step.  `held_out` are test images, `others` training images on
    which no step is made.
    """
    training_runs.base(session, seed)
    settings = session.config["probes"]
    batches, others = _batches(session, seed)
    held_out = session.batches("test", settings["held_out"], seed)
    rates = probes.rate_grid(settings["low"], settings["high"], settings["rates"])
    for step in study_points.probe_steps(session, seed):
        probe = probes.Line(
            session.surface,
            study_points.weights_at(session, seed, step),
            batches,
            held_out=held_out,
            others=others,
            rates=rates,
            bracket="each",
            extensions=1,
            seed=seed,
        )
        session.measure(probe, f"line-{step:09d}", seed, step=step, **SETS)


def _batches(session: Session, seed: int) -> list[list[Batch]]:
    """Returns the batches of the steps, and other batches on which no step is made."""
    settings = session.config["probes"]
    counts = settings["batches"], settings["others"]
    drawn = study_points.drawn(session, counts, seeds.generator("line_batches", seed))
    return [study_points.taken(session, rows) for rows in drawn]


@task(
    "a fully trained network",
    steps=lambda config: base_run(config) | {"trained": config["window"]},
    images=lambda config, sizes: config["probes"]["batches"] * config["batch_size"] + sizes.some,
    seeds_of=PROBE_SEEDS,
)
def trained(session: Session, seed: int) -> None:
    """Trains a network fully, by a decay of the base run's rate to 0 over the window.

    The record has its losses on the batches of `line`, with batch statistics as there, and its
    scores.
    """
    config = session.config
    falling = 1.0 - np.arange(config["window"]) / config["window"]
    rates = config["learning_rate"] * falling
    run = training_runs.fork(session, seed, "trained", config["burn_in"], rates)
    weights = session.trainable(run.arrays())
    batches, _ = _batches(session, seed)
    losses, _ = session.surface.evaluate(session.surface.point(weights), batches)
    rows = session.score(weights, ("train_part", "test"))
    session.store("trained", seed, rows, {"step": run.last}, batch_loss=losses)


@task(
    "losses between iterates",
    images=images_of("convexity"),
    seeds_of=PROBE_SEEDS,
    probes=("convexity",),
)
def convexity(session: Session, seed: int) -> None:
    """Measures losses of fixed batches between iterates of the window: `convexity.npz`."""
    training_runs.base(session, seed)
    settings, snapshots = session.config["convexity"], session.snapshots(seed)
    steps = snapshots.steps.tolist()
    pairs = [(str(steps[a]), str(steps[b])) for a, b in iterate_pairs(len(steps), settings)]
    random = seeds.generator("convexity_batches", seed)
    (rows,) = study_points.drawn(session, (settings["batches"],), random)
    probe = probes.Basin(
        session.surface,
        {name: snapshots.read(int(name)) for pair in pairs for name in pair},
        study_points.taken(session, rows),
        pairs=pairs,
        num=settings["positions"],
    )
    session.measure(probe, "convexity", seed)


@task(
    "steps of the run without momentum on other batches",
    steps=trajectories.one_step_steps,
    images=images_of("one_step_lines"),
    seeds_of=PROBE_SEEDS,
    probes=("one_step-*",),
)
def one_step_lines(session: Session, seed: int) -> None:
    """Measures losses along one more step of the run without momentum: `one_step-<step>.npz`.

    In a stationary state no loss changes in expectation over the *next* update, for any data.  A
    step's batch is therefore drawn like the run's next one: at random from the training images that
    it has not seen yet in its epoch.  The loss is measured on test images, `held_out`, and on
    `others`, training images drawn independently of the step's batch, so that their mean over draws
    is the loss of the whole training set, which contains the step's own batch. (For batches without
    the images of the step the gain would be smaller, and 0 already at a lower rate, because the
    large gain of the own batch, times its share of the training images, would be missing.) Training
    images are augmented as in training.  Rates go up to twice the run's rate, and include it and
    its half.
    """
    trajectories.one_step_run(session, seed)
    settings = session.config["one_step"]
    rate = session.config["learning_rate"] / (1.0 - session.config["momentum"])
    size, per_rate = session.config["batch_size"], settings["points"]
    rates = rate * (np.arange(2 * per_rate + 1) / per_rate)
    snapshots = session.snapshots(seed, "one_step", "window")
    first = round(settings["settle"] * (len(snapshots) - 1))
    chosen = np.linspace(first, len(snapshots) - 1, settings["iterates"]).round().astype(int)
    for step in snapshots.steps[np.unique(chosen)].tolist():
        random = seeds.generator("one_step_batches", seed, step)
        fresh = study_points.unseen(session, seed, step)
        batches = [random.choice(fresh, size, replace=False) for _ in range(settings["batches"])]
        (others,) = study_points.drawn(
            session, (settings["others"],), seeds.generator("one_step_others", seed, step)
        )
        probe = probes.Line(
            session.surface,
            study_points.weights_at(session, seed, step, "one_step"),
            study_points.taken(session, batches, random),
            held_out=session.batches("test", settings["held_out"], 1_000_003 * seed + step),
            others=study_points.taken(session, others, random),
            rates=rates,
            bracket="none",
            seed=seed,
        )
        session.measure(
            probe,
            f"one_step-{step:09d}",
            seed,
            "one_step",
            step=step,
            learning_rate=rate,
            batches_from="training images not seen yet in the epoch",
            **SETS,
        )


@task(
    "alignment of gradients",
    images=images_of("gradients"),
    seeds_of=PROBE_SEEDS,
    probes=("gradients-*",),
)
def gradients(session: Session, seed: int) -> None:
    """Measures inner products of batch gradients: `gradients-<step>.npz`.

    The directions, if their length is not 0, are `from_start`, the displacement since the window's
    first snapshot, and `from_previous`, that since the previous snapshot.
    """
    training_runs.base(session, seed)
    steps = session.snapshots(seed).steps.tolist()
    (rows,) = study_points.drawn(
        session,
        (session.config["probes"]["gradients"],),
        seeds.generator("gradient_batches", seed),
    )
    for step in study_points.probe_steps(session, seed):
        here = study_points.weights_at(session, seed, step)
        origins = {}
        if step > steps[0]:
            origins = {"from_start": steps[0], "from_previous": max(s for s in steps if s < step)}
        directions = {}
        for name, origin in origins.items():
            there = session.trainable(study_points.weights_at(session, seed, origin))
            directions[name] = [a - b for a, b in zip(session.trainable(here), there, strict=True)]
        probe = probes.Gradients(
            session.surface, here, study_points.taken(session, rows), directions=directions
        )
        session.measure(
            probe,
            f"gradients-{step:09d}",
            seed,
            step=step,
            origins=origins,
            displacements={k: float(np.linalg.norm(joined(v))) for k, v in directions.items()},
        )


TASKS = (line, trained, convexity, gradients, one_step_lines)
