"""Figures of gradients, distances and ensembles say what their records hold, and nothing else."""

import numpy as np
import pytest

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.probe_figures import (
    distance_figure,
    ensemble_figure,
    gradients_figure,
    lagged_gradients_figure,
    separation_figure,
)

RNG = np.random.default_rng(0)
ABOUT = {"batch_norm": "batch", "dropout": "none", "batch_sizes": [64, 64, 64, 64]}


def record(kind, coordinates, dims, about=ABOUT, **values):
    made = ArrayRecord.empty(kind, coordinates, dims, about)
    for name in dims:
        given = values.get(name)
        made.put(name, (), RNG.random(made.values[name].shape) if given is None else given)
    return made


def gram_record(layers=("(all)",), **values):
    names = ("signal", "noise", "noise_scale", "share", "pair_cosine", "rest_cosine", "mean_cosine")
    dims = {"gram": ("layer", "batch", "other"), "batch_rest_cosine": ("layer", "batch")}
    for name in names:
        dims[name] = dims[f"{name}_se"] = ("layer",)
    vectors = RNG.standard_normal((len(layers), 4, 9))
    gram = np.einsum("lid,ljd->lij", vectors, vectors)
    coordinates = {"layer": list(layers), "batch": np.arange(4), "other": np.arange(4)}
    return record("gradients", coordinates, dims, gram=gram, **values)


def lagged_record(lags=(0, 5, 10), **values):
    names = ("mean_cosine", "full_cosine", "mean_start_cosine", "mean_end_cosine")
    dims = {"off_mean_cosine": ("step",)}
    for name in names:
        dims[name] = dims[f"{name}_se"] = ("lag",)
    coordinates = {"lag": np.array(lags), "step": np.arange(0, 50, 5)}
    about = {**ABOUT, "mean": "running", "sketch_size": 4096}
    return record("lagged_gradients", coordinates, dims, about, **values)


def distance_record(filters=False, **values):
    names = ("squared", "filters_squared") if filters else ("squared",)
    dims = {name: ("step",) for name in ("norm", "from_start", "from_mean")}
    for name in names:
        dims[name] = ("lag", "step")
        dims[f"mean_{name}"] = dims[f"mean_{name}_se"] = ("lag",)
        dims[f"{name}_growth"] = dims[f"{name}_growth_se"] = ()
    coordinates = {"lag": np.array([1, 4, 16]), "step": np.arange(40)}
    return record("distance", coordinates, dims, {"sketch_size": 512}, **values)


def ensemble_record(logits=True, **values):
    pairs = ("scale", "member", "other", "batch")
    dims = {"pair_difference": pairs, "distance": ("member", "other"), "spread": ("scale",),
            "member_loss": ("member", "batch"), "member_accuracy": ("member", "batch")}  # fmt: skip
    ends = ["difference"] + (["logit_difference"] if logits else [])
    for name in [f"{who}_{end}" for who in ("pair", "ensemble") for end in ends]:
        dims[f"mean_{name}"] = dims[f"mean_{name}_se"] = ("scale",)
        dims[f"{name}_exponent"] = dims[f"{name}_exponent_se"] = ()
        dims.setdefault(name, ("scale", "batch") if name.startswith("ensemble") else pairs)
    for name in ("member_loss", "member_accuracy", "ensemble_accuracy"):
        dims[f"mean_{name}"] = ()
    for who in ("ensemble", "average"):
        for what in ("loss", "accuracy"):
            dims[f"{who}_{what}_change"] = dims[f"{who}_{what}_change_se"] = ()
    coordinates = {"scale": np.array([1.0, 0.5]), "member": ["a", "b", "c"],
                   "other": ["a", "b", "c"], "batch": np.arange(4)}  # fmt: skip
    return record("ensemble", coordinates, dims, **{"spread": [2.0, 1.0], **values})


def texts(figure):
    figure.draw_without_rendering()
    import matplotlib.text

    return " | ".join(
        item.get_text() for item in figure.findobj(matplotlib.text.Text) if item.get_visible()
    )


def test_gradients_figure():
    found = gram_record(
        noise_scale=[512.0], noise_scale_se=[64.0], pair_cosine=[0.125], pair_cosine_se=[0.01]
    )
    figure = gradients_figure.draw([found])
    shown = texts(figure)
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
    assert "second" in texts(figure)


def test_a_noise_scale_that_is_not_known():
    figure = gradients_figure.draw([gram_record(noise_scale=[np.inf], noise_scale_se=[np.inf])])
    assert "Mean gradient not told from 0" in texts(figure)


def test_lagged_figure():
    error = np.array([np.inf, 0.01, np.inf])
    found = lagged_record(mean_cosine_se=error)
    figure = lagged_gradients_figure.draw(found)
    left = figure.axes[0]
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [5, 10])  # not lag 0
    np.testing.assert_array_equal(left.lines[0].get_ydata(), found.values["mean_cosine"][1:])
    shown = texts(figure)
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
    shown = texts(figure)
    assert "slope at large lags 0.25 ± 0.05" in shown and "random walk" in shown
    assert "512 numbers, ±6.2%" in shown
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < 1.0 and high > 5.0
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [1.0, 3.0, 5.0])


def test_a_slope_that_is_not_known():
    found = distance_record(squared_growth=np.inf, squared_growth_se=np.inf)
    assert "slope at large lags unknown" in texts(distance_figure.draw(found))


@pytest.mark.parametrize("filters", [False, True])
def test_separation_figure(filters):
    names = ["distance", "norm_a", "norm_b", "displacement_cosine"]
    names += ["filters_squared"] if filters else []
    found = record(
        "separation", {"step": np.arange(9)}, {name: ("step",) for name in names},
        {"batches": "shared"}, distance=np.geomspace(1, 1e-3, 9),
    )  # fmt: skip
    figure = separation_figure.draw(found)
    assert "Distance of two runs, shared batches" in texts(figure)
    assert figure.axes[0].get_yscale() == "log" and len(figure.axes) == 2 + filters


@pytest.mark.parametrize("logits", [True, False])
def test_ensemble_figure(logits):
    found = ensemble_record(
        logits, mean_pair_difference=[0.5, 0.25], pair_difference_exponent=1.0,
        pair_difference_exponent_se=0.02, ensemble_difference_exponent_se=np.inf,
        ensemble_difference_exponent=1.9,
    )  # fmt: skip
    figure = ensemble_figure.draw(found)
    shown = texts(figure)
    assert "two members\npower 1.00 ± 0.02" in shown and "power 1.90" in shown
    assert "power 1.90 ±" not in shown
    assert ("logits" in shown) == logits and "Accuracy" in shown
    assert "Accuracy" not in texts(
        ensemble_figure.draw(ensemble_record(mean_ensemble_accuracy=np.inf))
    )
