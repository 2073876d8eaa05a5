"""Records: strict JSON, rows that survive a kill at any byte, errors that name the damage."""

import errno
import json
import math
import os

import numpy as np
import pytest
from helpers import cut_short, with_changed_byte

from tf_lrtraj import records


def _eval(step, weights="raw", split="test", **values):
    row = {"kind": "eval", "step": step, "split": split, "weights": weights}
    return {**row, "batch_norm": "running", "loss": 1.0, "accuracy": 0.5, **values}


@pytest.fixture
def workdir(tmp_path):
    records.write_json(tmp_path / "config.json", {"optimizer": {"rate": 0.1}})
    run = {"format": 1, "status": "done", "averages": {"ema": {"kernel": "Exponential"}}}
    records.write_json(tmp_path / "run.json", run)
    return tmp_path


# --- JSON ---


def test_json_keeps_numpy_values_and_non_finite_numbers_in_strict_json(tmp_path):
    path = tmp_path / "a.json"
    value = {
        "rates": np.array([0.1, 1 / 3]),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "bad": [math.inf, -math.inf, np.float64("nan")],
        "tuple": (1, None, "é"),
        "folder": tmp_path,
    }
    records.write_json(path, value)

    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    strict = json.loads(path.read_text(), parse_constant=refuse)
    assert strict["bad"] == ["Infinity", "-Infinity", "NaN"]
    back = records.read_json(path)
    assert back["rates"] == [0.1, 1 / 3]
    assert back["count"] == 3 and back["flag"] is True
    assert back["bad"][:2] == [math.inf, -math.inf] and math.isnan(back["bad"][2])
    assert back["tuple"] == [1, None, "é"] and back["folder"] == str(tmp_path)


def test_json_refuses_what_it_has_no_form_for_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    records.write_json(path, {"old": 1})
    with pytest.raises(TypeError, match="object"):
        records.write_json(path, {"new": object()})
    assert records.read_json(path) == {"old": 1}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch, function):
    path = tmp_path / "a.json"
    records.write_json(path, {"old": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        records.write_json(path, {"new": 2})
    assert records.read_json(path) == {"old": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_file_or_a_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(records.RecordError, match=r"a\.json does not exist"):
        records.read_json(tmp_path / "a.json")
    with pytest.raises(records.RecordError, match="cannot be read"):
        records.read_rows(tmp_path)


# --- rows ---

ROWS = [_eval(0, loss=math.nan), _eval(10, note="é\u2028\n"), _eval(20, loss=np.float32(0.1))]


def _same(left, right):
    return json.dumps(records.encode(left)) == json.dumps(records.encode(right))


def test_rows_cut_at_any_byte_read_as_the_whole_rows_before_the_cut(tmp_path):
    path = tmp_path / "m.jsonl"
    records.append_rows(path, ROWS)
    data = path.read_bytes()
    whole = records.read_rows(path)
    assert _same(whole, ROWS)
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 3
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        # A row that lacks only its newline is whole.
        count = sum(cut >= end - 1 for end in ends)
        assert _same(records.read_rows(path), ROWS[:count]), cut
        # A writer opened there goes on as if nothing had happened.
        with records.MetricsWriter(path) as writer:
            for row in ROWS[count:]:
                writer.write(row)
        assert path.read_bytes() == data, cut


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1,\n"b": }', "line 2, column 6"),
        (b"", "line 1, column 1"),
        (b'{"a": NaN}', "NaN is not strict JSON"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"7" * 6000, "a whole number of 6000 digits is out of range"),
        (b"-" + b"7" * 400, "a whole number of 400 digits"),
        (b"18446744073709551616", "a whole number of 20 digits"),
        (b'{"loss": 1e999}', "the number 1e999 is out of range"),
        (b"-1" + b"0" * 400 + b".5", "out of range"),
        (b"[" * 150 + b"]" * 150, "nested more than 100 levels deep"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested"),
        (b"[Infinity]", "bare constant Infinity"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_no_array_and_no_stack_holds_is_refused_by_name(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(records.RecordError, match=reason) as caught:
        records.read_json(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < len(str(path)) + 200


def _nested(depth):
    return 0 if not depth else [_nested(depth - 1)]


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63), 1.7e308, _nested(100)])
def test_what_arrays_hold_is_written_and_read(tmp_path, value):
    records.write_json(tmp_path / "a.json", value)
    assert records.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("value", [2**64, -(10**400), _nested(101), {"a": _nested(100)}])
def test_what_could_not_be_read_is_not_written(tmp_path, value):
    with pytest.raises(TypeError, match="a record may"):
        records.write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("/w/run/.run.json.12.tmp", "/w/run"),
        ("/w/run/.step_000000004.12.tmp/progress.json", "/w/run"),
        ("/w/run/checkpoints/step_000000004/progress.json", None),
        ("/tmp/scratch/model.weights.h5", None),  # another disk, which may be the full one
        ("assets", "/w/run"),
        (None, "/w/run"),
    ],
)
def test_errors_name_what_a_user_knows(named, shown):
    with pytest.raises(OSError) as caught, records.naming("/w/run"):
        raise OSError(28, "No space left on device", *([] if named is None else [named]))
    assert caught.value.filename == (shown or named)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": 1, "loss"', "Expecting"),
        (b"[1]", r"must be a JSON object. Received: \[1\]"),
        (b'{"loss": 1}', "`step` is missing"),
        (b'{"step": true}', "`step` must be a whole number. Received: step=True"),
        (b'{"step": 1, "loss": NaN}', "NaN is not strict JSON"),
        (b"", "Expecting value"),
    ],
)
def test_damage_before_the_last_line_names_file_and_line_and_is_never_dropped(
    tmp_path, line, reason
):
    path = tmp_path / "m.jsonl"
    damaged = b'{"step":0}\n' + line + b'\n{"step":2}\n'
    path.write_bytes(damaged)
    with pytest.raises(records.RecordError, match=f"line 2: .*{reason}") as caught:
        records.read_rows(path)
    assert str(path) in str(caught.value)
    with pytest.raises(records.RecordError, match="line 2"):
        records.MetricsWriter(path, resume_step=0)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("resume", "kept"), [(None, 3), (20, 3), (19, 2), (10, 2), (0, 1), (-1, 0)]
)
def test_resuming_drops_later_rows_and_keeps_the_others_to_the_byte(tmp_path, resume, kept):
    path = tmp_path / "m.jsonl"
    # Written by another hand: spacing that this writer would not use.
    lines = [f'{{ "step" : {step},  "loss":1e-1 }}\n'.encode() for step in (0, 10, 20)]
    path.write_bytes(b"".join(lines) + b'{"step": 30, "lo')
    records.MetricsWriter(path, resume_step=resume).close()
    assert path.read_bytes() == b"".join(lines[:kept])


