"""Detects when training changes the weights of a model, for callbacks that count updates.

An optimizer counts its steps, but not every training uses `model.optimizer`: a `train_step` may use
several optimizers, or one that Keras does not know.  In these cases changes of the weights count.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any, NamedTuple

import keras

from tf_lrtraj import backend
from tf_lrtraj.backend.layer_calls import layers_of


def check_model(model: Any, name: str) -> None:
    """Raises ValueError if `model` is not a Keras model; `name` is the object that needs one."""
    if not isinstance(model, keras.Layer):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ValueError(
            f"{name} needs a model of Keras 3 (keras.Model, version {keras.__version__}). "
            f"Received: a {kind}"
        )


def check_built(model: Any, name: str) -> None:
    """Raises ValueError for a model without weights, which `name` cannot train with."""
    if not is_built(model):
        raise ValueError(
            f"The model has no weights yet: build it before training with {name}, by an "
            "Input or by calling it on a batch."
        )


def is_built(model: Any) -> bool:
    """Returns whether a model has its weights."""
    return bool(model.built and model.weights)


def check_trainable(model: Any, callback: Any) -> None:
    """Raises ValueError for a model that `callback` cannot follow step by step.

    That is one without weights, or one that calls callbacks once in several steps.
    """
    name = type(callback).__name__
    check_model(model, name)
    if getattr(model, "steps_per_execution", 1) != 1:
        raise ValueError(
            f"{name} must see every step, but Keras calls callbacks once in "
            f"steps_per_execution={model.steps_per_execution} steps. Compile the model with "
            "steps_per_execution=1."
        )
    check_built(model, name)


def steps_made(model: Any) -> int:
    """Returns the number of steps of the model's own optimizer; 0 without one."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else backend.steps_of(optimizer)


def optimizers_of(model: Any) -> list[Any]:
    """Returns the Keras optimizers that can be reached from a model.

    They are the compiled one, and those that the model or one of its layers holds as an
    attribute, alone or in a list, a tuple or a dict.
    """
    held = [getattr(model, "optimizer", None)]
    for layer in (model, *layers_of(model)):
        held += held_by(layer)
    found = {id(one): one for one in held if isinstance(one, keras.optimizers.Optimizer)}
    return list(found.values())


def held_by(owner: Any) -> list[Any]:
    """Returns the attributes of an object, and the members of lists, tuples and dicts among
    them."""
    found: list[Any] = []
    for value in vars(owner).values():
        value = list(value.values()) if isinstance(value, dict) else value
        found += value if isinstance(value, (list, tuple)) else [value]
    return found


class Standing(NamedTuple):
    """The state of a training.

    Attributes:
        counts: weak reference to each optimizer → the steps it has made.
        bits: id of each trainable variable → the sum over the bits of its numbers, to detect
            changes.
    """

    counts: dict[Any, int]
    bits: dict[int, int]

    def same_weights(self, other: Standing) -> bool:
        """Returns whether no weight that is trainable in both states differs between them."""
        common = self.bits.keys() & other.bits.keys()
        return bool(common) and all(self.bits[key] == other.bits[key] for key in common)

    def steps_since(self, other: Standing) -> int:
        """Returns the largest number of steps that one optimizer made after `other`."""
        pairs = [(count, other.counts.get(key, 0)) for key, count in self.counts.items()]
        return max((new - old for new, old in pairs if new > old), default=0)

    def same_optimizers(self, other: Standing) -> bool:
        """Returns whether both states have the same optimizers."""
        return self.counts.keys() == other.counts.keys()


