"""Runs that differ in their seed alone: their means, errors and bands in the report."""

import numpy as np
import pytest

from tf_lrtraj import records, report
from tf_lrtraj.report import run_figures, run_results, run_summary

FIELDS = ("step", "weights", "accuracy", "loss")


def _run(folder, rows, seed, config=None, **run):
    folder.mkdir(parents=True)
    averages = {"ema": {"kernel": "Exponential", "decay": 0.9}}
    run = {"format": 1, "status": "done", "total_steps": 20, "averages": averages, **run}
    records.write_json(folder / "run.json", run | {"seed": seed})
    records.write_json(folder / "config.json", {"seed": seed, "rate": 0.1} | (config or {}))
    common = {"kind": "eval", "split": "test", "batch_norm": "running", "examples": 400}
    records.append_rows(
        folder / "metrics.jsonl",
        [common | dict(zip(FIELDS, row, strict=True)) for row in rows],
    )


@pytest.fixture
def three(tmp_path):
    """A folder of three finished runs."""
    for seed, (raw, ema) in enumerate([(0.80, 0.90), (0.82, 0.94), (0.84, 0.92)]):
        rows = [(10, "raw", 0.5, 1.0 + seed), (10, "ema", 0.5, 1.0)]
        rows += [(20, "raw", raw, 0.5), (20, "ema", ema, 0.4 - 0.01 * seed)]
        _run(tmp_path / f"seed{seed}", rows, seed)
    return tmp_path


def test_rows_are_means_with_standard_errors_of_paired_differences(three):
    record = records.load_record(three)
    raw, ema = run_results.final_rows(record, "test")
    assert (raw.weights, raw.step, raw.accuracy) == ("raw", 20, pytest.approx(0.82))
    assert raw.errors["accuracy"] == pytest.approx(0.02 / 3**0.5)
    assert ema.accuracy_vs_raw == pytest.approx(0.10)  # 0.10, 0.12 and 0.08
    assert ema.errors["accuracy_vs_raw"] == pytest.approx(0.02 / 3**0.5)
    assert ema.loss_vs_raw == pytest.approx(-0.11)
    assert raw.accuracy_vs_raw is None and "accuracy_vs_raw" not in raw.errors


def test_curves_have_the_mean_and_reach_from_the_lowest_to_the_highest_run(three):
    record = records.load_record(three)
    steps, values = record.series("loss", "raw")
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_allclose(values, [2.0, 0.5])
    np.testing.assert_allclose(record.bounds("loss", "raw"), [[1.0, 0.5], [3.0, 0.5]])
    figure = run_figures.curves(record, "loss", "test", run_figures.colours(record))
    raw_band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (raw_band.min(), raw_band.max()) == (0.5, 3.0)


def test_an_unfinished_run_holds_the_others_back_to_its_last_step(three):
    _run(three / "seed3", [(10, "raw", 0.1, 2.0), (10, "ema", 0.6, 1.0)], 3, status="incomplete")
    record = records.load_record(three)
    assert (record.status, record.last_step()) == ("incomplete", 10)
    raw, ema = run_results.final_rows(record, "test")
    assert raw.step == ema.step == 10 and raw.accuracy == pytest.approx(0.4)
    assert run_summary.findings(record, "test")[0].startswith("At step 10 of 20, ema has 52.5 %")


def test_sentences_and_table_show_errors(three):
    first, caution = run_summary.findings(records.load_record(three), "test")
    assert "(+10.0 ± 1.2 percentage points)" in first
    assert caution.startswith("Numbers are means over 3 runs that differ in their seed (0, 1, 2);")
    text = report.text_summary(three)
    assert "seeds 0, 1, 2" in text and "82.0 ± 1.2 %" in text


def test_runs_of_other_settings_are_no_repetitions(three):
    _run(three / "seed3", [], 3, config={"rate": 0.2})
    with pytest.raises(records.RecordError, match=r"rate is 0\.1 in seed0 and 0\.2 in seed3"):
        records.load_record(three)


def test_one_run_in_a_folder_is_that_run_and_none_is_an_error(tmp_path):
    with pytest.raises(records.RecordError, match=r"holds no run\.json, nor do its subfolders"):
        records.load_record(tmp_path)
    _run(tmp_path / "only", [(10, "raw", 0.5, 1.0)], 4)
    assert records.load_record(tmp_path).run["seed"] == 4


def test_a_page_of_repeated_runs_has_pairs_and_every_section(make_workdir, tmp_path):
    for seed in (0, 1):
        make_workdir(f"seed{seed}", seed=seed)
    record = records.load_record(tmp_path)
    pair = run_results.pairs(record, "test", record.matched())["swa"]
    each = [
        run_results.pairs(run, "test", run.matched())["swa"].accuracy_difference
        for run in record.runs
    ]
    assert pair.accuracy_difference == pytest.approx(np.mean(each))
    assert pair.errors["accuracy_difference"] == pytest.approx(np.std(each, ddof=1) / 2**0.5)
    page = report.write_report(tmp_path).read_text()
    assert "Averaging against a schedule" in page and "means over 2 runs" in page
    assert "Highest accuracy" not in page  # picked on the split it is measured on
    assert report.write_figures(tmp_path, tmp_path / "figures")[:2] == ["accuracy.svg", "loss.svg"]


def test_the_table_of_pandas_names_the_run(three):
    pytest.importorskip("pandas")
    table = records.read_metrics(three)
    assert list(table.columns[:2]) == ["run", "kind"] and set(table.run) == {
        "seed0", "seed1", "seed2",
    }  # fmt: skip
