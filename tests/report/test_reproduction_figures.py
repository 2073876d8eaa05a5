"""Figures of a reproduction: what they draw from records made by hand, number by number."""

import numpy as np
import pytest
from scipy import stats

from tf_lrtraj import rates
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, to_svg
from tf_lrtraj.report.reproduction import (
    averages,
    basins,
    budget,
    equivalence,
    lines,
    marks,
    speed,
    stationarity,
    stationary_state,
    svg,
)


def seeds(*records):
    """Records of one task by seed, from their rows or from (rows, entries beside them)."""
    found = {}
    for seed, record in enumerate(records):
        content = {"rows": record} if isinstance(record, list) else dict(record)
        found[seed] = {"about": {}, "rows": [], "seed": seed, **content}
    return found


def dots(axes, color, marker="o"):
    """Heights of the dots of one colour, sorted."""
    found = [
        y
        for line in axes.get_lines()
        if line.get_color() == color and line.get_marker() == marker
        for y in np.asarray(line.get_ydata(), float)
    ]
    return sorted(found)


def levels(axes, color):
    """Heights of horizontal lines across the panel."""
    return [
        float(line.get_ydata()[0])
        for line in axes.get_lines()
        if line.get_color() == color and list(line.get_xdata()) == [0, 1]
    ]


def bands(axes, color):
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import same_color

    found = [c for c in axes.collections if isinstance(c, PolyCollection)]
    return [c for c in found if same_color(c.get_facecolor()[0, :3], color)]


