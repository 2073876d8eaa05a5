"""Inputs that once were not refused cleanly; what found them is in tools/fuzzing."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from fuzzing import judge, programs
from helpers import write_old_snapshots, write_snapshots

from tf_lrtraj import kernels, rates, records, theory
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.durations import Duration
from tf_lrtraj.records import ArrayRecord, RecordError
from tf_lrtraj.runs import run_config as training
from tf_lrtraj.runs import synthetic_run
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.specs import PROBES, check_kind
from tf_lrtraj.study import study_config as reproduction
from tf_lrtraj.theory import schedule_equivalence

BEYOND = 10**400  # an integer that no float holds

# --- Values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        # OverflowError
        lambda: Duration.parse(f"{'9' * 400} epochs").steps(1, 1),
        lambda: kernels.Exponential(BEYOND),
        lambda: kernels.Custom([BEYOND]),
        lambda: rates.Constant(BEYOND),
        lambda: rates.Table([BEYOND]),
        lambda: theory.QuadraticModel([BEYOND], [1.0]),
        lambda: theory.window_for_ema_decay(BEYOND),
        lambda: theory.schedule_from_weights([0.5, 0.5], 0.1, momentum=BEYOND),
        # TypeError: an unhashable name, keys that cannot be sorted, no dict at all
        lambda: kernels.from_config({"kernel": []}),
        lambda: kernels.from_config({"kernel": "Uniform", 1: 2, "a": 3}),
        lambda: kernels.from_config(5),
        lambda: rates.from_config({"rate": {}}),
        lambda: rates.from_config(None),
        lambda: theory.schedule_from_weights([0.5, 0.5], 0.1, momentum=object()),
        lambda: theory.squared_distances([[object()]]),
        # AttributeError, IndexError
        lambda: schedule_equivalence.response([1.0], [1.0]),
        lambda: theory.estimate_spectrum([1], [0.0], 1, 1, 0.5),
        lambda: theory.estimate_spectrum([5], [1.0], 3, 1, 0.5),
        # probes
        lambda: check_kind([]),
        lambda: PROBES["line"].check({"scale": []}),
        lambda: PROBES["line"].check({"low": BEYOND}),
        lambda: PROBES["gradients"].check({"batches": 2}),
    ],
)
def test_values_are_refused_by_name(call):
    with pytest.raises(ValueError, match=r"eceived|must"):
        call()


def test_digits_of_other_scripts_are_no_duration():
    with pytest.raises(ValueError, match="Received"):
        Duration.parse("١ steps")


# --- Configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validate", "given", "named"),
    [
        (training.validate, {"averages": None}, "config.averages"),
        (training.validate, {"schedule": 5}, "config.schedule"),
        (training.validate, {"probes": []}, "config.probes"),
        (training.validate, None, "None"),
        (training.validate, {"matched": {"averages": [[]]}}, "matched.averages"),
        (training.validate, {"model": {"stem": []}}, "model.stem"),
        (training.validate, {"optimizer": {"weight_decay": BEYOND}}, "weight_decay"),
        (training.validate, {"schedule": {"rate": object()}}, "config.schedule"),
        (training.validate, {"data": {"batch_size": 10**30}}, "batch_size"),
        (reproduction.validate, {"averages": None}, "config.averages"),
        (reproduction.validate, {"learning_rate": BEYOND}, "learning_rate"),
        (reproduction.validate, 7, "7"),
        (synthetic_run.validate, None, "None"),
        (synthetic_run.validate, {"averaging_length": {"rates": 5}}, "rates"),
        (synthetic_run.validate, {"single_runs": {"rate": BEYOND}}, "single_runs.rate"),
        (synthetic_run.validate, {"seed": 1, 5: 6, "x": 7}, "unknown"),
    ],
)
def test_configurations_are_refused_by_name(validate, given, named):
    with pytest.raises(ConfigError, match=named):
        validate(given)


def test_a_run_longer_than_any_is_refused_before_its_rates_are_made():
    plain = training.validate({"total": "999999999999 steps"})
    with pytest.raises(ConfigError, match=r"config.total.*100,000,000"):
        training.resolve(plain, 1000)


# --- Files ------------------------------------------------------------------------------------


def _npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _header_only(shape):
    content = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("learning_rates.npy", content.getvalue())
    return held.getvalue()


def test_a_schedule_that_promises_terabytes_is_damaged(tmp_path):
    (tmp_path / "schedule.npz").write_bytes(_header_only((10**12,)))
    with pytest.raises(RecordError, match=r"schedule\.npz"):
        records.read_schedule(tmp_path / "schedule.npz")


def test_a_record_whose_axes_multiply_beyond_its_values_is_damaged(tmp_path):
    record = ArrayRecord.empty("line", {"a": np.arange(3000)}, {"v": ("a",)})
    record.dims["v"] = ("a",) * 6
    record.write(tmp_path / "line.npz")
    with pytest.raises(RecordError, match=r"line\.npz"):
        ArrayRecord.read(tmp_path / "line.npz")


@pytest.fixture
def snapshots(tmp_path):
    iterates = np.repeat(np.arange(3, dtype=np.float32)[:, None], 2, axis=1)
    write_snapshots(tmp_path / "snapshots", range(3), iterates)
    return tmp_path / "snapshots"


@pytest.fixture
def old_snapshots(tmp_path):
    variables = [("w", (2,), "float32", "trainable")]
    values = {step: [np.full(2, step, np.float32)] for step in range(3)}
    write_old_snapshots(tmp_path / "old", variables, values)
    return tmp_path / "old"


@pytest.mark.parametrize("step", [1, 10**20, -(10**400)])
def test_a_step_without_a_snapshot_is_refused_with_the_nearest(snapshots, step):
    from tf_lrtraj.averaging.post_hoc import snapshot_weights

    (snapshots / "step_000000001.safetensors").unlink()
    found = Snapshots(snapshots)
    with pytest.raises(RecordError, match=r"nearest are \[0, 2\]"):
        found.path(step)
    with pytest.raises(ValueError, match=r"the nearest are \[0, 2\]"):
        snapshot_weights(found.steps, kernels.Uniform(), step)


@pytest.mark.parametrize("name", ["step_99999999999999999999.safetensors", "step_١١١١١١١١١.snap"])
def test_files_that_only_look_like_snapshots_are_none(snapshots, name):
    (snapshots / name).write_bytes(b"x")
    assert Snapshots(snapshots).steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("scales", ["[[]]", "[1.0]", "[null, null]", "5", '{"a": 1}', "[" * 5000])
def test_a_header_of_an_old_snapshot_with_odd_scales_is_damaged(old_snapshots, scales):
    path = old_snapshots / "step_000000001.snap"
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[8:12])
    head = f'{{"step": 1, "crc32": 0, "scales": {scales}}}'.encode()
    path.write_bytes(data[:8] + struct.pack("<I", len(head)) + head + data[12 + length :])
    with pytest.raises(RecordError, match="step_000000001"):
        Snapshots(old_snapshots).error_bound(1)


def test_a_folder_in_a_snapshots_place_is_named(snapshots):
    (snapshots / "step_000000001.safetensors").unlink()
    (snapshots / "step_000000001.safetensors").mkdir()
    with pytest.raises(RecordError, match="step_000000001"):
        Snapshots(snapshots).read(1)


@pytest.mark.parametrize("shape", [[2**40, 2**40], [2**32, 2**32, 2]])
@pytest.mark.parametrize(
    ("folder", "message"), [("snapshots", "'w' is not as in"), ("old_snapshots", "bytes instead")]
)
def test_shapes_whose_size_overflows_are_damaged_and_take_no_memory(
    folder, message, shape, request
):
    folder = request.getfixturevalue(folder)
    index = json.loads((folder / "index.json").read_text())
    index["variables"][0]["shape"] = shape
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(RecordError, match=message):
        Snapshots(folder).read(1)


def test_an_index_without_variables_is_damaged(snapshots):
    index = json.loads((snapshots / "index.json").read_text())
    (snapshots / "index.json").write_text(json.dumps({**index, "variables": []}))
    with pytest.raises(RecordError, match=r"index\.json"):
        Snapshots(snapshots)


@pytest.mark.parametrize(
    "arrays", [{"x": np.array(1.0)}, {"x": np.zeros((0, 3))}, {"y": np.ones(1)}]
)
def test_data_without_examples_is_refused(tmp_path, arrays):
    from tf_lrtraj.runs.average_run import read_arrays

    (tmp_path / "data.npz").write_bytes(_npz(**arrays))
    with pytest.raises(ConfigError, match=r"data\.npz"):
        read_arrays(tmp_path / "data.npz")


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"large_rate": "x"}'])
def test_a_synthetic_record_of_something_else_is_refused_and_nothing_drawn(tmp_path, content):
    from tf_lrtraj.report import synthetic_figures as report

    (tmp_path / "two_time_scales.json").write_text(content)
    (tmp_path / "two_time_scales.npz").write_bytes(_npz(a=np.ones(2)))
    with pytest.raises(RecordError, match="two_time_scales"):
        report.draw(tmp_path)
    assert not list(tmp_path.glob("*.svg"))


# --- Programs ---------------------------------------------------------------------------------


def _refused(name, arguments, folder):
    with pytest.raises(judge.Refused, match=r"exit [12]"):
        programs.run_program(
            name, arguments, folder
        )  # checks the message, and that no file changed


@pytest.mark.parametrize(
    "more",
    [
        ["--csv=out.csv", "--figure=None"],
        ["--csv=out.csv", "--figure=none/out.png"],
        ["--csv=none/out.csv"],
        ["--csv=."],
        [f"--csv={'a' * 300}"],
        ["--num_steps=10000000000000"],
        ["--spectrum=1e-3:1:99999999999"],
    ],
)
def test_equivalence_writes_nothing_before_it_can_write_all(tmp_path, more):
    _refused("equivalence", ["--kernel=Exponential(0.9)", "--num_steps=30", *more], tmp_path)


def test_a_table_of_trillions_of_steps_is_refused(tmp_path):
    (tmp_path / "rates.csv").write_text("step,rate\n0,0.1\n99999999999999,0.1\n")
    _refused("equivalence", ["--base=rates.csv:rate", "--kernel=Exponential(0.9)"], tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "no_such_name",
        "import no_such_module",
        "def get_config():\n    raise KeyError('k')",
        "def get_config():\n    raise ValueError",
        "def get_config():\n    raise OSError(2, 'No such file', 'x')",
        "def get_config():\n    raise SystemExit(3)",
        "def get_config():\n    return 5",
        "def get_config(",
        "x = 1",
    ],
)
def test_errors_of_configuration_files_are_told_in_a_line(tmp_path, body, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "config.py").write_text(body + "\n")
    _refused("synthetic", ["--config=config.py", "--workdir=run"], tmp_path)


def test_the_line_of_a_configuration_file_that_failed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "config.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(judge.Refused) as refusal:
        programs.run_program("synthetic", ["--config=config.py", "--workdir=run"], tmp_path)
    assert "config.py, line 2: ZeroDivisionError: division by zero" in refusal.value.said


@pytest.mark.parametrize(
    "flag", ["--figures=file", "--output=", "--output=.", "--output=none/page.html"]
)
def test_a_report_is_not_written_where_not_all_of_it_can_be(tmp_path, flag):
    from fuzzing import pages

    pages._run(tmp_path)
    (tmp_path / "file").write_text("x")
    _refused("report", ["--workdir=.", flag], tmp_path)


# --- With Keras -------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [None, {"line": 5}, ["line"]])
def test_probes_that_are_none_are_refused(tmp_path, probes):
    from tf_lrtraj.probes import ProbeRecorder

    with pytest.raises(ValueError, match="probes"):
        ProbeRecorder(tmp_path, probes, 1)


@pytest.mark.parametrize("options", [{"momentum": None}, {"curvature": "x"}, {"curvature": BEYOND}])
def test_schedules_refuse_what_is_no_number(options):
    from tf_lrtraj.schedules import EquivalentSchedule

    with pytest.raises(ValueError, match=next(iter(options))):
        EquivalentSchedule(kernels.Uniform(), 0.1, 4, **options)


@pytest.fixture
def restorer(tmp_path):
    """Checkpoints of steps 10 and 20, and what reads them."""
    from fuzzing import keras_side

    from tf_lrtraj.training import checkpoints

    keras_side._checkpoints(tmp_path)
    return checkpoints.Checkpointer(tmp_path, {"model": keras_side._variables()}, writer=False)


@pytest.mark.parametrize("name", ["variables.data-00000-of-00001", "variables.index"])
def test_a_checkpoint_signed_after_it_was_cut_is_refused(tmp_path, restorer, name):
    from tf_lrtraj.training import checkpoints

    inner = tmp_path / "step_000000020"
    (inner / name).write_bytes((inner / name).read_bytes()[:-1])
    records.write_json(inner / "manifest.json", checkpoints._manifest(inner))
    with pytest.raises(checkpoints.CheckpointError, match="step_000000020"):
        restorer.restore(20)


def test_a_checkpoint_whose_manifest_lists_nothing_is_damaged(tmp_path, restorer):
    records.write_json(tmp_path / "step_000000020" / "manifest.json", {})
    assert restorer.restore()[0] == 10