def test_a_resumed_run_ends_with_the_file_of_an_uninterrupted_one(tmp_path):
    def rows(first, last):
        return [_eval(step, loss=1 / (3 + step)) for step in range(first, last + 1)]

    records.append_rows(tmp_path / "a.jsonl", rows(0, 9))
    with records.MetricsWriter(tmp_path / "b.jsonl", resume_step=-1) as writer:
        for row in rows(0, 6):
            writer.write(row)
    with open(tmp_path / "b.jsonl", "ab") as file:
        file.write(b'{"kind":"eval","st')
    with records.MetricsWriter(tmp_path / "b.jsonl", resume_step=4) as writer:
        for row in rows(5, 9):
            writer.write(row)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_each_row_is_one_write_and_is_there_at_once(tmp_path, monkeypatch):
    calls = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda *a: calls.append(a[1]) or real(*a))
    path = tmp_path / "m.jsonl"
    with records.MetricsWriter(path) as writer:
        for count, row in enumerate(ROWS, start=1):
            writer.write(row)
            assert len(records.read_rows(path)) == count
        writer.sync()
    assert len(calls) == len(ROWS) and all(call.endswith(b"\n") for call in calls)


def test_a_short_write_is_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:7]))
    records.append_rows(tmp_path / "m.jsonl", ROWS)
    assert _same(records.read_rows(tmp_path / "m.jsonl"), ROWS)


@pytest.mark.parametrize("step", [None, -1, 1.0, True, "3"])
def test_a_row_needs_a_step(tmp_path, step):
    with (
        records.MetricsWriter(tmp_path / "m.jsonl") as writer,
        pytest.raises(ValueError, match=f"Received: step={step!r}"),
    ):
        writer.write({"step": step})


def test_a_closed_writer_refuses_rows_and_closes_twice(tmp_path):
    writer = records.MetricsWriter(tmp_path / "m.jsonl")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write({"step": 1})


def test_a_writer_that_cannot_open_its_file_names_it(tmp_path):
    with pytest.raises(records.RecordError, match=r"nowhere.m\.jsonl cannot be written"):
        records.MetricsWriter(tmp_path / "nowhere" / "m.jsonl")


# --- the schedule ---


