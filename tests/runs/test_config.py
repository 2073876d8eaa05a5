"""Configurations: defaults, every refusal, and lengths in steps."""

import importlib.util
import json
import pathlib

import pytest

from tf_lrtraj import kernels, rates, records
from tf_lrtraj.runs import run_config, synthetic_run
from tf_lrtraj.runs.run_config import ConfigError, default_config, resolve, validate
from tf_lrtraj.study import study_config as reproduction

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("[a-z]*.py"))


def changed(**changes):
    config = default_config()
    for key, value in changes.items():
        group = config
        *path, last = key.split("__")
        for part in path:
            group = group[part]
        with group.unlocked(), group.ignore_type():
            group[last] = value
    return config


@pytest.mark.parametrize(
    ("schema", "check"),
    [
        (run_config.SCHEMA, validate),
        (reproduction.SCHEMA, reproduction.validate),
        (synthetic_run.SCHEMA, synthetic_run.validate),
    ],
    ids=["run", "study", "synthetic"],
)
def test_every_entry_is_declared_once(schema, check):
    plain = check(schema.defaults())
    assert check(plain) == plain
    assert check(json.loads(json.dumps(records.encode(plain)))) == plain
    assert check(schema.defaults()) == plain  # nothing is shared with the last one
    text = schema.help()
    for key, entry in schema.entries.items():
        assert f"config.{key}={entry.default!r}: " in " ".join(text.split()), key
        assert entry.help and not entry.help.endswith("."), key
        assert entry.default is not None or entry.kind is not None, key


def test_what_decays_is_another_entry():
    config = validate(default_config())
    assert config["optimizer"]["weight_decay_on"] == "kernels"
    del config["optimizer"]["weight_decay_on"]  # as earlier versions stored it
    assert validate(config)["optimizer"]["weight_decay_on"] == "kernels"


def test_loggers_in_place_of_an_earlier_entry():
    config = validate(default_config())
    assert config.pop("loggers") == ({"logger": "tensorboard"},)
    assert validate({**config, "tensorboard": True})["loggers"] == ({"logger": "tensorboard"},)
    assert validate({**config, "tensorboard": False})["loggers"] == ()
    with pytest.raises(ConfigError, match=r"unknown key `config\.tensorboard`"):
        validate({**config, "tensorboard": False, "loggers": []})


