"""Sentences about records hold their numbers, and every kind that is drawn has some."""

import importlib

import numpy as np
import pytest
from probe_records import record

from tf_lrtraj import report
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.probe_figures.gallery import sentences
from tf_lrtraj.specs import PROBES


@pytest.mark.parametrize("kind", sorted(PROBES))
def test_every_kind_has_a_figure_and_sentences(kind):
    module = importlib.import_module(f"tf_lrtraj.report.probe_figures.{kind}_figure")
    assert callable(module.draw) and callable(module.sentences)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="of one kind of probe"):
        report.plot([])
    other = ArrayRecord.empty("other", {"x": [0]}, {"y": ["x"]})
    with pytest.raises(ValueError, match="of one kind of probe"):
        report.plot(other)
    assert sentences(other) == []


def test_side_trip():
    found = record(
        "side_trip",
        {"step": range(5)},
        "held_out",
        about={"step": 1200, "learning_rate": [0.5] * 4},
        train_mean=[1.0, 0.5, 0.25, 0.125, 0.0625],
        held_out_mean=[1.0, 1.5, 2.0, 2.5, 3.0],
    )
    assert sentences(found) == [
        "step 1,200: 4 steps at rate 0.5: its own batch from 1.000 to 0.125 after 3 to 0.062; "
        "held-out batches from 1.000 to 2.500 after 3 to 3.000"
    ]


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([0.01, 0.02, 0.03], "within 2 % of the drop (median; worst 3 %)"),
        ([0.01, np.inf, np.inf], "up to twice the best rate of 2 of 3 batches, because it lies"),
    ],
)
def test_line_without_a_crossing_says_nothing_of_one(errors, told):
    found = record(
        "line",
        {"curve": ["train", "held_out"], "batch": range(3), "degree": [1, 2], "window": [2.0]},
        "held_out",
        fill=0.0625,
        mean_best_rate=[0.5, 0.125],
        mean_gain=[0.75, 0.25],
        mean_zero_crossing=[np.nan, 0.25],
        fit_error=[[[1.0] * 3], [errors]],
    )
    own, held_out, fit = sentences(found)
    assert "gone" not in own and "gain is gone at 0.25" in held_out
    assert "(mean of 3 batches)" in own and told in fit


@pytest.mark.parametrize(("height", "told"), [(0.5, True), (0.0, False)])
def test_basin_counts_verdicts(height, told):
    found = record(
        "basin",
        {"first": ["a", "a"], "second": ["b", "c"], "layer": ["all"]},
        barrier=[[0.0], [height]],
        barrier_se=0.01,
        verdict=[[-1.0], [1.0 if told else 0.0]],
    )
    (text,) = sentences(found)
    assert ("highest barrier 0.50 ± 0.01, from a to c" in text) == told
    assert "2 segments: 1 one basin" in text


def test_width_leaves_out_what_was_not_reached():
    found = record(
        "width",
        {"point": ["sgd", "swa"]},
        about={"rise": 0.1},
        width_mean=[8.0, np.inf],
        width_se=[0.5, np.inf],
    )
    assert sentences(found) == [
        "training loss of sgd has risen by 0.1 at distance 8.0 ± 0.5 along rays"
    ]
