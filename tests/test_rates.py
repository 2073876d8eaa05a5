"""Every formula against its textbook form, written out step by step in plain Python."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lrtraj import rates

STEPS = [*range(60), 999, 1000, 1001, 123_456, 999_999, 1_000_000, 16_777_217, 2_000_000_000]


def textbook_linear(step, start, end, steps):
    return end if step >= steps else start + (end - start) * step / steps


def textbook_cosine(step, start, end, steps):
    fraction = min(step / steps, 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def textbook_one_minus_sqrt(step, start, hold, steps, end):
    if step < hold:
        return start
    return end + (start - end) * (1.0 - math.sqrt(min((step - hold) / steps, 1.0)))


def textbook_triangular(step, start, end, length):
    t = (step % length + 1) / length
    if t <= 0.5:
        return (1 - 2 * t) * start + 2 * t * end
    return (2 - 2 * t) * end + (2 * t - 1) * start


def textbook_cyclical(step, start, end, length):
    i = step + 1
    t = ((i - 1) % length + 1) / length
    return (1 - t) * start + t * end


def textbook_piecewise(step, boundaries, values):
    passed = [boundary for boundary in boundaries if boundary <= step]
    return values[len(passed)]


def textbook_warmup(step, inner, steps, start):
    if step < steps:
        return start + (inner(0) - start) * step / steps
    return inner(step - steps)


# Each entry: a rate and its textbook form.
CASES = {
    "Constant": (rates.Constant(0.1), lambda t: 0.1),
    "Linear": (rates.Linear(0.4, 50, 0.02), lambda t: textbook_linear(t, 0.4, 0.02, 50)),
    "Linear up": (rates.Linear(0.0, 1000, 2.0), lambda t: textbook_linear(t, 0.0, 2.0, 1000)),
    "Linear long": (
        rates.Linear(0.3, 1_000_000),
        lambda t: textbook_linear(t, 0.3, 0.0, 1_000_000),
    ),
    "Cosine": (rates.Cosine(0.4, 50, 0.02), lambda t: textbook_cosine(t, 0.4, 0.02, 50)),
    "Cosine long": (
        rates.Cosine(0.4, 1_000_001),
        lambda t: textbook_cosine(t, 0.4, 0.0, 1_000_001),
    ),
    "OneMinusSqrt": (
        rates.OneMinusSqrt(0.4, 20, 30, 0.05),
        lambda t: textbook_one_minus_sqrt(t, 0.4, 20, 30, 0.05),
    ),
    "OneMinusSqrt long": (
        rates.OneMinusSqrt(0.4, 1000, 999_000),
        lambda t: textbook_one_minus_sqrt(t, 0.4, 1000, 999_000, 0.0),
    ),
    "InverseTime": (rates.InverseTime(0.4, 7), lambda t: 0.4 / (1 + t / 7)),
    "Exponential": (rates.Exponential(0.4, 0.5, 10), lambda t: 0.4 * 0.5 ** (t / 10)),
    "Exponential slow": (rates.Exponential(0.4, 0.99999), lambda t: 0.4 * 0.99999**t),
    "Cyclical": (rates.Cyclical(0.5, 0.01, 7), lambda t: textbook_cyclical(t, 0.5, 0.01, 7)),
    "Triangular": (
        rates.Triangular(0.5, 0.01, 8),
        lambda t: textbook_triangular(t, 0.5, 0.01, 8),
    ),
    "Triangular two": (
        rates.Triangular(0.5, 0.01, 2),
        lambda t: textbook_triangular(t, 0.5, 0.01, 2),
    ),
    "Cyclical one": (rates.Cyclical(0.5, 0.01, 1), lambda t: textbook_cyclical(t, 0.5, 0.01, 1)),
    "Piecewise": (
        rates.Piecewise([10, 11, 1000], [0.4, 0.3, 0.0, 0.1]),
        lambda t: textbook_piecewise(t, [10, 11, 1000], [0.4, 0.3, 0.0, 0.1]),
    ),
    "Piecewise none": (rates.Piecewise([], [0.4]), lambda t: 0.4),
    # A float32 cannot tell these two boundaries from their neighbours.
    "Piecewise far": (
        rates.Piecewise([16_777_217, 1_999_999_999], [0.4, 0.2, 0.1]),
        lambda t: textbook_piecewise(t, [16_777_217, 1_999_999_999], [0.4, 0.2, 0.1]),
    ),
    "Table": (rates.Table([0.4, 0.1, 0.2]), lambda t: [0.4, 0.1, 0.2][min(t, 2)]),
    "Warmup": (
        rates.Warmup(rates.Cosine(0.4, 50), 9, 0.1),
        lambda t: textbook_warmup(t, lambda s: textbook_cosine(s, 0.4, 0.0, 50), 9, 0.1),
    ),
    "Warmup none": (rates.Warmup(rates.InverseTime(0.4, 3), 0), lambda t: 0.4 / (1 + t / 3)),
    "Scaled": (
        rates.Scaled(rates.Linear(0.4, 50), 0.5),
        lambda t: 0.5 * textbook_linear(t, 0.4, 0.0, 50),
    ),
    "Sequence": (
        rates.Sequence([0.4, rates.Cyclical(0.5, 0.1, 3), rates.Linear(0.1, 5)], [10, 1000]),
        lambda t: (
            0.4
            if t < 10
            else textbook_cyclical(t - 10, 0.5, 0.1, 3)
            if t < 1000
            else textbook_linear(t - 1000, 0.1, 0.0, 5)
        ),
    ),
    "nested": (
        rates.Warmup(rates.Scaled(rates.Sequence([1.0, rates.Warmup(2.0, 3)], [4]), 0.1), 5),
        lambda t: textbook_warmup(
            t,
            lambda s: 0.1 * (1.0 if s < 4 else textbook_warmup(s - 4, lambda _: 2.0, 3, 0.0)),
            5,
            0.0,
        ),
    ),
}


def test_every_formula_has_a_case():
    # A schedule of Keras has its case in test_schedules.py, which needs Keras.
    covered = {rates.KerasSchedule, *(type(rate) for rate, _ in CASES.values())}
    assert covered == set(rates.RATES.values())
    assert set(rates.RATES) <= set(rates.__all__)


@pytest.mark.parametrize("name", CASES)
def test_equals_its_textbook_form_at_every_step(name):
    rate, textbook = CASES[name]
    expected = [textbook(step) for step in STEPS]
    np.testing.assert_allclose(rate(np.array(STEPS)), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_steps_one_by_one_and_in_arrays_of_any_shape(name):
    rate, _ = CASES[name]
    single = rate(17)
    assert type(single) is float
    assert rate(np.int32(17)) == single
    grid = rate(np.full((2, 3), 17, dtype=np.int32))
    assert grid.dtype == np.float64
    np.testing.assert_array_equal(grid, np.full((2, 3), single))
    assert rate(np.zeros(0, dtype=np.int64)).shape == (0,)


def test_boundaries_take_effect_at_their_step():
    assert rates.Piecewise([3], [0.2, 0.1])(np.arange(2, 4)).tolist() == [0.2, 0.1]
    assert rates.Sequence([0.2, 0.1], [3])(np.arange(2, 4)).tolist() == [0.2, 0.1]
    ramp = rates.Linear(0.3, 3, 0.1)
    assert [ramp(0), ramp(3), ramp(4)] == [0.3, 0.1, 0.1]
    warm = rates.Warmup(rates.Linear(0.3, 3), 4)
    assert [warm(0), warm(4), warm(7)] == [0.0, 0.3, 0.0]
    wsd = rates.OneMinusSqrt(0.3, hold=5, steps=4)
    assert [wsd(5), wsd(9)] == [0.3, 0.0]
    assert wsd(6) == pytest.approx(0.15)  # √¼ of the way after a quarter of the decay


def test_fge_cycles_are_lowest_in_their_middle():
    rate = rates.Triangular(start=0.05, end=0.01, length=6)
    values = rate(np.arange(18))
    middles = np.arange(3, 18, 6)  # numbers of updates made when the models are collected
    assert np.all(values[middles - 1] == 0.01)
    assert np.sum(values == 0.01) == 3
    assert np.all(values[5::6] == 0.05)  # the last update of a cycle is back at the top


def test_swa_cycles_end_on_the_low_rate():
    """Claim S2: models are collected at cycle ends, after the updates at the low rate."""
    rate = rates.Cyclical(start=0.05, end=0.01, length=5)
    values = rates.as_array(rate, 20)
    np.testing.assert_allclose(values[4::5], 0.01, rtol=1e-15)
    np.testing.assert_allclose(values[:5], [0.042, 0.034, 0.026, 0.018, 0.01], rtol=1e-14)
    np.testing.assert_array_equal(values, np.tile(values[:5], 4))


def test_what_vanishes_keeps_its_relative_precision():
    """Near the end of a long decay the textbook forms cancel; these do not."""
    steps = 1_000_000
    assert rates.Cosine(1.0, steps)(steps - 1) == pytest.approx(
        (math.pi / 2 / steps) ** 2, rel=1e-9
    )
    assert rates.OneMinusSqrt(1.0, 0, steps)(steps - 1) == pytest.approx(0.5 / steps, rel=1e-6)
    assert rates.Linear(1.0, steps)(steps - 1) == 1.0 / steps


def test_as_array():
    array = rates.as_array(0.1, 3)
    assert array.dtype == np.float64
    assert array.tolist() == [0.1, 0.1, 0.1]
    assert rates.as_array(0.1, 0).shape == (0,)
    table = np.array([0.3, 0.1])
    np.testing.assert_array_equal(rates.as_array(table, 4), [0.3, 0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match=r"num_steps.*Received: num_steps=-1"):
        rates.as_array(0.1, -1)


def test_as_rate():
    rate = rates.Cosine(0.1, 3)
    assert rates.as_rate(rate) is rate
    assert rates.as_rate(1) == rates.Constant(1.0)
    assert rates.as_rate(np.float32(0.5)) == rates.Constant(0.5)
    assert rates.as_rate([0.5, 0.25]) == rates.Table((0.5, 0.25))


level = st.floats(0.0, 10.0)
count = st.integers(1, 40)
leaf = st.one_of(
    st.builds(rates.Constant, level),
    st.builds(rates.Linear, level, count, level),
    st.builds(rates.Cosine, level, count, level),
    st.builds(rates.OneMinusSqrt, level, st.integers(0, 40), count, level),
    st.builds(rates.InverseTime, level, count),
    st.builds(rates.Exponential, level, st.floats(1e-6, 1.0), count),
    st.builds(rates.Cyclical, level, level, count),
    st.builds(rates.Triangular, level, level, count.map(lambda n: 2 * n)),
    st.builds(rates.Table, st.lists(level, min_size=1, max_size=5)),
)


def compose(children):
    bounds = st.lists(st.integers(1, 60), unique=True, max_size=3).map(sorted)
    return st.one_of(
        st.builds(rates.Warmup, children, st.integers(0, 40), level),
        st.builds(rates.Scaled, children, st.floats(0.0, 3.0)),
        bounds.flatmap(
            lambda cuts: st.lists(children, min_size=len(cuts) + 1, max_size=len(cuts) + 1).map(
                lambda parts: rates.Sequence(parts, cuts)
            )
        ),
    )


@settings(max_examples=60, deadline=None)
@given(st.recursive(leaf, compose, max_leaves=5))
def test_any_composition_round_trips_and_stays_a_rate(rate):
    assert rates.from_config(json.loads(json.dumps(rate.get_config()))) == rate
    values = rate(np.arange(150))
    assert np.all(np.isfinite(values))
    assert np.all(values >= 0.0)
    assert values.tolist() == [rate(step) for step in range(150)]


@settings(max_examples=60, deadline=None)
@given(level, level, count, st.integers(0, 100))
def test_ramps_stay_between_their_ends(start, end, steps, step):
    low, high = min(start, end), max(start, end)
    for rate in (
        rates.Linear(start, steps, end),
        rates.Cosine(start, steps, end),
        rates.OneMinusSqrt(start, 3, steps, end),
        rates.Cyclical(start, end, steps),
        rates.Triangular(start, end, 2 * steps),
    ):
        assert low * (1 - 1e-14) <= rate(step) <= high * (1 + 1e-14)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rates.Constant("0.1"), "`constant` must be a number of at least 0.*'0.1'"),
        (lambda: rates.Linear(0.1, 0), r"`steps` must be an integer of at least 1.*steps=0"),
        (lambda: rates.Linear(0.1, 2.0), r"steps=2.0"),
        (lambda: rates.Linear(math.inf, 2), r"start=inf"),
        (lambda: rates.Cosine(0.1, 5, -1e-9), r"end=-1e-09"),
        (lambda: rates.Exponential(0.1, 1.5), r"above 0 and of at most 1. .*factor=1.5"),
        (lambda: rates.Exponential(0.1, 0.0), r"factor=0.0"),
        (lambda: rates.Triangular(0.1, 0.1, 0), r"length=0"),
        (lambda: rates.Triangular(0.1, 0.1, 7), r"`length` must be an even.*7"),
        (lambda: rates.Piecewise([3, 3], [1, 2, 3]), r"strictly increasing.*\[3, 3\]"),
        (lambda: rates.Piecewise([0], [1, 2]), r"strictly increasing.*\[0\]"),
        (lambda: rates.Piecewise([1.5], [1, 2]), r"strictly increasing.*\[1.5\]"),
        (lambda: rates.Piecewise(5, [1, 2]), r"strictly increasing.*boundaries=5"),
        (lambda: rates.Piecewise([1], [1, 2, 3]), r"3 values and 1 boundaries"),
        (lambda: rates.Piecewise([1], [0.1, -2.0]), r"at least 0. .*values=\[0.1, -2.0\]"),
        (lambda: rates.Table([]), r"non-empty vector.*\[\]"),
        (lambda: rates.Table([[0.1]]), r"non-empty vector"),
        (lambda: rates.Table([0.1, math.nan]), r"values=\[0.1, nan\]"),
        (lambda: rates.Sequence([0.1, 0.2], [1, 2]), r"2 rates and 2 boundaries"),
        (lambda: rates.Sequence(rates.Constant(1), []), r"`rates` must be a list of rates"),
        (lambda: rates.Sequence([0.1, None], [1]), r"rate=None"),
        (lambda: rates.Constant(0.1)(-1), r"`step` must be an integer.*step=-1"),
        (lambda: rates.Constant(0.1)(1.0), r"`step` must be an integer.*step=1.0"),
        (
            lambda: rates.from_config(
                {"rate": "Warmup", "steps": 3, "inner": {"rate": "Constant", "constant": -1.0}}
            ),
            r"constant=-1.0",
        ),
    ],
)
def test_errors_name_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
