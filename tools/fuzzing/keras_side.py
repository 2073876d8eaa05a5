"""What needs Keras or TensorFlow: callbacks, schedules, models in files, checkpoints, workdirs."""

from __future__ import annotations

import functools
import io
import json
import pathlib
import shutil
import tempfile
import zipfile
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st

from fuzzing import judge
from fuzzing.files import BYTES, TREE, _snapshots, reading, spoilt, template, things
from fuzzing.generate import ODD, SCALARS, TEXTS, damage, damaged, edited, edits, mostly
from fuzzing.judge import Fault, Target
from fuzzing.pages import RUN
from fuzzing.programs import arguments, reached, target
from fuzzing.values import KERNELS, RATES
from fuzzing.values import spoilt as spoilt_value
from tf_lrtraj import kernels, records
from tf_lrtraj.records import RecordError, archives
from tf_lrtraj.runs.config_checks import ConfigError

# --- Constructors ---------------------------------------------------------------------------

_KERNEL = mostly(st.sampled_from(KERNELS).map(kernels.from_config), ODD, 5)
_COUNT = mostly(st.integers(1, 9), SCALARS | ODD, 3)


def _options(**sound: Any) -> Any:
    """Some of the arguments, mostly sound."""
    return st.fixed_dictionaries({}, optional={k: mostly(v, ODD, 3) for k, v in sound.items()})