def words(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    return found + [axes.get_title(loc="left") for axes in figure.axes]


# What all share -------------------------------------------------------------------------------


def test_an_interval_is_students():
    mean, half = marks.interval([1.0, 2.0, 4.5])
    values = np.array([1.0, 2.0, 4.5])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert mean == pytest.approx(2.5)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(marks.interval([])[0])


def test_rows_are_averaged_seed_by_seed():
    records = seeds(
        [{"set": "test", "loss": 1.0}, {"set": "test", "loss": 3.0}, {"set": "train", "loss": 9.0}],
        [{"set": "train", "loss": 5.0}],
    )
    assert marks.by_seed(records, "loss", set="test") == {0: 2.0}
    assert marks.known(records, "set") == ["test", "train"]
    assert marks.by_seed(seeds([{"rate": 0.1 + 0.2, "loss": 1.0}]), "loss", rate=0.3) == {0: 1.0}


def test_errors_of_predictions():
    assert marks.errors([(1.1, 1.0), (1.0, 1.0), (0.9, 1.0)]).startswith("median 10 %, worst 10 %")
    assert marks.errors([(1.0, 0.0)]) == "no pair to compare"


DRAWN = [
    stationarity.draw_levels,
    stationarity.draw_displacement,
    equivalence.draw_gaps,
    equivalence.draw_levels,
    lambda tasks: averages.draw_points(tasks, (2,)),
    averages.draw_decays,
    averages.draw_sweep,
    stationary_state.draw_rates,
    stationary_state.draw_shell,
    stationary_state.draw_pairs,
    lambda tasks: lines.draw_lowest(tasks, []),
    lambda tasks: lines.draw_held_out([]),
    lambda tasks: lines.draw_one_step(tasks, []),
    speed.draw_speed,
    speed.draw_two_time_scales,
    speed.draw_single_runs,
    lambda tasks: budget.draw_methods(tasks, budget.S1),
    budget.draw_cycle,
    budget.draw_cost,
    budget.draw_policies,
]


@pytest.mark.parametrize("draw", DRAWN)
def test_without_records_there_is_no_figure(draw):
    assert draw({}) is None


# Stationarity ---------------------------------------------------------------------------------


def base_tasks():
    record = {
        "about": {"burn_in": 400, "window": 600},
        "steps": list(range(1, 1001)),
        "batch_loss": [2.0] * 500 + [1.0] * 500,
        "snapshot_steps": [400, 700, 1000],
        "squared_norm": [9.0, 10.0, 11.0],
    }
    single = [{"step": step, "set": "train", "loss": 0.5} for step in (500, 900)]
    other = [{**row, "loss": row["loss"] + 0.2} for row in single]
    return {"base": seeds(record, record), "levels": seeds(single, other)}


def test_levels_show_whole_run_window_and_norm():
    whole, window, norm = stationarity.draw_levels(base_tasks()).axes
    mean = next(line for line in whole.get_lines() if line.get_color() == BLUE)
    assert len(mean.get_xdata()) <= 400
    assert np.mean(mean.get_ydata()) == pytest.approx(1.5, rel=0.01)
    shaded = whole.patches[0]
    assert (shaded.get_x(), shaded.get_width()) == (400, 600)
    assert dots(window, BLUE) == pytest.approx([0.5, 0.5, 0.7, 0.7])
    curve = max(window.get_lines(), key=lambda line: line.get_linewidth())
    assert list(curve.get_ydata()) == pytest.approx([0.6, 0.6])
    relative = norm.get_lines()[0].get_ydata()
    assert list(relative) == pytest.approx([-10.0, 0.0, 10.0])


def test_displacement_has_no_band_where_the_error_is_unknown():
    record = {
        "lags": [1, 2, 4, 8],
        "mean_squared": [1.0, 2.0, 3.0, 3.0],
        "standard_error": [0.1, 0.1, 0.1, np.inf],
        "filters_mean_squared": [0.01, 0.02, 0.03, 0.03],
        "filters_standard_error": [np.inf] * 4,
    }
    weights, filters = stationarity.draw_displacement({"displacement": seeds(record)}).axes
    assert "random walk" in [text.get_text() for text in weights.texts]
    walk = next(line for line in weights.get_lines() if line.get_linestyle() == ":")
    assert list(walk.get_ydata()) == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert bands(weights, BLUE) and not bands(filters, BLUE)
    vertices = bands(weights, BLUE)[0].get_paths()[0].vertices
    assert vertices[:, 1].min() == pytest.approx(0.8) and vertices[:, 1].max() == pytest.approx(3.2)


# Averages and runs beside them ----------------------------------------------------------------


def equivalent_tasks(floor=None):
    records = []
    for average_loss in (0.20, 0.25):
        rows = [{"average": "ema", "of": "average", "share": 1.0, "equivalence": "none"}]
        rows += [
            {"average": "ema", "of": "run", "share": 1.0, "equivalence": kind}
            for kind in ("curvature_free", "curvature", "spectrum")
        ]
        factors = (1.0, 1.04, 1.02, 1.01)
        found = [
            {**row, "set": on, "loss": average_loss * factor, "accuracy": 0.9 - 0.1 * (factor - 1)}
            for row, factor in zip(rows, factors, strict=True)
            for on in ("train", "test")
        ]
        found += [
            {"average": "ema", "of": of, "share": 0.5, "equivalence": "curvature_free",
             "set": on, "loss": loss, "accuracy": 0.9}
            for of, loss in (("run", 0.33), ("average", 0.30))
            for on in ("train_part", "test")
        ]  # fmt: skip
        predicted = [{"average": "raw", "of": "raw", "excess": 0.15}]
        for kind, excess in (("curvature_free", 0.12), ("curvature", 0.11), ("spectrum", 0.10)):
            predicted.append({"average": "ema", "of": "run", "equivalence": kind, "excess": excess})
            predicted.append(
                {"average": "ema", "of": "average", "equivalence": kind, "excess": 0.10}
            )
        about = {"estimates": {} if floor is None else {"floor": floor}, "predicted": predicted}
        records.append({"rows": found, "about": about})
    raw = [
        {"average": "raw", "policy": "recompute", "set": on, "loss": 0.4, "accuracy": 0.8}
        for on in ("train", "test")
    ]
    single = [{"step": 1, "set": "train", "loss": 0.25}]
    return {
        "equivalent": seeds(*records),
        "averages": seeds(raw, raw),
        "levels": seeds(single, single),
    }


def test_gaps_are_relative_to_each_seeds_own_average():
    loss, accuracy = equivalence.draw_gaps(equivalent_tasks()).axes
    assert dots(loss, ORANGE) == pytest.approx([4.0, 4.0])
    assert dots(loss, GREEN) == pytest.approx([2.0, 2.0])
    assert dots(loss, PALETTE[3]) == pytest.approx([1.0, 1.0])
    assert dots(loss, PALETTE[5]) == pytest.approx([10.0, 10.0])  # half-way
    assert dots(accuracy, ORANGE) == pytest.approx([-0.4, -0.4])
    # Differences of excess, 0.02, 0.01 and 0, over the averages' losses, 0.20 and 0.25.
    assert dots(loss, "black", "D") == pytest.approx([0.0, 4.5, 9.0])
    assert [text.get_text() for text in loss.get_xticklabels()] == ["EMA"]


@pytest.mark.parametrize(("floor", "least"), [(None, 0.2), (0.3, 0.4)])
def test_a_recorded_floor_goes_before_an_inferred_one(floor, least):
    # Inferred: the level of single iterates, 0.25, less their excess, 0.15.
    loss, _ = equivalence.draw_levels(equivalent_tasks(floor)).axes
    expected = [least, least, least + 0.01, least + 0.02]
    assert dots(loss, "black", "D") == pytest.approx(expected)


def test_the_caption_says_how_far_off_the_model_is():
    tasks = equivalent_tasks()
    # Expected 0.20 (average and spectrum), 0.22, 0.21; measured 0.20 … 0.2625.
    expected = np.array([0.20, 0.22, 0.21, 0.20])
    off = np.concatenate(
        [np.abs(expected / (a * np.array([1.0, 1.04, 1.02, 1.01])) - 1) for a in (0.20, 0.25)]
    )
    text = equivalence.caption_levels(tasks)
    assert f"median {marks.percent(np.median(off))}, worst {marks.percent(off.max())}" in text
    assert "(8 values)" in text
    # Measured 4, 2 and 1 %, expected 9, 4.5 and 0 %.
    text = equivalence.caption_gaps(tasks)
    assert "off by 2.5 points (median; at most 5, of 3)" in text


def test_levels_of_averages_stand_beside_the_raw_weights():
    loss, accuracy = equivalence.draw_levels(equivalent_tasks()).axes
    assert dots(loss, BLUE) == pytest.approx([0.20, 0.25])
    assert levels(loss, GREY) == pytest.approx([0.4])
    assert levels(accuracy, GREY) == pytest.approx([80.0])


def point_tasks():
    rows = [{"points": 1, "gap": 0, "end": 9, "set": "train_part", "loss": 0.5, "accuracy": 0.8}]
    for n, loss in ((2, 0.4), (4, 0.35)):
        rows += [
            {"points": n, "gap": gap, "end": end, "set": on, "loss": loss + 0.1 / gap + 0.01 * end,
             "accuracy": 0.9}
            for gap in (2, 8)
            for end in (0, 2)
            for on in ("train_part", "test")
        ]  # fmt: skip
    predicted = [{"points": n, "gap": 8, "loss": 0.5} for n in (2, 4)]
    lower = [
        {"points": n, "learning_rate": 0.1 / n, "step": s, "set": on, "loss": 0.4, "accuracy": 0.91}
        for n in (2, 4)
        for s in (1, 2)
        for on in ("train_part", "test")
    ]
    return {
        "many_points": seeds({"rows": rows, "predicted": predicted}),
        "lower_rates": seeds(lower),
    }


def test_points_far_apart_beside_runs_at_lower_rates():
    figure = averages.draw_points(point_tasks(), (2,))
    loss, accuracy = figure.axes
    assert dots(loss, BLUE) == pytest.approx([0.4225, 0.46])  # means over ends, per gap
    assert levels(loss, BLUE) == pytest.approx([0.4])
    assert levels(loss, GREY) == pytest.approx([0.5])
    assert dots(loss, BLUE, "D") == pytest.approx([0.5])
    assert levels(accuracy, BLUE) == pytest.approx([91.0])
    assert "4 points" not in words(figure) and "2 points" in words(figure)
    assert dots(loss, ORANGE) == []
    text = averages.caption_points(point_tasks(), (2,))
    assert f"median {marks.percent(0.5 / 0.4225 - 1)}" in text and "(1 value)" in text


def test_decays_pair_the_trained_with_the_emulated():
    rows = [
        {"decay": "cosine", "of": of, "set": on, "loss": loss, "accuracy": 1.0 - loss}
        for of, loss in (("trained", 0.3), ("emulated", 0.31))
        for on in ("train", "test")
    ]
    figure = averages.draw_decays({"decays": seeds({"rows": rows, "about": {"snapshot_every": 5}})})
    train, _, accuracy = figure.axes
    assert dots(train, ORANGE) == pytest.approx([0.3])
    assert dots(train, BLUE) == pytest.approx([0.31])
    assert dots(accuracy, BLUE) == pytest.approx([69.0])
    joined = [line for line in train.get_lines() if line.get_color() == "#bbbbbb"]
    assert list(joined[0].get_ydata()) == pytest.approx([0.3, 0.31])
    text = averages.caption_decays({"decays": seeds({"about": {"snapshot_every": 5}})})
    assert "every 5 steps" in text


def test_the_sweep_shows_errors_in_per_cent():
    rows = [
        {"set": "train_part", "average": "a", "family": "ema", "role": "sweep", "predicted": 0.202,
         "low": 0.19, "high": 0.21, "measured": 0.2},
        {"set": "train_part", "average": "b", "family": "swa", "role": "calibration",
         "predicted": 0.198, "low": 0.19, "high": 0.21, "measured": 0.2},
        {"set": "train_part", "average": "raw", "role": "raw", "measured": 0.4},
        {"set": "test_part", "average": "o", "family": "weights", "role": "recommendation",
         "measured": 0.3},
    ]  # fmt: skip
    tasks = {"sweep": seeds({"rows": rows, "about": {"level": 0.9}})}
    against, relative = averages.draw_sweep(tasks).axes  # nothing was predicted of test_part
    assert dots(relative, BLUE) == pytest.approx([1.0])
    assert dots(relative, ORANGE, "s") == pytest.approx([-1.0])
    assert against.get_xlabel() == "measured loss"
    known = {"train_part": (0.123, 4.5), "test_part": (None, None)}
    text = averages.caption_sweep(tasks, known)
    assert "median 0.12 %, worst 4.5 %" in text and "90 % bands" in text


# The stationary state -------------------------------------------------------------------------


def test_the_power_law_is_drawn_as_told():
    rows = [
        {"learning_rate": rate, "half": half, "squared_distance": scale * rate}
        for rate in (0.1, 0.2, 0.4)
        for half, scale in ((1, 40.0), (2, 90.0))
    ]
    (panel,) = stationary_state.draw_rates({"rates": seeds(rows)}, 0.75).axes
    assert dots(panel, BLUE) == pytest.approx([3.0, np.sqrt(18.0), 6.0])
    assert dots(panel, GREY) == pytest.approx([2.0, np.sqrt(8.0), 4.0])
    guide = next(line for line in panel.get_lines() if line.get_linestyle() == ":")
    assert list(guide.get_ydata()) == pytest.approx([3.0, np.sqrt(18.0), 6.0])
    assert {"power 0.75", "√λ"} == {text.get_text() for text in panel.texts}


def test_the_shell_and_what_lies_inside():
    record = {
        "about": {"predicted_cv": 0.2},
        "rows": [
            {"average": "raw", "squared_distance": 4.1, "loss": 0.5},
            {"average": "swa", "squared_distance": 1.0, "loss": 0.3},
        ],
        "steps": [10, 20, 30],
        "squared_distance": [3.6, 4.0, 4.4],
    }
    tasks = {"shell": seeds(record)}
    left, right = stationary_state.draw_shell(tasks).axes
    assert levels(left, ORANGE) == pytest.approx([1.0])
    assert dots(right, ORANGE) == pytest.approx([0.3]) and dots(right, GREY) == pytest.approx([0.5])
    low, high = left.patches[0].get_extents().transformed(left.transData.inverted()).get_points()
    assert (low[1], high[1]) == pytest.approx((1.8, 2.2), rel=1e-6)
    assert "20 % of the squared distance; measured: 10 %" in stationary_state.caption_shell(tasks)


def test_pairs_have_a_panel_for_each_kind_of_batches():
    rows = [
        {"batches": kind, "learning_rate": rate, "step": step, "squared_distance": value}
        for kind in ("shared", "independent")
        for rate in (0.1, 0.025)
        for step, value in ((20, 2.0), (0, 0.0), (10, 4.0))
    ]
    figure = stationary_state.draw_pairs({"pairs": seeds(rows)})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Shared batches",
        "Independent batches",
    ]
    for axes in figure.axes:
        assert len(axes.get_lines()) == 2
        assert list(axes.get_lines()[0].get_xdata()) == [10, 20]  # a distance of 0 has no logarithm
        assert {text.get_text() for text in axes.texts} == {"rate 0.1", "rate 0.025"}


