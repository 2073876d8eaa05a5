"""What a run shows on the terminal, and that it shows nothing elsewhere."""

import io
import sys

import pytest

from tf_lrtraj.training import progress


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def stages():
    progress.stage("importing TensorFlow")
    progress.stage("loading the data 'digits'")


def steps_and_batches():
    with progress.Progress(total=10, initial=3, name="digits") as bar:
        bar.advance(2)
        with bar.doing("evaluating"), bar.doing("evaluating ema on test"):
            bar.tick()
            bar.tick()
        bar.advance(5)
        bar.show_loss(0.25)


def error_inside():
    with progress.Progress(total=10, name="digits") as bar:
        with pytest.raises(KeyError), bar.doing("evaluating"):
            raise KeyError
        bar.advance(1)


@pytest.mark.parametrize(
    ("shows", "parts"),
    [
        (
            stages,
            [
                "lrtraj-train: importing TensorFlow …\n",
                "lrtraj-train: loading the data 'digits' …\n",
            ],
        ),
        (
            steps_and_batches,
            [
                *("digits:", "| 3/10", "evaluating:", "evaluating ema on test:", "| 5/10"),
                *("ema on test, batch 1:", "ema on test, batch 2:", "evaluating:", "digits:"),
                *("| 10/10", "loss=0.25"),
            ],
        ),
        (error_inside, ["evaluating:", "digits:", "| 1/10"]),
    ],
)
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_what_is_shown(monkeypatch, shows, parts, terminal):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lrtraj-train"])
    monkeypatch.setattr(progress, "_INTERVAL", -1.0)
    shows()
    text, found = stream.getvalue(), 0
    if not terminal:
        assert text == ""
        return
    for part in parts:
        found = text.find(part, found)
        assert found >= 0, (part, text)
