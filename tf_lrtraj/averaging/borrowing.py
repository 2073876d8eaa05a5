"""`borrow`: replaces a model's weights inside a `with` block."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from tf_lrtraj import backend
from tf_lrtraj.averaging.interrupts import HeldSignals
from tf_lrtraj.backend.layer_calls import layers_of
from tf_lrtraj.backend.weight_updates import steps_made

# Pairs of a variable and the value that it receives.
Values = Sequence[tuple[Any, Any]]

# The current loan of each model, by the model's id.  `setdefault` and `del` are atomic, so threads
# need no lock, which an exception could leave acquired.
_loans: dict[int, Loan] = {}


def holder_of(model: Any) -> str | None:
    """Describes the borrowed weights that a model holds; None if it holds its own."""
    loan = _loans.get(id(model))
    return None if loan is None else loan.holder


def refuse_lent(model: Any, what: str) -> None:
    """Raises RuntimeError if a model holds borrowed weights.

    Args:
        model: a Keras model.
        what: the clause of the message that says what cannot be done.
    """
    holder = holder_of(model)
    if holder is not None:
        raise RuntimeError(f"The model holds {holder}, so {what}: leave `borrowed` first.")


class Loan:
    """A replacement of a model's weights, from `claim` and `put_in` to `end`.

    `end` restores the model at whatever point the other calls stopped.  It may be called again.

    Args:
        model: a Keras model.
        what: description of the weights for errors, such as `"the average 'ema'"`.
        signals: the signals that are held back while weights change.
    """

    def __init__(self, model: Any, what: str, signals: HeldSignals) -> None:
        thread = threading.current_thread().name
        self.holder = f"{what}, borrowed in thread {thread!r}"
        self._model, self._what, self._thread = model, what, thread
        self._signals = signals
        self._refused: dict[str, Any] = {}
        self._restore: Callable[[], None] | None = None
        self._variables: list[Any] = []
        self._steps: tuple[Any, int] = (None, 0)
        self._lent: tuple[list[Any], list[Any]] | None = None

    def claim(self) -> None:
        """Marks the model as lent, and makes its training and quantization raise an error.

        Raises:
            RuntimeError: if the model is lent already, by this thread or another.
        """
        self._steps = getattr(self._model, "optimizer", None), steps_made(self._model)
        loan = _loans.setdefault(id(self._model), self)
        if loan is not self:
            raise RuntimeError(
                f"The model already holds {loan.holder}, so it cannot take {self._what} "
                f"(thread {self._thread!r}). A model can hold one set of borrowed weights at a "
                "time: leave that `with` block first."
            )
        self._signals.install()
        # `fit` and `train_on_batch` both request the training function before they move a weight.
        for name, why in (
            ("make_train_function", "training, which would train the borrowed weights and lose"),
            ("quantize", "quantizing, which cannot be undone for"),
        ):
            if hasattr(self._model, name):
                self._refused[name] = vars(self._model).get(name)
                setattr(self._model, name, self._refuse(why))

    def _refuse(self, why: str) -> Callable[..., NoReturn]:
        holder = self.holder

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise RuntimeError(f"The model holds {holder}: leave `borrowed` before {why} them.")

        return refuse

    def put_in(self, values: Values) -> None:
        """Saves the variables' values and assigns the new ones."""
        self._variables = list(self._model.variables)
        changed = [variable for variable, _ in values]
        # Using the model inside the block must not change seeds or the metrics of an epoch.
        others = [*_state_of(self._model), *self._model.metrics_variables]
        known = {id(variable) for variable in changed}
        self._restore = backend.backup([*changed, *(v for v in others if id(v) not in known)])
        backend.assign(changed, [value for _, value in values])
        self._lent = changed, _marks(changed)

    def check(self) -> None:
        """Checks whether the lent weights were changed; call it before `end`.

        Raises:
            RuntimeError: if the model's optimizer made steps, or its variables were replaced.
        """
        if self._lent is None:
            return
        optimizer, steps = self._steps
        if (
            getattr(self._model, "optimizer", None) is optimizer
            and steps_made(self._model) != steps
        ):
            raise RuntimeError(
                f"The optimizer made steps while the model held {self._what}. They moved the "
                "borrowed weights and are lost. The model's own weights are restored, but the "
                "state of its optimizer has changed."
            )
        left = {id(variable) for variable in self._model.variables}
        if any(id(variable) not in left for variable in self._variables):
            raise RuntimeError(
                f"Variables of the model were replaced while it held {self._what} (by `quantize`, "
                "`enable_lora` or another rebuild), so its own weights are not restored. To "
                "modify an average, save it and load it into another model."
            )
        changed, marks = self._lent
        if _marks(changed) != marks:
            warnings.warn(
                f"Weights were changed while the model held {self._what}, by an optimizer or by "
                "hand. The changes are lost: the model's own weights are restored.",
                stacklevel=5,
            )

    def end(self) -> None:
        """Restores the model's own weights."""
        self._signals.holding = True
        if self._restore is not None:
            # The pending state of an interrupted loop on JAX would overwrite the weights later.
            backend.synchronized(self._model)
            self._restore()
            self._restore = None
        for name, own in self._refused.items():
            if own is None:
                vars(self._model).pop(name, None)
            else:
                setattr(self._model, name, own)
        self._refused = {}
        if _loans.get(id(self._model)) is self:
            del _loans[id(self._model)]
        self._signals.remove()


