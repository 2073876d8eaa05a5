"""What a run shows on the terminal while it starts, trains and evaluates.

Nothing is shown where standard error is no terminal, and nothing here imports TensorFlow.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

__all__ = ["Progress", "program_name", "stage"]

_INTERVAL = 0.2  # seconds between two changes of the line


def program_name() -> str:
    """The name of the running program, as its messages begin with it."""
    program = pathlib.Path(sys.argv[0])
    return f"lrtraj-{program.stem}" if program.suffix == ".py" else program.name


def stage(text: str) -> None:
    """Says on the terminal what begins now and may take a while, in one line.

    Args:
        text: such as "importing TensorFlow".
    """
    if sys.stderr.isatty():
        print(f"{program_name()}: {text} …", file=sys.stderr, flush=True)


class Progress:
    """The progress bar of a run, which also moves while there are no steps.

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
        """Inside, the bar says what is done in place of steps, such as "evaluating ema"."""
        before = self._activity
        self._activity, self._count = activity, 0
        self._show()
        try:
            yield
        finally:
            self._activity, self._count = before, 0
            self._show()

    def tick(self) -> None:
        """Counts a batch of what is done in place of steps."""
        self._count += 1
        if time.monotonic() - self._shown > _INTERVAL:
            self._show()

    def _show(self) -> None:
        if self._bar.disable:
            return
        self._shown = time.monotonic()
        count = f", batch {self._count:,}" if self._count else ""
        self._bar.set_description_str(f"{self._activity or self._name}{count}")
