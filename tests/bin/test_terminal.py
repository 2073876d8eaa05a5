"""What steers a terminal is printed escaped, whoever prints it."""

import io
import sys

import pytest
from absl import app, logging

from tf_lrtraj.bin import common, terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain − text, ü\t中\n", "plain − text, ü\t中\n"),
        ("\r 50%|█████     |", "\r 50%|█████     |"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b2Jb", "a\\x9b2Jb"),
        ("loss\r0.1", "loss\\r0.1"),
        ("abc\u202edef\u2066", "abc\\u202edef\\u2066"),
        ("bell\a\b\x7f\x00", "bell\\x07\\x08\\x7f\\x00"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("not UTF-8: \udcff", "not UTF-8: \\udcff"),
        ("7" * 5000, f"{'7' * 20}… (5000 digits)"),
    ],
)
def test_printable(text, shown):
    assert terminal.printable(text) == shown
    shown.encode()


def test_all_that_a_program_prints_goes_through_it(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(common, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(common, "_extend_help", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["program"])

    def run(main, argv, flags_parser):
        main(argv)

    monkeypatch.setattr(app, "run", run)

    def main(argv):
        print("on stdout \x1b[2J")
        sys.stderr.writelines(["on stderr \x1b]0;x\x07\n"])
        logging.warning("logged %s", "\x1b[31m")
        common.fail("in an error \x1b[1m\u202e")

    stream = logging.get_absl_handler().python_handler.stream
    with pytest.raises(SystemExit):
        common.run_app(main)
    assert out.getvalue() == "on stdout \\x1b[2J\n"
    assert "on stderr \\x1b]0;x\\x07\n" in err.getvalue() and "\\x1b[1m\\u202e" in err.getvalue()
    assert "\x1b" not in err.getvalue()
    assert logging.get_absl_handler().python_handler.stream is stream
    assert sys.stdout is out
