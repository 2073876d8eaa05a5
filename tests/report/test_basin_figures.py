"""Figures of side trips, segments, planes and widths: what they show of records made by hand."""

import numpy as np
import pytest
from probe_records import ABOUT, record, texts

from tf_lrtraj.report.drawing import BLUE, GREY, ORANGE, to_svg
from tf_lrtraj.report.probe_figures import (
    basin_figure,
    plane_figure,
    side_trip_figure,
    width_figure,
)
from tf_lrtraj.report.probe_figures.bands import band, number_with_error, over_batches, spread


def lines(axes, color):
    return [line for line in axes.get_lines() if line.get_color() == color]


def trip_record(scale=1.0, others=True):
    steps = np.arange(5)
    own = scale * np.exp(-steps) * np.array([[0.8], [1.2]])
    rising = scale * (1.0 + 0.1 * steps)
    return record(
        "side_trip",
        {"trip": [0, 1], "step": steps, "held_out": [0, 1, 2]},
        "held_out",
        *(["others"] if others else []),
        about={**ABOUT, "learning_rate": [0.5] * 4},
        train_loss=own,
        train_mean=own.mean(0),
        held_out_mean=rising,
        held_out_mean_se=0.02 * steps,
        **({"others_mean": rising + 0.3} if others else {}),
    )


def test_side_trips_show_own_and_held_out_losses_beside_each_other():
    first, second = trip_record(), trip_record(0.5, others=False)
    second.about["step"] = 12_000
    figure = side_trip_figure.draw([first, second])
    left, right = figure.axes
    (held_out,) = lines(left, ORANGE)
    np.testing.assert_array_equal(held_out.get_ydata(), first.values["held_out_mean"])
    *single, mean = lines(left, BLUE)
    np.testing.assert_array_equal(mean.get_ydata(), first.values["train_mean"])
    np.testing.assert_array_equal([line.get_ydata() for line in single], first.values["train_loss"])
    assert (len(lines(left, GREY)), len(lines(right, GREY))) == (1, 0)
    assert left.get_ylim() == right.get_ylim()
    assert {"its own batch", "held out"} <= set(texts(figure))
    assert "Starting point 1; 2 trips, rate 0.5" in texts(figure)
    assert "From step 12,000; 2 trips, rate 0.5" in texts(figure)
    assert figure.get_supxlabel() == "batch norm by each batch"


def segment_record(points, pairs, layers=("(all)",), held_out=True, barrier=0.5, low=0.0):
    where = np.linspace(low, 1.0 - low, 5 if low == 0.0 else 9)
    hill = 1.0 + barrier * np.sin(np.pi * where)
    return record(
        "basin",
        {
            "pair": [f"{a} to {b}" for a, b in pairs],
            "first": [a for a, _ in pairs],
            "second": [b for _, b in pairs],
            "point": points,
            "layer": layers,
            "position": where,
            "offset": [0.25, 0.5],
            "held_out": [0, 1, 2],
        },
        *(["held_out"] if held_out else []),
        about={**ABOUT, "centre": 0.5},
        loss=hill[:, None] + [-0.1, 0.1],
        barrier=barrier,
        barrier_at=0.5,
        barrier_se=0.02,
        verdict=1.0 if barrier else -1.0,
        middle=-0.0312,
        middle_se=0.004,
        **({"held_out_loss": hill[:, None] + [-0.2, 0.1, 0.1]} if held_out else {}),
    )


def test_a_single_segment_with_its_errors_and_lopsidedness():
    made = segment_record(["SGD", "SWA"], [("SGD", "SWA")], low=-0.5)
    figure = basin_figure.draw(made)
    assert len(figure.axes) == 3
    loss = figure.axes[0]
    curve = lines(loss, BLUE)[0]
    np.testing.assert_allclose(curve.get_ydata(), made.values["loss"][0, 0].mean(-1))
    np.testing.assert_allclose(lines(figure.axes[1], ORANGE)[0].get_ydata(), 0.9)
    assert "barrier 0.50 ± 0.02" in texts(figure)
    assert "Loss on SWA's side of 0.5 minus the other" in texts(figure)
    assert [t.get_text() for t in loss.get_xticklabels()] == ["SGD", "", "SWA"]


def test_no_barrier_is_told_as_the_sag_of_the_middle():
    made = segment_record(["a", "b"], [("a", "b")], barrier=0.0)
    made.put("accuracy", slice(None), np.inf)
    figure = basin_figure.draw(made)
    assert len(figure.axes) == 1  # no classes, no errors
    assert "one basin (at the middle -0.031 ± 0.004)" in texts(figure)


def test_a_matrix_of_barriers():
    names = ["a", "b", "c"]
    made = segment_record(names, [("a", "b"), ("a", "c"), ("b", "c")])
    made.put("barrier", (1, 0), 0.0)
    made.put("verdict", (1, 0), 0.0)
    figure = basin_figure.draw(made)
    assert len(figure.axes) == 4
    matrix = figure.axes[3]
    found = {tuple(int(x) for x in t.get_position()): t.get_text() for t in matrix.texts}
    assert found[1, 0] == "0.50\n± 0.02\nbarrier"  # column b, row a: training
    assert found[2, 0] == "-0.031\n± 0.004\nundecided"
    assert set(found) == {(1, 0), (2, 0), (2, 1), (0, 1), (0, 2), (1, 2)}
    assert "Barriers; below: held out" in texts(figure)


