"""What a probe returns: its figure in one call, a short account, and xarray."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from probe_cases import FIRST, OF_LOSSES, measured

from tf_lrtraj import probes, report
from tf_lrtraj.records import ArrayRecord


@pytest.fixture(params=[*FIRST, "distance of filters", "separation"])
def record(request, make):
    """Of every kind of probe, with the longest caption."""
    made = make(request.param)
    about = made.record.about
    if made.name in OF_LOSSES:
        about = {**about, "penalties": "left out", "dropout": "pinned"}
    return dataclasses.replace(made.record, about=about)


def outside(figure, dpi):
    """By how many inches what is drawn leaves the figure."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    return max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)


@pytest.mark.parametrize("dpi", [72, 100, 200])
def test_nothing_of_a_figure_is_clipped(record, dpi):
    assert outside(record.plot(), dpi) < 0.02


def test_a_notebook_shows_the_figure_that_the_report_draws(record, tmp_path):
    record.write(tmp_path / "a.npz")
    matplotlib.rcParams["font.size"] = 30.0  # the user's own settings play no part
    try:
        shown = record.plot()._repr_png_()
    finally:
        matplotlib.rcdefaults()
    assert shown.startswith(b"\x89PNG")
    assert shown == report.plot(ArrayRecord.read(tmp_path / "a.npz"))._repr_png_()


def test_several_records_in_one_figure(network):
    lines = [
        measured(
            probes.Line,
            network.model, network.loss, network.points[name], network.batches[:2],
            rates=[0.1, 0.2], bracket="none",
        )
        for name in ("here", "b")
    ]  # fmt: skip
    assert len(lines[0].plot(lines[1]).axes) == 2 * len(lines[0].plot().axes)


def test_the_account_has_a_line_for_each_quantity(record):
    lines = repr(record).splitlines()
    assert len(lines) == 1 + len(record.coordinates) + len(record.values)
    assert lines[0] == f"ProbeRecord of kind '{record.kind}': complete"
    assert max(map(len, lines)) < 120
    for name, value in record.values.items():
        (line,) = [line for line in lines if line.startswith((f"  {name}:", f"  {name} ["))]
        finite = value[np.isfinite(value)]
        assert finite.size == 0 or f"{finite.max():.4g}" in line


def test_xarray_holds_everything(record):
    pytest.importorskip("xarray")
    found = record.to_xarray()
    assert found.attrs["kind"] == record.kind and set(found.attrs) == {"kind", *record.about}
    for name, value in record.values.items():
        assert found[name].dims == record.dims[name]
        np.testing.assert_array_equal(found[name].values, value)
    for name, axis in record.coordinates.items():
        np.testing.assert_array_equal(found.coords[name].values, axis)


def test_records_that_have_no_figure():
    unfinished = probes.ProbeRecord.empty("plane", {"u": [0.0]}, {"loss": ("u",)})
    with pytest.raises(ValueError, match="must be complete"):
        unfinished.plot()
    unknown = probes.ProbeRecord.empty("other", {}, {})
    with pytest.raises(ValueError, match=r"of one kind of probe, .*Received: records=\['other'\]"):
        unknown.plot()
    plane = probes.ProbeRecord.empty("plane", {}, {})
    with pytest.raises(ValueError, match=r"'plane' shows a single record\. Received: 2 records"):
        plane.plot(plane)
    with pytest.raises(ValueError, match=r"Received: records=\['line', 'plane'\]"):
        plane.plot(probes.ProbeRecord.empty("line", {}, {}))
