"""Files that programs read: JSON, rows, schedules, measured arrays, snapshots, states, data."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing import judge
from fuzzing.generate import (
    ARRAY_EDITS,
    PLAIN,
    TEXTS,
    archive,
    damage,
    damaged,
    edited,
    edited_arrays,
    edits,
    mostly,
)
from fuzzing.judge import Fault, Target
from tf_lrtraj import kernels, records
from tf_lrtraj.records import ArrayRecord, MetricsWriter, RecordError
from tf_lrtraj.records.archives import load_arrays
from tf_lrtraj.records.files import LARGEST
from tf_lrtraj.runs.config_checks import ConfigError

_TEMPLATES: dict[str, pathlib.Path] = {}


def template(build: Callable[[pathlib.Path], Any]) -> Callable[[], pathlib.Path]:
    """A folder that `build` fills when it is first asked for; not to be changed."""

    @functools.cache
    def made() -> pathlib.Path:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-template-")) / "made"
        folder.mkdir()
        build(folder)
        _TEMPLATES[build.__name__] = folder
        return folder

    return made


def forget_templates() -> None:
    """Deletes the folders that templates were built in."""
    for folder in _TEMPLATES.values():
        shutil.rmtree(folder.parent, ignore_errors=True)


def reading(folder: pathlib.Path, read: Callable[[], Any], refusals: Any) -> Any:
    """What `read` gives; reading must leave the folder as it was, whether it refuses or not."""
    before = judge.content(folder)
    canary = folder.parent / "unpickled"
    try:
        return read()
    except refusals as error:
        names = {str(folder), *(p.name for p in folder.rglob("*"))}
        if "eceived" not in str(error) and not any(name in str(error) for name in names):
            raise Fault(f"neither the file nor a value is named: {error}") from error
        raise
    finally:
        judge.unchanged(before, judge.content(folder))
        if canary.exists():
            canary.rmdir()
            raise Fault("a pickle was loaded")


# --- Spoiling a folder ----------------------------------------------------------------------

_LINK = ["../outside", "/etc/hostname", "/", ".", "no/where", "/dev/zero", "pipe"]
BYTES = st.tuples(st.just("bytes"), damage())
TREE = st.tuples(st.just("tree"), edits())
ARRAYS = st.tuples(st.just("arrays"), ARRAY_EDITS)
_FATES = ("gone", "empty", "folder", "pipe", "socket", "huge")
FATE = st.sampled_from([*((kind, None) for kind in _FATES), *(("link", to) for to in _LINK)])


def spoil(path: pathlib.Path, how: tuple[str, Any]) -> None:
    """Does one thing to one file."""
    kind, what = how
    if kind in ("gone", "folder", "link", "pipe", "socket"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        elif kind == "link":
            path.symlink_to(what)
            if what == "pipe" and not path.with_name(what).exists():
                os.mkfifo(path.with_name(what))
    elif kind == "huge":
        os.truncate(path, 1 << 42)  # takes no room on the disk
    elif kind == "empty":
        path.write_bytes(b"")
    elif path.stat().st_size > LARGEST:
        return  # made so before
    elif kind == "bytes":
        path.write_bytes(damaged(path.read_bytes(), what))
    else:
        with contextlib.suppress(ValueError, OSError, zipfile.BadZipFile, EOFError):
            rewrite(path, kind, what)  # fails where the file was damaged before


def rewrite(path: pathlib.Path, kind: str, what: Any) -> None:
    """Edits what a file of JSON or of arrays holds."""
    if kind == "tree" and path.suffix == ".json":
        tree = edited([json.loads(path.read_text())], what)
        tree = tree[0] if isinstance(tree, list) and tree else tree
        path.write_text(json.dumps(tree))
    elif kind == "tree" and path.suffix == ".jsonl":
        rows = edited([json.loads(line) for line in path.read_text().splitlines()], what)
        rows = rows if isinstance(rows, list) else [rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "arrays" and path.suffix == ".npz":
        arrays = load_arrays(path)
        canary = next(p for p in path.parents if p.name == "work").parent / "unpickled"
        path.write_bytes(archive(edited_arrays(arrays, what), str(canary)))


def spoilt(made: Callable[[], pathlib.Path], given: Any, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a template with things done to some of its files; `given`: [(place, how)]."""
    work = folder / "work"
    shutil.copytree(made(), work, symlinks=True)
    names = sorted(p for p in work.rglob("*") if p.is_file())
    for place, how in given:
        path = names[place % len(names)]
        if path.is_file() and not path.is_symlink():
            spoil(path, how)
    return work


