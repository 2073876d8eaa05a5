"""Figures of the loss and of curvature along a step, from records made by hand."""

import numpy as np
import pytest
from probe_records import ABOUT, record, texts

from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.probe_figures import curvature_figure, line_figure

RATES = np.linspace(0.0, 3.0, 25)


def line(best=1.0, batches=3, step=None, infinite=False, others=()):
    """Parabolas with minima at `best`, half that for held-out batches."""
    curves = ("train", "held_out", *others)
    made = record(
        "line",
        {
            "rate": RATES,
            "batch": np.arange(batches),
            "curve": np.array(curves),
            "degree": [1, 2],
            "window": [1.0, 2.0],
            "level": [0.01],
            "power": [0, 1, 2],
        },
        *curves[1:],
        about={**ABOUT, "direction": "gradient"} | ({} if step is None else {"step": step}),
        fit_error=[[[0.3]], [[1e-3]]],
    )
    for c, name in enumerate(curves):
        at = best / (c + 1)
        curve = 2.0 - 2.0 * RATES / at + (RATES / at) ** 2
        if infinite:
            curve = np.where(RATES > 1.5, np.inf, curve)
        made.put(name, ..., curve[:, None] + 0.05 * np.arange(batches))
        made.put("mean", c, made.values[name].mean(1))
        made.put("mean_fit", c, [2.0, -2.0 / at, at**-2])
        for what, number in (("best_rate", at), ("gain", 1.0), ("zero_crossing", 2.0 * at)):
            made.put(f"mean_{what}", c, number)
            made.put(f"mean_{what}_se", c, 0.1 if batches > 1 else np.inf)
    return made


def test_best_rates_and_crossings_are_told():
    found = texts(line_figure.draw([line()]))
    assert "this batch: best 1.0 ± 0.1, gain gone at 2.0 ± 0.1" in found
    assert "held-out: best 0.5 ± 0.1, gain gone at 1.0 ± 0.1" in found
    assert {"degree 1", "degree 2"} <= set(found)


def test_marks_lie_on_the_curves():
    top = line_figure.draw([line()]).axes[0]
    marks = {tuple(np.round([*x.get_xdata(), *x.get_ydata()], 9)) for x in top.lines}
    assert {(1.0, 1.05), (0.5, 1.05), (2.0, 2.05), (1.0, 2.05)} <= marks
    dotted = [x for x in top.lines if x.get_linestyle() == ":"]
    assert len(dotted) == 1 and dotted[0].get_xdata()[-1] == 2.0


def test_columns_share_their_axes_where_they_can():
    figure = line_figure.draw([line(1.0, step=0), line(1.2, step=1500)])
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "At step 0",
        "At step 1,500",
    ]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    figure = line_figure.draw([line(1.0), line(0.1)])
    assert figure.axes[0].get_xlim() != figure.axes[1].get_xlim()
    assert figure.axes[1].get_title(loc="left") == "Point 2"


@pytest.mark.parametrize(
    "given",
    [
        line(batches=1),
        line(infinite=True),
        line(others=["others"]),
        line(best=50.0),
    ],
)
def test_unusual_records_are_drawn(given):
    svg = to_svg(line_figure.draw([given]))
    assert svg.startswith("<?xml") and "nan" not in svg
    assert svg == to_svg(line_figure.draw([given]))


def curvatures(step, check=True):
    numbers = step * np.array([1.0, 20.0, 3.0, 4.0])
    return record(
        "curvature",
        {"batch": range(4)},
        *(["check"] if check else []),
        about={"step": step, "batch_norm": "batch" if check else "recalibrated"},
        curvature=numbers,
        direction_norm=numbers,
    )


def test_every_batch_of_every_record_has_its_curvature():
    figure = curvature_figure.draw([curvatures(1), curvatures(5)])
    left, right = figure.axes
    points = [line for line in left.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [4, 4]
    np.testing.assert_allclose(points[1].get_ydata(), 1 / (5 * np.array([1.0, 20.0, 3.0, 4.0])))
    assert [text.get_text() for text in left.get_legend().texts] == ["step 1", "step 5"]
    assert len(right.get_legend().texts) == 3


def test_without_products_there_is_no_diagonal():
    figure = curvature_figure.draw([curvatures(2, check=False)])
    assert "product" not in figure.axes[0].get_xlabel()
    assert len(figure.axes[1].get_legend().texts) == 2