def line_record(step=100, rate=1.0, gain=0.2, **about):
    grid = np.linspace(0.0, 2.0, 9)
    dims = {name: ("rate", "batch") for name in ("train", "held_out", "others")}
    for name in ("mean_best_rate", "mean_gain"):
        dims |= {f"{name}{end}": ("curve",) for end in ("", "_se")}
    record = ArrayRecord.empty(
        "line",
        {"rate": rate * grid, "batch": [0, 1], "curve": ["train", "held_out", "others"]},
        dims,
        {"step": step, **about},
    )
    own = np.stack([1.0 - grid + 0.5 * grid**2, 1.2 - grid + 0.5 * grid**2], axis=1)
    own[-1, 0] = np.inf  # overflowed
    record.put("train", ..., own)
    other = 0.1 * (grid**2 - grid)[:, None] + np.array([1.0, 1.4])
    record.put("held_out", ..., other)
    record.put("others", ..., other + 0.05 * grid[:, None])
    record.put("mean_best_rate", ..., [1.0, 0.5, 0.25])
    record.put("mean_gain", ..., [0.5, gain, 0.01])
    for name in ("mean_best_rate_se", "mean_gain_se"):
        record.put(name, ..., 0.01)
    return record


def test_lowest_losses_stand_beside_the_trained_model():
    rows = [{"method": "conventional", "set": "train_part", "loss": 0.8}]
    (panel,) = lines.draw_lowest({"budget": seeds(rows)}, [line_record(5), line_record(7)]).axes
    assert dots(panel, GREY) == pytest.approx([1.0, 1.0, 1.2, 1.2])
    assert dots(panel, BLUE) == pytest.approx([0.5, 0.5, 0.7, 0.7])
    assert levels(panel, "black") == pytest.approx([0.8])
    assert [text.get_text() for text in panel.get_xticklabels()] == ["step 5", "step 7"]


