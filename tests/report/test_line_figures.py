"""The figure of the loss along a step, from records made by hand."""

import numpy as np
import pytest

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.probe_figures import line_figure

RATES = np.linspace(0.0, 3.0, 25)


def record(best=1.0, batches=3, step=None, infinite=False, curves=("train", "held_out")):
    """Parabolas with minima at `best`, half that for held-out batches."""
    about = {"direction": "gradient", "batch_norm": "batch", "dropout": "none"}
    made = ArrayRecord.empty(
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
        {
            **dict.fromkeys(curves, ("rate", "batch")),
            "fit_error": ("degree", "window", "batch"),
            "mean": ("curve", "rate"),
            "mean_fit": ("curve", "power"),
            **{
                f"mean_{name}{suffix}": ("curve",)
                for name in ("best_rate", "gain", "zero_crossing")
                for suffix in ("", "_se")
            },
        },
        about if step is None else {**about, "step": step},
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
    made.put("fit_error", ..., [[[0.3]], [[1e-3]]])
    return made


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_best_rates_and_crossings_are_told():
    found = texts(line_figure.draw([record()]))
    assert "this batch: best 1.0 ± 0.1, gain gone at 2.0 ± 0.1" in found
    assert "held-out: best 0.5 ± 0.1, gain gone at 1.0 ± 0.1" in found
    assert {"degree 1", "degree 2"} <= set(found)


def test_marks_lie_on_the_curves():
    top = line_figure.draw([record()]).axes[0]
    marks = {tuple(np.round([*x.get_xdata(), *x.get_ydata()], 9)) for x in top.lines}
    assert {(1.0, 1.05), (0.5, 1.05), (2.0, 2.05), (1.0, 2.05)} <= marks
    dotted = [x for x in top.lines if x.get_linestyle() == ":"]
    assert len(dotted) == 1 and dotted[0].get_xdata()[-1] == 2.0


def test_columns_share_their_axes_where_they_can():
    figure = line_figure.draw([record(1.0, step=0), record(1.2, step=1500)])
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "At step 0",
        "At step 1,500",
    ]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    figure = line_figure.draw([record(1.0), record(0.1)])
    assert figure.axes[0].get_xlim() != figure.axes[1].get_xlim()
    assert figure.axes[1].get_title(loc="left") == "Point 2"


@pytest.mark.parametrize(
    "given",
    [
        record(batches=1),
        record(infinite=True),
        record(curves=("train", "held_out", "others")),
        record(best=50.0),
    ],
)
def test_unusual_records_are_drawn(given):
    svg = to_svg(line_figure.draw([given]))
    assert svg.startswith("<?xml") and "nan" not in svg
    assert svg == to_svg(line_figure.draw([given]))
