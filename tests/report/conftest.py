"""A plausible workdir made of synthetic records: nothing was trained for it."""

import pathlib
import sys

import numpy as np
import pytest

from tf_lrtraj import kernels, records

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "claims")]  # html_page, study_records

AVERAGES = {
    "ema": kernels.Exponential(0.99),
    "swa": kernels.Uniform(start=600),
    "two_point": kernels.TwoPoint(gap=200),
}
POLICIES = {"raw": "running", **dict.fromkeys(AVERAGES, "recompute(8 batches)")}


def _eval_rows(step, values, examples, steps_per_epoch):
    """Rows of one evaluation; `values`: {(weights, split): (loss, accuracy)}."""
    for (weights, split), (loss, accuracy) in values.items():
        yield {
            "kind": "eval",
            "step": step,
            "epoch": step / steps_per_epoch,
            "split": split,
            "weights": weights,
            "batch_norm": POLICIES[weights],
            "loss": loss,
            "accuracy": round(accuracy * examples) / examples,
            "examples": examples,
        }


def _rows(total, rng, gains, splits, steps_per_epoch=23, examples=360):
    rows = []
    for step in range(0, total + 1, 40):
        learned = 1 - np.exp(-step / (0.12 * total))
        if step:
            row = {"kind": "train", "step": step, "epoch": step / steps_per_epoch}
            row |= {"learning_rate": 0.1, "loss": 2.3 - 2.15 * learned}
            rows.append(row | {"accuracy": 0.1 + 0.86 * learned})
        values = {}
        for split in splits:
            offset = 0.0 if split == "test" else 0.02
            for weights, gain in gains.items():
                noise = rng.normal() * (0.012 if weights == "raw" else 0.002) * learned
                accuracy = 0.1 + (0.80 + gain + offset) * learned + noise
                values[weights, split] = (2.4 - 2.6 * (accuracy - 0.1), accuracy)
        rows += _eval_rows(step, values, examples, steps_per_epoch)
    return rows


def _run_json(title, total, **extra):
    return {
        "format": records.FORMAT,
        "status": "done",
        "name": title,
        "command": f"lrtraj-train --config=configs/{title}.py --workdir=runs/{title}",
        "created": "2024-05-01T12:00:00Z",
        "versions": {"python": "3.11.2", "tensorflow": "2.21.0", "keras": "3.15.0"},
        "seed": 0,
        "threads": {"intra": 2, "inter": 1},
        "strategy": "one_device",
        "num_replicas": 1,
        "total_steps": total,
        "batch_size": 64,
        "steps_per_epoch": 23,
        "dataset": {"name": "digits", "num_examples": {"train": 1437}},
        "model": {"name": "resnet8_cifar", "parameters": 78042},
        "averages": {},
        "batch_norm": {},
        "matched_to": None,
        "message": None,
        "resumed_at": [],
        **extra,
    }


def build(folder, total=1200, splits=("test", "train"), matched=("ema", "swa"), seed=0, **run):
    """Writes a workdir; returns its path."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    gains = {"raw": 0.0, "ema": 0.035, "swa": 0.03, "two_point": 0.02}
    config = {"name": "digits", "optimizer": {"rate": 0.1}, "seed": seed}
    records.write_json(folder / "config.json", config)
    averages = {name: kernel.get_config() for name, kernel in AVERAGES.items()}
    policies = {name: POLICIES[name] for name in AVERAGES}
    run = {"averages": averages, "batch_norm": policies, "resumed_at": [400], "seed": seed, **run}
    records.write_json(folder / "run.json", _run_json("digits_demo", total, **run))
    records.append_rows(folder / "metrics.jsonl", _rows(total, rng, gains, splits))
    records.write_schedule(folder / "schedule.npz", np.full(total, 0.1))
    records.append_rows(
        folder / "timing.jsonl",
        [{"step": step, "seconds": 1.5, "images_per_second": 1700.0} for step in (40, 80)],
    )
    for name in matched:
        other = records.matched_dir(folder, name)
        other.mkdir(parents=True)
        weights = AVERAGES[name].weights(total)
        rates = 0.1 * np.cumsum(weights[:0:-1])[::-1]
        matched_to = {"average": name, "kernel": averages[name], "curvature": 0.0, "momentum": 0.0}
        records.write_json(other / "config.json", {"name": "digits"})
        records.write_json(
            other / "run.json", _run_json(f"digits_demo_{name}", total, matched_to=matched_to)
        )
        rows = _rows(total, rng, {"raw": 0.0}, splits)
        for row in rows:  # the raw weights reach the average's level only when the rate falls
            if row["kind"] == "eval" and row["step"]:
                fall = 1 - rates[row["step"] - 1] / 0.1
                row["accuracy"] = round((row["accuracy"] + 0.03 * fall) * 360) / 360
                row["loss"] -= 0.08 * fall
        records.append_rows(other / "metrics.jsonl", rows)
        records.write_schedule(other / "schedule.npz", rates)
    return folder


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """A finished run with three averages and two matched runs; read-only for tests."""
    return build(tmp_path_factory.mktemp("report") / "digits")


@pytest.fixture
def make_workdir(tmp_path):
    """`build` in a fresh folder, for tests that damage it."""
    return lambda place="run", **arguments: build(tmp_path / place, **arguments)