def test_a_batch_that_gains_nothing_has_no_mark():
    figure = lines.draw_held_out([line_record(gain=0.0)])
    best, gain = figure.axes
    assert dots(best, ORANGE) == [0.5]
    assert dots(gain, ORANGE) == [] and dots(gain, GREEN) == [0.01]


def test_one_step_is_told_in_units_of_the_runs_rate():
    about = {"held_out_set": "train", "others_set": "test"}
    records = [line_record(step, rate=3.0, **about) for step in (1, 2)]
    figure = lines.draw_one_step({"one_step": seeds({"about": {"learning_rate": 3.0}})}, records)
    (panel,) = figure.axes
    thick = next(
        line
        for line in panel.get_lines()
        if line.get_color() == ORANGE and line.get_linewidth() > 1
    )
    x, y = np.asarray(thick.get_xdata()), np.asarray(thick.get_ydata())
    assert x[np.argmin(y)] == pytest.approx(0.5)
    assert y[x == 1.0] == pytest.approx(0.0)
    assert y.min() == pytest.approx(-0.025)
    assert {"training images", "test images", "the step's own batch"} <= set(words(figure))
    assert "2 points" in lines.caption_one_step({}, records)


def basin_record(names):
    first, second = zip(*names, strict=True)
    record = ArrayRecord.empty(
        "basin",
        {"pair": [f"{a} to {b}" for a, b in names], "first": list(first), "second": list(second),
         "layer": ["(all)"], "position": [0.0, 0.5, 1.0], "batch": [0, 1], "held_out": [0, 1]},
        {"loss": ("pair", "layer", "position", "batch"),
         "held_out_loss": ("pair", "layer", "position", "held_out")},
        {"loss_at_starts": 0.7, "batch_norm": "batch"},
    )  # fmt: skip
    numbers = np.arange(len(names))[:, None, None]
    along = np.array([0.0, 0.1, 0.2])[:, None]
    record.put("loss", (slice(None), 0), numbers + along + np.array([0.0, 10.0]))
    record.put("held_out_loss", (slice(None), 0), numbers + along + np.array([5.0, 7.0]))
    return record


