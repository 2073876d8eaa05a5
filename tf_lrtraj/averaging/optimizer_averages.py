"""`OptimizerAverages`: the averages of an `AveragedOptimizer`, as `WeightAveraging` uses them."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

from tf_lrtraj.averaging import average_settings
from tf_lrtraj.averaging.averaged_optimizer import AveragedOptimizer, find_averaged
from tf_lrtraj.averaging.backup import Backup, backup_beside, restore_streams
from tf_lrtraj.averaging.model_averages import chosen, wide
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend.weight_updates import check_built


class OptimizerAverages:
    """Averages that the model's optimizer updates, so that a callback does nothing at a step.

    Args:
        callback: the `WeightAveraging` that uses the averages.
        batch_norm: a batch-norm policy, or a dict name → policy.
        save_best: a dict name → path.
    """

    skipped = 0

    def __init__(self, callback: Any, batch_norm: Any, save_best: Any) -> None:
        self._callback = callback
        self._batch_norm, self._save_best = batch_norm, save_best
        self._optimizer: AveragedOptimizer | None = None
        self._recompute: Any = None
        self._backup: Backup | None = None
        self._begun = False

    def set_model(self, model: Any) -> None:
        """Finds the averages of a model, and checks the settings against them.

        Raises:
            ValueError: if the model's optimizer has no averages, or a setting does not fit.
        """
        callback = self._callback
        optimizer = find_averaged(getattr(model, "optimizer", None))
        if optimizer is None:
            raise ValueError(
                "`averages` may be omitted only if the model is compiled with an "
                "AveragedOptimizer. Received: averages=None, and the optimizer "
                f"{getattr(model, 'optimizer', None)!r}"
            )
        kernels = dict(optimizer.averages)
        policies = average_settings.check_policies(self._batch_norm, kernels)
        if "average" in policies.values():
            raise ValueError(
                "`batch_norm` must be 'recompute' or 'copy' for averages of an AveragedOptimizer, "
                "which sees no running statistics. Received: batch_norm='average'"
            )
        callback.save_best = average_settings.check_save_best(
            self._save_best, kernels, callback.validation_data
        )
        callback.averages, callback.batch_norm = kernels, policies
        if self._optimizer is not optimizer:
            self._optimizer, self._recompute = optimizer, None
        if model.built and not optimizer.built:
            # Other callbacks may restore the optimizer, and Keras skips variables not yet built.
            optimizer.build(model.trainable_variables)

    @property
    def running(self) -> OptimizerAverages | None:
        return None if self._optimizer is None or not self._optimizer.built else self

    def averages(self) -> OptimizerAverages:
        return self

    # The interface of `ModelAverages` ---------------------------------------------------------

    @property
    def state(self) -> AverageState:
        return self._found().state

    def _found(self) -> AveragedOptimizer:
        if self._optimizer is None:
            self.set_model(self._callback.model)
        assert self._optimizer is not None
        return self._optimizer

    @property
    def num_updates(self) -> int:
        return 0 if self.running is None else self._found().num_updates

    @property
    def recompute(self) -> Any:
        if self._recompute is None:
            check_built(self._callback.model, "WeightAveraging")
            self._recompute = bn.Recompute(self._callback.model, self._callback.batch_norm_call)
        return self._recompute

    def average(self, name: str, model: Any) -> list[tuple[Any, Any]]:
        """Returns pairs of a variable and its average in the dtype of the buffers."""
        known = sorted(self._callback.averages)
        if name not in known:
            raise KeyError(f"`name` must be one of {known}. Received: {name!r}")
        own = {id(variable) for variable in chosen(model, self._callback)}
        variables = self._found().averaged_variables
        if not self.num_updates:
            found = [wide(variable) for variable in variables]
        else:
            found = self.state.average(name, self.num_updates)
        pairs = zip(variables, found, strict=True)
        return [(variable, value) for variable, value in pairs if id(variable) in own]

    # The interface of `OwnAverages` -----------------------------------------------------------

    def start(self) -> None:
        self._found().reset()

    def reset(self) -> None:
        if self._optimizer is not None:
            self._optimizer.reset()

    def update(self, weights: Any = None) -> bool:
        self._refuse("An AveragedOptimizer updates its averages itself: do not call `update()`.")

    def save_state(self, path: str | os.PathLike[str]) -> None:
        self._refuse("Averages of an AveragedOptimizer are saved with the model's optimizer.")

    def load_state(self, path: str | os.PathLike[str]) -> None:
        self._refuse("Averages of an AveragedOptimizer are loaded with the model's optimizer.")

    @staticmethod
    def _refuse(why: str) -> NoReturn:
        raise RuntimeError(why)

    def copied(self) -> tuple[Any, Any]:
        """Returns the arguments of a copy, which finds the averages in its model's optimizer."""
        return self._batch_norm, self._save_best

    def begin_training(self) -> None:
        self.set_model(self._callback.model)
        self._backup = backup_beside(self._callback, self._backup)
        self._begun = False

    def begin_epoch(self) -> None:
        """Restores what Keras does not save with the optimizer, once per `fit`."""
        if self._begun:
            return
        self._begun = True
        callback = self._callback
        stored = None if self._backup is None else self._backup.read(callback.model)
        if stored is not None:
            restore_streams(callback.model, stored)
            callback.best = json.loads(str(stored["best"]))
        callback.check_recomputation()
        if (callback.params or {}).get("verbose") and self.running is not None:
            print(f"WeightAveraging: {self.state.describe_memory()}")

    def after_batch(self, batch: int) -> None:
        if self._backup is not None and self._backup.due_after_batch(batch):
            self._write(self._backup)

    def after_epoch(self) -> None:
        if self._backup is not None and self._backup.due_after_epoch():
            self._write(self._backup)

    def _write(self, backup: Backup) -> None:
        backup.write(self._callback.model, self.num_updates, {}, self._callback.best)

    def end_training(self) -> None:
        self.begin_epoch()  # a training restored at its end has no epochs left
