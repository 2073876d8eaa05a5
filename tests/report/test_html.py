"""The page: self-contained, escaped, the same each time, and drawn in every state of a run."""

import math
import re
import subprocess
import sys

import pytest
from html_page import Page

from tf_lrtraj import records, report
from tf_lrtraj.report import drawing


@pytest.fixture(scope="module")
def page(workdir):
    return report.render_report(records.load_run(workdir))


def test_the_page_has_every_section(page):
    words = Page(page).text
    for title in (
        "Over the run: test split",
        "Final numbers",
        "Averaging against a schedule",
        "Over the run: train split",
        "How each average weighs the run",
        "Rate and training batches",
        "Provenance",
        "Configuration",
    ):
        assert title in words
    # 2 panels for each split, 3 for each pair, 3 kernels and their sums, the rate, 2 of batches
    assert Page(page).count("img") == 2 * 2 + 2 * 3 + 3 + 1 + 1 + 2


def test_the_table_shows_the_records(workdir, page):
    record = records.load_run(workdir)
    words = Page(page).text
    for name in ("ema", "swa", "two_point"):
        for split in ("test", "train"):
            row = record.rows("eval", name, split)[-1]
            raw = record.rows("eval", "raw", split)[-1]
            gain = f"{100 * (row['accuracy'] - raw['accuracy']):+.1f}".replace("-", "−")
            shown = f"{name} {100 * row['accuracy']:.1f} % {gain} {row['loss']:.4f}"
            assert shown in words
    assert "recompute(8 batches)" in words and "running" in words
    assert "digits (1,437 training images)" in words and "1,200 steps (52.2 epochs)" in words
    assert "rate 0.1, constant" in words


