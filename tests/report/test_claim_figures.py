"""Figures of claims: each is drawn from a judgement alone, shows it, and can be read on a page."""

import dataclasses
import re

import numpy as np
import pytest
import study_records

from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.study import svg
from tf_lrtraj.report.study.registry import FIGURES, HEAD

NAMES = list(FIGURES)
# Rows of parts; the figures of S2 and S4 are of curves, whose thresholds are drawn.
ROWS = [name for name in NAMES if name[0] == "S" and name not in ("S2", "S4")]


@pytest.fixture(scope="module")
def judgements(tmp_path_factory):
    return study_records.judgements(study_records.build(tmp_path_factory.mktemp("figures") / "W"))


@pytest.fixture(scope="module")
def of_one_seed(tmp_path_factory):
    """Numbers without intervals, as a smoke test may have them."""
    return study_records.judgements(study_records.smoke(tmp_path_factory.mktemp("smoke") / "W"))


def draw(name, judgements):
    return FIGURES[name].draw(judgements[name.removesuffix(HEAD)])


def lines(panel):
    """[(x, y)] of every line drawn."""
    return [tuple(np.asarray(part, float) for part in one.get_data()) for one in panel.lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_can_be_read(judgements, name):
    figure = draw(name, judgements)
    width, height = figure.get_size_inches()
    assert width <= 10.0 and height <= 7.0
    panels = [axes for axes in figure.axes if axes.axison and axes.has_data()]
    assert 1 <= len(panels) <= 3
    assert panels[0].get_ylabel() or panels[0].get_yticklabels()
    for axes in panels:
        assert axes.get_xlabel() or axes.get_xticklabels()
    text = svg.compact(to_svg(figure))
    assert len(text) < 300_000
    assert svg.compact(to_svg(draw(name, judgements))) == text


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_of_one_seed_is_drawn_and_of_nothing_is_not(of_one_seed, name):
    judgement = of_one_seed[name.removesuffix(HEAD)]
    assert judgement.verdict == "not judged", judgement.reason
    assert draw(name, of_one_seed) is not None
    assert FIGURES[name].draw(dataclasses.replace(judgement, parts=())) is None


@pytest.mark.parametrize("name", NAMES)
def test_words_of_a_figure_hold_no_measured_numbers(name):
    figure = FIGURES[name]
    assert 10 < len(figure.alt) <= 160 and 10 < len(figure.caption) <= 300
    assert figure.caption.endswith(".") and not re.search(r"\d\.\d", figure.caption)


@pytest.mark.parametrize("name", ROWS)
def test_every_part_is_drawn_with_its_interval(judgements, name):
    figure = draw(name, judgements)
    assert all(panel.get_xlabel() for panel in figure.axes)
    drawn = [x.tolist() for x, _ in lines(figure.axes[-1])]
    for part in judgements[name].parts:
        assert [part.interval.low, part.interval.high] in drawn


def test_methods_are_dots_of_seeds(judgements):
    (panel, _) = draw("S6", judgements).axes
    drawn = [x.tolist() for x, _ in lines(panel)]
    for values in judgements["S6"].drawn["accuracy"].values():
        assert list(values) in drawn
    assert len(panel.get_yticks()) == 6


def test_width_shows_the_rise_that_is_compared(judgements):
    rays = draw("S4", judgements).axes[0]
    assert any(np.all(y == 5.0) for _, y in lines(rays))
    assert len(lines(rays)) == 2 * (3 + 1) + 1  # seeds and means of two points, and the rise


def test_factors_of_a_scale_keep_their_digits():
    text = '<g transform="translate(1.23456 2.5) scale(0.015625 -0.015625)"/>'
    assert svg.compact(text) == text.replace("1.23456", "1.23")
