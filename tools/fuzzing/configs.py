"""Configurations: training, reproduction and synthetic, as dicts and as files of Python."""

from __future__ import annotations

import copy
import functools
import pathlib
from typing import Any

from hypothesis import strategies as st

from fuzzing.generate import ODD, edited, edits, mostly
from fuzzing.judge import Fault, Target
from fuzzing.values import KERNELS, RATES, ruled
from tf_lrtraj import records
from tf_lrtraj.runs import run_config as training
from tf_lrtraj.runs import synthetic_run
from tf_lrtraj.runs.config_checks import ConfigError, Schema
from tf_lrtraj.study import study_config

_VALUES = mostly(
    st.one_of(
        st.sampled_from([*KERNELS, *RATES]),
        st.integers(0, 2000),
        st.floats(0, 1),
        st.sampled_from(["5 epochs", "40 steps", "10 percent", "600 examples", "never", "0 steps"]),
    ),
    ODD,
    3,
)


def full() -> dict[str, Any]:
    """A training configuration with everything in it."""
    config: dict[str, Any] = training.default_config().to_dict()
    config["schedule"] = {
        "rate": "Warmup",
        "steps": "1 epochs",
        "inner": {"rate": "Cosine", "start": 0.4, "steps": "6 epochs"},
    }
    config["averages"] = {
        "ema": {"kernel": "Exponential", "decay": 0.9, "start": "1 epochs"},
        "swa": {"kernel": "Uniform", "start": "50 percent", "batch_norm": "copy"},
        "window": {"kernel": "Window", "length": 5, "every": "3 steps"},
    }
    config["matched"]["averages"] = ["ema"]
    config["snapshots"]["every"] = "10 steps"
    config["probes"] = {
        "line": {"every": "1 epochs", "batches": 4},
        "late": {"probe": "width", "rays": 2},
    }
    return config


def _resolved(given: Any, folder: pathlib.Path) -> None:
    config, examples = given
    plain = training.validate(config)
    again = training.validate(plain)
    if again != plain:
        raise Fault("a validated configuration changes when it is validated again")
    plan = training.resolve(plain, examples)
    records.write_json(folder / "config.json", plain)
    training.validate(records.read_json(folder / "config.json"))
    for kernel in plan.averages.values():
        kernel.weights(min(plan.total_steps, 50))


def _changed(valid: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with entries changed, by their dotted keys."""
    config = copy.deepcopy(valid)
    for key, value in changes.items():
        *groups, last = key.split(".")
        functools.reduce(lambda group, name: group[name], groups, config)[last] = value
    return config


def _spoilt(valid: dict[str, Any], schema: Schema) -> Any:
    sound = st.just(valid)
    ways = [st.builds(edited, sound, edits(_VALUES, most)) for most in (1, 2, 5)]
    rules = {key: entry.rule for key, entry in schema.entries.items()}
    ways += [st.builds(_changed, sound, ruled(rules, _VALUES, most)) for most in (1, 2, 5)]
    return mostly(st.one_of(*ways), ODD, 40)


TRAINING = Target(
    "training configurations",
    st.tuples(_spoilt(full(), training.SCHEMA), st.sampled_from([1, 100, 1297, 50_000, 1_281_167])),
    _resolved,
    (ConfigError,),
    share=3,
)


def _validated(name: str, module: Any, share: float) -> Target:
    """The configuration of a module that has `default_config` and `validate`."""

    def run(given: Any, folder: pathlib.Path) -> None:
        records.write_json(folder / "config.json", module.validate(given))
        module.validate(records.read_json(folder / "config.json"))

    valid = module.default_config().to_dict()
    return Target(name, _spoilt(valid, module.SCHEMA), run, (ConfigError,), share)


REPRODUCTION = _validated("reproduction configurations", study_config, 2)
SYNTHETIC = _validated("synthetic configurations", synthetic_run, 1)


def _matches(given: Any, folder: pathlib.Path) -> None:
    stored, asked = given
    records.write_json(folder / "config.json", stored)
    records.check_workdir_matches(folder, asked, training.validate)


_JSON = st.builds(edited, st.just(full()), edits(most=2))
WORKDIRS = Target(
    "workdirs of another configuration",
    st.tuples(st.one_of(_JSON, st.just(full())), st.one_of(_JSON, st.just(full()))).map(
        lambda pair: tuple(p if isinstance(p, dict) else {"a": p} for p in pair)
    ),
    _matches,
    (records.RecordError, TypeError),
    share=0.5,
)

TARGETS = [TRAINING, REPRODUCTION, SYNTHETIC, WORKDIRS]
