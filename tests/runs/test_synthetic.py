"""The synthetic experiments: what their records claim, on small versions."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tf_lrtraj import records, theory
from tf_lrtraj.report import synthetic_figures as report
from tf_lrtraj.runs import synthetic_run
from tf_lrtraj.runs.run_config import ConfigError


def small_config():
    config = synthetic_run.default_config()
    config.two_time_scales.num_steps = 3000
    config.two_time_scales.num_runs = 40
    config.two_time_scales.fast_modes = 10
    config.two_time_scales.decay = 0.9
    config.averaging_against_schedule.num_steps = 300
    config.averaging_against_schedule.gap = 60
    config.averaging_against_schedule.modes = 10
    config.averaging_length.num_steps = 200
    config.averaging_length.modes = 10
    config.averaging_length.lengths = 8
    config.single_runs.num_steps = 4000
    config.single_runs.modes = 6
    config.single_runs.rates = (0.05, 0.2)
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, synthetic_run.run(small_config(), folder)


def test_records_survive_the_disk(made):
    folder, found = made
    for name, record in found.items():
        read = report.read_record(folder, name)
        assert set(read) == set(record)
        for key, value in record.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(read[key], value)
            else:
                assert read[key] == value
    assert records.read_json(folder / "config.json")["seed"] == 0


def test_the_same_seed_gives_the_same_record(made):
    config = synthetic_run.validate(small_config())
    again = synthetic_run.single_runs(config["single_runs"], 0)
    other = synthetic_run.single_runs(config["single_runs"], 1)
    for key, value in made[1]["single_runs"].items():
        np.testing.assert_array_equal(again[key], value)
    assert not np.array_equal(other["iterate_norms"], again["iterate_norms"])


def test_simulation_agrees_with_theory(made):
    for record in made[1].values():
        for key, value in record.items():
            if key.endswith("_largest_miss"):
                assert value < 4.5, key  # of up to 40 points, in standard errors


def test_the_ema_is_as_low_as_the_small_rate_and_much_faster(made):
    record = made[1]["two_time_scales"]
    assert record["small_rate"] < 0.25 * record["large_rate"]
    assert record["ema_losses"][-1] == pytest.approx(record["stationary_loss_small"], rel=1e-3)
    assert record["small_losses"][-1] == pytest.approx(record["stationary_loss_small"], rel=0.15)
    assert record["large_steps_to_level"] is None
    assert 3 * record["ema_steps_to_level"] < record["small_steps_to_level"]
    for name in ("ema", "small"):
        step, curve = record[f"{name}_steps_to_level"], record[f"{name}_losses"]
        assert curve[step] <= record["level"] < curve[step - 1]


def test_schedules_equal_averages_where_they_should(made):
    record = made[1]["averaging_against_schedule"]
    for name in record["averages"]:
        assert record[f"{name}_path_error"] < 1e-12
        best, flat = (abs(np.log(record[f"{name}_{kind}_ratio"])) for kind in ("best", "flat"))
        assert best <= flat + 1e-9
        schedule = record[f"{name}_best_schedule"]
        assert np.all(np.diff(schedule) <= 1e-12)
        model = theory.QuadraticModel(record["curvatures"], np.ones(10))
        curve = model.expected_loss(schedule, np.full(10, 3.0))
        np.testing.assert_allclose(record[f"{name}_best_losses"], curve)


def test_length_trades_noise_for_way_still_to_go(made):
    record = made[1]["averaging_length"]
    for name in record["families"]:
        bias, variance = record[f"{name}_bias"], record[f"{name}_variance"]
        assert np.all(np.diff(variance, axis=1) < 0.0) and np.all(np.diff(bias, axis=1) > 0.0)
        np.testing.assert_allclose(bias[:, 0] + variance[:, 0], record["raw_losses"], rtol=1e-9)
        best = record["lengths"][np.argmin(bias + variance, axis=1)]
        np.testing.assert_array_equal(record[f"{name}_best_length"], best)


def test_single_runs_show_what_the_formulas_say(made):
    record = made[1]["single_runs"]
    np.testing.assert_allclose(record["zero_crossings"], record["rates"], rtol=1e-10)
    np.testing.assert_allclose(record["zero_crossings_measured"], record["rates"], rtol=0.3)
    np.testing.assert_allclose(record["distances_measured"], record["distances"], rtol=0.2)
    assert record["distance_exponent"] == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(record["displacement_measured"], record["displacement"], rtol=0.25)
    assert np.median(record["average_positions"]) < 0.5 < np.median(record["iterate_positions"])
    assert np.mean(record["iterate_positions"]) == pytest.approx(1.0, rel=0.15)
    shared = record["shared_square_distance"]
    np.testing.assert_allclose(record["shared_square_distance_measured"], shared, rtol=1e-9)
    apart = record["independent_square_distance"]
    assert apart[-1] > 10 * shared[-1]
    assert record["cosine_between_batches"][0] > 10 * record["cosine_between_batches"][-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "unknown key `config.seeds`. Did you mean config.seed"),
        ({"single_runs": {"mode": 3}}, "unknown key `config.single_runs.mode`. Did you mean"),
        (
            {"single_runs": {"modes": 1.5}},
            "`config.single_runs.modes` must be an integer of at least 1",
        ),
        ({"single_runs": {"rate": "fast"}}, "`config.single_runs.rate` must be a number .*'fast'"),
        ({"single_runs": 3}, "`config.single_runs` must be a group with the keys"),
        ({"averaging_length": {"rates": []}}, "`config.averaging_length.rates` must be positive"),
        ({"two_time_scales": {"decay": -0.5}}, "`config.two_time_scales.decay` must be a number"),
        (
            {"two_time_scales": {"num_steps": 10**7}},
            "`config.two_time_scales.num_steps` times .*at most 100,000,000.*10,000,000 times 51",
        ),
        (
            {"averaging_against_schedule": {"modes": 10**9}},
            "num_steps` times the number of modes",
        ),
        ({"averaging_length": {"lengths": 1001}}, "`config.averaging_length.lengths` .*1001"),
        (
            {"single_runs": {"smallest_curvature": 1e-9}},
            "`config.single_runs`: the 5 / .* steps it takes to settle .*500,000,000,000 times 30",
        ),
        ({"single_runs": {"smallest_curvature": 1e-299, "rates": [1e-299]}}, "to settle"),
    ],
)
def test_bad_configurations_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        synthetic_run.validate(change)


def test_values_that_only_the_model_can_judge_are_named(tmp_path):
    config = small_config()
    config.two_time_scales.large_rate = 5.0
    (tmp_path / "config.json").write_text("an earlier record")
    with pytest.raises(ConfigError, match=r"config.two_time_scales: .*stability limit"):
        synthetic_run.run(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "an earlier record"


def test_the_program_writes_records_and_figures(tmp_path):
    tiny = small_config()
    tiny.two_time_scales.num_steps = tiny.single_runs.num_steps = 200
    tiny.two_time_scales.num_runs = tiny.single_runs.num_runs = 2
    tiny.averaging_against_schedule.num_steps = 80
    tiny.averaging_against_schedule.num_runs = 2
    tiny.averaging_length.num_steps = 20
    config = tmp_path / "tiny.py"
    config.write_text(
        "import ml_collections\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict({tiny.to_dict()!r})\n"
    )
    command = [sys.executable, "-m", "tf_lrtraj.bin.synthetic", f"--config={config}"]
    out = tmp_path / "run"
    done = subprocess.run(
        [*command, f"--workdir={out}", "--config.averaging_length.modes=5"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in report.FIGURES:
        assert (out / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    assert json.loads((out / "config.json").read_text())["averaging_length"]["modes"] == 5
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 2 and "--workdir is required" in bad.stderr
