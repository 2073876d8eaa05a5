"""`OwnAverages`: averages that a callback stores, updates and restores in step with a training."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

from tf_lrtraj import backend
from tf_lrtraj.averaging import average_settings
from tf_lrtraj.averaging.backup import Backup, backup_beside, read_state, restore_streams
from tf_lrtraj.averaging.borrowing import holder_of, refuse_lent
from tf_lrtraj.averaging.model_averages import ModelAverages
from tf_lrtraj.backend.weight_updates import (
    Standing,
    UpdateCounter,
    check_trainable,
    is_built,
    steps_made,
)
from tf_lrtraj.durations import resolve_durations
from tf_lrtraj.records.archives import save_arrays


class OwnAverages:
    """Averages in separate buffers, updated after every step that moves the weights.

    Args:
        callback: the `WeightAveraging` of these averages.
        waiting: kernels' configurations by name, in epochs or percent of a `fit`.
        carried: arrays of the averages that these copy; None for new averages.
    """

    def __init__(
        self, callback: Any, waiting: Mapping[str, Any], carried: Mapping[str, Any] | None = None
    ) -> None:
        self._callback = callback
        self.waiting = dict(waiting)
        self.running: ModelAverages | None = None
        self.skipped = 0
        self._backup: Backup | None = None
        self._begun = False
        self._counter: UpdateCounter | None = None
        # The state of the training when `fit` called `set_model`, and at the last update.
        self._at_set_model: Standing | None = None
        self._left: Standing | None = None
        self._loaded_iterations: int | None = None
        # Arrays of the copied averages, until a model is set.
        self._carried = carried

    def copied(self) -> dict[str, Any]:
        """Returns the arguments of a copy, which keeps the averages but not the model."""
        carried = self._arrays() if self.num_updates else self._carried
        return {"waiting": self.waiting, "carried": carried}

    @property
    def _model(self) -> Any:
        return self._callback.model

    @property
    def num_updates(self) -> int:
        return 0 if self.running is None else self.running.num_updates

    # Beginning --------------------------------------------------------------------------------

    def set_model(self, model: Any) -> None:
        """Starts the averages at a model's current weights; a `fit` may restart them later."""
        if not is_built(model):
            return
        self._follow(model)
        if not self.num_updates and not self.waiting and holder_of(model) is None:
            self.start()

    def _follow(self, model: Any) -> None:
        self._counter = UpdateCounter(model, type(self._callback).__name__)
        self._at_set_model = self._counter.standing()

    def start(self) -> None:
        """Starts the averages at the model's current weights, with an update count of 0."""
        self._refuse_durations()
        model = self._model
        refuse_lent(model, "its own weights cannot be averaged")
        self.skipped = 0
        if self.running is None or not self.running.restart(model):
            self.running = ModelAverages(model, self._callback)
        self._left = None if self._counter is None else self._counter.standing()
        self._loaded_iterations = None
        if self._carried is not None:
            carried, self._carried = self._carried, None
            self._load(carried, "the copied callback")

    def reset(self) -> None:
        """Discards every average and the model."""
        self.running = self._carried = self._left = self._loaded_iterations = None
        self.skipped = 0

    def averages(self) -> ModelAverages:
        """Returns the averages; starts them if necessary."""
        if self.running is None:
            self.start()
        assert self.running is not None
        return self.running

    def _refuse_durations(self) -> None:
        if self.waiting:
            raise RuntimeError(
                f"The averages {sorted(self.waiting)} are in epochs or percent of a `fit`, but "
                "none has begun. Use numbers of updates in a custom loop."
            )

    # Updating ---------------------------------------------------------------------------------

    def update(self, weights: Any = None) -> bool:
        """Updates the averages once; see `WeightAveraging.update`."""
        self._refuse_durations()
        model = self._model
        if backend.is_tracing():
            raise RuntimeError(
                "`update()` must be called outside of tf.function and jax.jit: inside, it would "
                "run once only. Call it after the compiled step."
            )
        refuse_lent(model, "its own weights cannot be averaged")
        running = self.running
        if running is None:
            raise RuntimeError(
                "The averages have not begun: the model had no weights when `set_model` was "
                "called, or `reset` was called. Call `start()` once the model has weights, before "
                "the first step."
            )
        running.check_model(model)
        given = None if weights is None else running.given(model, weights)
        if given is None and not running.note_versions():
            raise RuntimeError(
                "Nothing has been assigned to the model's variables since the last update. A loop "
                "that keeps the weights outside of the model must pass them: "
                "`update(weights=trainable_variables)`."
            )
        averaged = self._update(running, given)
        if self._counter is not None and weights is None:
            self._left = None
        return averaged

    def _update(self, running: ModelAverages, given: list[Any] | None = None) -> bool:
        arrays = backend.values(running.variables) if given is None else given
        if self._callback.on_non_finite != "ignore" and not backend.all_finite(arrays):
            self.skipped += 1
            if self.skipped == 1:
                warnings.warn(
                    f"The weights after update {running.num_updates} are not finite. Such "
                    "iterates are left out of the averages and counted in `skipped`.",
                    stacklevel=5,
                )
            return False
        running.update(given)
        return True

    # In a `fit` -------------------------------------------------------------------------------

    def begin_training(self) -> None:
        """Checks the model, and finds the callback that saves it, before the first step."""
        model = self._model
        check_trainable(model, self._callback)
        if self._counter is None:  # Keras built the model after `set_model`
            self._follow(model)
        self._resolve()
        if self.running is not None and self.num_updates:
            self.running.check_model(model)
        self._backup = backup_beside(self._callback, self._backup)
        self._begun = False

    def _resolve(self) -> None:
        """Builds the kernels of configurations with durations from the length of the `fit`."""
        if not self.waiting:
            return
        callback = self._callback
        steps, total = self._updates_of_fit()
        kernels = dict(callback.averages)
        for name, config in self.waiting.items():
            resolved = resolve_durations(config, steps, total, name=f"averages[{name!r}]")
            kernels[name] = average_settings.check_kernel(name, resolved)
        callback.averages = {name: kernels[name] for name in callback.batch_norm}
        self.waiting = {}

    def _updates_of_fit(self) -> tuple[float | None, int | None]:
        """Returns (updates of an epoch, updates of the `fit`), or (None, None) if unknown."""
        params = self._callback.params or {}
        batches, epochs = params.get("steps"), params.get("epochs")
        if not batches or not epochs:
            return None, None
        optimizer = getattr(self._model, "optimizer", None)
        each = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        return batches / each, batches * epochs // each

    def begin_epoch(self) -> None:
        self._begin()
        assert self._counter is not None
        self._counter.start_epoch()

    def _begin(self) -> None:
        """Starts, continues or restores the averages, once per `fit`.

        `begin_training` is too early: only after it have all callbacks restored their part of the
        model.
        """
        if self._begun:
            return
        self._begun = True
        model, counter = self._model, self._counter
        before = self._at_set_model
        assert counter is not None and before is not None
        now = counter.standing()
        stepped = now.counts != before.counts
        # Another callback has set the weights if they changed since `fit` called `set_model`.
        moved = stepped or not now.same_weights(before)
        if not (moved and self._restore(model, stepped)):
            self._go_on(now)
        self._callback.check_recomputation()
        counter.restart()
        self._left = counter.standing()
        self._warn_of_averages_that_never_begin()
        if (self._callback.params or {}).get("verbose"):
            print(f"WeightAveraging: {self.averages().state.describe_memory()}")

    def _go_on(self, now: Standing) -> None:
        """Starts the averages at the current weights, or continues from the last update."""
        left = self._left
        if not self.num_updates:
            self.start()
        elif self._loaded_iterations is not None:
            self._warn_of_iterations(self._loaded_iterations, steps_made(self._model))
        elif left is not None and not now.same_weights(left):
            if now.steps_since(left) and now.same_optimizers(left):
                before = max(left.counts.values(), default=0)
                self._warn_of_iterations(before, max(now.counts.values(), default=0))
            elif now.same_optimizers(left):
                warnings.warn(
                    "The model's weights were set after the last update, but not by training, so "
                    f"the averages, of {self.num_updates} updates, begin anew. To keep them, use a "
                    "new WeightAveraging for each run.",
                    stacklevel=4,
                )
                self._callback.reset()
                self.start()
            else:
                raise ValueError(
                    "The model has another optimizer and other weights than at the last update "
                    f"of the averages (number {self.num_updates}), so it is unknown whether this "
                    "is the same training. Call `averaging.reset()` to begin anew, or use "
                    "WeightAveraging during the whole training."
                )
        self._loaded_iterations = None
        self.averages().join_new_weights(self._model)

    def _warn_of_iterations(self, before: int, now: int) -> None:
        if now > before:
            warnings.warn(
                f"The optimizer went from {before} to {now} iterations without "
                "WeightAveraging: the averages do not contain those weights.",
                stacklevel=5,
            )

    def _warn_of_averages_that_never_begin(self) -> None:
        _, updates = self._updates_of_fit()
        if updates is None:
            return
        end = self.num_updates + updates
        begins = {name: kernel.first_average for name, kernel in self._callback.averages.items()}
        late = {name: begin for name, begin in begins.items() if begin is not None and begin > end}
        if late:
            warnings.warn(
                f"WeightAveraging: the averages {late} begin at that update, but this `fit` "
                f"ends at update {end}. Until then they equal the raw weights.",
                stacklevel=4,
            )

    def after_batch(self, batch: int) -> None:
        model = self._model  # on JAX this updates the variables
        assert self._counter is not None
        # Weights do not move on micro-steps of gradient accumulation, or when loss scaling skips
        # a step.
        if self._counter.moved():
            refuse_lent(model, "its own weights cannot be averaged")
            if not self._update(self.averages()) and self._callback.on_non_finite == "stop":
                model.stop_training = True
        if self._backup is not None and self._backup.due_after_batch(batch):
            self._write_backup(self._backup)

    def after_epoch(self) -> None:
        if self._backup is not None and self._backup.due_after_epoch():
            self._write_backup(self._backup)

    def end_training(self) -> None:
        self._begin()  # a training that was restored at its end runs no epoch
        if self._counter is not None:
            self._left = self._counter.standing()
        if self.skipped:
            warnings.warn(
                f"WeightAveraging skipped {self.skipped} iterates that were not finite.",
                stacklevel=4,
            )

    # On disk ----------------------------------------------------------------------------------

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes every buffer and the update count to an `.npz` file atomically."""
        save_arrays(path, self._arrays(), compress=False)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Restores a state that `save_state` wrote."""
        self._load(read_state(path), os.fspath(path))

    def _arrays(self) -> dict[str, Any]:
        return self.averages().arrays(self._model)

    def _load(self, stored: Mapping[str, Any], path: str) -> None:
        running = self.averages()
        running.check_model(self._model)
        self._loaded_iterations = running.load(stored, path)

    def _write_backup(self, backup: Backup) -> None:
        backup.write(self._model, self.num_updates, self._arrays(), self._callback.best)

    def _restore(self, model: Any, counts_changed: bool) -> bool:
        """Loads the state that belongs to the weights that another callback has just restored.

        Returns:
            Whether a state was loaded; False if the weights do not come from a training.
        """
        backup = self._backup
        stored = None if backup is None else backup.read(model)
        if stored is None and not counts_changed and not (backup and backup.files()):
            return False
        if backup is None or stored is None:
            where = "no BackupAndRestore is in `callbacks`" if backup is None else backup.folder
            raise ValueError(
                f"The model was restored at iteration {steps_made(model)}, but WeightAveraging has "
                f"no state for it ({where}). The averages can be restored only if WeightAveraging "
                "and BackupAndRestore were used from the start. To average from here on instead, "
                "load the weights before `fit`."
            )
        if self.num_updates:
            self.averages().join_new_weights(model)
        self._load(stored, str(backup.folder))
        self._loaded_iterations = None
        restore_streams(model, stored)
        self._callback.best = json.loads(str(stored["best"]))
        return True
