"""The numbers and sentences of a report, against values written out by hand."""

import math

import pytest

from tf_lrtraj import records, report
from tf_lrtraj.report import number_text, run_results, run_summary


def _run(folder, rows, **run):
    folder.mkdir(parents=True, exist_ok=True)
    averages = {"ema": {"kernel": "Exponential", "decay": 0.9}}
    run = {"format": 1, "status": "done", "total_steps": 100, "averages": averages, **run}
    records.write_json(folder / "run.json", run)
    records.write_json(folder / "config.json", {})
    fields = ("step", "weights", "accuracy", "loss")
    common = {"kind": "eval", "split": "test", "batch_norm": "running", "examples": 400}
    records.append_rows(
        folder / "metrics.jsonl",
        [{**common, **dict(zip(fields, row, strict=True))} for row in rows],
    )
    return records.load_run(folder)


ROWS = [
    (50, "raw", 0.80, 0.60),
    (50, "ema", 0.85, 0.50),
    (80, "raw", 0.90, 0.30),
    (80, "ema", 0.95, 0.20),
    (100, "raw", 0.86, 0.40),
    (100, "ema", 0.92, 0.25),
]


def test_final_rows_are_the_last_evaluations_against_raw_at_the_same_step(tmp_path):
    raw, ema = run_results.final_rows(_run(tmp_path, ROWS), "test")
    assert (raw.weights, raw.step, raw.accuracy, raw.loss) == ("raw", 100, 0.86, 0.40)
    assert raw.accuracy_vs_raw is None and raw.loss_vs_raw is None
    assert (raw.best_accuracy, raw.best_step) == (0.90, 80)
    assert raw.late_accuracy == (pytest.approx(0.88), 0.86, 0.90)  # steps after 75
    assert (ema.weights, ema.step, ema.examples) == ("ema", 100, 400)
    assert ema.accuracy_vs_raw == pytest.approx(0.06)
    assert ema.loss_vs_raw == pytest.approx(-0.15)
    assert (ema.best_accuracy, ema.best_step) == (0.95, 80)


def test_a_run_killed_between_two_evaluations_is_compared_at_its_last_common_step(tmp_path):
    record = _run(tmp_path, ROWS[:-1], status="incomplete")
    raw, ema = run_results.final_rows(record, "test")
    assert (raw.step, ema.step) == (100, 80)
    assert ema.accuracy_vs_raw == pytest.approx(0.05)  # against 0.90 at step 80, not 0.86
    first = run_summary.findings(record, "test")[0]
    assert first.startswith("At step 80 of 100, ema has 95.0 % test accuracy")
    assert "raw weights have 90.0 % (+5.0 percentage points)" in first


def test_averages_are_ranked_at_the_last_step_at_which_all_were_evaluated(tmp_path):
    rows = [*ROWS, (80, "swa", 0.96, 0.2)]  # killed before swa was evaluated at step 100
    first = run_summary.findings(_run(tmp_path, rows, status="incomplete"), "test")[0]
    assert first.startswith("At step 80 of 100, swa, the highest of 2 averages, has 96.0 %")


def test_each_batch_norm_policy_has_its_own_row(tmp_path):
    record = _run(tmp_path, ROWS)
    extra = dict(record.rows("eval", "ema")[-1], batch_norm="copy", accuracy=0.1)
    records.append_rows(tmp_path / "metrics.jsonl", [extra])
    rows = run_results.final_rows(records.load_run(tmp_path), "test")
    assert [(row.weights, row.batch_norm, row.accuracy) for row in rows] == [
        ("raw", "running", 0.86),
        ("ema", "running", 0.92),
        ("ema", "copy", 0.1),
    ]


def test_findings_state_the_result_and_what_it_does_not_show(tmp_path):
    first, caution = run_summary.findings(_run(tmp_path, ROWS), "test")
    assert first == (
        "At the end, ema has 92.0 % test accuracy where the raw weights have 86.0 % "
        "(+6.0 percentage points). Its loss is 0.2500 against 0.4000."
    )
    assert "one run with one seed" in caution
    error = 100 * math.sqrt((0.86 * 400 + 2) / 404 * (1 - (0.86 * 400 + 2) / 404) / 404)
    assert f"400 test images alone leave a standard error of about {error:.1f} points" in caution
    assert "raw weights moved between 86.0 % and 90.0 % over the last quarter" in caution


def test_findings_do_not_flatter_an_average_that_lost(tmp_path):
    rows = [(100, "raw", 0.9, 0.3), (100, "ema", 0.875, 0.4)]
    first = run_summary.findings(_run(tmp_path, rows), "test")[0]
    assert first == (
        "At the end, no average is above the raw weights in test accuracy (90.0 %); "
        "ema has 87.5 % (−2.5 percentage points). Its loss is 0.4000 against 0.3000."
    )


