"""The figures of claims S1 to S8 show what was judged."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest

from tf_lrtraj.claims.ledger import Study
from tf_lrtraj.report.study.swa_figures import FIGURES

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "claims"))


@pytest.fixture(scope="module")
def judgements(tmp_path_factory):
    import study_records

    folder = study_records.build(tmp_path_factory.mktemp("figures") / "records")
    return {claim.id: found for claim, found in Study(folder).judgements.items()}


def lines(panel):
    """[(x, y)] of every line drawn."""
    return [tuple(np.asarray(part, float) for part in one.get_data()) for one in panel.lines]


@pytest.mark.parametrize("key", FIGURES)
def test_every_part_is_drawn_with_its_interval(judgements, key):
    judgement, figure = judgements[key], FIGURES[key].draw(judgements[key])
    assert figure is not None and all(panel.get_xlabel() for panel in figure.axes)
    if key in ("S2", "S4"):  # curves alone, whose thresholds are drawn
        return
    drawn = [x.tolist() for x, _ in lines(figure.axes[-1])]
    for part in judgement.parts:
        assert [part.interval.low, part.interval.high] in drawn


def test_methods_are_dots_of_seeds(judgements):
    accuracy = judgements["S6"].drawn["accuracy"]
    (panel, _) = FIGURES["S6"].draw(judgements["S6"]).axes
    drawn = [x.tolist() for x, _ in lines(panel)]
    for values in accuracy.values():
        assert list(values) in drawn
    assert len(panel.get_yticks()) == 6


def test_width_shows_the_rise_that_is_compared(judgements):
    rays = FIGURES["S4"].draw(judgements["S4"]).axes[0]
    assert any(np.all(y == 5.0) for _, y in lines(rays))
    assert len(lines(rays)) == 2 * (3 + 1) + 1  # seeds and means of two points, and the rise


def test_nothing_is_drawn_of_nothing(judgements):
    for key, figure in FIGURES.items():
        assert figure.draw(dataclasses.replace(judgements[key], drawn={})) is None
