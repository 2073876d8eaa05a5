"""Files from strangers: nothing in them is run, and nothing outside of the workdir is touched."""

import ast
import io
import pathlib
import re
import zipfile

import numpy as np
import pytest
from fuzzing import judge

from tf_lrtraj import records
from tf_lrtraj.records import archives
from tf_lrtraj.records.archives import load_arrays

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "tf_lrtraj"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Modules that run what they read, or make files that others can take over.
RUNNING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
# Calls that do: the full name, or its end.
CALLS = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "np.load",
    "numpy.load",
}
CALLS |= {"keras.models.load_model", "enable_unsafe_deserialization", "unsafe_load", "__import__"}


def _name(node):
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _dangers(source):
    """What in a source could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            names.append(getattr(node, "module", None) or "")
            found += [f"imports {n}" for n in names if n.partition(".")[0] in RUNNING]
        if not isinstance(node, ast.Call):
            continue
        name, options = _name(node.func), {k.arg: k.value for k in node.keywords}
        if name in CALLS or name.rpartition(".")[2] in CALLS - {"compile"}:
            found.append(f"calls {name}")
        if name.endswith("load_model") and not (
            name in ("load_model", "model_files.load_model")
            or ast.unparse(options.get("safe_mode", ast.Constant(None))) == "True"
        ):
            found.append(f"calls {name} without safe_mode=True")
        if (
            "shell" in options
            or ast.unparse(options.get("allow_pickle", ast.Constant(0))) == "True"
        ):
            found.append(f"calls {name} with shell or allow_pickle")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_runs_what_it_reads(path):
    assert not _dangers(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "keras.saving.load_model(path)",
        "keras.saving.load_model(path, safe_mode=False)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "tempfile.mktemp()",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert _dangers(source)


def _archive(name, header, data):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content.getvalue() + data)
    return held.getvalue()


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"descr": "<f8", "fortran_order": False, "shape": (10**12,)}, b"", "promises"),
        ({"descr": "|O", "fortran_order": False, "shape": (1,)}, b"x", "objects"),
        ({"descr": "<f8", "fortran_order": False, "shape": (1,)}, bytes(16), "promises"),
        ({"descr": "|u1", "fortran_order": False, "shape": (1 << 29,)}, bytes(1 << 20), "promises"),
    ],
)
def test_archives_get_no_more_memory_than_they_hold(header, data, reason):
    with pytest.raises(ValueError, match=reason):
        load_arrays(_archive("a.npy", header, data))


def test_a_bomb_is_refused_before_it_goes_off():
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 22,)}
    bomb = _archive("a.npy", header, bytes(1 << 22))
    assert len(bomb) < 10_000
    with pytest.raises(ValueError, match="more than"):
        load_arrays(bomb, largest=1 << 20)


def test_an_archive_without_a_limit_of_its_own_is_bounded_by_its_size(monkeypatch):
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 24,)}
    bomb = _archive("a.npy", header, bytes(1 << 24))
    assert len(bomb) < 20_000
    assert load_arrays(bomb, largest=None)["a"].size == 1 << 24  # no more than others may take
    monkeypatch.setattr(archives, "LARGEST", 1 << 22)
    with pytest.raises(ValueError, match="unpack to 16,777"):
        load_arrays(bomb, largest=None)
    random = np.random.default_rng(0).integers(256, size=1 << 24, dtype=np.uint8)
    fine = _archive("a.npy", header, random.tobytes())
    np.testing.assert_array_equal(load_arrays(fine, largest=None)["a"], random)


@pytest.mark.parametrize(
    ("member", "size", "said"),
    [
        ("config.json", archives.LARGEST_TEXT + 1, r"its config\.json has"),
        ("model.weights.h5", 1 << 28, "unpack to"),
        ("assets/none", 1 << 28, "unpack to"),
    ],
)
def test_a_model_that_unpacks_to_far_more_than_its_size_is_not_unpacked(
    member, size, said, tmp_path, monkeypatch
):
    from tf_lrtraj.averaging.model_files import load_model

    if size == 1 << 28:
        monkeypatch.setattr(archives, "LARGEST", 1 << 24)
    path = tmp_path / "model.keras"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w") as file,
    ):
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(b"x")
    assert path.stat().st_size < 2_000_000
    most = judge.most_memory()
    with pytest.raises(ValueError, match=f"cannot be loaded: .*{said}"):
        load_model(path)
    assert judge.most_memory() - most < 50 << 20


def test_a_layer_of_code_is_not_loaded(tmp_path):
    import keras

    from tf_lrtraj.averaging.model_files import load_model

    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]).save(path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_model(path)


def test_a_member_outside_of_the_archive_is_not_written(tmp_path):
    import keras

    from tf_lrtraj.averaging.model_files import load_model

    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "model.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside", b"x")
        archive.writestr("assets/../../outside", b"x")
    try:
        load_model(path)
    except ValueError as error:
        assert str(path) in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["inner"]
    assert [p.name for p in inner.iterdir()] == ["model.keras"]


def test_a_matched_run_elsewhere_is_not_read(tmp_path):
    from tf_lrtraj.records import RunRecord

    outside, workdir = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (workdir / "matched").mkdir(parents=True)
    records.write_json(outside / "run.json", {"format": 1, "status": "done"})
    (workdir / "matched" / "ema").symlink_to(outside)
    assert RunRecord(workdir, {}, {}, []).matched_dirs() == {}
