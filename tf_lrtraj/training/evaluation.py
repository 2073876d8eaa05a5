"""Evaluation of the raw weights and of every average, without changing the model.

Weights are passed to one compiled forward pass as arguments, so averages are evaluated during
training without assigning them to the model, and the pass is traced once for all averages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lrtraj import backend
from tf_lrtraj.averaging import AverageState
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.records import RAW
from tf_lrtraj.training.objective import Objective, classification

Weights = tuple[list[Any], list[Any]]  # trainable and non-trainable values


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation over `examples` examples, each counted once.

    Attributes:
        values: "loss" and the name of each metric → its value.
        examples: number of examples.
    """

    values: dict[str, float]
    examples: int


class Evaluator:
    """Evaluates given weights of a model under a strategy.

    Args:
        strategy: a `tf.distribute` strategy.
        model: a model built in its scope.
        averages: the run's averages, or None, over the trainable variables followed by
            `averaged_statistics(model)`.
        policies: average → batch-norm policy.
        moment_batches: a function that returns the distributed training batches for the policy
            "recompute".
        num_moment_batches: number of these batches, for the record.
        objective: the loss and the metrics; `classification()` by default.
    """

    def __init__(
        self,
        strategy: Any,
        model: Any,
        averages: AverageState | None = None,
        policies: Mapping[str, str] | None = None,
        moment_batches: Callable[[], Iterable[Any]] | None = None,
        num_moment_batches: int = 0,
        objective: Objective | None = None,
    ) -> None:
        self.strategy = strategy
        self.objective = objective or classification()
        self.model = model
        self.averages = averages
        self.policies = dict(policies or {})
        self._moment_batches = moment_batches
        self._num_moment_batches = num_moment_batches
        self.on_batch: Callable[[], None] = lambda: None  # called for every batch, to show progress
        self._statistics = bn.find_statistics(model)
        self._readers: dict[str, Any] = {}
        self._evaluate_batch = tf.function(self._evaluate_batch_on_replicas, reduce_retracing=False)
        self._moments = tf.function(self._moments_on_replicas, reduce_retracing=False)
        self._spread = tf.function(
            lambda values: strategy.run(
                lambda values: [tf.identity(value) for value in values], args=(values,)
            )
        )

    # Weights ----------------------------------------------------------------------------------

    def _read(self, name: str, coefficients: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Reads one set of weights on every replica, in a function traced once."""
        if name not in self._readers:
            model, averages = self.model, self.averages
            trainable = list(model.trainable_variables)
            non_trainable = list(model.non_trainable_variables)

            def raw(_: Any) -> Any:
                values = backend.values(non_trainable)
                places = [i for entry in self._statistics for i in entry.places]
                for i, value in zip(
                    places, self._of_first([values[i] for i in places]), strict=True
                ):
                    values[i] = value
                return backend.values(trainable), values

            def average(coefficients: Any) -> Any:
                assert averages is not None
                values = averages.read(name, coefficients)
                count = len(trainable)
                cast = [tf.cast(a, v.dtype) for a, v in zip(values, trainable, strict=False)]
                return cast, self._of_first(values[count:])

            on_replica = raw if name == RAW else average

            @tf.function
            def read(coefficients: Any) -> Any:
                return self.strategy.run(on_replica, args=(coefficients,))

            self._readers[name] = read.get_concrete_function(
                tf.TensorSpec(coefficients.shape, tf.float64)
            )
        first, second = self._readers[name](tf.constant(coefficients, tf.float64))
        return list(first), list(second)

    def _of_first(self, statistics: list[Any]) -> list[Any]:
        """Returns the first replica's statistics, which are the saved ones, on every replica.

        Called on replicas.  Synchronised statistics are the same everywhere.
        """
        synchronized = all(entry.layer.synchronized for entry in self._statistics)
        if self.strategy.num_replicas_in_sync == 1 or synchronized or not statistics:
            return statistics
        context = tf.distribute.get_replica_context()
        first = tf.equal(context.replica_id_in_sync_group, 0)
        kept = [tf.where(first, value, tf.zeros_like(value)) for value in statistics]
        return list(context.all_reduce("SUM", kept))

    def weights(self, name: str, step: int, policy: str | None = None) -> Weights:
        """Returns the raw weights or an average after `step` updates, per replica.

        Args:
            name: "raw" or an average.
            step: the number of updates made so far.
            policy: batch-norm policy; None for the average's own, and for the raw
                weights' running statistics.
        """
        trainable, non_trainable = self._read(RAW, np.zeros(0))
        policy = policy or self._default_policy(name)
        extra: list[Any] = []
        if name != RAW:
            assert self.averages is not None
            trainable, extra = self._read(name, self.averages.read_coefficients(name, step))
        if policy == "average" and name != RAW:
            found = zip(self._statistics, bn.pairs(extra), strict=True)
            for entry, (mean, variance) in found:
                non_trainable[entry.mean], non_trainable[entry.variance] = mean, variance
        elif policy == "recompute" and self._statistics:
            moments = self._pooled_moments(trainable, non_trainable)
            non_trainable = bn.replace(non_trainable, self._statistics, moments)
            # Created on the replicas like the other weights: another kind of values would cause the
            # # evaluation to be traced again.
            non_trainable = list(self._spread(non_trainable))
        return trainable, non_trainable

    def weights_from(
        self, trainable: Sequence[np.ndarray], statistics: Sequence[np.ndarray] | None = None
    ) -> Weights:
        """Returns weights from another source (averages of snapshots), for `evaluate`.

        Args:
            trainable: arrays in the order of `model.trainable_variables`.
            statistics: mean and variance of each batch-norm layer in turn, in the order of
                `batch_norm.find_statistics`; None recomputes them.
        """
        variables = self.model.trainable_variables
        given = [tf.cast(a, v.dtype) for a, v in zip(trainable, variables, strict=True)]
        _, non_trainable = self._read(RAW, np.zeros(0))
        if not self._statistics:
            return given, non_trainable
        if statistics is None:
            moments = self._pooled_moments(given, non_trainable)
        else:
            moments = bn.pairs(statistics)
        return given, bn.replace(non_trainable, self._statistics, moments)

    def _default_policy(self, name: str) -> str:
        return "running" if name == RAW else self.policies.get(name, "recompute")

    def describe(self, name: str, policy: str | None = None) -> str:
        """Returns the description of an evaluation's batch-norm statistics, for its record."""
        if not self._statistics:
            return "none"
        policy = policy or self._default_policy(name)
        if policy == "recompute":
            return f"recompute({self._num_moment_batches} batches)"
        return policy

    def candidates(
        self, names: Iterable[str], default: str, policy: str | None = None
    ) -> list[tuple[str, str | None]]:
        """Returns (weights, batch-norm policy) of all evaluations, in order.

        Running statistics lag behind weights that change quickly.  Averages are therefore compared
        with raw weights that have recomputed statistics; these come first in a record, and tables
        and figures use them.

        Args:
            names: "raw" and names of averages.
            default: the run's policy.
            policy: a policy instead of the configured ones; None for the configured ones.
        """
        found: list[tuple[str, str | None]] = []
        for name in names:
            if name != RAW:
                found.append((name, policy))
                continue
            if self.has_batch_norm and (policy or default) == "recompute":
                found.append((RAW, "recompute"))
            found.append((RAW, "running"))
        return found

    @property
    def has_batch_norm(self) -> bool:
        return bool(self._statistics)

    def _moments_on_replicas(self, trainable: Any, non_trainable: Any, inputs: Any) -> Any:
        def on_replica(trainable: Any, non_trainable: Any, inputs: Any) -> Any:
            moments, _ = bn.batch_moments(
                self.model, self._statistics, trainable, non_trainable, inputs
            )
            return bn.over_replicas(moments)

        moments = self.strategy.run(on_replica, args=(trainable, non_trainable, inputs))
        return tf.nest.map_structure(
            lambda moment: self.strategy.experimental_local_results(moment)[0], moments
        )

    def _pooled_moments(self, trainable: list[Any], non_trainable: list[Any]) -> Any:
        if self._moment_batches is None:
            raise ValueError("Recomputing batch-norm statistics needs batches; none were given.")
        pooled = bn.PooledMoments()
        for inputs, _ in self._moment_batches():
            pooled.add(self._moments(trainable, non_trainable, inputs))
            self.on_batch()
        return pooled.result()

    # Evaluation -------------------------------------------------------------------------------

    def _evaluate_batch_on_replicas(self, weights: Any, batch: Any, training: bool) -> Any:
        objective = self.objective

        def on_replica(weights: Any, batch: Any) -> Any:
            inputs, targets, present = batch
            trainable, non_trainable = weights
            outputs, _ = backend.forward(
                self.model, trainable, non_trainable, inputs, training=training
            )
            losses = objective.evaluated(targets, outputs)
            sums = {
                "examples": [tf.reduce_sum(present)],
                "loss": [tf.reduce_sum(losses * tf.cast(present, losses.dtype))],
            }
            for name, values in objective.means.items():
                sums[name] = [tf.reduce_sum(values(targets, outputs) * present)]
            return sums | objective.measured(targets, outputs, present)

        sums = self.strategy.run(on_replica, args=(weights, batch))
        return {
            name: [self.strategy.reduce("SUM", value, axis=None) for value in values]
            for name, values in sums.items()
        }

    def evaluate(
        self, weights: Weights, batches: Iterable[Any], batch_statistics: bool = False
    ) -> Result:
        """Computes the mean loss (without smoothing or decay) and the metrics over all examples.

        Args:
            weights: from `weights`.
            batches: distributed batches (inputs, targets, 1.0 for each real example).
            batch_statistics: batch norm uses each batch's own statistics, as in training.
        """
        # Sums of batches are added in float64: a float32 sum over ImageNet's
        # validation set would lose the last digits.
        totals: dict[str, list[np.ndarray]] = {}
        for batch in batches:
            for name, sums in self._evaluate_batch(weights, batch, batch_statistics).items():
                wide = [value.numpy().astype(np.float64) for value in sums]
                before = totals.get(name, [np.zeros(())] * len(wide))
                totals[name] = [a + b for a, b in zip(before, wide, strict=True)]
            self.on_batch()
        count = float(totals["examples"][0]) if totals else 0.0
        if count == 0:
            raise ValueError("Evaluation needs at least one example; the split is empty.")
        values = {name: float(totals[name][0]) / count for name in ("loss", *self.objective.means)}
        measured = self.objective.results({name: totals[name] for name in self.objective.metrics})
        values |= {name: float(value) for name, value in measured.items()}
        return Result(values, int(count))

    def host_weights(self, weights: Weights) -> Weights:
        """Returns the first replica's values of a result of `weights`."""
        first = [[self.strategy.experimental_local_results(v)[0] for v in part] for part in weights]
        return first[0], first[1]


def averaged_statistics(model: Any, policies: Mapping[str, str]) -> list[Any]:
    """Returns the batch-norm variables to average with the weights, if a policy needs them."""
    return bn.statistics_variables(model) if "average" in policies.values() else []