def test_the_schedule_comes_back_exactly_and_its_file_is_deterministic(tmp_path):
    rates = np.random.default_rng(0).uniform(size=1000)
    for name in ("a", "b"):
        records.write_schedule(tmp_path / f"{name}.npz", rates)
    back = records.read_schedule(tmp_path / "a.npz")
    assert back.dtype == np.float64
    np.testing.assert_array_equal(back, rates)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_damaged_or_pickled_schedule_is_an_error(tmp_path):
    path = tmp_path / "schedule.npz"
    records.write_schedule(path, np.ones(100))
    for _ in cut_short(path, 7):
        with pytest.raises(records.RecordError, match=r"schedule\.npz is not a schedule"):
            records.read_schedule(path)
    for _ in with_changed_byte(path):  # it is noticed, or changes nothing
        try:
            np.testing.assert_array_equal(records.read_schedule(path), np.ones(100))
        except records.RecordError:
            continue
    for arrays in ({"learning_rates": np.array([{"code": 1}], dtype=object)}, {"a": np.ones(3)}):
        np.savez(path, **arrays)
        with pytest.raises(records.RecordError, match="is not a schedule"):
            records.read_schedule(path)
    with pytest.raises(ValueError, match="must be a vector"):
        records.write_schedule(path, np.ones((2, 2)))


# --- workdirs ---


@pytest.mark.parametrize("name", ["ema", "EMA_0.999", "swa-2", "a=1+b", "_x", "9", "a" * 64])
def test_names_an_average_may_have(name):
    assert records.check_average_name(name) == name


BAD_NAMES = ["", "raw", "NaN", "Infinity", "..", ".", "a/b", "a\\b", "-a", "a.", "a b", "é", "a\n"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "../x", "/etc/passwd", ".x", "a" * 65, 3])
def test_names_an_average_may_not_have(name, tmp_path):
    with pytest.raises(ValueError, match="average's name must be") as caught:
        records.matched_dir(tmp_path, name)
    assert repr(name) in str(caught.value)


def test_a_workdir_of_the_same_configuration_passes(tmp_path):
    config = {"a": {"b": (1, 2), "c": np.float64(0.1), "d": {}}, "e": math.inf}
    records.check_workdir_matches(tmp_path / "new", config)
    records.write_json(tmp_path / "config.json", config)
    records.check_workdir_matches(tmp_path, config)
    records.check_workdir_matches(tmp_path, records.read_json(tmp_path / "config.json"))


def test_a_workdir_of_another_configuration_names_every_difference_and_the_remedy(tmp_path):
    old = {"seed": 1, "model": {"depth": 18, "width": 64}, "gone": {}, "same": [1]}
    new = {"seed": 2, "model": {"depth": 18, "width": 16}, "new": None, "same": [1]}
    records.write_json(tmp_path / "config.json", old)
    with pytest.raises(records.RecordError) as caught:
        records.check_workdir_matches(tmp_path, new)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  seed: there 1, asked 2",
        "  model.width: there 64, asked 16",
        "  gone: there {}, asked (absent)",
        "  new: there (absent), asked null",
    ]
    assert str(tmp_path) in lines[0]
    assert "another --workdir" in lines[-1] and "delete" in lines[-1]
    many = {f"key{index}": 0 for index in range(30)}
    with pytest.raises(records.RecordError, match="and 15 more"):  # 30 new, 5 gone, 20 shown
        records.check_workdir_matches(tmp_path, many)


def test_a_workdir_is_made_and_left_clean(tmp_path):
    path = records.prepare_workdir(tmp_path / "a" / "b")
    assert path.is_dir() and not list(path.iterdir())


def test_a_workdir_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(records.RecordError, match=r"cannot be written .*another --workdir"):
            records.prepare_workdir(path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(records.RecordError, match="Permission denied"):
        records.prepare_workdir(tmp_path / "run")


def test_a_full_disk_is_told_with_the_workdir_and_not_a_temporary_file(tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        records.prepare_workdir(tmp_path / "run")
    assert caught.value.filename == str(tmp_path / "run") and caught.value.errno == errno.ENOSPC


def test_a_workdir_has_one_writer(tmp_path):
    taken = pytest.raises(records.RecordError, match="another process is writing to workdir")
    with records.only_writer(tmp_path), taken, records.only_writer(tmp_path):
        pass
    with records.only_writer(tmp_path):
        assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError), records.only_writer(tmp_path / "absent"):
        pass


@pytest.mark.parametrize("text", ["only notes, no newline", '{"step": 1}\n{"step"'])
def test_rows_are_not_appended_to_a_file_that_does_not_end_with_one(text, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(records.RecordError, match=r"own\.jsonl does not end with a newline"):
        records.append_rows(path, [{"step": 2}])
    assert path.read_text() == text
    for start in ("", '{"step": 1}\n'):
        path.write_text(start)
        records.append_rows(path, [{"step": 2}])
        assert path.read_text() == start + '{"step":2}\n'


# --- reading a run ---


def test_a_run_without_rows_or_schedule_has_an_empty_record(workdir):
    run = records.load_run(workdir)
    assert run.status == "done" and run.config == {"optimizer": {"rate": 0.1}}
    assert run.averages == {"ema": {"kernel": "Exponential"}}
    assert run.all_rows == [] and run.timing() == [] and run.matched() == {}
    assert run.schedule() is None and run.last_step() == 0
    steps, values = run.series("loss")
    assert steps.shape == values.shape == (0,)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ([], r"run\.json: it must be a JSON object"),
        ({"format": 2, "status": "done"}, r"run\.json: `format` must be 1\. Received: format=2"),
        ({"format": 1, "status": "fine"}, "Received: status='fine'"),
        ({"format": 1, "status": "done", "averages": ["ema"]}, "`averages` must be a JSON object"),
        ({"format": 1, "status": "done", "averages": {"ema": 5}}, "`averages.ema` must be a JSON"),
    ],
)
def test_a_run_json_that_cannot_be_right_is_an_error(workdir, run, reason):
    records.write_json(workdir / "run.json", run)
    with pytest.raises(records.RecordError, match=reason):
        records.load_run(workdir)