def test_the_page_needs_nothing_from_outside(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "href"
            if name == "src":
                assert value.startswith("data:image/svg+xml;base64,")
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page


def test_the_same_records_give_the_same_page(workdir, page, tmp_path):
    written = report.write_report(workdir, tmp_path / "other.html")
    assert written == tmp_path / "other.html" and written.read_text(encoding="utf-8") == page


@pytest.mark.parametrize(("count", "splits"), [(60, 1), (2, 40)])
def test_more_than_figures_can_show_stands_in_the_tables_and_is_said(
    count, splits, make_workdir, monkeypatch
):
    averages = {f"a{i}": {"kernel": "Exponential", "decay": 0.9} for i in range(count)}
    folder = make_workdir(matched=(), averages=averages)
    common = {"kind": "eval", "batch_norm": "none", "loss": 1.0, "accuracy": 0.5, "examples": 9}
    rows = [
        {**common, "step": 1200, "split": f"s{s}", "weights": w}
        for s in range(splits)
        for w in ("raw", *averages)
    ]
    (folder / "metrics.jsonl").unlink()
    records.append_rows(folder / "metrics.jsonl", rows)
    drawn = []
    monkeypatch.setattr(drawing, "to_svg", lambda figure: drawn.append(figure) or "<svg/>")
    words = Page(report.render_report(records.load_run(folder))).text
    assert len(drawn) < 60
    assert all(len(figure.axes[0].lines) <= 32 for figure in drawn)
    for name in (f"a{count - 1}", f"s{splits - 1}"):
        assert name in words
    if count == 60:
        assert "Figures show the first 30 of 61 sets of weights." in words
        assert "Figures show the first 30 of 60 averages." in words
    else:
        assert "Figures show the first 10 of 40 splits." in words


def test_hostile_text_is_shown_and_not_run(make_workdir):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac{ {{ 7*7 }} \ud800"
    folder = make_workdir(
        matched=("ema",),
        name=evil,
        command=evil,
        message=evil,
        status="diverged",
        strategy=evil,
        versions={evil: evil},
        model={"name": evil, "parameters": 7},
        dataset={"name": evil, "num_examples": {evil: 3}},
        steps_per_epoch=math.nan,
        surprise={"field": evil},
        averages={
            "ema": {"kernel": "Exponential", "decay": 0.99},
            evil: {"kernel": evil},
            "_$x$": {"kernel": "TwoPoint", "gap": 3},
        },
    )
    records.write_json(folder / "config.json", {evil: [evil]})
    common = {"kind": "eval", "step": 1200, "loss": 1.0, "accuracy": 0.5, "examples": 360}
    records.append_rows(
        folder / "metrics.jsonl",
        [
            {**common, "split": evil, "weights": evil, "batch_norm": evil},
            {**common, "split": "test", "weights": "_$x$", "batch_norm": evil},
            {**common, "split": "test", "weights": evil, "loss": None, "examples": None},
            {"kind": evil, "step": 1200},
        ],
    )
    path = report.write_report(folder)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.count("script") == 0
    assert all(
        attributes["src"].startswith("data:") for tag, attributes in page.tags if tag == "img"
    )
    assert "<script>alert(1)</script>" in page.text and "{{ 7*7 }}" in page.text
    assert "49" not in re.sub(r"[\d.,]*\d49|49[\d.,]+", "", page.text)


def _words(folder):
    return Page(report.write_report(folder).read_text(encoding="utf-8")).text


def test_a_run_that_has_just_begun(make_workdir):
    folder = make_workdir(matched=(), status="incomplete")
    for name in ("metrics.jsonl", "timing.jsonl", "schedule.npz"):
        (folder / name).unlink()
    words = _words(folder)
    assert "incomplete" in words and "still going, or was killed" in words
    assert "No average has been evaluated" in words and "Final numbers" not in words
    assert "How each average weighs the run" in words


def test_a_run_json_with_only_what_it_must_have(tmp_path):
    records.write_json(tmp_path / "run.json", {"format": 1, "status": "interrupted"})
    records.write_json(tmp_path / "config.json", {})
    assert "was stopped before its last step" in _words(tmp_path)


def test_a_diverged_run_says_why(make_workdir):
    folder = make_workdir(matched=(), status="diverged", message="The loss became NaN at step 900.")
    rows = [row for row in records.read_rows(folder / "metrics.jsonl") if row["step"] <= 880]
    (folder / "metrics.jsonl").unlink()
    rows.append({"kind": "train", "step": 900, "loss": float("nan"), "accuracy": 0.1})
    records.append_rows(folder / "metrics.jsonl", rows)
    words = _words(folder)
    assert "The loss became NaN at step 900." in words
    assert "At step 880 of 1,200" in words


def test_a_damaged_matched_run_or_schedule_does_not_take_the_report_with_it(make_workdir):
    folder = make_workdir()
    (folder / "schedule.npz").write_bytes(b"PK")
    (folder / "matched" / "ema" / "config.json").write_text("{")
    (folder / "matched" / "swa" / "schedule.npz").write_bytes(b"")
    words = _words(folder)
    assert "The matched run of ema cannot be read" in words
    assert "schedule.npz is not a schedule" in words
    assert str(folder) not in words
    assert "swa Uniform(start=600, every=1) and its matched run" in words


def test_damaged_metrics_are_an_error_that_names_file_and_line(make_workdir):
    folder = make_workdir(matched=())
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3][:-5]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(records.RecordError, match=r"metrics\.jsonl, line 4"):
        report.write_report(folder)
    assert not (folder / "report.html").exists()


def _run_program(*arguments):
    command = [sys.executable, "-m", "tf_lrtraj.bin.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_program_writes_the_page_and_prints_the_table(workdir, tmp_path):
    output = tmp_path / "page.html"
    done = _run_program(f"--workdir={workdir}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{report.text_summary(workdir)}\nreport: {output}\n"
    assert output.stat().st_size > 100_000


def test_reports_do_not_import_tensorflow(workdir, tmp_path):
    code = (
        "import sys; from tf_lrtraj import report; import tf_lrtraj.bin.report; "
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules; "
        f"report.text_summary({str(workdir)!r}); assert 'matplotlib' not in sys.modules; "
        f"report.write_report({str(workdir)!r}, {str(tmp_path / 'r.html')!r}); "
        "assert not {'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_figures_are_written_as_files_and_the_same_each_time(workdir, tmp_path):
    names = report.write_figures(workdir, tmp_path / "one")
    assert {"accuracy.svg", "loss.svg"} <= set(names)
    assert any(name.endswith("_rates.svg") for name in names)
    assert report.write_figures(workdir, tmp_path / "two") == names
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert b"<svg" in content and content == (tmp_path / "two" / name).read_bytes()