def test_few_of_many_pairs_are_listed_and_layers_too():
    names = [f"{side} {i}" for side in "ab" for i in range(4)]
    pairs = [(f"a {i}", f"b {i}") for i in range(4)]
    layers = ["(all)", "conv", "dense"]
    figure = basin_figure.draw(segment_record(names, pairs, layers, held_out=False))
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == 6
    assert [t.get_text() for t in shown[4].get_yticklabels()] == [
        f"a {i} to b {i}" for i in range(4)
    ]
    assert [t.get_text() for t in shown[5].get_yticklabels()] == layers


def test_a_plane_with_a_trajectory():
    u, v = np.linspace(-1, 3, 7), np.linspace(-1, 2, 5)
    losses = ((u[None, :] - 1.0) ** 2 + (v[:, None] - 0.5) ** 2 + 0.1)[..., None]
    made = record(
        "plane",
        {
            "u": u,
            "v": v,
            "point": ["one", "two", "three"],
            "point_u": [0.0, 2.0, 1.0],
            "point_v": [0.0, 0.0, 1.0],
            "step": [0, 10],
        },
        "held_out",
        loss=losses,
        held_out_loss=losses,
        trajectory_residual=[0.2, 0.7],
    )
    made.put("loss", (0, 0), np.inf)
    figure = plane_figure.draw(made)
    assert {"one", "two", "three", "loss, training batches"} <= set(texts(figure))
    left = figure.axes[0]
    dots = [c for c in left.collections if c.get_array() is not None and len(c.get_array()) == 2]
    np.testing.assert_array_equal(dots[0].get_array(), [0.2, 0.7])
    assert to_svg(plane_figure.draw(made)) == to_svg(plane_figure.draw(made))


def test_levels_of_contours_lie_close_at_the_bottom():
    rng = np.random.default_rng(0)
    losses = 1.0 + rng.exponential(size=500)
    levels = plane_figure.levels(losses)
    steps = np.diff(levels)
    assert levels[0] > losses.min()
    assert levels[-1] == pytest.approx(np.quantile(losses, 0.9))
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(plane_figure.levels(np.full(4, 2.0)), [0.0, 1.0])


def width_record(held_out=True, rays=3):
    distance = np.linspace(0.0, 4.0, 6)
    steep = np.linspace(0.8, 1.2, rays)[:, None] * distance
    losses = np.stack([0.1 * steep**2 + 0.2, 0.05 * steep**2 + 0.3])[..., None]
    names, points = {"held_out": [0]} if held_out else {}, ["SGD", "SWA"]
    return record(
        "width",
        {"point": points, "other": points, "ray": np.arange(rays), "distance": distance, **names},
        *names,
        about={**ABOUT, "rise": 0.5, "ray_kind": "uniform"},
        loss=losses,
        width_mean=[2.2, np.inf],
        width_se=[0.1, np.inf],
        **({"held_out_loss": losses} if held_out else {}),
    )


def test_widths_of_two_points():
    made = width_record()
    figure = width_figure.draw([made, width_record(held_out=False)])
    assert len(figure.axes) == 6
    first = figure.axes[0]
    np.testing.assert_allclose(
        lines(first, width_figure._COLOURS[0])[3].get_ydata(),
        made.values["loss"][0].mean((0, -1)),
    )
    assert {"SGD", "SWA", "SGD: +0.5 at 2.2 ± 0.1", "training batches, 3 rays"} <= set(
        texts(figure)
    )
    assert "SWA: +0.5 not reached on all rays" in texts(figure)
    assert not figure.axes[5].axison  # one panel less in the second row


def test_bands_of_two_standard_errors():
    figure = side_trip_figure.draw([trip_record()])
    axes = figure.axes[0]
    band(axes, [0, 1, 2], [1.0, np.inf, 3.0], [0.5, np.inf, np.nan], "black")
    assert np.isnan(lines(axes, "black")[-1].get_ydata()[1])
    vertices = axes.collections[-1].get_paths()[0].vertices[:, 1]
    assert (vertices.min(), vertices.max()) == (0.0, 2.0)
    mean, error = over_batches(np.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(mean, [1.0, 2.0])
    assert np.isnan(error).all()


def test_labels_keep_their_order_and_distance():
    assert spread([], 0.1) == []
    found = spread([0.9, 0.95, 0.99, 0.2], 0.1)
    np.testing.assert_allclose(found, [0.8, 0.9, 1.0, 0.2])


def test_numbers_have_the_digits_their_errors_leave():
    assert number_with_error(1.2345, 0.021) == "1.23 ± 0.02"
    assert number_with_error(1.2345, np.inf) == "1.2"
    assert number_with_error(123.4, 21.0) == "123 ± 21"