def test_a_folder_without_a_run_is_an_error(tmp_path, workdir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(records.RecordError, match=r"holds no run\.json"):
        records.load_run(tmp_path / "empty")
    with pytest.raises(records.RecordError, match="is not a folder"):
        records.load_run(tmp_path / "none")
    (workdir / "config.json").unlink()
    with pytest.raises(records.RecordError, match=r"config\.json does not exist"):
        records.load_run(workdir)


def test_rows_and_series_select_by_kind_weights_and_split(workdir):
    records.append_rows(
        workdir / "metrics.jsonl",
        [
            {"kind": "train", "step": 5, "loss": 2.0, "learning_rate": 0.1},
            _eval(5, loss=1.5),
            _eval(5, "swa", loss=1.4),
            _eval(5, "ema", loss=1.3, batch_norm="copy"),
            _eval(5, "ema", loss=9.0, batch_norm="average"),
            _eval(5, split="train", loss=0.9),
            _eval(10, loss=math.nan),
            _eval(10, "ema", loss=None, batch_norm="copy"),
            {"kind": "probe", "step": 12, "weights": "odd"},
        ],
    )
    run = records.load_run(workdir)
    assert run.weights_names() == ["raw", "ema", "swa"]  # raw, configured, others
    assert run.splits() == ["test", "train"] and run.last_step() == 12
    assert len(run.rows("eval")) == 7 and len(run.rows("eval", "ema", "test")) == 3
    steps, values = run.series("loss")
    np.testing.assert_array_equal(steps, [5, 10])
    np.testing.assert_array_equal(values, [1.5, np.nan])
    np.testing.assert_array_equal(run.series("loss", split="train")[1], [0.9])
    # Of two policies the first one met counts, unless one is asked for.
    np.testing.assert_array_equal(run.series("loss", "ema")[1], [1.3])
    np.testing.assert_array_equal(run.series("loss", "ema", batch_norm="average")[1], [9.0])
    np.testing.assert_array_equal(run.train_series("learning_rate")[1], [0.1])


def test_matched_runs_are_found_in_the_order_of_the_averages_and_kept_inside(workdir, tmp_path):
    run = {"format": 1, "status": "done", "averages": {"swa": {}, "ema": {}}}
    records.write_json(workdir / "run.json", run)
    outside = tmp_path / "outside"
    folders = [workdir / "matched" / name for name in ("ema", "swa", "other", "not safe", ".x")]
    for folder in [*folders, outside]:
        folder.mkdir(parents=True)
        records.write_json(
            folder / "run.json", {"format": 1, "status": "done", "name": folder.name}
        )
        records.write_json(folder / "config.json", {})
    (workdir / "matched" / "not_started").mkdir()
    # The workdir is tmp_path itself, so a place outside must lie above it.
    inner = workdir / "matched" / "ema"
    (inner / "matched").mkdir()
    (inner / "matched" / "loop").symlink_to(outside, target_is_directory=True)
    found = records.load_run(workdir).matched()
    assert list(found) == ["swa", "ema", "other"]
    assert found["ema"].run["name"] == "ema"
    assert found["ema"].matched() == {}


def test_timing_and_schedule_are_read(workdir):
    records.append_rows(workdir / "timing.jsonl", [{"step": 5, "seconds": 1.0}])
    records.write_schedule(workdir / "schedule.npz", [0.1, 0.2])
    run = records.load_run(workdir)
    assert run.timing() == [{"step": 5, "seconds": 1.0}]
    np.testing.assert_array_equal(run.schedule(), [0.1, 0.2])
