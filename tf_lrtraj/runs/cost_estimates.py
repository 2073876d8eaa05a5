"""Estimates the memory and time of a run before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_lrtraj import memory
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.runs.config_checks import ConfigError, refusal

if TYPE_CHECKING:
    from tf_lrtraj.models import Size

__all__ = ["ABSURD", "check_counts", "check_memory", "check_run", "needs", "size_of"]

ABSURD = 10**13  # bytes; more than any device has
_FLOAT = 4  # bytes
# Limits of batches for recomputed statistics: this number, or that of this many epochs.
_MOMENT_BATCHES, _MOMENT_EPOCHS = 1000, 10


def check_counts(config: Mapping[str, Any], examples: int) -> None:
    """Compares counts of a run's configuration with the number of training images.

    Raises:
        ConfigError: for batches or evaluations of more images than there are, and for far too many
        batches for recomputed statistics.
    """
    batch = config["data"]["batch_size"]
    for key, value in (
        ("data.batch_size", batch),
        ("evaluate.train_examples", config["evaluate"]["train_examples"]),
    ):
        if value > examples:
            raise refusal(key, f"at most the number of training images, {examples}", value)
    most = max(_MOMENT_BATCHES, math.ceil(_MOMENT_EPOCHS * examples / batch))
    pooled = config["batch_norm"]["batches"]
    if pooled > most:
        why = "as statistics are recomputed for every average at every evaluation"
        raise refusal("batch_norm.batches", f"at most {most:,}, {why}", pooled)


def size_of(config: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int) -> Size:
    """The size of the network that a configuration describes.

    Raises:
        ConfigError: if there is no such network.
    """
    from tf_lrtraj.models import resnet_size  # Keras takes many seconds to import

    model = config["model"]
    try:
        return resnet_size(model["depth"], num_classes, image_shape, model["stem"], model["width"])
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from None


def needs(
    size: Size,
    averages: Mapping[str, Kernel],
    *,
    batch_size: int,
    eval_batch_size: int,
    momentum: bool = True,
    bytes_per_activation: int = _FLOAT,
) -> dict[str, int]:
    """Returns the bytes that training needs on one replica, by entry.

    Args:
        size: the size of the network.
        averages: name → kernel.
        batch_size: the batch size of training on this replica.
        eval_batch_size: the batch size of evaluation on this replica.
        momentum: whether the optimizer keeps a velocity.
        bytes_per_activation: 4, or 2 in half precision.

    Returns:
        Bytes of "weights", of "averages.NAME" for each average, and of the larger of
        "batch_size" and "eval_batch_size"; estimates from below.
    """
    copies = 3 if momentum else 2  # weights, gradients, velocity
    found = {"weights": _FLOAT * (copies * size.trainable + size.statistics)}
    for name, kernel in averages.items():
        found[f"averages.{name}"] = kernel.memory_bytes(size.trainable)
    # An evaluation holds two layers at a time.
    training = batch_size * size.activations * bytes_per_activation
    evaluation = eval_batch_size * 2 * size.largest * bytes_per_activation
    key = "batch_size" if training >= evaluation else "eval_batch_size"
    return {**found, key: max(training, evaluation)}


_RESNET_WEIGHTS = "config.model.width` with `config.model.depth"


def check_memory(
    wanted: Mapping[str, int],
    batch_size: str,
    replicas: int,
    available: int | None,
    weights: str = _RESNET_WEIGHTS,
) -> None:
    """Checks that a run fits into memory.

    Args:
        wanted: the result of `needs`, for one replica.
        batch_size: the entry of the configuration that holds it.
        replicas: that share the memory.
        available: bytes; None where it is not known.
        weights: the entry of the configuration that determines the number of weights.

    Raises:
        ConfigError: if it does not; the message names the entry that needs most, its bytes, and the
        bytes available.
    """
    total, most = replicas * sum(wanted.values()), ABSURD if available is None else available
    if total <= most:
        return
    # If the weights alone do not fit, they are named, although other entries grow with them.
    alone = replicas * wanted["weights"] > most
    largest = "weights" if alone else max(wanted, key=lambda part: wanted[part])
    group, _, name = largest.partition(".")
    keys = {
        "weights": weights,
        "averages": "config.averages",
        "batch_size": batch_size,
        "eval_batch_size": "config.evaluate.batch_size",
    }
    key = f"{keys[group]}.{name}" if name else keys[group]
    there = "no device has so much"
    if available is not None:
        there = f"the machine has {memory.describe(available)}"
    raise ConfigError(
        f"`{key}` asks for too much memory: the run takes about {memory.describe(total)} or more, "
        f"of which {memory.describe(replicas * wanted[largest])} for this, and {there}. "
        "Choose a smaller one."
    )


def check_run(
    config: Mapping[str, Any],
    averages: Mapping[str, Kernel],
    size: Size,
    replicas: int = 1,
    available: int | None = None,
) -> None:
    """Calls `check_memory` for a training run.

    Args:
        config: a validated configuration.
        averages: name → kernel.
        size: the size of the model.
        replicas: number of replicas that share the memory.
        available: bytes; None if unknown.

    Raises:
        ConfigError: if it does not fit.
    """
    wanted = needs(
        size,
        averages,
        batch_size=config["data"]["batch_size"] // replicas,
        eval_batch_size=-(-config["evaluate"]["batch_size"] // replicas),
        momentum=config["optimizer"]["name"] == "SGD" and bool(config["optimizer"]["momentum"]),
        bytes_per_activation=2 if config["model"]["dtype"] == "mixed_bfloat16" else _FLOAT,
    )
    own = config["model"]["build"] is not None
    weights = "config.model.build" if own else _RESNET_WEIGHTS
    check_memory(wanted, "config.data.batch_size", replicas, available, weights)