def things(*kinds: Any, most: int = 3) -> Any:
    """Inputs for `spoilt`."""
    how = mostly(st.one_of(*kinds), FATE, 12)
    return st.lists(st.tuples(st.integers(0, 200), how), min_size=1, max_size=most)


# --- JSON and rows --------------------------------------------------------------------------


def _json(given: bytes, folder: pathlib.Path) -> None:
    (folder / "a.json").write_bytes(given)
    value = reading(folder, lambda: records.read_json(folder / "a.json"), RecordError)
    records.write_json(folder / "b.json", value)
    again = records.read_json(folder / "b.json")
    if repr(again) != repr(value):
        raise Fault(f"{value!r} came back as {again!r}")


_DOCUMENT = {"a": [1, 2.5, None, True, "NaN", {"b": "text", "c": []}], "ü": -1e-7, "d": {"e": 1}}
JSON = Target(
    "records.read_json",
    st.one_of(
        st.builds(damaged, st.just(json.dumps(_DOCUMENT, indent=1).encode()), damage(5)),
        PLAIN.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=40),
        st.sampled_from([b"[" * 5000, b'{"a":' * 3000, b"1" * 6000, b"1e400", b"-", b"\xff"]),
    ),
    _json,
    (RecordError,),
)

_ROWS = [{"kind": "train", "step": s, "loss": 1.0 / (s + 1), "text": "x"} for s in range(6)]
_LINES = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()


def _rows(given: Any, folder: pathlib.Path) -> None:
    data, resume = given
    path = folder / "m.jsonl"
    path.write_bytes(data)
    before = judge.content(folder)
    try:
        rows = records.read_rows(path)
        with MetricsWriter(path, resume) as writer:
            writer.write({"step": 99, "a": 1})
    except RecordError as error:
        judge.unchanged(before, judge.content(folder))
        if str(path) not in str(error):
            raise Fault(f"the file is not named: {error}") from error
        raise
    kept = [row for row in rows if resume is None or row["step"] <= resume]
    found = records.read_rows(path)
    if repr(found) != repr([*kept, {"step": 99, "a": 1}]):
        raise Fault(f"{rows} became {found}")
    judge.leftovers(judge.content(folder))


ROWS = Target(
    "rows of metrics",
    st.tuples(
        st.one_of(
            st.builds(damaged, st.just(_LINES), damage()),
            st.builds(damaged, st.just(_LINES), st.just([("cut_end", 100, 0, b"")])),
            st.builds(edited, st.just(_ROWS), edits()).map(
                lambda rows: (
                    b"".join(json.dumps(row).encode() + b"\n" for row in rows)
                    if isinstance(rows, list)
                    else b"5\n"
                )
            ),
            st.integers(0, len(_LINES)).map(lambda size: _LINES[:size]),
            st.binary(max_size=30),
        ),
        st.none() | st.integers(-1, 8),
    ),
    _rows,
    (RecordError,),
)

_CELLS = st.recursive(
    st.one_of(
        PLAIN, st.sampled_from([np.float32(1), np.arange(2), (1, 2), object(), b"", 1j, {1}])
    ),
    lambda inner: st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=3,
)


def _written(given: Any, folder: pathlib.Path) -> None:
    row, whole = given
    before = judge.content(folder)
    path = folder / "m.jsonl"
    try:
        if whole:
            records.write_json(folder / "a.json", row)
            records.read_json(folder / "a.json")
            return
        records.append_rows(path, [{"step": 1}])
        before = judge.content(folder)
        records.append_rows(path, [row])
    except (ValueError, TypeError):
        judge.unchanged(before, judge.content(folder))
        raise
    if len(records.read_rows(path)) != 2:
        raise Fault("the row is not there")


WRITTEN = Target(
    "records written",
    st.tuples(
        st.dictionaries(st.sampled_from(["step", "a", "b"]) | TEXTS, _CELLS, max_size=3).map(
            lambda row: {"step": 2, **row}
        ),
        st.booleans(),
    ),
    _written,
    (ValueError, TypeError),
    share=0.5,
)

# --- Schedules, measured arrays, states, data -----------------------------------------------