def test_ends_of_trips_are_seen_by_the_batch_they_stepped_on():
    names = [("trip-5-1", "trip-9-1"), ("main-5", "trip-5-0"), ("main-5", "main-9")]
    left, right = basins.draw(basin_record(names)).axes
    for axes, own, held in (
        (left, [10.0, 10.1, 10.2], [6.0, 6.1, 6.2]),  # the trips' batch is number 1
        (right, [1.2, 1.1, 1.0], [7.2, 7.1, 7.0]),  # number 0, from the end back to the start
    ):
        for color, expected in ((BLUE, own), (ORANGE, held)):
            thin = [line for line in axes.get_lines() if line.get_color() == color]
            assert list(thin[0].get_ydata()) == pytest.approx(expected)
        assert levels(axes, GREY) == pytest.approx([0.7])
    assert left.get_title(loc="left") == "Trips on one batch: 1 segment"
    assert basins.draw(basin_record([("here", "there")])) is None


# Speed, budget, cost --------------------------------------------------------------------------


def test_speed_tells_three_curves_apart():
    rows = [
        {"learning_rate": rate, "of": of, "step": step, "set": "test", "loss": loss / step}
        for rate, of, loss in ((0.8, "raw", 10.0), (0.8, "average", 8.0), (0.1, "raw", 20.0))
        for step in (10, 20)
    ]
    (panel,) = speed.draw_speed({"speed": seeds(rows)}).axes
    for color, ends in ((GREY, [0.5, 1.0]), (BLUE, [0.4, 0.8]), (ORANGE, [1.0, 2.0])):
        assert dots(panel, color) == pytest.approx(ends)
    assert {text.get_text() for text in panel.texts} == {
        "rate 0.8",
        "rate 0.8, average",
        "rate 0.1",
    }


