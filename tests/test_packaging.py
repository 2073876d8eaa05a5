"""What `setup.cfg` lists is what the repository holds."""

import ast
import configparser
import os
import pathlib
import subprocess

import pytest

import tf_lrtraj

ROOT = pathlib.Path(__file__).parents[1]


def entries(section, option):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return [line for line in config[section][option].splitlines() if line]


def scripts():
    return [
        tuple(entry.split(" = ")) for entry in entries("options.entry_points", "console_scripts")
    ]


def test_every_package_is_listed():
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "tf_lrtraj").rglob("*.py")
    }
    assert set(entries("options", "packages")) == folders | {"tf_lrtraj.configs"}
    assert all((ROOT / folder.replace(".", "/") / "__init__.py").exists() for folder in folders)
    assert (ROOT / "configs" / "__init__.py").exists()


def test_backbones_of_other_packages_are_extras():
    needed = " ".join(entries("options", "install_requires"))
    for extra in ("keras_cv", "keras_hub"):
        (requirement,) = entries("options.extras_require", extra)
        assert requirement.startswith(extra.replace("_", "-")) and requirement[:8] not in needed


def test_every_data_file_is_listed():
    listed = {"tf_lrtraj/py.typed"}
    for package in ("tf_lrtraj.report",):
        folder = ROOT / package.replace(".", "/")
        for pattern in entries("options.package_data", package):
            for glob in pattern.split(","):
                listed |= {str(path.relative_to(ROOT)) for path in folder.glob(glob.strip())}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tf_lrtraj").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert there == listed


@pytest.mark.parametrize(("script", "target"), scripts())
def test_every_console_script_has_its_function(script, target):
    module, function = target.split(":")
    assert script == f"lrtraj-{module.rsplit('.', 1)[1]}"
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    assert function in functions


def test_the_version_can_be_read_without_importing_anything():
    """The build reads the literal; one that had to import would need NumPy to build."""
    tree = ast.parse((ROOT / "tf_lrtraj" / "__init__.py").read_text(encoding="utf-8"))
    literals = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
    }
    assert literals == {"__version__": tf_lrtraj.__version__}
    assert f"version: {tf_lrtraj.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()


# --- The scripts' virtual environment ---------------------------------------------------------

# Stands for Python: makes an environment that holds itself, and "installs" unless told to fail.
STUB = """#!/bin/bash
case "$*" in
  "-m venv "*)
    [[ "$3" == --clear ]] && rm -rf "${@: -1}"
    mkdir -p "${@: -1}/bin" && touch "${@: -1}/pyvenv.cfg" && cp "$0" "${@: -1}/bin/python" ;;
  *" install uv") exit 1 ;;
  *" install "*) [[ -z "${FAILING:-}" ]] ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(folder, requirement="here", **variables):
        command = 'source "$0/tools/environment.sh"; make_environment "$1" "$2"'
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command, str(ROOT), str(folder), requirement],
            env={**os.environ, "PYTHON": str(stub), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def is_made(folder):
    return (folder / "bin" / "python").exists() and (folder / "installed.txt").exists()


@pytest.mark.parametrize("file", ["pyvenv.cfg", "notes.txt", "installed.txt"])
def test_a_folder_of_somebody_else_is_left_alone(make, tmp_path, file):
    folder = tmp_path / ".venv"
    folder.mkdir()
    (folder / file).write_text("mine")
    done = make(folder)
    assert done.returncode == 1
    assert str(folder) in done.stderr and "TF_LRTRAJ_VENV" in done.stderr
    assert [path.name for path in folder.iterdir()] == [file]


@pytest.mark.parametrize("there", [False, True])
def test_a_new_folder_is_made_once_and_anew_for_other_packages(make, tmp_path, there):
    folder = tmp_path / "venv"
    if there:
        folder.mkdir()
    assert make(folder).returncode == 0 and is_made(folder)
    (folder / "old").touch()
    assert "up to date" in make(folder).stdout and (folder / "old").exists()
    assert make(folder, "others").returncode == 0
    assert is_made(folder) and not (folder / "old").exists()


def test_what_was_begun_is_made_anew(make, tmp_path):
    folder = tmp_path / "venv"
    assert make(folder, FAILING="1").returncode == 1
    assert (folder / "pyvenv.cfg").exists() and not is_made(folder)
    (folder / "half").mkdir()
    assert make(folder).returncode == 0
    assert is_made(folder) and not (folder / "half").exists()


def test_an_environment_from_before_there_were_markers_is_known(make, tmp_path):
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "pyvenv.cfg").touch()
    (folder / "installed.txt").write_text((ROOT / "setup.cfg").read_text() + "/elsewhere")
    assert make(folder).returncode == 0 and is_made(folder)


def test_the_environment_in_use_can_be_made_anew(make, tmp_path):
    folder = tmp_path / "venv"
    assert make(folder).returncode == 0
    python = folder / "bin" / "python"
    python.unlink()
    python.symlink_to(tmp_path / "python")  # as an environment's own interpreter is
    assert make(folder, "others", PYTHON=str(python)).returncode == 0 and is_made(folder)