def test_loggers_have_options():
    config = default_config()
    config.loggers = ["tensorboard", {"logger": "wandb", "project": "averages"}]
    assert validate(config)["loggers"][1] == {"logger": "wandb", "project": "averages"}
    config.loggers = ["tensorbord"]
    with pytest.raises(ConfigError, match=r"`config.loggers\[0\]` .* Did you mean 'tensorboard'"):
        validate(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_has_its_header(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        pytest.fail(f"{path} has no get_config()")
    for entry in ("Command:", "Machine:", "Runtime:", "Expected:"):
        assert entry in module.__doc__, f"{path} does not state {entry}"
    config = module.get_config()
    if "schedule" in config:  # a training run
        resolve(validate(config), 1_281_167)
    elif "burn_in" in config:
        assert reproduction.validate(config)["command"].endswith(f"configs/{path.name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": {}}, r"unknown key `config.optimiser`. Did you mean config.optimizer\?"),
        ({"data__image_size": 3}, r"`config.data.image_size`.*at least 4.*3"),
        ({"data__batchsize": 8}, r"`config.data.batchsize`. Did you mean config.data.batch_size"),
        (
            {"optimizer__momentum": 1.5},
            r"momentum` must be a number of at least 0 and below 1. .*momentum=1.5",
        ),
        ({"optimizer__momentum": float("nan")}, "Received: config.optimizer.momentum=nan"),
        ({"optimizer__weight_decay": -1e-4}, r"weight_decay` must .*Received: .*=-0.0001"),
        ({"data__batch_size": 0}, "batch_size` must be an integer of at least 1 .*=0"),
        ({"data__augmentation": "flip"}, "augmentation` must be one of.*='flip'"),
        ({"seed": -1}, "seed` must be an integer of at least 0 .*=-1"),
        ({"seed": True}, "Received: config.seed=True"),
        ({"data": 3}, "`config.data` must be a group with the keys"),
        ({"total": "8 epochs 100 steps"}, "`config.total` must be one amount and one unit"),
        ({"total": "50 percent"}, "total` must be one amount .*longer than 0.*='50 percent'"),
        ({"total": "0 steps"}, "`config.total` must be .*longer than 0"),
        ({"evaluate__every": "sometimes"}, "`config.evaluate.every` must be one amount"),
        ({"log_every": "never"}, "`config.log_every` must be one amount"),
        ({"averages": {"raw": {"kernel": "Uniform"}}}, "'raw'"),
        ({"averages": {"ema": 0.9}}, "averages.ema` must be a kernel's configuration"),
        (
            {"averages": {"ema": {"kernel": "Uniform", "batch_norm": "fresh"}}},
            "averages.ema.batch_norm` must be one of.*'fresh'",
        ),
        ({"matched__averages": ("swa",)}, r"must be names of config.averages, \[\].*swa"),
        ({"model__batch_norm__momentum": 1.0}, r"batch_norm.momentum` must be .*=1.0"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(changed(**changes))


def test_lengths_become_steps():
    config = default_config()
    config.data.batch_size = 10
    config.total = "4 epochs"
    config.schedule = {
        "rate": "Warmup",
        "steps": "1 epochs",
        "inner": {"rate": "Cosine", "start": 0.4, "steps": "75 percent"},
    }
    config.averages = {
        "swa": {"kernel": "Uniform", "start": "50 percent", "every": 2},
        "two": {"kernel": "TwoPoint", "gap": "55 examples", "batch_norm": "copy"},
    }
    plan = resolve(validate(config), 105)
    assert (plan.total_steps, plan.steps_per_epoch) == (42, 10.5)
    assert plan.rate == rates.Warmup(rates.Cosine(0.4, 32), steps=11)
    assert plan.averages == {"swa": kernels.Uniform(21, 2), "two": kernels.TwoPoint(6)}
    assert plan.policies == {"swa": "recompute", "two": "copy"}
    assert (plan.evaluate, plan.checkpoint, plan.log) == (11, 11, 50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__batch_size": 200}, "at most the number of training images, 105. .*=200"),
        (
            {"evaluate__train_examples": 106},
            "train_examples` must be at most the number of training images, 105. .*=106",
        ),
        ({"total": "2 examples"}, "`config.total` must be at least 1 step long .*it is 0.*'2 ex"),
        ({"schedule": {"rate": "Constant", "constant": -0.1}}, r"config.schedule: .*constant=-0.1"),
        ({"schedule": {"rate": "Konstant"}}, "config.schedule: .*Constant.*Konstant"),
        (
            {"averages": {"ema": {"kernel": "Exponential", "decay": 1.5}}},
            r"config.averages.ema: `decay` must be a number of .* below 1. Received: decay=1.5",
        ),
        (
            {"averages": {"two": {"kernel": "TwoPoint", "gap": "1 fortnight"}}},
            "config.averages.two.gap` must be one amount",
        ),
    ],
)
def test_what_only_shows_with_the_data_is_named_too(changes, message):
    config = validate(changed(**{"data__batch_size": 10, **changes}))
    with pytest.raises(ConfigError, match=message):
        resolve(config, 105)


def test_averages_are_in_one_order_however_they_are_written_down():
    # Those that share a buffer are told apart by it, in checkpoints too.
    slow, fast = ({"kernel": "Exponential", "decay": decay} for decay in (0.999, 0.9))
    plain = {**validate(default_config()), "total": "4 epochs"}
    for averages in ({"slow": slow, "fast": fast}, {"fast": fast, "slow": slow}):
        plan = resolve(validate({**plain, "averages": averages}), 1297)
        assert list(plan.averages) == ["fast", "slow"]