def budget_tasks():
    rows = [
        {"method": method, "member": member, "set": "test", "accuracy": accuracy}
        for method, member, accuracy in (
            ("conventional", -1, 0.90),
            ("swa_constant", -1, 0.92),
            ("fge_member", 0, 0.88),
            ("fge_member", 1, 0.90),
            ("fge", -1, 0.93),
        )
    ]
    one = [{"method": "independent", "member": -1, "set": "test", "accuracy": 0.94}]
    return {"budget": seeds({"rows": rows, "about": {"total": 1600}}), "independent": seeds(one)}


def test_methods_at_equal_budget():
    (panel,) = budget.draw_methods(budget_tasks(), budget.S6).axes
    assert panel.get_title(loc="left") == "After 1,600 steps each"
    names = [text.get_text().replace("\n", " ") for text in panel.get_xticklabels()]
    assert names == [
        "conventional run", "FGE, single members", "FGE, ensemble", "ensemble of independent runs",
    ]  # fmt: skip
    assert dots(panel, PALETTE[4]) == pytest.approx([89.0])
    assert dots(panel, PALETTE[4], "_") == pytest.approx([88.0, 90.0])
    assert dots(panel, PALETTE[3]) == pytest.approx([94.0])
    (panel,) = budget.draw_methods(budget_tasks(), budget.S1).axes
    assert len(panel.get_xticklabels()) == 2 and dots(panel, GREEN) == []


