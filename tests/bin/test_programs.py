"""What every program does: --help teaches, and a mistake is one line that names the flag.

Each is told before anything is written, and before TensorFlow, Keras or Matplotlib is imported.
"""

import configparser
import dataclasses
import importlib
import json
import os

import pytest
from helpers import ROOT, run_python

from tf_lrtraj.bin import common


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, with arguments that are enough for it; `{}` is an empty folder."""

    enough: dict[str, str]
    needs: tuple[str, ...] = ("workdir",)
    files: tuple[str, ...] = ()  # flags that name files it writes
    folders: tuple[str, ...] = ()  # and folders
    teaches: tuple[str, ...] = ()

    def flags(self, place, **changed):
        return [f"--{k}={v.format(place)}" for k, v in {**self.enough, **changed}.items() if v]


RUN = {"workdir": "{}/run"}
PROGRAMS = {
    "train": Program(
        {**RUN, "config": "digits_demo"},
        needs=("workdir", "config"),
        folders=("workdir",),
        teaches=("--strategy", "Exit codes", "config.model.width=16: channels of the first stage"),
    ),
    "evaluate": Program(RUN, files=("json",)),
    "average": Program(
        {"snapshots": "{}", "kernel": "ema:0.5", "model": __file__},
        needs=("snapshots", "kernel"),
        files=("json",),
        folders=("export",),
        teaches=("--kernel=ema:0.99", "--advise", "--schedule=linear:200", "--files a.keras"),
    ),
    "probe": Program({**RUN, "probe": "line"}, needs=("workdir", "probe")),
    "report": Program(RUN, files=("output",), folders=("figures",)),
    "reproduce": Program(
        {**RUN, "config": "reproduce_digits"},
        needs=("workdir", "config"),
        files=("page",),
        folders=("workdir",),
        teaches=("Exit codes", "--only_seed"),
    ),
    "synthetic": Program(
        {**RUN, "config": "synthetic"}, needs=("workdir", "config"), folders=("workdir",)
    ),
    "whatif": Program(
        {"curve": __file__, "learning_rate": "0.1"},
        needs=("curve",),
        files=("output", "figure"),
        teaches=("--decay=linear:4000", "--cooldown", "average_500"),
    ),
    "equivalence": Program(
        {"kernel": "Exponential(decay=0.9)", "num_steps": "10"},
        needs=("num_steps",),
        files=("csv", "figure"),
    ),
}
CONFIGURED = {name: entry for name, entry in PROGRAMS.items() if "config" in entry.enough}


def each(attribute):
    """(program, flag) of all flags that an attribute names."""
    return [(name, flag) for name, entry in PROGRAMS.items() for flag in getattr(entry, attribute)]


@pytest.fixture
def refuses(program, tmp_path):
    """Checks that a program ends with one line that holds some text, and writes nothing."""

    def check(name, flags, *expected):
        before = sorted(tmp_path.rglob("*"))
        code, out, error = program(f"lrtraj-{name}", *flags)
        assert code == common.USAGE, error
        for text in expected:
            assert text in error
        assert error.startswith(f"lrtraj-{name}: error: ") and error.count("\n") == 1
        assert out == "" and sorted(tmp_path.rglob("*")) == before

    return check


def test_the_table_has_all_programs():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split()[::3]
    assert {script.removeprefix("lrtraj-") for script in scripts} == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_begins_with_examples_and_names_every_flag(program, name):
    code, text, _ = program(f"lrtraj-{name}", "--help")
    assert code in (0, 1)  # absl ends its help with 1
    assert f"lrtraj-{name} --" in text[:900]
    flags = common.flags.FLAGS.flags_by_module_dict()[f"tf_lrtraj.bin.{name}"]
    for expected in (*PROGRAMS[name].teaches, *(f"--{flag.name}" for flag in flags if flag.help)):
        assert expected in " ".join(text.split()) or f"--[no]{expected[2:]}" in text, expected
    assert importlib.import_module(f"tf_lrtraj.bin.{name}").run.__doc__


@pytest.mark.parametrize("name", PROGRAMS)
def test_unknown_flags_and_arguments(refuses, tmp_path, name):
    flags = PROGRAMS[name].flags(tmp_path)
    refuses(name, [*flags, "--wrokdir=x"], "wrokdir")
    refuses(name, [*flags, "extra"], "unexpected arguments ['extra']")


@pytest.mark.parametrize(("name", "flag"), each("needs"))
def test_what_is_needed(refuses, tmp_path, name, flag):
    refuses(name, PROGRAMS[name].flags(tmp_path, **{flag: ""}), f"--{flag}")


@pytest.mark.parametrize(("name", "flag"), each("files"))
def test_files_that_cannot_be_written(refuses, tmp_path, name, flag):
    (tmp_path / "x.svg").mkdir()
    for place, reason in (("/nowhere", "there is no folder '/nowhere'"), (tmp_path, "a folder")):
        flags = PROGRAMS[name].flags(tmp_path, **{flag: f"{place}/x.svg"})
        refuses(name, flags, f"--{flag}", reason)


@pytest.mark.parametrize(("name", "flag"), each("folders"))
def test_folders_that_cannot_be_made(refuses, tmp_path, name, flag):
    flags = PROGRAMS[name].flags(tmp_path, **{flag: "{}/file/x"})
    (tmp_path / "file").write_text("no folder")
    refuses(name, flags, f"file is no folder). Choose another --{flag}")


@pytest.mark.parametrize("name", ["evaluate", "probe", "report", "reproduce"])
def test_a_folder_that_holds_no_run(refuses, tmp_path, name):
    (tmp_path / "run").mkdir()
    more = {"report_only": "true"} if name == "reproduce" else {}
    refuses(name, PROGRAMS[name].flags(tmp_path, **more), ".json")


@pytest.mark.parametrize("name", CONFIGURED)
def test_unknown_configurations(refuses, tmp_path, name):
    known = CONFIGURED[name].enough["config"]
    flags = CONFIGURED[name].flags(tmp_path, config=known[:-1])
    refuses(name, flags, f"Did you mean {known!r}?")


@pytest.mark.parametrize("name", CONFIGURED)
@pytest.mark.parametrize("other", CONFIGURED)
def test_configurations_of_other_programs(refuses, tmp_path, name, other):
    if name != other:
        flags = CONFIGURED[name].flags(tmp_path, config=CONFIGURED[other].enough["config"])
        refuses(name, flags, f"this configuration is for lrtraj-{other}. Received: '")


ALL_IN_TURN = """
import importlib, json, os, sys
import tf_lrtraj.bin.common, tf_lrtraj.runs.run_config, tf_lrtraj.theory
for name, flags in json.loads(sys.argv[1]):
    if os.fork() == 0:
        sys.argv = [f"lrtraj-{name}", *flags]
        try:
            importlib.import_module(f"tf_lrtraj.bin.{name}").run()
        except SystemExit as stop:
            loaded = {"tensorflow", "keras", "torch", "jax", "matplotlib"} & set(sys.modules)
            print(name, stop.code, sorted(loaded), flush=True)
        os._exit(0)
    os.wait()
"""


def test_nothing_slow_is_imported_for_a_mistake(tmp_path):
    calls = []
    for name, entry in PROGRAMS.items():
        last = (entry.folders or entry.files or entry.needs)[0]
        calls.append((name, entry.flags(tmp_path, **{last: "/dev/null/x"})))
    done = run_python("-c", ALL_IN_TURN, json.dumps(calls))
    assert done.stdout.splitlines() == [f"{name} 2 []" for name in PROGRAMS], done.stderr


@pytest.mark.parametrize(
    ("workdir", "environment", "expected"),
    [
        ("run", {"MPLBACKEND": "nonsense"}, "MPLBACKEND must name a backend of Matplotlib"),
        (os.fsdecode(b"r\xe9sultats"), {}, r"must be UTF-8, as records hold them. Received: b'"),
    ],
    ids=["backend of Matplotlib", "name that is not UTF-8"],
)
def test_what_would_fail_at_the_end_is_told_at_the_start(tmp_path, workdir, environment, expected):
    program = ("-m", "tf_lrtraj.bin.report", "--workdir", tmp_path / workdir)
    done = run_python(*program, env=environment, check=False)
    assert done.returncode == common.USAGE
    assert expected in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
