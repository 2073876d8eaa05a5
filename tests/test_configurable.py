"""One contract for kernels and rates: what their declared parameters promise."""

import dataclasses
import json
import math

import ml_collections
import numpy as np
import pytest

from tf_lrtraj import kernels, rates
from tf_lrtraj.configurable import parameters
from tf_lrtraj.durations import resolve_durations

FAMILIES = {"kernel": kernels.KERNELS, "rate": rates.RATES}
# A schedule of Keras has its tests in test_schedules.py, which needs Keras.
MEMBERS = [
    kernels.Exponential(0.9, start=3, every=2, warmup=1.0, end=70),
    kernels.Exponential(0.9, debias=True),
    kernels.HalfLife(0.1, longest=7, start=3, every=2, end=20),
    kernels.BEMA(0.4, 0.3, 5.0, 0.5, start=3, end=20),
    kernels.Uniform(start=5, every=2, end=20),
    kernels.PowerFunction(6.94, start=1, every=2, end=8),
    kernels.Window(4, every=3, end=12),
    kernels.TwoPoint(8, end=9),
    kernels.Custom([1.5, 0.0, -0.5], end=4),
    rates.Constant(0.1),
    rates.Linear(0.4, 50, 0.02),
    rates.Cosine(0.4, 50, 0.02),
    rates.OneMinusSqrt(0.4, 20, 30, 0.05),
    rates.InverseTime(0.4, 7),
    rates.Exponential(0.4, 0.5, 10),
    rates.Cyclical(0.5, 0.01, 7),
    rates.Triangular(0.5, 0.01, 8),
    rates.Piecewise([10, 11], [0.4, 0.3, 0.1]),
    rates.Table([0.4, 0.1, 0.2]),
    rates.Warmup(rates.Sequence([0.1, rates.Cosine(0.1, 5)], [3]), 2, 0.05),
    rates.Sequence([0.4, rates.Linear(0.1, 5)], [10]),
    rates.Scaled(rates.Linear(0.4, 50), 0.5),
]
PARAMETERS = [
    pytest.param(member, name, id=f"{type(member).__module__}.{type(member).__name__}.{name}")
    for member in MEMBERS
    for name in parameters(type(member))
]
every_member = pytest.mark.parametrize("member", MEMBERS, ids=repr)
every_parameter = pytest.mark.parametrize(("member", "name"), PARAMETERS)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def test_every_class_is_covered():
    classes = {cls for family in FAMILIES.values() for cls in family.values()}
    assert {type(member) for member in MEMBERS} == classes - {rates.KerasSchedule}


@every_member
def test_a_configuration_makes_an_equal_object(member):
    family, config = FAMILIES[member.family], member.get_config()
    for given in (config, json.loads(json.dumps(config)), ml_collections.ConfigDict(config)):
        copy = family.from_config(given)
        assert copy == member
        assert hash(copy) == hash(member)
        assert copy.get_config() == config


@every_member
def test_text_makes_an_equal_object(member):
    family, config = FAMILIES[member.family], member.get_config()
    name = config.pop(member.family)
    named = ", ".join(f"{key}={value!r}" for key, value in config.items())
    assert family.from_text(f" {name}({named})") == member


@every_member
def test_objects_are_immutable(member):
    for field in dataclasses.fields(member):
        with pytest.raises(AttributeError):
            setattr(member, field.name, getattr(member, field.name))


@every_parameter
def test_a_bad_value_is_named(member, name):
    family, config = FAMILIES[member.family], member.get_config()
    for bad in (math.nan, "x", -1, object(), True):
        if name == "debias" and bad is True:
            continue
        # The rates inside of a rate are named as such.
        named = "rate" if name == "inner" else name
        with pytest.raises(ValueError, match=rf"`{named}` must .*Received: {named}=") as error:
            family.from_config({**config, name: bad})
        assert repr(bad) in str(error.value)


@every_parameter
def test_numbers_may_be_numpys(member, name):
    config = member.get_config()
    if type(config.get(name)) in (int, float):
        config[name] = np.array(config[name])[()]
        copy = FAMILIES[member.family].from_config(config)
        assert copy == member
        assert json.dumps(copy.get_config()) == json.dumps(member.get_config())


@every_parameter
def test_every_number_of_steps_may_be_a_duration(member, name):
    config = member.get_config()
    value = config.get(name)
    if not parameters(type(member))[name].parameter.counts_steps:
        if isinstance(value, (int, float)):
            with pytest.raises(ValueError, match=rf"{name}` must be no text.*'1 step'"):
                resolve_durations({**config, name: "1 step"}, None, None)
    elif value is not None:
        listed = isinstance(value, list)
        text = [f"{step} steps" for step in value] if listed else f"{value} steps"
        resolved = resolve_durations({**config, name: text}, None, None)
        assert FAMILIES[member.family].from_config(resolved) == member


@every_family
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"{key}": "Exponentail"}, r"`{key}` must be one of .*'Exponential'.* Did you mean "
         r"'Exponential'\? Received: {key}='Exponentail'"),
        ({"{key}": None}, "`{key}` must be one of .*{key}=None"),
        ({"{key}": ["Exponential"]}, r"`{key}` must be one of .*\['Exponential'\]"),
        ({"strat": 3}, r"'Exponential' takes \[.*\]. Did you mean 'start'\? .*unknown: \['strat'"),
        (None, r"'Exponential' needs \['{first}'"),
    ],
)  # fmt: skip
def test_bad_configurations_are_named(family, change, message):
    first = next(iter(parameters(family["Exponential"])))
    change = {} if change is None else {first: 0.5, "factor": 0.5, **change}
    if family.key == "kernel":
        change.pop("factor", None)
    config = {family.key: "Exponential"}
    config |= {key.format(key=family.key): value for key, value in change.items()}
    before = dict(config)
    with pytest.raises(ValueError, match=message.format(key=family.key, first=first)):
        family.from_config(config)
    assert config == before


@every_family
@pytest.mark.parametrize("config", [None, "Uniform", 0.1, [("a", 1)]])
def test_what_is_no_configuration_is_named(family, config):
    with pytest.raises(ValueError, match=f"`{family.key}` must be a configuration such as"):
        family.from_config(config)


@every_family
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Exponential(open('x'))", "must be a name with plain arguments, such as"),
        ("Exponential(**{})", "must be a name with plain arguments"),
        ("a.Exponential(1)", "must be a name with plain arguments"),
        ("1 +", "must be a name with plain arguments"),
        (
            "Exponential(1, 2, 3, 4, 5, 6)",
            r"too many arguments: Exponential takes \['(decay|start)'",
        ),
        ("Exponentail(1)", "Did you mean 'Exponential'"),
    ],
)
def test_bad_text_is_named(family, text, message):
    with pytest.raises(ValueError, match=message):
        family.from_text(text)
    assert family.from_text(family.example).family == family.key
