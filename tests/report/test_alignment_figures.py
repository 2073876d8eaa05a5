"""Figures of gradients, distances and ensembles say what their records hold, and nothing else."""

import numpy as np
import pytest
from probe_records import ABOUT, record, texts

from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.probe_figures import (
    distance_figure,
    ensemble_figure,
    gradients_figure,
    lagged_gradients_figure,
    separation_figure,
)

RNG = np.random.default_rng(0)
BATCHES = {**ABOUT, "batch_sizes": [64, 64, 64, 64]}


def gram_record(layers=("(all)",), **values):
    vectors = RNG.standard_normal((len(layers), 4, 9))
    gram = np.einsum("lid,ljd->lij", vectors, vectors)
    axes = {"layer": list(layers), "batch": np.arange(4), "other": np.arange(4)}
    return record("gradients", axes, about=BATCHES, fill=RNG, gram=gram, **values)


def lagged_record(lags=(0, 5, 10), **values):
    about = {**BATCHES, "mean": "running", "sketch_size": 4096}
    axes = {"lag": np.array(lags), "step": np.arange(0, 50, 5)}
    return record("lagged_gradients", axes, about=about, fill=RNG, **values)


def distance_record(filters=False, **values):
    parts, axes = ["filters"] * filters, {"lag": np.array([1, 4, 16]), "step": np.arange(40)}
    return record("distance", axes, *parts, about={"sketch_size": 512}, fill=RNG, **values)


def ensemble_record(logits=True, **values):
    parts, members = ["logits"] * logits, ["a", "b", "c"]
    axes = {"scale": [1.0, 0.5], "member": members, "other": members, "batch": np.arange(4)}
    values = {"spread": [2.0, 1.0], **values}
    return record("ensemble", axes, *parts, about=BATCHES, fill=RNG, **values)


def shown_on(figure):
    return " | ".join(texts(figure))


def test_gradients_figure():
    found = gram_record(
        noise_scale=[512.0], noise_scale_se=[64.0], pair_cosine=[0.125], pair_cosine_se=[0.01]
    )
    figure = gradients_figure.draw([found])
    shown = shown_on(figure)
    assert "Noise scale 512 ± 64 examples" in shown and "two batches: 0.125 ± 0.010" in shown
    assert "batch norm by each batch" in shown
    image = figure.axes[0].images[0].get_array()
    gram = found.values["gram"][0]
    cosine = gram[0, 1] / np.sqrt(gram[0, 0] * gram[1, 1])
    assert image[0, 1] == pytest.approx(cosine) and np.isnan(np.ma.filled(image, np.nan)[0, 0])
    assert to_svg(gradients_figure.draw([found])) == to_svg(gradients_figure.draw([found]))


def test_several_gradients_with_layers():
    given = [gram_record(("(all)", "first", "second")) for _ in range(2)]
    figure = gradients_figure.draw(given)
    assert len(figure.axes) == 2 * 4  # with a colour bar each
    assert "second" in shown_on(figure)


def test_a_noise_scale_that_is_not_known():
    figure = gradients_figure.draw([gram_record(noise_scale=[np.inf], noise_scale_se=[np.inf])])
    assert "Mean gradient not told from 0" in shown_on(figure)


def test_lagged_figure():
    error = np.array([np.inf, 0.01, np.inf])
    found = lagged_record(mean_cosine_se=error)
    figure = lagged_gradients_figure.draw(found)
    left = figure.axes[0]
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [5, 10])  # not lag 0
    np.testing.assert_array_equal(left.lines[0].get_ydata(), found.values["mean_cosine"][1:])
    shown = shown_on(figure)
    assert "from sketches of 4,096 numbers" in shown and "the same batches" in shown
    to_svg(lagged_gradients_figure.draw(lagged_record((0, 5))))


@pytest.mark.parametrize("filters", [False, True])
def test_distance_figure(filters):
    found = distance_record(
        filters, mean_squared=[1.0, 3.0, 5.0], mean_squared_se=[0.1, 0.2, np.inf],
        squared_growth=0.25, squared_growth_se=0.05,
    )  # fmt: skip
    figure = distance_figure.draw(found)
    assert len(figure.axes) == 2 + filters
    shown = shown_on(figure)
    assert "slope at large lags 0.25 ± 0.05" in shown and "random walk" in shown
    assert "512 numbers, ±6.2%" in shown
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < 1.0 and high > 5.0
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [1.0, 3.0, 5.0])


def test_a_slope_that_is_not_known():
    found = distance_record(squared_growth=np.inf, squared_growth_se=np.inf)
    assert "slope at large lags unknown" in shown_on(distance_figure.draw(found))


@pytest.mark.parametrize("filters", [False, True])
def test_separation_figure(filters):
    found = record(
        "separation", {"step": np.arange(9)}, *(["filters"] * filters), fill=RNG,
        about={"batches": "shared"}, distance=np.geomspace(1, 1e-3, 9),
    )  # fmt: skip
    figure = separation_figure.draw(found)
    assert "Distance of two runs, shared batches" in shown_on(figure)
    assert figure.axes[0].get_yscale() == "log" and len(figure.axes) == 2 + filters


@pytest.mark.parametrize("logits", [True, False])
def test_ensemble_figure(logits):
    found = ensemble_record(
        logits, mean_pair_difference=[0.5, 0.25], pair_difference_exponent=1.0,
        pair_difference_exponent_se=0.02, ensemble_difference_exponent_se=np.inf,
        ensemble_difference_exponent=1.9,
    )  # fmt: skip
    figure = ensemble_figure.draw(found)
    shown = shown_on(figure)
    assert "two members\npower 1.00 ± 0.02" in shown and "power 1.90" in shown
    assert "power 1.90 ±" not in shown
    assert ("logits" in shown) == logits and "Accuracy" in shown
    assert "Accuracy" not in shown_on(
        ensemble_figure.draw(ensemble_record(mean_ensemble_accuracy=np.inf))
    )