def _arrays(folder: pathlib.Path) -> None:
    from tf_lrtraj.study import state_files

    inner = folder / "in"
    inner.mkdir()
    records.write_schedule(inner / "schedule.npz", np.linspace(0.1, 0.0, 20))
    record = ArrayRecord.empty(
        "line",
        {"rate": [0.0, 0.1, 0.2], "batch": ["a", "b"]},
        {"train": ("rate", "batch"), "mean": ()},
        {"seed": 0, "text": "x"},
    )
    record.put("train", (slice(None), 1), [1.0, 2.0, 3.0])
    record.write(inner / "line.npz")
    state_files.write_arrays(inner / "state.npz", {"w": np.arange(6.0).reshape(2, 3), "step": 4})
    np.savez(inner / "data.npz", x=np.ones((6, 3), np.float32), y=np.arange(6))
    images = np.ones((6, 4, 4, 1), np.float32)
    np.savez(
        inner / "problem.npz",
        x_train=images,
        y_train=np.arange(6),
        x_test=images,
        y_test=np.arange(6),
    )


ARRAYS_MADE = template(_arrays)


def _read_schedule(path: pathlib.Path) -> None:
    if records.read_schedule(path).ndim != 1:
        raise Fault("no vector")


def _read_record(path: pathlib.Path) -> None:
    record = ArrayRecord.read(path)
    for name, value in record.values.items():
        if value.dtype != np.float64 or value.ndim != len(record.dims[name]):
            raise Fault(f"{name} is {value!r}")
    record.complete  # noqa: B018
    records.write_json(path.with_name("about.json"), record.about)
    path.with_name("about.json").unlink()
    wanted = ArrayRecord.empty(
        "line",
        {"rate": [0.0, 0.1], "batch": ["a", "b"]},
        {"train": ("rate", "batch"), "mean": ()},
        {"seed": 0, "text": "x"},
    )
    ArrayRecord.resume(path, wanted, growing="rate")


def _read_state(path: pathlib.Path) -> None:
    from tf_lrtraj.study import state_files

    state_files.read_arrays(path)


def _read_data(path: pathlib.Path) -> None:
    from tf_lrtraj.runs import average_run

    x, y = average_run.read_arrays(path)
    if y is not None and len(x) != len(y):
        raise Fault("lengths differ")


def _read_problem(path: pathlib.Path) -> None:
    from tf_lrtraj.study import problem

    found = problem._from_file(path)
    if len(found.x_train) != len(found.y_train):
        raise Fault("lengths differ")


def arrays_target(
    name: str, file: str, read: Callable[[pathlib.Path], None], refusals: Any, **more: Any
) -> Target:
    def run(given: Any, folder: pathlib.Path) -> None:
        work = folder / "work"
        work.mkdir()
        path = work / file
        shutil.copyfile(ARRAYS_MADE() / "in" / file, path)
        spoil(path, given)
        reading(work, lambda: read(path), refusals)

    inputs = mostly(st.one_of(ARRAYS, ARRAYS, BYTES), FATE, 20)
    return Target(name, inputs, run, refusals, **more)


SCHEDULES = arrays_target("schedule.npz", "schedule.npz", _read_schedule, (RecordError,))
RECORDS = arrays_target("measured arrays", "line.npz", _read_record, (RecordError,), share=2)
STATES = arrays_target(
    "states of a reproduction", "state.npz", _read_state, (RecordError,), keras=True
)
DATA = arrays_target("data of one's own (.npz)", "data.npz", _read_data, (ConfigError,))
PROBLEM = arrays_target(
    "data of a reproduction", "problem.npz", _read_problem, (ConfigError,), keras=True
)

# --- Snapshots ------------------------------------------------------------------------------


def _snapshots(folder: pathlib.Path, encoding: str = "exact") -> None:
    from tf_lrtraj.averaging.snapshots import SnapshotWriter, Timetable, VariableSpec

    variables = [
        VariableSpec("dense/kernel", (3, 4), "float32", "trainable"),
        VariableSpec("dense/bias", (4,), "float32", "trainable"),
        VariableSpec("bn/mean", (4,), "float32", "statistic"),
        VariableSpec("bn/variance", (4,), "float32", "statistic"),
    ]
    writer = SnapshotWriter(folder, variables, Timetable(2), encoding)
    random = np.random.default_rng(0)
    for step in range(0, 20, 2):
        writer.write(step, [random.normal(size=v.shape).astype(np.float32) for v in variables])


def _snapshots_of_integers(folder: pathlib.Path) -> None:
    _snapshots(folder, "int8")


def _old_snapshots(folder: pathlib.Path) -> None:
    """Snapshots of format 1, of the same values."""
    from tf_lrtraj.averaging.snapshots import Snapshots

    _snapshots(folder)
    made = Snapshots(folder)
    for step in made.steps.tolist():
        values = b"".join(array.tobytes() for array in made.read(step))
        header: dict[str, Any] = {"step": step, "crc32": zlib.crc32(values), "scales": [None] * 4}
        head = json.dumps(header).encode()
        content = b"LRTSNAP1" + len(head).to_bytes(4, "little") + head + values
        made.path(step).with_suffix(".snap").write_bytes(content)
        made.path(step).unlink()
    index = folder / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 1}))


