"""Messages and the progress bar on the terminal.

They are shown only if standard error is a terminal.  This module does not import TensorFlow.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

__all__ = ["Progress", "program_name", "stage"]

_INTERVAL = 0.2  # seconds between two updates of the line


def program_name() -> str:
    """Returns the name of the running program, with which its messages begin."""
    program = pathlib.Path(sys.argv[0])
    return f"lrtraj-{program.stem}" if program.suffix == ".py" else program.name


def stage(text: str) -> None:
    """Prints one line about a stage that begins now and may take a while.

    Args:
        text: the stage, such as "importing TensorFlow".
    """
    if sys.stderr.isatty():
        print(f"{program_name()}: {text} …", file=sys.stderr, flush=True)


class Progress:
    """The progress bar of a run, which also moves during evaluations.

    Args:
        total: number of steps of the run.
        initial: number of steps made before.
        name: the name of the run, shown before the bar.
    """

    def __init__(self, total: int, initial: int = 0, name: str = "") -> None:
        self._bar = tqdm(
            total=total, initial=initial, unit="step", desc=name, disable=None, leave=True
        )
        self._name = name
        self._activity = ""
        self._count = 0
        self._shown = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, steps: int) -> None:
        """Moves the bar by a number of steps."""
        self._bar.update(steps)

    def show_loss(self, loss: float) -> None:
        """Shows the loss of the last logging window after the bar."""
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Makes the bar show an activity other than training, such as "evaluating ema"."""
        before = self._activity
        self._activity, self._count = activity, 0
        self._show()
        try:
            yield
        finally:
            self._activity, self._count = before, 0
            self._show()

    def tick(self) -> None:
        """Counts a batch of this activity."""
        self._count += 1
        if time.monotonic() - self._shown > _INTERVAL:
            self._show()

    def _show(self) -> None:
        if self._bar.disable:
            return
        self._shown = time.monotonic()
        count = f", batch {self._count:,}" if self._count else ""
        self._bar.set_description_str(f"{self._activity or self._name}{count}")
