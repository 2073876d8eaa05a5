"""The figure of curvature shows every batch of every record, with products or without."""

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.probe_figures import curvature_figure


def record(step, check=True):
    names = ["curvature", "curvature_error", "direction_norm", "noise"]
    names += ["product", "disagreement"] if check else []
    found = ArrayRecord.empty(
        "curvature",
        {"batch": range(4)},
        dict.fromkeys(names, ("batch",)),
        {"step": step, "batch_norm": "batch" if check else "recalibrated"},
    )
    for name in names:
        found.put(name, ..., step * np.array([1.0, 20.0, 3.0, 4.0]))
    return found


def test_points_and_names():
    figure = curvature_figure.draw([record(1), record(5)])
    left, right = figure.axes
    points = [line for line in left.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in points] == [4, 4]
    np.testing.assert_allclose(points[1].get_ydata(), 1 / (5 * np.array([1.0, 20.0, 3.0, 4.0])))
    assert [text.get_text() for text in left.get_legend().texts] == ["step 1", "step 5"]
    assert len(right.get_legend().texts) == 3


def test_without_products_there_is_no_diagonal():
    figure = curvature_figure.draw([record(2, check=False)])
    assert "product" not in figure.axes[0].get_xlabel()
    assert len(figure.axes[1].get_legend().texts) == 2