def test_the_best_of_several_averages_is_called_that(tmp_path):
    rows = [*ROWS, (100, "swa", 0.91, 0.3), (100, "two", math.nan, math.nan)]
    first = run_summary.findings(_run(tmp_path, rows), "test")[0]
    assert first.startswith("At the end, ema, the highest of 2 averages, has 92.0 %")
    tie = [*ROWS, (100, "swa", 0.92, 0.3)]
    first = run_summary.findings(_run(tmp_path / "tie", tie), "test")[0]
    assert first.startswith("At the end, ema, the highest of 2 averages (with swa), has 92.0 %")


@pytest.mark.parametrize("rows", [[], ROWS[:1]])
def test_findings_without_an_average_say_so(tmp_path, rows):
    (only,) = run_summary.findings(_run(tmp_path, rows), "test")
    assert only == "No average has been evaluated beside the raw weights on the test split yet."


def test_findings_of_a_run_that_keeps_no_average(tmp_path):
    (only,) = run_summary.findings(_run(tmp_path, [(100, "raw", 0.9, 0.3)], averages={}), "test")
    assert only == "At the end, the weights have 90.0 % test accuracy. No averages were kept."


def test_a_pair_is_compared_at_its_last_common_step(tmp_path):
    record = _run(tmp_path, ROWS)
    other = _run(tmp_path / "m", [(80, "raw", 0.9, 0.3), (100, "raw", 0.93, 0.2)], averages={})
    pair = run_results.pairs(record, "test", {"ema": other})["ema"]
    assert (pair.step, pair.at_end) == (100, True)
    assert pair.accuracy_difference == pytest.approx(0.01)
    assert pair.loss_difference == pytest.approx(-0.05)
    sentence = run_summary.findings(record, "test", {"ema": other})[1]
    assert sentence == (
        "The run under the schedule equivalent to ema ends at 93.0 %, "
        "1.0 points above the average itself."
    )
    early = _run(tmp_path / "n", [(80, "raw", 0.95, 0.3)], averages={}, status="incomplete")
    pair = run_results.pairs(record, "test", {"ema": early})["ema"]
    assert (pair.step, pair.at_end) == (80, False)
    sentence = run_summary.findings(record, "test", {"ema": early})[1]
    assert "is, at step 80, at 95.0 %, the same as the average itself." in sentence
    none = _run(tmp_path / "o", [(7, "raw", 0.95, 0.3)], averages={})
    assert run_results.pairs(record, "test", {"ema": none})["ema"].step is None


@pytest.mark.parametrize(
    ("splits", "expected"),
    [([], "test"), (["train"], "train"), (["train", "val"], "val"), (["val", "test"], "test")],
)
def test_the_main_split(tmp_path, splits, expected):
    record = _run(tmp_path, [])
    rows = [{"kind": "eval", "step": 1, "split": split} for split in splits]
    records.append_rows(tmp_path / "metrics.jsonl", rows)
    assert run_results.main_split(records.load_run(record.workdir)) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (1e-5, "1.00e-05"), (-12.5, "−12.500"), (math.inf, "inf"), (math.nan, "nan")],
)
def test_numbers_as_text(value, text):
    assert number_text.number(value) == text


def test_text_summary(workdir):
    text = report.text_summary(workdir)
    lines = text.splitlines()
    assert lines[0] == "digits_demo: done, step 1,200 of 1,200, seed 0"
    assert lines[1] == "test split, 360 images, at step 1,200"
    names = [line.split("  ")[0] or line.split("  ")[1] for line in lines[4:]]
    assert names == [
        "raw", "ema", "matched run of ema", "swa", "matched run of swa", "two_point",
    ]  # fmt: skip
    last = records.load_run(workdir).rows("eval", "ema", "test")[-1]
    ema = next(line for line in lines if line.startswith("ema "))
    assert f"{100 * last['accuracy']:.1f} %" in ema and f"{last['loss']:.4f}" in ema
    assert text.isascii() and max(map(len, lines)) < 100


def test_text_summary_of_hostile_and_partial_records(tmp_path):
    _run(tmp_path, [], name="\x1b[31mred\nline", status="diverged", message="NaN at step 7\x07")
    text = report.text_summary(tmp_path)
    assert "?[31mred?line: diverged" in text and "NaN at step 7?" in text
    assert "No evaluation has been recorded yet." in text
    _run(tmp_path / "b", ROWS[:-1])
    lines = report.text_summary(tmp_path / "b").splitlines()
    assert lines[2].endswith("step") and lines[4].endswith("100") and lines[5].endswith("80")
