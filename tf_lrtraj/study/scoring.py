"""Losses and accuracies of given weights on whole sets of images."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.study.problem import Problem

__all__ = ["Scorer"]


class Scorer:
    """Scores weights without changing the model's own.

    Args:
        model: a model of the architecture.
        loss: the loss of single examples.
        problem: its images.
        settings: `config.evaluate`: batch_size, part, batch_norm_images.

    Attributes:
        recalibrated: the loss with batch norm recomputed on a fixed part of the training images,
            as averages are evaluated.
    """

    def __init__(
        self, model: keras.Model, loss: Any, problem: Problem, settings: Mapping[str, Any]
    ) -> None:
        self._problem = problem
        self._size = int(settings["batch_size"])
        self._part = int(settings["part"])
        moments = self._split(*problem.images("train_part", settings["batch_norm_images"]))
        self.recalibrated = Surface(model, loss, batch_norm="recalibrated", moment_batches=moments)
        self._stored = Surface(model, loss, batch_norm="frozen")

    def _split(self, x: np.ndarray, y: np.ndarray) -> list[Batch]:
        lows = range(0, len(x), self._size)
        return [(x[low : low + self._size], y[low : low + self._size]) for low in lows]

    def images(self, name: str) -> int:
        """Returns the number of images of a set."""
        return len(self._problem.images(name, self._part)[0])

    def score(
        self, weights: Sequence[Any], sets: Sequence[str], policy: str = "recompute"
    ) -> list[dict[str, Any]]:
        """Returns a row for each set: set, loss, accuracy, images and policy.

        Args:
            weights: trainable arrays and, if statistics are not recomputed, mean and variance of
                each batch-norm layer.
            sets: names of sets: "train", "test", "train_part", "test_part".
            policy: "recompute" uses statistics of a fixed part of the training images; any other
                name uses those of the weights, and is stored as a label.
        """
        surface = self.recalibrated if policy == "recompute" else self._stored
        point = surface.point(weights)
        rows = []
        for name in sets:
            batches = self._split(*self._problem.images(name, self._part))
            losses, accuracies = surface.evaluate(point, batches)
            sizes = np.array([len(x) for x, _ in batches])
            rows.append(
                {
                    "set": name,
                    "loss": float(np.average(losses, weights=sizes)),
                    "accuracy": float(np.average(accuracies, weights=sizes)),
                    "images": int(sizes.sum()),
                    "policy": policy,
                }
            )
        # On PyTorch, closures inside Keras hold the batches in cycles; Python, which counts objects
        # and not bytes, would let them grow to gigabytes.
        gc.collect()
        return rows