def _marks(variables: list[Any]) -> list[Any]:
    """Returns a fingerprint of each variable, which changes with its values.

    The identity of the array cannot be used: on JAX, loops replace arrays by equal ones.
    """
    if backend.name() == "torch":
        return backend.versions(variables)
    return list(backend.fingerprints(backend.values(variables)))


def _state_of(model: Any) -> list[Any]:
    """Returns the non-trainable variables that a call may change: all but frozen weights."""
    frozen = {
        id(variable)
        for layer in layers_of(model, itself=True)
        for variable in getattr(layer, "_trainable_variables", ())
    }
    return [v for v in model.non_trainable_variables if id(v) not in frozen]


@contextlib.contextmanager
def lend(model: Any, what: str, values: Callable[[], Values]) -> Iterator[Any]:
    """Does what `borrow` does, with values from a function.

    The function is called after the model is claimed.  No exception at any point, Ctrl-C
    included, leaves a borrowed value in the model.
    """
    signals = HeldSignals(_LEND)
    loan = Loan(model, what, signals)
    # `end` is called twice, because an exception may interrupt the first call.
    try:
        try:
            loan.claim()
            signals.holding = False
            found = values()
            signals.holding = True
            loan.put_in(found)
            signals.holding = False
            yield model
            loan.check()
        finally:
            loan.end()
    finally:
        loan.end()


_LEND = lend.__wrapped__.__code__  # type: ignore[attr-defined]


def borrow(
    model: Any,
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    what: str = "other weights",
) -> contextlib.AbstractContextManager[Any]:
    """Replaces the model's weights inside a `with` block and restores them bit for bit.

    The raw values are copied and assigned back, also after an exception.  (Adding and subtracting
    a difference would change low bits.)  Metrics are restored too.  The optimizer's state is not
    copied, so training inside the block raises an error.

    Args:
        model: a built Keras model.
        trainable: values in the order of `model.trainable_variables`.
        non_trainable: values in the order of `model.non_trainable_variables`.
        what: description of the weights for errors.

    Returns:
        A context manager that yields the model.

    Raises:
        RuntimeError: if the model holds borrowed weights already, or is trained
            inside the block.
    """

    def values() -> Values:
        state = zip(model.non_trainable_variables, non_trainable, strict=False)
        return [
            *zip(model.trainable_variables, trainable, strict=False),
            *((v, value) for v, value in state if not backend.holds(v, value)),
        ]

    return lend(model, what, values)