_EXACT, _INTEGERS = template(_snapshots), template(_snapshots_of_integers)
_KINDS = [_EXACT, _INTEGERS, template(_old_snapshots)]
# The header of a snapshot, rewritten.
_HEADER = st.tuples(st.just("header"), edits(), st.integers(0, 2))


def _reheaded(path: pathlib.Path, changes: Any, lie: int) -> bytes:
    data = path.read_bytes()
    start, size = (8, 4) if path.suffix == ".snap" else (0, 8)  # where its length stands
    length = int.from_bytes(data[start : start + size], "little")
    rest = data[start + size :]
    tree = edited([json.loads(rest[:length])], changes)
    head = json.dumps(tree[0] if isinstance(tree, list) and tree else tree).encode()
    said = len(head) if not lie else 2 ** (8 * size) - 1 if lie == 1 else 0
    return data[:start] + said.to_bytes(size, "little") + head + rest[length:]


def _spoilt_snapshots(given: Any, folder: pathlib.Path) -> pathlib.Path:
    kind, changes, odd = given
    work = folder / "work"
    shutil.copytree(_KINDS[kind](), work)
    names = [work / "index.json", *sorted(work.glob("step_*"))]
    for place, how in changes:
        path = names[place % 4 if place % 3 else 0]
        if not path.is_file() or path.is_symlink():
            continue
        if how[0] == "header":
            if path.suffix != ".json":
                with contextlib.suppress(ValueError, TypeError):
                    path.write_bytes(_reheaded(path, how[1], how[2]))
        elif how[0] == "tree" and path.suffix != ".json":
            continue
        else:
            spoil(path, how)
    if odd:
        (work / odd).write_bytes(b"x")
    return work


_SNAPSHOTS = st.tuples(
    st.integers(0, len(_KINDS) - 1),
    st.lists(
        st.tuples(st.integers(0, 30), mostly(st.one_of(TREE, TREE, BYTES, _HEADER), FATE, 12)),
        max_size=2,
    ),
    st.sampled_from(
        [
            None,
            None,
            None,
            "step_000000005.safetensors",
            "step_000000002.snap",
            "step_5.snap",
            "step_99999999999999999999.safetensors",
            ".step_000000001.safetensors.77.tmp",
            "step_١١١١١١١١١.snap",
        ]
    ),
)


def _opened(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.averaging.post_hoc import average_snapshots, memory_bytes
    from tf_lrtraj.averaging.snapshots import Snapshots

    work = _spoilt_snapshots(given, folder)

    def read() -> None:
        snapshots = Snapshots(work)
        len(snapshots), snapshots.num_weights, snapshots.nbytes, memory_bytes(snapshots, 2)
        for step in snapshots.steps[:2].tolist() + snapshots.steps[-1:].tolist():
            snapshots.checksum(step), snapshots.error_bound(step)
            arrays = snapshots.read(step)
            if [a.shape for a in arrays] != [v.shape for v in snapshots.variables]:
                raise Fault("shapes")
        last = int(snapshots.steps[-1])
        targets = {"ema": kernels.Exponential(0.5), "swa": kernels.Uniform(4)}
        average_snapshots(snapshots, targets, last if last < 1000 else None, progress=False)

    reading(work, read, (RecordError, ValueError))


SNAPSHOTS = Target("folders of snapshots", _SNAPSHOTS, _opened, (RecordError, ValueError), share=3)


def _continued(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.averaging.snapshots import Snapshots, SnapshotWriter, Timetable

    before_work, step = given
    work = _spoilt_snapshots(before_work, folder)
    variables = Snapshots(_EXACT()).variables
    before = judge.content(work)
    try:
        writer = SnapshotWriter(work, variables, Timetable(2), "exact")
    except RecordError:
        judge.unchanged(before, judge.content(work))
        raise
    writer.forget_after(step)
    writer.write(step, [np.zeros(v.shape, np.float32) for v in variables])
    judge.leftovers(judge.content(work))
    if step not in writer.steps() or max(writer.steps()) > step:
        raise Fault(f"steps {writer.steps()} after {step}")


CONTINUED = Target(
    "snapshots gone on with",
    st.tuples(_SNAPSHOTS, st.integers(0, 30)),
    _continued,
    (RecordError, OSError),
    share=0.5,
)

TARGETS = [JSON, ROWS, WRITTEN, SCHEDULES, RECORDS, STATES, DATA, PROBLEM, SNAPSHOTS, CONTINUED]