def _averaging(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj import WeightAveraging

    averages, options = given
    WeightAveraging(averages, **options)


AVERAGING = Target(
    "WeightAveraging(…)",
    st.tuples(
        mostly(
            st.dictionaries(
                mostly(st.sampled_from("abc"), TEXTS, 8), _KERNEL, min_size=1, max_size=2
            ),
            ODD,
        ),
        _options(
            batch_norm=st.sampled_from(["recompute", "average", "copy"]),
            batch_norm_data=st.none(),
            batch_norm_batches=st.integers(1, 5),
            batch_size=st.integers(1, 64),
            validation_freq=st.integers(1, 3),
            save_best=st.sampled_from([{}, {"a": "a.keras"}, {"a": "a.h5"}, {"z": "z.keras"}]),
            monitor=st.sampled_from(["loss", "accuracy"]),
            mode=st.sampled_from([None, "min", "max"]),
        ),
    ),
    _averaging,
    keras=True,
)


def _recorder(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.averaging import SnapshotRecorder

    before = judge.content(folder)
    try:
        SnapshotRecorder(folder / "snapshots", **given)
    finally:
        judge.unchanged(before, judge.content(folder))


RECORDER = Target(
    "SnapshotRecorder(…)",
    _options(
        every=st.integers(1, 9),
        start=st.integers(0, 9),
        encoding=st.sampled_from(["exact", "int8", "int16"]),
        limit=st.none() | st.integers(2, 9),
        when_full=st.sampled_from(["thin", "drop_oldest"]),
    ),
    _recorder,
    share=0.5,
    keras=True,
)


def _prober(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.probes import ProbeRecorder

    names, every, start = given
    before = judge.content(folder)
    try:
        ProbeRecorder(folder / "probes", names, every, start)
    finally:
        judge.unchanged(before, judge.content(folder))


PROBER = Target(
    "ProbeRecorder(…)",
    st.tuples(
        mostly(
            st.dictionaries(
                mostly(st.sampled_from(["line", "a-b"]), TEXTS, 3), st.just(len), max_size=2
            ),
            ODD,
        ),
        _COUNT,
        _COUNT,
    ),
    _prober,
    share=0.5,
    keras=True,
)


def _schedule(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj import schedules

    kind, rate, kernel, steps, curvature, momentum = given
    if kind:
        made: Any = schedules.RateSchedule(rate)
    else:
        made = schedules.EquivalentSchedule(kernel, rate, steps, curvature, momentum)
    again = type(made).from_config(made.get_config())
    if not np.isfinite(float(again(3))):
        raise Fault("not finite")


_NUMBER = mostly(st.sampled_from([0.0, 0.5, 0.9]), SCALARS, 4)
SCHEDULES = Target(
    "Keras schedules",
    st.tuples(
        st.booleans(),
        spoilt_value(RATES),
        mostly(_KERNEL, spoilt_value(KERNELS), 3),
        mostly(st.just(40), st.integers(0, 60) | st.sampled_from([None, 1.5, "3", True]), 3),
        _NUMBER,
        _NUMBER,
    ),
    _schedule,
    keras=True,
)

# --- Models in files ------------------------------------------------------------------------


@functools.cache
def _model_bytes(lambda_layer: bool = False) -> bytes:
    import keras

    layers: list[Any] = [keras.Input((3,)), keras.layers.Dense(4, activation="relu")]
    if lambda_layer:
        layers.append(keras.layers.Lambda(lambda x: x * 2))
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    path = template(lambda folder: model.save(folder / "model.keras"))()
    return (path / "model.keras").read_bytes()


@functools.cache
def _zeros() -> bytes:
    return bytes(archives.LARGEST_TEXT + 1)


def _rezipped(data: bytes, how: tuple[str, Any]) -> bytes:
    """The archive with one member changed, added under another path, or the whole damaged."""
    kind, what = how
    if kind == "bytes":
        return damaged(data, what)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if kind == "tree" and info.filename == "config.json":
                tree = edited([json.loads(content)], what)
                content = json.dumps(tree[0] if isinstance(tree, list) and tree else tree).encode()
            if kind == "weights" and info.filename.endswith(".h5"):
                content = damaged(content, what)
            if kind == "bomb" and info.filename == what:
                new.writestr(what, _zeros(), zipfile.ZIP_DEFLATED, compresslevel=1)
            elif kind != "gone" or info.filename != what:
                new.writestr(info, content)
        if kind == "extra":
            new.writestr(what, b"outside")
    return out.getvalue()


def _loaded(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.averaging.snapshots import Snapshots
    from tf_lrtraj.runs import average_run

    with_lambda, (kind, what) = given
    work, unpacked = folder / "work", folder / "unpacked"
    for new in (work, unpacked):
        new.mkdir()
    if kind == "extra":
        what = what.replace(_HERE, str(folder))
    (work / "model.keras").write_bytes(_rezipped(_model_bytes(with_lambda), (kind, what)))
    shutil.copytree(_OF_MODEL(), work / "snapshots")

    def read() -> None:
        average_run.ModelTarget(Snapshots(work / "snapshots"), work / "model.keras", {})
        if with_lambda:
            raise Fault("a layer with stored bytecode was loaded")

    try:
        # Keras unpacks into a temporary folder: one of the case's, where what leaves it is seen.
        with mock.patch.object(tempfile, "tempdir", str(unpacked)):
            reading(work, read, (ConfigError, RecordError))
    finally:
        if any((place / "outside").exists() for place in (folder.parent, folder, work, unpacked)):
            raise Fault("a member was written outside")


def _of_model(folder: pathlib.Path) -> None:
    from tf_lrtraj.averaging.snapshots import SnapshotWriter, Timetable, VariableSpec

    shapes = [(3, 4), (4,), (4, 2), (2,)]
    variables = [VariableSpec(f"v{i}", s, "float32", "trainable") for i, s in enumerate(shapes)]
    writer = SnapshotWriter(folder, variables, Timetable(2))
    for step in range(0, 20, 2):
        writer.write(step, [np.full(s, step, np.float32) for s in shapes])


_OF_MODEL = template(_of_model)
_MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]
_HERE = "HERE"  # stands for the case's folder
_EXTRA = ["../outside", f"{_HERE}/outside", "assets/../../outside", "assets/x", "a\\b", "con"]
MODELS = Target(
    "models (.keras)",
    st.tuples(
        mostly(st.just(False), st.just(True), 5),
        st.one_of(
            st.tuples(st.just("bytes"), damage(2)),
            st.tuples(st.just("tree"), edits(most=2)),
            st.tuples(st.just("weights"), damage(2)),
            st.tuples(st.just("gone"), st.sampled_from(_MEMBERS)),
            st.tuples(st.just("bomb"), st.just("config.json")),
            st.tuples(st.just("extra"), st.sampled_from(_EXTRA)),
        ),
    ),
    _loaded,
    (ConfigError, RecordError),
    share=0.5,
    keras=True,
)

# --- Checkpoints ----------------------------------------------------------------------------


@functools.cache
def _variables() -> list[Any]:
    import keras

    return [keras.Variable(np.ones(3, np.float32)), keras.Variable(np.zeros((2, 2), np.float32))]


def _checkpoints(folder: pathlib.Path) -> None:
    from tf_lrtraj.training.checkpoints import Checkpointer

    checkpointer = Checkpointer(folder, {"model": _variables()}, keep=3)
    for step in (10, 20):
        checkpointer.save(step, {"updates": step})


CHECKPOINTS_MADE = template(_checkpoints)


def _restored(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.training.checkpoints import Checkpointer, CheckpointError

    changes, step, sign = given
    work = spoilt(CHECKPOINTS_MADE, changes, folder)
    if sign:  # whoever changed the files has changed their checksums as well
        from tf_lrtraj.training import checkpoints

        for inner in work.iterdir():
            if inner.is_dir() and all(p.is_file() for p in inner.iterdir()):
                records.write_json(inner / "manifest.json", checkpoints._manifest(inner))
    reading(
        work,
        lambda: Checkpointer(work, {"model": _variables()}, writer=False).restore(step),
        (CheckpointError, RecordError, FileNotFoundError),
    )


def _checkpoint_errors() -> Any:
    return (ValueError, FileNotFoundError)


CHECKPOINTS = Target(
    "checkpoints",
    st.tuples(
        things(TREE, TREE, BYTES, most=2), st.sampled_from([None, None, 10, 20, 5]), st.booleans()
    ),
    _restored,
    _checkpoint_errors(),
    keras=True,
)

# --- Programs that read a workdir -----------------------------------------------------------


def _workdir(folder: pathlib.Path) -> None:
    from tf_lrtraj.runs.run_config import default_config, validate

    shutil.copytree(RUN(), folder, dirs_exist_ok=True)
    config = validate(default_config())
    config["averages"] = {"ema": kernels.Exponential(0.9).get_config()}
    records.write_json(folder / "config.json", config)
    (folder / "checkpoints").mkdir()
    _snapshots(folder / "snapshots")


WORKDIR = template(_workdir)
_SPOILT = st.one_of(st.just([]), things(TREE, BYTES, most=1))


def _with_workdir(given: Any, folder: pathlib.Path) -> list[str]:
    changes, flags, more = given
    spoilt(WORKDIR, changes, folder)
    (folder / "file").write_text("text")
    (folder / "data.npz").write_bytes(b"x")
    (folder / "model.keras").write_bytes(b"x")
    return [*flags, *more]


def _stopped() -> list[Any]:
    """Restoring, building and measuring are the long work."""
    from tf_lrtraj.bin import common
    from tf_lrtraj.runs import average_run, evaluate_run
    from tf_lrtraj.runs.probing import probe_run

    return [
        mock.patch.object(evaluate_run, "open_checkpoint", reached),
        mock.patch.object(probe_run, "probe_run", reached),
        mock.patch.object(average_run, "RunTarget", reached),
        mock.patch.object(common, "configure_threads"),
    ]


def _reader(name: str, *starts: str, share: float = 1.0) -> Target:
    start = st.sampled_from([text.split() for text in (*starts, "")])
    inputs = st.tuples(_SPOILT, start, st.deferred(lambda: arguments(name, 3)))
    return target(name, inputs, _with_workdir, _stopped, share, keras=True)


AVERAGE = _reader(
    "average",
    "--workdir=work --kernel=ema:0.5",
    "--workdir=work --kernel=swa:start=4",
    "--workdir=work --schedule=linear:5",
    "--workdir=work --advise",
    share=1.5,
)
EVALUATE = _reader("evaluate", "--workdir=work", "--workdir=work --weights=ema")
PROBE = _reader(
    "probe",
    "--workdir=work --probe=line",
    "--workdir=work --probe=basin --points=first,last",
    "--workdir=work --probe=width --points=first",
)


def _report_patches() -> list[Any]:
    from tf_lrtraj.report import drawing

    return [mock.patch.object(drawing, "to_svg", lambda figure: "<svg></svg>")]


REPORT = target(
    "report",
    st.tuples(
        _SPOILT,
        st.sampled_from([["--workdir=work"], ["--workdir=work", "--figures=figures"], []]),
        st.deferred(lambda: arguments("report", 2)),
    ),
    _with_workdir,
    _report_patches,
    share=0.5,
)

TARGETS = [AVERAGING, RECORDER, PROBER, SCHEDULES, MODELS, CHECKPOINTS]
TARGETS += [AVERAGE, EVALUATE, PROBE, REPORT]