def test_the_cycle_is_drawn_over_its_formula():
    used = rates.as_array(rates.Cyclical(0.4, 0.04, 10), 30)
    cycle = {"length": 10, "high": 0.4, "low": 0.04, "first_step": 100}
    record = {"about": {"cycle": cycle}, "rates": used.tolist(), "collected": [110, 120, 130]}
    (panel,) = budget.draw_cycle({"budget": seeds(record)}).axes
    black = next(line for line in panel.get_lines() if line.get_color() == "black")
    formula = next(line for line in panel.get_lines() if line.get_color() == ORANGE)
    assert np.array_equal(black.get_ydata(), formula.get_ydata())
    assert list(black.get_xdata()[:2]) == [101, 102]
    collected = next(line for line in panel.get_lines() if line.get_color() == BLUE)
    assert list(collected.get_xdata()) == [110, 120, 130]
    assert list(collected.get_ydata()) == pytest.approx([0.04] * 3)


def test_cost_tells_medians_and_megabytes():
    record = {
        "about": {"weights_bytes": 2_000_000, "extra_bytes": 2_500_000},
        "step_seconds": [0.02, 0.01, 0.03],
        "update_seconds": [0.0004, 0.0005, 0.0006],
    }
    told = words(budget.draw_cost({"cost": seeds(record)}))
    assert {"20 ms", "0.5 ms", "2 MB", "2.5 MB"} <= set(told)


def test_policies_of_batch_norm():
    rows = [
        {"average": "swa", "policy": policy, "set": "test", "accuracy": accuracy}
        for policy, accuracy in (("recompute", 0.9), ("copy", 0.5))
    ]
    (panel,) = budget.draw_policies({"averages": seeds(rows)}).axes
    assert dots(panel, BLUE) == pytest.approx([90.0])
    assert dots(panel, GREEN) == pytest.approx([50.0])


# SVG ------------------------------------------------------------------------------------------


def test_a_compact_figure_keeps_its_scales_and_images():
    text = svg.compact('<svg><g transform="scale(0.015625)"/><image href="data:a;1.23456"/></svg>')
    assert "scale(0.015625)" in text and "data:a;1.23456" in text


def test_figures_on_one_page_share_no_ids():
    drawn = svg.compact(to_svg(stationarity.draw_levels(base_tasks())))
    first, second = (svg.inline(drawn, name, "<alt>") for name in ("one", "two"))
    ids = [set(svg._ID.findall(text)) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(svg._REFERENCE.findall(first)) >= ids[0]
    assert 'aria-label="&lt;alt&gt;"' in first and "<!--" not in first
    assert len(first) < 0.85 * len(to_svg(stationarity.draw_levels(base_tasks())))
