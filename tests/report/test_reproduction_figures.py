"""Figures of claims: each is drawn from a judgement alone, and can be read on a page."""

import importlib
import pathlib
import re
import sys

import pytest

from tf_lrtraj import claims, records
from tf_lrtraj.report.drawing import style, to_svg
from tf_lrtraj.report.study import svg
from tf_lrtraj.report.study.registry import FIGURES, HEAD

NAMES = list(FIGURES)


def built(folder, count, **config):
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "claims"))
    study_records = importlib.import_module("study_records")
    study_records.build(folder, count)
    known = records.read_json(folder / "config.json")
    records.write_json(folder / "config.json", {**known, **config})
    found = claims.Study(folder).judgements
    return {claim.id: judgement for claim, judgement in found.items()}


@pytest.fixture(scope="module")
def judgements(tmp_path_factory):
    return built(tmp_path_factory.mktemp("figures") / "W", 3)


@pytest.fixture(scope="module")
def of_one_seed(tmp_path_factory):
    """Numbers without intervals, as a smoke test may have them."""
    one = {"seeds": 1}
    folder = tmp_path_factory.mktemp("smoke") / "W"
    return built(folder, 1, **one, probe_seeds=1, pairs=one, speed=one, judged=False)


def draw(name, judgements):
    with style():
        return FIGURES[name].draw(judgements[name.removesuffix(HEAD)])


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
def test_a_figure_of_one_seed_is_drawn(of_one_seed, name):
    judgement = of_one_seed[name.removesuffix(HEAD)]
    assert judgement.verdict == "not judged", judgement.reason
    assert draw(name, of_one_seed) is not None


@pytest.mark.parametrize("name", NAMES)
def test_words_of_a_figure_hold_no_measured_numbers(name):
    figure = FIGURES[name]
    assert 10 < len(figure.alt) <= 160 and 10 < len(figure.caption) <= 300
    assert figure.caption.endswith(".") and not re.search(r"\d\.\d", figure.caption)


def test_factors_of_a_scale_keep_their_digits():
    text = '<g transform="translate(1.23456 2.5) scale(0.015625 -0.015625)"/>'
    assert svg.compact(text) == text.replace("1.23456", "1.23")
