"""The learning problem of a study: arrays in memory, on every Keras backend, and its network."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import keras
import numpy as np

from tf_lrtraj import data, models, seeds
from tf_lrtraj.data import ImageDataset
from tf_lrtraj.data.portable import AUGMENTATIONS, Order, augmented
from tf_lrtraj.records.archives import load_arrays
from tf_lrtraj.runs.config_checks import ConfigError, refusal
from tf_lrtraj.values import one_of

__all__ = ["Batches", "Problem", "build_model", "load_problem"]

_MOST_CLASSES = 1_000_000
_SETS = ("x_train", "y_train", "x_test", "y_test")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Training and test images as arrays [n, height, width, channels], labels [n].

    Attributes:
        num_classes: the number of classes of the labels.
        augmentation: the augmentation of training batches: "none" or "crop_flip".
        stream: a data set too large for memory, from which training batches are drawn; the arrays
            then hold a part of it, for scores and probes.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    augmentation: str = "none"
    stream: ImageDataset | None = None

    @property
    def num_train(self) -> int:
        """Number of training images, including those not held in memory."""
        return len(self.x_train) if self.stream is None else self.stream.num_examples["train"]

    def training_batches(self, batch_size: int, seed: int, first: int, num: int) -> Any:
        """Returns the data of `fit` for steps `first` … `first + num - 1`, a function of (seed,
        step)."""
        if self.stream is None:
            return Batches(self, batch_size, seed, first, num)
        return self.stream.train_batches(batch_size, seed=seed, start_step=first).take(num)

    def images(self, name: str, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the set "train" or "test"; with the suffix "_part" its first `part` images."""
        whole = one_of(("train", "test")).check("name", name.removesuffix("_part"))
        x, y = getattr(self, f"x_{whole}"), getattr(self, f"y_{whole}")
        return (x, y) if whole == name else (x[:part], y[:part])


def load_problem(config: dict[str, Any]) -> Problem:
    """Reads the data of a configuration.

    Raises:
        ConfigError: if they are not available, or do not fit the rest of the configuration.
    """
    chosen = config["data"]
    if chosen["file"]:
        found = _from_file(pathlib.Path(chosen["file"]))
    else:
        try:
            found = _from_dataset(chosen)
        except ValueError as error:
            raise ConfigError(f"config.data: {error}") from None
    found = dataclasses.replace(found, augmentation=chosen["augmentation"])
    if found.stream is None and found.augmentation not in AUGMENTATIONS:
        allowed = f"one of {list(AUGMENTATIONS)} for a set held in memory"
        raise refusal("data.augmentation", allowed, found.augmentation)
    most = len(found.x_train)
    for key, value in (
        ("batch_size", config["batch_size"]),
        ("evaluate.batch_norm_images", config["evaluate"]["batch_norm_images"]),
        ("evaluate.part", config["evaluate"]["part"]),
    ):
        if value > most:
            raise refusal(key, f"at most the number of training images, {most}", value)
    return found


def _from_dataset(chosen: dict[str, Any]) -> Problem:
    dataset = data.load(
        chosen["name"],
        data_dir=chosen["dir"],
        image_size=chosen["image_size"],
        augmentation=chosen["augmentation"],
        download=chosen["download"],
    )
    held_out = dataset.eval_split
    if held_out is None:
        raise ValueError(f"{chosen['name']!r} has no test images")
    if isinstance(dataset, data.InMemoryDataset):
        return Problem(*dataset.arrays("train"), *dataset.arrays(held_out), dataset.num_classes)
    train = _held(dataset, "train", chosen["held_images"])
    test = _held(dataset, held_out, chosen["held_images"])
    return Problem(*train, *test, dataset.num_classes, stream=dataset)


def _held(dataset: ImageDataset, split: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images of a streamed split and their labels."""
    batches = dataset.eval_batches(split, 250, limit=limit)
    found = [[array.numpy() for array in batch] for batch in batches]
    images, labels, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return images[weights > 0], labels[weights > 0]


def _from_file(path: pathlib.Path) -> Problem:
    """Reads arrays of an .npz file, for machines without tensorflow-datasets."""
    try:
        stored = load_arrays(path, largest=None)
        arrays = {name: stored[name] for name in _SETS}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"`config.data.file` must be an .npz file with {list(_SETS)}. "
            f"Received: {str(path)!r} ({type(error).__name__}: {error})"
        ) from None
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        fits = x.ndim == 4 and x.size and x.dtype.kind in "iuf" and y.shape == x.shape[:1]
        if not fits or y.dtype.kind not in "iu" or x.shape[1:] != arrays["x_train"].shape[1:]:
            raise ConfigError(
                f"`config.data.file`: x_{part} must be images [n, height, width, channels] and "
                f"y_{part} integer labels [n], alike in training and test. Received: shapes "
                f"{x.shape} and {y.shape}, types {x.dtype} and {y.dtype}"
            )
        if not 0 <= int(y.min()) <= int(y.max()) < _MOST_CLASSES:
            raise ConfigError(
                f"`config.data.file`: y_{part} must hold labels of at least 0, below "
                f"{_MOST_CLASSES:,}. Received: {int(y.min())} to {int(y.max())}"
            )
    return Problem(
        arrays["x_train"].astype(np.float32),
        arrays["y_train"].astype(np.int32),
        arrays["x_test"].astype(np.float32),
        arrays["y_test"].astype(np.int32),
        num_classes=int(max(arrays["y_train"].max(), arrays["y_test"].max())) + 1,
    )


def build_model(config: dict[str, Any], problem: Problem, seed: int) -> keras.Model:
    """Builds the network of a configuration; its weights are a function of the seed."""
    chosen = config["model"]
    model = models.resnet(
        chosen["depth"],
        problem.num_classes,
        problem.x_train.shape[1:],
        stem=chosen["stem"],
        width=chosen["width"],
        seed=seed,
    )
    if config["weight_decay"]:
        # By default also on scales of batch norm: with decay on the kernels only, those keep
        # growing, and a run at constant rate never becomes stationary.
        decayed = models.decayed_variables(model, config["weight_decay_on"])
        for variable in itertools.compress(model.trainable_variables, decayed):
            variable.regularizer = keras.regularizers.L2(0.5 * config["weight_decay"])
    return model


class Batches(keras.utils.PyDataset):
    """The training batches of steps `first` … `first + num - 1`: a function of (seed, step)."""

    def __init__(self, problem: Problem, batch_size: int, seed: int, first: int, num: int) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self._problem = problem
        self._order = Order(len(problem.x_train), batch_size, seed)
        self._seed = seed
        self._first = first
        self._num = num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        step, problem = self._first + index, self._problem
        rows = self._order.rows(step)
        random = seeds.generator("augmentation", self._seed, step)
        images = augmented(problem.x_train[rows], problem.augmentation, random)
        return images, problem.y_train[rows]
