"""What the figures show is what the records say."""

import numpy as np
import pytest

from tf_lrtraj import kernels, records
from tf_lrtraj.report import drawing, run_figures


@pytest.fixture(scope="module")
def record(workdir):
    return records.load_run(workdir)


def _lines(figure):
    """{colour: (x, y)} of the lines of a figure's only panel."""
    (axes,) = figure.axes
    return {line.get_color(): line.get_data() for line in axes.lines}


def _texts(figure):
    (axes,) = figure.axes
    return [text.get_text() for text in axes.texts]


def test_colours_are_one_to_one_and_the_same_everywhere(record):
    palette = run_figures.colours(record)
    assert list(palette) == ["raw", "ema", "swa", "two_point"]
    assert len(set(palette.values())) == 4
    # Another average evaluated later does not change the colours of the others.
    assert run_figures.colours(record, "late") == {**palette, "late": run_figures.PALETTE[3]}


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@pytest.mark.parametrize("split", ["test", "train"])
def test_curves_draw_every_evaluation_in_its_colour(record, metric, split):
    palette = run_figures.colours(record)
    figure = run_figures.curves(record, metric, split, palette)
    lines = _lines(figure)
    assert set(lines) == set(palette.values())
    scale = 100 if metric == "accuracy" else 1
    for name, colour in palette.items():
        steps, values = record.series(metric, name, split)
        np.testing.assert_array_equal(lines[colour][0], steps)
        np.testing.assert_allclose(lines[colour][1], scale * values, rtol=1e-15)
    assert set(palette) <= set(_texts(figure))
    assert figure.axes[0].get_ylabel().startswith(f"{split} {metric}")


def test_pair_curves_draw_the_matched_run_dashed_in_its_averages_colour(record):
    palette = run_figures.colours(record)
    matched = record.matched()["ema"]
    figure = run_figures.pair_curves(record, matched, "ema", "loss", "test", palette)
    raw, average, dashed = figure.axes[0].lines
    assert average.get_color() == dashed.get_color() == palette["ema"]
    assert raw.get_color() == run_figures.GREY
    assert not average.is_dashed() and dashed.is_dashed()
    np.testing.assert_array_equal(dashed.get_ydata(), matched.series("loss")[1])
    assert "matched run" in _texts(figure)


def test_rates_draw_every_step(record):
    palette = run_figures.colours(record)
    schedule = record.matched()["swa"].schedule()
    lines = _lines(run_figures.rates(record, record.schedule(), {"swa": schedule}, palette))
    np.testing.assert_array_equal(lines["#333333"][1], np.full(1200, 0.1))
    np.testing.assert_array_equal(lines[palette["swa"]][1], schedule)


def test_training_batches(record):
    (line,) = run_figures.training_batches(record, "loss").axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), record.train_series("loss")[1])


def test_long_lines_are_thinned_and_keep_every_extreme():
    steps = np.arange(100_000)
    values = np.sin(steps / 999.0)
    values[54_321] = 7.0
    values[12_345] = -7.0
    values[90_000:90_100] = np.nan
    thin_steps, thin_values = run_figures._thin(steps, values)
    assert thin_steps.size <= run_figures._MAX_POINTS
    assert np.all(np.diff(thin_steps) > 0)
    assert thin_steps[0] == 0 and thin_steps[-1] == 99_999
    assert np.nanmax(thin_values) == 7.0 and np.nanmin(thin_values) == -7.0
    np.testing.assert_array_equal(thin_values, values[thin_steps])
    short = np.arange(5)
    assert run_figures._thin(short, short)[0] is short


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Exponential(0.9),
        kernels.Uniform(start=40, every=3),
        kernels.Window(5, every=4),
        kernels.TwoPoint(30),
        kernels.Custom([1.5, -0.5]),
    ],
)
def test_kernel_weights_are_drawn_by_age(kernel):
    figure = run_figures.kernel_weights("k", kernel, 200, "#123456")
    (line,) = figure.axes[0].lines
    ages, drawn = line.get_data()
    weights = kernel.weights(200)
    np.testing.assert_array_equal(drawn, weights[200 - ages.astype(int)])
    assert drawn.sum() == pytest.approx(1.0, abs=1e-9)  # none is left out
    low, high = figure.axes[0].get_ylim()
    assert low <= drawn.min() and high >= drawn.max()


def test_cumulative_weights_are_the_factors_of_the_curvature_free_schedule():
    averages = {"ema": kernels.Exponential(0.9), "two": kernels.TwoPoint(30)}
    figure = run_figures.cumulative_weights(averages, 100, {"ema": "#111111", "two": "#222222"})
    lines = _lines(figure)
    for colour, kernel in zip(("#111111", "#222222"), averages.values(), strict=True):
        weights = kernel.weights(100)
        left, share = lines[colour]
        # λ'_j / λ_j = Σ_{k>j} c_k for the update j made `left` updates before the end.
        slow = [weights[100 - int(n) + 1 :].sum() for n in left]
        np.testing.assert_allclose(share, slow, atol=1e-12)
    assert run_figures.cumulative_weights({}, 100, {}) is None


def test_labels_at_line_ends_do_not_overlap_and_stay_in_the_panel():
    _, axes = run_figures._panel(5.4, 3.5)
    axes.set_ylim(0, 1)
    values = [0.5, 0.5, 0.501, 0.999, 1.2, -3.0, 0.0]
    run_figures._label_ends(axes, [(value, str(index), "k") for index, value in enumerate(values)])
    places = {text.get_text(): text.xyann[1] for text in axes.texts}
    ordered = sorted(places.values())
    assert len(ordered) == len(values)
    assert min(np.diff(ordered)) > 0.04 and ordered[0] >= 0 and ordered[-1] <= 1
    # The order of the labels is the order of the ends.
    assert places["5"] < places["6"] < places["0"] < places["2"] < places["3"]


def test_values_no_axis_can_hold_become_gaps(make_workdir):
    folder = make_workdir(matched=())
    rows = records.read_rows(folder / "metrics.jsonl")
    bad = [float("nan"), float("inf"), -1e308, 1e308, 1e31, 5.0]
    for row, value in zip((r for r in rows[-60:] if r["kind"] == "eval"), 10 * bad, strict=False):
        row["loss"] = value
    (folder / "metrics.jsonl").unlink()
    records.append_rows(folder / "metrics.jsonl", rows)
    damaged = records.load_run(folder)
    figure = run_figures.curves(damaged, "loss", "test", run_figures.colours(damaged))
    assert np.isfinite(figure.axes[0].get_ylim()).all()
    assert drawing.to_svg(figure).lstrip().startswith("<?xml")


def test_a_metric_that_was_not_recorded_has_no_figure(record):
    palette = run_figures.colours(record)
    assert run_figures.curves(record, "top5", "test", palette) is None
    assert run_figures.curves(record, "loss", "nowhere", palette) is None


def test_the_svg_depends_on_the_records_alone(record):
    import matplotlib

    palette = run_figures.colours(record)
    first = drawing.to_svg(run_figures.curves(record, "loss", "test", palette))
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "none"}):
        again = drawing.to_svg(run_figures.curves(record, "loss", "test", palette))
    assert first == again
    assert "<dc:date>" not in first
