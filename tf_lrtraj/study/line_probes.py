"""Tasks: losses of single batches along a step and between iterates, and their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.vectors import joined
from tf_lrtraj.study import study_points, training_runs, trajectories
from tf_lrtraj.study.probe_settings import images_of, iterate_pairs
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.task import Sizes, Task, base_run
from tf_lrtraj.study.trainer import arrays_of

__all__ = ["TASKS", "convexity", "gradients", "line", "one_step_lines", "trained"]

_ONE_STEP = 0x6F6E


def line(bench: Bench, seed: int) -> None:
    """Losses of batches, and of others, along each batch's own gradient: `line-<step>.npz`.

    The same batches at every step.  `held_out` are test images, `others` training images of
    which no step is made.
    """
    training_runs.base(bench, seed)
    settings = bench.config["probes"]
    batches, others = _batches(bench, seed)
    held_out = bench.batches("test", settings["held_out"], seed)
    rates = probes.rate_grid(settings["low"], settings["high"], settings["rates"])
    for step in study_points.probe_steps(bench, seed):
        probe = probes.Line(
            bench.surface,
            study_points.weights_at(bench, seed, step),
            batches,
            held_out=held_out,
            others=others,
            rates=rates,
            bracket="each",
            extensions=1,
            seed=seed,
        )
        about = {"run": "base", "run_seed": seed, "step": step}
        _measure(bench, probe, f"line-{step:09d}", seed, about, held_out="test", others="train")


def _batches(bench: Bench, seed: int) -> list[list[Batch]]:
    """The batches that steps are made of, and others of which none is made."""
    settings = bench.config["probes"]
    drawn = study_points.drawn(bench, (settings["batches"], settings["others"]), [seed, 1])
    return [study_points.taken(bench, rows) for rows in drawn]


def trained(bench: Bench, seed: int) -> None:
    """A fully trained network: the base run, its rate lowered to 0 over the window.

    Its losses on the batches of `line`, each normalised by itself as there, and its scores.
    """
    config = bench.config
    rates = config["learning_rate"] * _falling(config["window"])
    run = training_runs.fork(bench, seed, "trained", config["burn_in"], rates)
    weights = arrays_of(run.state())[: len(bench.model.trainable_variables)]
    batches, _ = _batches(bench, seed)
    losses, _ = bench.surface.evaluate(bench.surface.point(weights), batches)
    rows = bench.scorer.score(weights, ("train_part", "test"))
    bench.store("trained", seed, rows, {"step": run.last}, batch_loss=losses)


def _falling(count: int) -> np.ndarray:
    """[count] from 1 on a straight line to 0, which the step after the last would have."""
    return 1.0 - np.arange(count) / count


def convexity(bench: Bench, seed: int) -> None:
    """Losses of fixed batches between iterates of the window: `convexity.npz`."""
    training_runs.base(bench, seed)
    settings, snapshots = bench.config["convexity"], bench.snapshots(seed)
    steps = snapshots.steps.tolist()
    pairs = [(str(steps[a]), str(steps[b])) for a, b in iterate_pairs(len(steps), settings)]
    (rows,) = study_points.drawn(bench, (settings["batches"],), [seed, 6])
    probe = probes.Basin(
        bench.surface,
        {name: snapshots.read(int(name)) for pair in pairs for name in pair},
        study_points.taken(bench, rows),
        pairs=pairs,
        num=settings["positions"],
    )
    _measure(bench, probe, "convexity", seed, {"run": "base", "run_seed": seed})


def one_step_lines(bench: Bench, seed: int) -> None:
    """Losses along one more step of the run without momentum: `one_step-<step>.npz`.

    In a stationary state no loss changes in expectation over the *next* update, whatever the data
    it is measured on.  So a step's batch is drawn as the run draws its next one: at random from
    the training images that it has not seen yet in its epoch.  The loss is measured on test
    images, `held_out`, and on `others`, training images drawn whatever the step's batch: their
    mean over draws is the loss of the whole training set, of which the step's own batch is
    a part.  (Batches that share no image with the step's would gain less, and nothing already at
    a lower rate: the own batch's large gain, times its share of the training images, is missing.)
    Training images are augmented as in training.  Rates run to twice the run's own, which is
    among them, as its half is.
    """
    trajectories.one_step_run(bench, seed)
    settings = bench.config["one_step"]
    rate = bench.config["learning_rate"] / (1.0 - bench.config["momentum"])
    size, per_rate = bench.config["batch_size"], settings["points"]
    rates = rate * (np.arange(2 * per_rate + 1) / per_rate)
    snapshots = bench.snapshots(seed, "one_step", "window")
    first = round(settings["settle"] * (len(snapshots) - 1))
    chosen = np.linspace(first, len(snapshots) - 1, settings["iterates"]).round().astype(int)
    for step in snapshots.steps[np.unique(chosen)].tolist():
        rng = np.random.default_rng([seed, step, _ONE_STEP])
        fresh = study_points.unseen(bench, seed, step)
        batches = [rng.choice(fresh, size, replace=False) for _ in range(settings["batches"])]
        (others,) = study_points.drawn(bench, (settings["others"],), [seed, step, 2])
        probe = probes.Line(
            bench.surface,
            study_points.weights_at(bench, seed, step, "one_step"),
            study_points.taken(bench, batches, rng),
            held_out=bench.batches("test", settings["held_out"], 1_000_003 * seed + step),
            others=study_points.taken(bench, others, rng),
            rates=rates,
            bracket="none",
            seed=seed,
        )
        about = {
            "run": "one_step",
            "run_seed": seed,
            "step": step,
            "learning_rate": rate,
            "batches_from": "training images not seen yet in the epoch",
        }
        _measure(bench, probe, f"one_step-{step:09d}", seed, about, held_out="test", others="train")


def gradients(bench: Bench, seed: int) -> None:
    """Inner products of batch gradients: `gradients-<step>.npz`.

    Directions, where they are not of length 0: `from_start`, the displacement since the
    window's first snapshot, and `from_previous`, since the snapshot before.
    """
    training_runs.base(bench, seed)
    snapshots = bench.snapshots(seed)
    steps = snapshots.steps.tolist()
    count = snapshots.num_trainable
    (rows,) = study_points.drawn(bench, (bench.config["probes"]["gradients"],), [seed, 3])
    for step in study_points.probe_steps(bench, seed):
        here = study_points.weights_at(bench, seed, step)
        origins = {}
        if step > steps[0]:
            origins = {"from_start": steps[0], "from_previous": max(s for s in steps if s < step)}
        directions = {}
        for name, origin in origins.items():
            there = study_points.weights_at(bench, seed, origin)
            directions[name] = [a - b for a, b in zip(here[:count], there[:count], strict=True)]
        probe = probes.Gradients(
            bench.surface, here, study_points.taken(bench, rows), directions=directions
        )
        about = {
            "run": "base",
            "run_seed": seed,
            "step": step,
            "origins": origins,
            "displacements": {k: float(np.linalg.norm(joined(v))) for k, v in directions.items()},
        }
        _measure(bench, probe, f"gradients-{step:09d}", seed, about)


def _measure(
    bench: Bench, probe: probes.Probe, name: str, seed: int, about: dict, **sets: str
) -> None:
    probes.measure(
        probe,
        bench.probe_path(name, seed),
        progress=bench.progress,
        tell=bench.tell,
        about=about | {f"{group}_set": value for group, value in sets.items()},
    )


def _trained_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return base_run(config) | {"trained": int(config["window"])}


def _trained_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return float(config["probes"]["batches"] * config["batch_size"] + sizes.some)


TASKS = (
    Task("line", line, "losses along one step", images=images_of("line")),
    Task(
        "trained",
        trained,
        "a fully trained network",
        steps=_trained_steps,
        images=_trained_images,
    ),
    Task("convexity", convexity, "losses between iterates", images=images_of("convexity")),
    Task("gradients", gradients, "alignment of gradients", images=images_of("gradients")),
    Task(
        "one_step_lines",
        one_step_lines,
        "steps of the run without momentum on other batches",
        steps=trajectories.one_step_steps,
        images=images_of("one_step_lines"),
    ),
)
