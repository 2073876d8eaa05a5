"""Programs run in this process: starting Python and TensorFlow costs more than most of them do."""

import importlib
import sys

import pytest
from absl import flags

from tf_lrtraj.bin import common


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs a program in this process; returns (exit code, standard output, standard error)."""

    def run(name, *args):
        module = importlib.import_module(f"tf_lrtraj.bin.{name.removeprefix('lrtraj-')}")
        forget_flags()
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            module.run()
        output = capsys.readouterr()
        return stopped.value.code or 0, output.out, output.err

    yield run
    forget_flags()


@pytest.fixture
def refused(program):
    """Runs a program that is to refuse what it is given, in one line; returns the line.

    Nothing is printed before it, unless it is refused `late`.
    """

    def run(name, *args, late=False):
        code, out, error = program(name, *args)
        assert code == common.USAGE and bool(out) == late, error
        assert error.startswith(f"{name}: error: ") and error.count("\n") == 1, error
        return error

    return run


def forget_flags():
    """Undoes what a program defines and parses, as if its process were new."""
    flags.FLAGS.unparse_flags()
    ours = {
        flag.name
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        for flag in defined
        if module.startswith("tf_lrtraj.") or flag.name.startswith("config.")
    }
    for name in ours & set(flags.FLAGS):
        delattr(flags.FLAGS, name)
