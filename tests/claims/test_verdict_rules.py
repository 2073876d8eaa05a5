"""How intervals become verdicts of parts, and parts a verdict."""

import math

import numpy as np
import pytest
from scipy import stats

from tf_lrtraj.claims import verdicts as v
from tf_lrtraj.statistics import TOST, Estimate, Interval, holm, mean_of

YES, NO, OPEN = v.REPRODUCED, v.NOT_REPRODUCED, v.INCONCLUSIVE
ABOVE = v.Wanted("x", "x", low=1.0)
BELOW = v.Wanted("x", "x", high=-1.0)
WITHIN = v.Wanted("x", "x", low=-1.0, high=1.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.1, 2.0, YES), (1.0, 2.0, OPEN), (0.5, 1.5, OPEN), (0.0, 1.0, OPEN), (0.0, 0.9, NO)],
)
def test_above_and_below_need_the_whole_interval(low, high, verdict):
    middle = 0.5 * (low + high)
    assert ABOVE.judge(Interval(middle, low, high)).verdict == verdict
    assert BELOW.judge(Interval(-middle, -high, -low)).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.5, 0.5, YES), (-1.0, 0.5, OPEN), (-2.0, 2.0, OPEN), (1.2, 2.0, NO), (0.9, 1.1, OPEN)],
)
def test_within(low, high, verdict):
    for interval in (Interval(0.0, low, high), Interval(0.0, -high, -low)):
        assert WITHIN.judge(interval).verdict == verdict


def test_a_part_may_fail_farther_off_than_it_holds():
    wide = v.Wanted("x", "x", high=3.6, fails_high=4.7)
    found = [wide.judge(value).verdict for value in (3.0, 4.0, 5.0)]
    assert found == [YES, OPEN, NO]
    low = v.Wanted("x", "x", low=1.0, fails_low=0.5)
    assert [low.judge(value).verdict for value in (2.0, 0.7, 0.4)] == [YES, OPEN, NO]


def test_an_equality_holds_by_two_one_sided_tests_and_fails_by_a_two_sided_one():
    random, agreed = np.random.default_rng(7), set()
    same = v.Wanted("gap", "gap", low=-1.0, high=1.0, level=TOST)
    for _ in range(200):
        gaps = random.normal(random.uniform(-2, 2), random.uniform(0.05, 0.6), 3)
        low = stats.ttest_1samp(gaps, -1.0, alternative="greater").pvalue
        high = stats.ttest_1samp(gaps, 1.0, alternative="less").pvalue
        beyond = stats.ttest_1samp(gaps, math.copysign(1.0, gaps.mean())).pvalue
        verdict = same.judge(mean_of(gaps)).verdict
        assert (verdict == YES) == (max(low, high) < 0.05)
        assert (verdict == NO) == (abs(gaps.mean()) > 1.0 and beyond < 0.05)
        agreed.add(verdict)
    assert agreed == {YES, NO, OPEN}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_cannot_be_told_decides_nothing(value):
    for wanted in (ABOVE, BELOW, WITHIN):
        for found in (Estimate(value, 0.1, 3.0), Estimate(1.0), Interval(math.nan, 1.0, 2.0)):
            assert wanted.judge(found).verdict == OPEN


def by_p_values(samples, level=0.05):
    """Holm's method as his paper has it, for means that should be above 1."""
    p = [stats.ttest_1samp(sample, 1.0).pvalue for sample in samples]
    p = [x if s.mean() < 1.0 else 1.0 for x, s in zip(p, samples, strict=True)]
    failed = [False] * len(p)
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] >= level / (len(p) - rank):
            break
        failed[i] = True
    return failed


def test_holm_is_his_method_by_p_values():
    random, counts = np.random.default_rng(1), set()
    for _ in range(300):
        samples = random.normal(random.uniform(0.3, 1.1, (4, 1)), 0.15, (4, 4))
        found = holm([ABOVE.judge(sample).fails_at for sample in samples])
        assert found == by_p_values(samples)
        counts.add(sum(found))
    assert counts == {0, 1, 2, 3, 4}


def test_true_claims_of_many_parts_seldom_fail():
    """Eight parts at their threshold: any fails in about one of twenty claims, not eight."""
    random = np.random.default_rng(2)
    failed = alone = 0
    for _ in range(400):
        parts = [ABOVE.judge(x, at=f"{i}") for i, x in enumerate(random.normal(1, 1, (8, 3)))]
        failed += v.conclude(parts).verdict == NO
        alone += any(part.verdict == NO for part in parts)
    # Only the wrong side counts, so half of the level.
    assert failed <= 0.05 * 400 and alone > 0.12 * 400


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        ((2.0, 3.0), YES, "All 2 parts hold."),
        ((2.0, 0.0), NO, "Fails: x at b."),
        ((math.nan, 0.0), NO, "Fails: x at b."),
        ((math.nan, 2.0), OPEN, "Not decided: x at a."),
        ((0.0, 0.0), NO, "Fails: x at a, and 1 more."),
        ((2.0,), YES, "The part holds."),
    ],
)
def test_all_parts_must_hold_and_the_first_that_does_not_is_named(values, verdict, reason):
    wanted = [v.Wanted(name, f"x at {name}", low=1.0) for name in "ab"]
    found = v.conclude([w.judge(x) for w, x in zip(wanted, values, strict=False)])
    assert (found.verdict, found.reason) == (verdict, reason)
    assert [part.name for part in found.parts] == list("ab"[: len(values)])


@pytest.mark.parametrize("value", [2.0, 0.0, math.nan])
def test_a_condition_that_is_not_met_leaves_it_open(value):
    conditions = [
        v.Condition("near", "this is met", Interval(0.0, -1.0, 1.0), -2.0, 2.0),
        v.Condition("far", "that is not", Interval(1.0, 0.0, 3.0), -2.0, 2.0),
        v.Condition("said", "met by another rule", 9.0, high=1.0, met=True),
    ]
    found = v.conclude([ABOVE.judge(value)], conditions=conditions)
    assert (found.verdict, found.reason) == (OPEN, "A condition is not met: that is not.")
    assert [condition.is_met for condition in found.conditions] == [True, False, True]
    assert len(found.parts) == 1


def test_parts_have_names():
    part = ABOVE.judge(2.0, at="step 8000")
    assert (part.name, part.what) == ("x_step_8000", "step 8000: x")
    found = v.conclude([part, ABOVE.judge(3.0)])
    assert found.part("x").interval.value == 3.0
    with pytest.raises(KeyError):
        found.part("y")
    with pytest.raises(ValueError, match="parts of different names"):
        v.conclude([part, part])
    with pytest.raises(ValueError, match="one or more parts"):
        v.conclude([])
    with pytest.raises(ValueError, match="`low` or `high`"):
        v.Wanted("x", "x")


def test_texts_of_numbers():
    assert v.shown(Interval(1.0, 1.0, 1.0)) == "1"
    assert v.shown(Interval(0.01234, 0.01, 0.02)) == "0.0123 [0.01, 0.02]"
    assert v.shown(Estimate(2.0).interval()) == "2 [no interval]"
    assert v.bounds_shown(-1.0, 0.5) == "-1 to 0.5"
