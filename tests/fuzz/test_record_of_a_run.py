"""What tools/fuzz.py records: the options, the code, and no results of another code."""

import json
import pathlib
import subprocess

import fuzz
import pytest

from tf_lrtraj import records

ROOT = pathlib.Path(__file__).resolve().parents[2]
FEW = ["--only=durations", "--per_target=5", "--seed=3"]


@pytest.fixture(autouse=True)
def _keep_templates(monkeypatch):
    monkeypatch.setattr(fuzz.targets, "clean_up", lambda: None)  # other tests use them


def test_the_record_names_the_command_and_the_code(tmp_path):
    output = tmp_path / "out"
    assert fuzz.main([*FEW, f"--output={output}"]) == 0
    record = records.read_json(output / "record.json")
    assert record["options"] == {"inputs": 20000, "per_target": 5, "seed": 3, "only": "durations"}
    command = f"tools/fuzz.py --per_target=5 --seed=3 --only=durations --output={output}"
    assert record["command"] == command
    assert {"commit": record["commit"], "changed": record["changed"]} == fuzz._code()
    page = (output / "README.md").read_text()
    assert f"`{command}`" in page and f"commit {record['commit']}" in page
    assert "every entry point" not in page
    assert not (output / "partial.json").exists()


@pytest.mark.parametrize("options", [["--only=durations"], ["--inputs=50"], ["--per_target=5"]])
def test_a_part_of_the_inputs_is_not_written_over_the_whole(options, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fuzz, "_one", lambda *_: pytest.fail("inputs were made"))
    monkeypatch.setattr(fuzz.records, "write_json", lambda *_: None)
    for more in ([], [f"--output={ROOT}/tools/../results/fuzzing"]):
        with pytest.raises(SystemExit) as ended:
            fuzz.main([*options, *more])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert "--output must be another folder" in said and options[0] in said


@pytest.mark.parametrize("other", [{}, {"sources": "x"}, {"code": {"commit": "x"}}, {"seed": 4}])
def test_a_run_goes_on_after_results_of_the_same_code_only(tmp_path, monkeypatch, other):
    asked = {"seed": 3, "counts": {"durations": 5}, "code": fuzz._code(), "sources": "same"}
    monkeypatch.setattr(fuzz, "_sources", lambda: "same")
    entry = {"inputs": 5, "outcomes": {"kept": 5}, "failure": "", "seconds": 0.0}
    records.write_json(
        tmp_path / "partial.json", {"asked": {**asked, **other}, "targets": {"durations": entry}}
    )
    fuzz.main([*FEW, f"--output={tmp_path}"])
    found = records.read_json(tmp_path / "record.json")["targets"]["durations"]["outcomes"]
    assert (found == {"kept": 5}) == (not other)


def test_a_change_of_the_code_changes_its_checksum(tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "fuzz.py").write_text("one = 1\n")
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    before = fuzz._sources()
    assert before == fuzz._sources()
    (tmp_path / "tools" / "fuzz.py").write_text("one = 2\n")
    assert before != fuzz._sources()


def test_the_commit_is_that_of_the_code(tmp_path):
    assert fuzz._code(tmp_path) == {"commit": "unknown", "changed": False}

    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init")
    except OSError:
        pytest.skip("without git")
    commits = []
    for name in ("tools", "tf_lrtraj", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("")
        git("add", ".")
        git("commit", "-m", name)
        commits.append(git("log", "-1", "--format=%h"))
    assert fuzz._code(tmp_path) == {"commit": commits[1], "changed": False}
    (tmp_path / "docs" / "a.py").write_text("a")
    assert not fuzz._code(tmp_path)["changed"]
    (tmp_path / "tools" / "b.py").write_text("b")
    assert fuzz._code(tmp_path) == {"commit": commits[1], "changed": True}


def test_the_page_in_the_repository_is_made_of_its_record():
    folder = ROOT / "results" / "fuzzing"
    record = json.loads((folder / "record.json").read_text())
    assert fuzz._page(record) == (folder / "README.md").read_text()


def test_what_leaves_the_folder_that_keras_unpacks_into_is_seen(tmp_path, monkeypatch):
    """An unpacking that trusts the names of members, as Keras' once did."""
    from fuzzing import judge, keras_side
    from keras.src.utils import file_utils

    def trusting(archive, path="."):
        for name in archive.namelist():
            target = pathlib.Path(path, name)
            if target.name == "outside":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))

    folder = tmp_path / "case"
    folder.mkdir()
    keras_side._loaded((False, ("extra", "assets/x")), folder)
    # Where the members would be written that are looked for in vain: nowhere but here.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(file_utils, "extract_open_archive", trusting)
    for number, name in enumerate(keras_side._EXTRA[:3]):
        folder = tmp_path / str(number) / "case"
        folder.mkdir(parents=True)
        with pytest.raises(judge.Fault, match="written outside"):
            keras_side._loaded((False, ("extra", name)), folder)