class UpdateCounter:
    """Finds the batches of a training in which the weights changed.

    It uses the step counts of the optimizers that can be reached from the model, so micro-steps of
    gradient accumulation and steps that loss scaling skips are not updates.  If no optimizer
    counts, every batch that changes a weight is one update, and a warning says so once.

    Args:
        model: a built Keras model.
        name: the object that counts, for warnings.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self._name = name
        self._warned: set[str] = set()
        self._first_step = self._moves = 0
        self.restart()

    def restart(self) -> None:
        """Starts from the current state of the model."""
        self._own_step = _has_own_train_step(self.model)
        self._last = self.standing()
        self._watching = True  # whether `_last.bits` are those of the previous batch
        self._counted = self._missed = False
        before = self._first_step + self._moves
        self._first_step = max([before, *self._last.counts.values()])
        self._moves = 0

    def start_epoch(self) -> None:
        """Reads the counts again; call it when an epoch begins.

        If data end unexpectedly, TensorFlow counts a step that was not made.
        """
        self._last = Standing(self._counts(), self._last.bits)

    def standing(self) -> Standing:
        """Returns the current state of the training."""
        self._optimizers = optimizers_of(self.model)
        return Standing(self._counts(), self._bits())

    def _counts(self) -> dict[Any, int]:
        return {weakref.ref(one): backend.steps_of(one) for one in self._optimizers}

    def _bits(self) -> dict[int, int]:
        variables = self.model.trainable_variables
        found = backend.fingerprints(backend.values(variables))
        return {id(v): int(bits) for v, bits in zip(variables, found, strict=True)}

    def moved(self) -> bool:
        """Returns whether the weights have changed since the last call; call it after every
        batch."""
        before, watching = self._last, self._watching
        now = Standing(self._counts(), before.bits)
        steps = now.steps_since(before)
        self._counted = self._counted or steps > 0
        self._missed = self._missed or (self._own_step and not steps)
        # If optimizers count every change, the weights need not be compared.
        self._watching = self._missed or not self._counted
        if self._watching or (watching and not steps):
            now = now._replace(bits=self._bits())
        self._last = now
        if steps > 1:
            self._warn(
                f"An optimizer made {steps} steps in one batch. {self._name} sees the weights "
                "after the batch only, and counts one update for it."
            )
        elif not steps:
            if not watching or now.same_weights(before):
                return False
            if not self._counted:
                self._warn(
                    "The weights move, but no optimizer that can be reached from the model counts "
                    f"a step. {self._name} counts one update for every batch that changes a "
                    "weight."
                )
        self._moves += 1
        return True

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=4)

    @property
    def is_known(self) -> bool:
        """Whether `step` is known from the model alone, also in a resumed process."""
        return not self._own_step or any(self._last.counts.values())

    @property
    def step(self) -> int:
        """The number of the optimizer step that the training has reached.

        The count of `model.optimizer` if it trains the model; otherwise the largest count at the
        start plus the number of batches that changed the weights.
        """
        return steps_made(self.model) or self._first_step + self._moves


class StepCallback(keras.callbacks.Callback):
    """Calls `at_step` before the first step of a `fit` and after every step that changes
    weights."""

    def __init__(self) -> None:
        super().__init__()
        self.counter: UpdateCounter | None = None
        self._begun = False

    def at_step(self, step: int) -> None:
        """Receives the number of optimizer steps made."""
        raise NotImplementedError

    def on_train_begin(self, logs: Any = None) -> None:
        check_trainable(self.model, self)
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.counter is not None:
            self.counter.start_epoch()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._begun:
            return
        self._begun = True
        # Not earlier: BackupAndRestore restores a step when training begins, and may come later #
        # in the list of callbacks.
        model = self.model
        if self.counter is None or self.counter.model is not model:
            self.counter = UpdateCounter(model, type(self).__name__)
        else:
            self.counter.restart()
        self.at_step(self.counter.step)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        model = self.model  # on JAX this brings the variables up to date
        assert self.counter is not None and self.counter.model is model
        # Gradient accumulation and skipped steps do not change the weights.
        if self.counter.moved():
            self.at_step(self.counter.step)


def _has_own_train_step(model: Any) -> bool:
    """Returns whether the class overrides the training step or the function that runs it."""
    for name in ("train_step", "make_train_function"):
        method = getattr(model, name, None)
        if not str(getattr(method, "__module__", "keras.")).startswith("keras."):
            return True
    return False
