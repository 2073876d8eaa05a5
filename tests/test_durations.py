"""Durations, alone and inside the configurations of kernels and rates."""

from fractions import Fraction

import pytest

from tf_lrtraj import kernels, rates
from tf_lrtraj.durations import Duration, resolve_durations


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("1 step", 1),
        ("2 epochs", 20),
        ("1 epoch", 10),
        ("0.25 epochs", 3),  # 2.5 steps: halves are rounded up
        ("0.15 epochs", 2),  # 1.5 exactly, though the float 0.15 is less
        ("105 examples", 11),  # 10.5
        ("104 examples", 10),
        ("25 percent", 50),
        ("25%", 50),
        (" 3   epochs ", 30),
    ],
)
def test_units(text, steps):
    assert Duration.parse(text).steps(10, 200, 10) == steps


@pytest.mark.parametrize(
    "text",
    [
        *("8", 8, "8 epochs 100 steps", "8 epochs, 100 steps", "-1 epochs", "many steps"),
        *("3 weeks", "", None, "9" * 5000 + " steps"),
    ],
)
def test_anything_but_one_amount_and_one_unit_is_named(text):
    with pytest.raises(ValueError, match="`total` must be one amount and one unit") as error:
        Duration.parse(text, "total")
    assert repr(text)[:50] in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("config", "resolved"),
    [
        (
            {"kernel": "Uniform", "start": "75 percent", "every": "1 epoch"},
            kernels.Uniform(300, 50),
        ),
        ({"kernel": "Uniform", "start": 7}, kernels.Uniform(7)),
        ({"kernel": "TwoPoint", "gap": 7, "end": "90 percent"}, kernels.TwoPoint(7, end=360)),
        (
            {"kernel": "Exponential", "decay": 0.9, "start": "0.5 epochs"},
            kernels.Exponential(0.9, 25),
        ),
        ({"kernel": "TwoPoint", "gap": "96 examples"}, kernels.TwoPoint(3)),
        (
            {"kernel": "Uniform", "start": "50 percent", "end": "90 percent"},
            kernels.Uniform(200, end=360),
        ),
        ({"kernel": "Custom", "weights": [1.0], "end": "1 epoch"}, kernels.Custom([1.0], end=50)),
        ({"kernel": "Window", "length": "10 percent", "every": 2}, kernels.Window(40, 2)),
        ({"kernel": "Custom", "weights": [1.5, -0.5]}, kernels.Custom([1.5, -0.5])),
        (
            {"rate": "Piecewise", "boundaries": ["50 percent", "6 epochs"], "values": [3, 2, 1]},
            rates.Piecewise([200, 300], [3, 2, 1]),
        ),
        (
            {
                "rate": "Warmup",
                "steps": "1 epoch",
                "inner": {
                    "rate": "Sequence",
                    "boundaries": ["25 percent"],
                    "rates": [
                        {"rate": "Constant", "constant": 1.0},
                        {"rate": "Linear", "start": 0.4, "steps": "200 steps"},
                    ],
                },
            },
            rates.Warmup(
                rates.Sequence([rates.Constant(1.0), rates.Linear(0.4, 200)], [100]), steps=50
            ),
        ),
    ],
    ids=lambda value: value.get("kernel", value.get("rate")) if isinstance(value, dict) else "",
)
def test_every_number_of_steps_may_be_a_duration(config, resolved):
    before = repr(config)
    family = kernels if "kernel" in config else rates
    assert family.from_config(resolve_durations(config, 50, 400, 32)) == resolved
    assert repr(config) == before


def test_epochs_need_not_be_whole_numbers_of_steps():
    config = {"kernel": "Uniform", "start": "3 epochs"}
    assert resolve_durations(config, Fraction(100, 32), None)["start"] == 9  # 9.375
    assert resolve_durations(config, 3.5, None)["start"] == 11  # 10.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"start": "soon"}, r"`swa.start` must be one amount and one unit.*Received: .*'soon'"),
        ({"start": "1.5 steps"}, r"`swa.start` in steps must be a whole number.*1.5 steps"),
        ({"start": "2 epochs"}, r"`swa.start` cannot be in epochs, as the number of steps of an"),
        ({"every": "64 examples"}, r"`swa.every` cannot be in examples, as the batch size is not"),
        ({"start": "50 percent"}, r"cannot be in percent.* give it in steps. Received"),
        ({"kernel": "Exponential", "decay": "0.99"}, r"`swa.decay` must be no text.*'0.99'"),
        ({"kernel": "Custom", "weights": ["1 step"]}, r"`swa.weights\[0\]` must be no text"),
        (
            {"rate": "Warmup", "kernel": None, "inner": {"rate": "Linear", "steps": "1 year"}},
            r"`swa.inner.steps` must be one amount",
        ),
    ],
)
def test_the_entry_is_named(config, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve_durations({"kernel": "Uniform", **config}, None, None, name="swa")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel": "Uniform", "begin": "2 epochs"}, "Received unknown: .*begin"),
        ({"kernel": "Unifrom", "start": "2 epochs"}, "Did you mean 'Uniform'"),
        ({"kernel": ["Uniform"], "start": "2 epochs"}, "`kernel` must be one of"),
    ],
)
def test_what_is_unknown_is_left_for_the_kernel_to_refuse(config, message):
    resolved = resolve_durations(config, 10, 100)
    assert resolved == config
    with pytest.raises(ValueError, match=message):
        kernels.from_config(resolved)
