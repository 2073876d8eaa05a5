"""How intervals become verdicts of parts, and parts a verdict."""

import math

import pytest

from tf_lrtraj.claims import verdicts as v
from tf_lrtraj.claims.statistics import Estimate, Interval

YES, NO, OPEN = v.REPRODUCED, v.NOT_REPRODUCED, v.INCONCLUSIVE


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.1, 2.0, YES), (1.0, 2.0, OPEN), (0.5, 1.5, OPEN), (0.0, 1.0, OPEN), (0.0, 0.9, NO)],
)
def test_above_and_below_need_the_whole_interval(low, high, verdict):
    middle = 0.5 * (low + high)
    assert v.above("x", Interval(middle, low, high), 1.0, "x").verdict == verdict
    mirrored = Interval(-middle, -high, -low)
    assert v.below("x", mirrored, -1.0, "x").verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.5, 0.5, YES),
        (-1.0, 0.5, OPEN),
        (-2.0, 2.0, OPEN),
        (1.2, 2.0, NO),
        (-3.0, -1.1, NO),
        (0.9, 1.1, OPEN),
    ],
)
def test_within(low, high, verdict):
    interval = Interval(0.5 * (low + high), low, high)
    assert v.within("x", interval, -1.0, 1.0, "x").verdict == verdict


def test_an_equivalence_fails_by_its_95_percent_interval():
    """90 % lies outside the margin, 95 % does not: not decided."""
    close = Estimate(2.8, 0.5, 4.0)
    assert close.interval(0.9).low > 1.0 > close.interval().low - 0.5
    assert v.within("x", Estimate(2.2, 0.5, 4.0), -1, 1, "x", 0.9).verdict == OPEN
    assert v.within("x", close, -1, 1, "x", 0.9).verdict == NO


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_cannot_be_told_decides_nothing(value):
    estimate = Estimate(value, 0.1, 3.0)
    for part in (
        v.above("x", estimate, 0.0, "x"),
        v.below("x", estimate, 0.0, "x"),
        v.within("x", estimate, -1.0, 1.0, "x"),
        v.above("x", Estimate(1.0), 0.0, "x"),
        v.above("x", Interval(math.nan, 1.0, 2.0), 0.0, "x"),
    ):
        assert part.verdict == OPEN


def part(name, verdict):
    return v.Part(name, Interval(1.0, 0.0, 2.0), verdict, f"text of {name}")


@pytest.mark.parametrize(
    ("verdicts", "verdict", "named"),
    [
        ((YES, YES), YES, ()),
        ((YES, NO), NO, ("b",)),
        ((OPEN, NO), NO, ("b",)),
        ((OPEN, YES), OPEN, ("a",)),
        ((NO, NO), NO, ("a", "b")),
    ],
)
def test_all_parts_must_hold_and_those_that_do_not_are_named(verdicts, verdict, named):
    found = v.conclude([part(name, one) for name, one in zip("ab", verdicts, strict=True)])
    assert found.verdict == verdict
    assert [n for n in "ab" if f"text of {n}" in found.reason] == list(named)
    assert found.statistic == "text of a; text of b"
    assert set(found.numbers) == {"a", "b"}


@pytest.mark.parametrize("verdict", [YES, NO, OPEN])
def test_a_condition_that_is_not_met_leaves_it_open(verdict):
    conditions = [
        v.Condition(True, "this is met"),
        v.Condition(False, "that is not", {"drift": Interval(1.0, 0.0, 2.0)}),
    ]
    found = v.conclude([part("a", verdict)], conditions=conditions)
    assert found.verdict == OPEN
    assert "that is not" in found.reason and "this is met" not in found.reason
    assert found.statistic == "text of a"
    assert found.numbers["drift"].value == 1.0
    assert "this is met" in found.notes


def test_no_part_decides_nothing():
    with pytest.raises(ValueError, match="at least one"):
        v.conclude([])


def test_texts_of_numbers():
    assert v.shown(Interval(1.0, 1.0, 1.0)) == "1"
    assert v.shown(Interval(0.01234, 0.01, 0.02)) == "0.0123 [0.01, 0.02]"
    assert v.shown(Estimate(2.0)) == "2 [no interval]"
    assert v.percent(Interval(0.01, -0.02, 0.03)) == pytest.approx((1.0, -2.0, 3.0))
