"""Datasets by name: the embedded digits, and datasets prepared by tensorflow-datasets.

The network is used only for a requested download: a prepared dataset is opened from its folder,
which holds its description.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import glob
import math
import os
import re
from typing import Any

import numpy as np

from tf_lrtraj.data import order, tfrecord_files
from tf_lrtraj.data.augmentations import NAMES
from tf_lrtraj.data.dataset import DataError, ImageDataset, check_augmentation
from tf_lrtraj.data.digits import MAX_VALUE, digits
from tf_lrtraj.data.in_memory import InMemoryDataset, from_splits, validation_size
from tf_lrtraj.values import error, integer, number, one_of, text

__all__ = ["DatasetNotPreparedError", "load", "names", "prepare"]

# Datasets up to this decoded size, at the requested image size, are held in memory.
MEMORY_LIMIT = 2 * 2**30
_PIECE = 2**24  # pixel values resized at a time: 64 MiB as float32
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class _Usual:
    """The usual normalisation and augmentation of a dataset in the literature."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augmentation: str
    drop: tuple[str, ...] = ()


_IMAGENET = _Usual(
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    "random_resized_crop",
    drop=("test",),  # 100,000 images without labels
)
# Means and deviations over the pixels of the training images.
_USUAL = {
    "cifar10": _Usual((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "crop_flip"),
    "cifar100": _Usual((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "crop_flip"),
    "mnist": _Usual((0.1307,), (0.3081,), "crop"),
    "fashion_mnist": _Usual((0.2860,), (0.3530,), "crop_flip"),
    "imagenet2012": _IMAGENET,
    "digits": _Usual(None, None, "crop"),
}


class DatasetNotPreparedError(FileNotFoundError, ValueError):
    """A known dataset that is not on disk; the message says how to prepare it."""


def names() -> list[str]:
    """Returns the datasets with known constants; `load` opens any image-classification set of TFDS.

    >>> names()
    ['cifar10', 'cifar100', 'digits', 'fashion_mnist', 'imagenet2012', 'mnist']
    """
    return sorted(_USUAL)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    augmentation: str | None = None,
    image_size: int | None = None,
    download: bool = False,
    validation_fraction: float = 0.0,
    seed: int = 0,
    shuffle_window: int = 2048,
) -> ImageDataset:
    """Opens a dataset by name.

    Args:
        name: "digits" (embedded), or the name of an image-classification set in
            tensorflow-datasets, "cifar10" or, with configuration and version,
            "imagenet2012_subset/1pct:5.0.0"; or of your own set in `data_dir` (docs/data.md).
        data_dir: folder of the prepared sets of tensorflow-datasets; by default the environment
            variable TFDS_DATA_DIR, or ~/tensorflow_datasets.
        augmentation: the augmentation of training batches: "none" (or None), "crop", "crop_flip",
            "random_resized_crop", or "standard" for the usual one of this dataset (crop_flip for
            CIFAR and Fashion-MNIST, random_resized_crop for ImageNet, crop for digits, none
            otherwise); "mixup" or "cutmix", alone or as in "crop_flip+mixup", mixes pairs of
            images.  See `tf_lrtraj.data.augmentations`.
        image_size: height and width in pixels.  By default as stored, and 224 for sets
            that are streamed.  A set that takes more than 2 GiB at this size is streamed too,
            and streaming evaluates the central 87.5 % of an image; "digits" is refused then.
        download: download and prepare the set if it is not in `data_dir`.
        validation_fraction: share of the training images, in [0, 1), that become the split
            "validation".
        seed: selects these images for a set in memory (for a streamed set they are the last ones;
            TFDS stores images in random order).
        shuffle_window: for streamed sets: number of records in a window in which they are
            shuffled, in addition to the order of files; they are held encoded in memory (about
            110 kB each for ImageNet).

    Returns:
        An `ImageDataset`: held in memory up to 2 GiB of pixels, as stored and at `image_size`,
        and streamed from disk beyond.

    Raises:
        ValueError: for an unknown dataset (with the nearest known names), split, augmentation
            or number out of range.
        DatasetNotPreparedError: if the set is not in `data_dir`; says how to prepare it.
        DataError: if one of its files is missing or damaged.  For a streamed set only missing
        files, and files that are far too short, are found here; other damage is found on reading.

    >>> dataset = load("digits")
    >>> dataset.num_examples, dataset.image_shape
    ({'train': 1297, 'test': 500}, (8, 8, 1))
    """
    usual = _usual(text().check("name", name))
    one_of(["standard", *NAMES, None]).check("augmentation", augmentation)
    augmentation = check_augmentation(
        usual.augmentation if augmentation == "standard" else augmentation
    )
    image_size = integer(4).or_none().check("image_size", image_size)
    integer(1).check("shuffle_window", shuffle_window)
    number(0, below=1).check("validation_fraction", validation_fraction)
    in_memory = functools.partial(
        _resized_and_held,
        name,
        image_size,
        validation_fraction=validation_fraction,
        seed=seed,
        mean=usual.mean,
        std=usual.std,
        augmentation=augmentation,
    )
    if name == "digits":
        held = digits()
        _check_size(name, held, image_size)
        return in_memory(held, max_value=MAX_VALUE)

    info = open_prepared(name, data_dir, download)
    keys = image_and_label(info)
    image_key, label_key = keys
    splits = [s for s in _SPLITS if s in info.splits and s not in usual.drop]
    if splits == ["train"]:  # a user's own names for the others
        splits += sorted(s for s in info.splits if s not in ("train", *usual.drop))
    if "train" not in splits:
        raise ValueError(
            f"`name` must be a dataset with the split 'train'. {name!r} has {list(info.splits)}."
        )
    shape = info.features[image_key].shape
    label = info.features[label_key]
    common: dict[str, Any] = {
        "num_classes": int(label.num_classes),
        "class_names": label.names if label.num_classes == len(label.names or ()) else None,
        "version": str(info.version),
    }
    sizes = {s: int(info.splits[s].num_examples) for s in splits}
    if None not in shape and _held_bytes(sum(sizes.values()), shape, image_size) <= MEMORY_LIMIT:
        arrays = {s: _read_split(info, s, sizes[s], keys) for s in splits}
        return in_memory(arrays, max_value=255.0, **common)
    from tf_lrtraj.data.streaming import StreamedDataset

    return StreamedDataset(
        name,
        info,
        image_key=image_key,
        label_key=label_key,
        split_specs=_split_specs(name, sizes, validation_fraction),
        image_size=224 if image_size is None else image_size,
        mean=usual.mean or (0.5,) * shape[-1],
        std=usual.std or (0.25,) * shape[-1],
        augmentation=augmentation,
        shuffle_window=shuffle_window,
        **common,
    )


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> str:
    """Downloads and prepares a dataset with tensorflow-datasets, unless it is prepared already.

    Returns:
        The folder of the prepared dataset.

    Raises:
        ValueError: for an unknown dataset.
        RuntimeError: if it could not be downloaded or prepared; says why.
    """
    if name == "digits":
        raise ValueError("`name` must not be 'digits': it comes with scikit-learn, ready to use.")
    root = _root(data_dir)
    _check_known(name, root)
    folder = _find_prepared(name, root)
    if folder is not None:
        return folder
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root)
        builder.download_and_prepare()
    except ImportError as error:  # many builders need packages that TFDS does not install
        raise RuntimeError(
            f"Dataset {name!r} needs a package that is not installed: {error}. "
            f"Try `pip install {(error.name or '').partition('.')[0]}`."
        ) from error
    except Exception as error:  # a downloader may raise anything
        raise RuntimeError(
            f"Dataset {name!r} could not be downloaded and prepared in {root!r}: "
            f"{type(error).__name__}: {error}\n"
            "Check the network and the free disk space, or copy a folder that "
            "tensorflow-datasets prepared elsewhere. Some sets (imagenet2012) must first be "
            f"downloaded by hand into {os.path.join(root, 'downloads', 'manual')!r}; see "
            "https://www.tensorflow.org/datasets/catalog."
        ) from error
    return str(builder.data_path)


def open_prepared(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> Any:
    """Returns the `DatasetInfo` of a prepared dataset, found without the network."""
    root = _root(data_dir)
    folder = _find_prepared(name, root)
    if folder is None:
        _check_known(name, root)
        if not download:
            raise DatasetNotPreparedError(
                f"Dataset {name!r} is not prepared in {root!r}. Prepare it with\n"
                f"  python tools/prepare_data.py --dataset={name} --data_dir={root}\n"
                "or let the run download it: download=True, `--config.data.download=True` "
                "on the command line."
            )
        folder = prepare(name, root)
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder).info


def image_and_label(info: Any) -> tuple[str, str]:
    """Returns the names of the features that hold the image and its class."""
    import tensorflow_datasets as tfds

    features = info.features
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    supervised = info.supervised_keys or ("image", "label")
    found = [[key for key in features if isinstance(features[key], kind)] for kind in kinds]
    if not info.supervised_keys and [len(keys) for keys in found] == [1, 1]:
        supervised = (found[0][0], found[1][0])
    if len(supervised) != 2 or not all(
        isinstance(key, str) and key in features and isinstance(features[key], kind)
        for key, kind in zip(supervised, kinds, strict=False)
    ):
        raise ValueError(
            "`name` must be an image-classification dataset, with one tfds.features.Image and one "
            "tfds.features.ClassLabel, or with supervised keys that name them. "
            f"{info.full_name!r} has the features {dict(features.items())}."
        )
    if features[supervised[0]].np_dtype != np.uint8:
        raise ValueError(
            "`name` must be a dataset of 8-bit images. "
            f"{info.full_name!r} has {features[supervised[0]].np_dtype}."
        )
    return supervised[0], supervised[1]


def _usual(name: str) -> _Usual:
    base = re.split("[/:]", name)[0]
    if base in _USUAL:
        return _USUAL[base]
    if base.startswith("imagenet"):
        return _IMAGENET if "2012" in base else dataclasses.replace(_IMAGENET, drop=())
    return _Usual(None, None, "none")


def _root(data_dir: str | os.PathLike[str] | None) -> str:
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.expanduser(os.fspath(chosen))


def _find_prepared(name: str, root: str) -> str | None:
    """Returns the newest prepared version of a dataset under `root`, or None."""
    from etils import epath  # comes with tensorflow-datasets; knows gs:// too

    name, _, version = name.partition(":")
    base = epath.Path(root) / name
    found = _versions(base, version)
    if not found and "/" not in name and base.exists():
        # A dataset with configurations, of which only one is prepared.
        configs = [v for d in base.iterdir() if d.is_dir() for v in _versions(d, version)[-1:]]
        found = configs if len(configs) == 1 else []
    return os.fspath(found[-1]) if found else None


def _versions(base: Any, version: str) -> list[Any]:
    """Returns the prepared versions below a folder, oldest first."""
    if not base.exists():
        return []
    numbered = []
    for folder in base.iterdir():
        named = re.fullmatch(r"\d+\.\d+\.\d+", folder.name) and _matches(folder.name, version)
        if named and (folder / "dataset_info.json").exists():
            numbered.append((tuple(int(n) for n in folder.name.split(".")), folder))
    return [folder for _, folder in sorted(numbered, key=lambda pair: pair[0])]


def _prepared(folder: str) -> bool:
    """Returns whether a local folder holds a version of a prepared dataset."""
    found = (
        os.path.dirname(path) for path in glob.glob(f"{glob.escape(folder)}/*/dataset_info.json")
    )
    return any(re.fullmatch(r"\d+\.\d+\.\d+", os.path.basename(path)) for path in found)


def _matches(version: str, wanted: str) -> bool:
    if not wanted:
        return True
    parts = wanted.split(".")
    return all(p in ("*", v) for p, v in zip(parts, version.split("."), strict=False))


def _check_known(name: str, root: str) -> None:
    import tensorflow_datasets as tfds

    base = re.split("[/:]", name)[0]
    there = [path for path in glob.glob(os.path.join(glob.escape(root), "*")) if _prepared(path)]
    known = sorted(
        {
            *names(),
            *tfds.list_builders(with_community_datasets=False),
            *map(os.path.basename, there),
        }
    )
    if base in known:
        return
    near = difflib.get_close_matches(base.lower(), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    raise ValueError(
        f"Unknown dataset. {hint}`name` must be 'digits' or the name of an image-classification "
        "set of tensorflow-datasets (cifar10, cifar100, imagenet2012, …) or of your own in "
        f"{root!r}. Received: name={name!r}"
    )


def _read_split(
    info: Any, split: str, count: int, keys: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a whole split, in the stored order."""
    import tensorflow_datasets as tfds

    image_key, label_key = keys
    builder = tfds.builder_from_directory(info.data_dir)
    source = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({image_key: True, label_key: True}),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    images = np.empty((count, *info.features[image_key].shape), np.uint8)
    labels = np.empty(count, np.int32)
    start = 0
    what = f"split {split!r} of {info.full_name!r}"
    files = None
    if info.file_format is None or info.file_format.value == "tfrecord":
        files = order.table(info.splits[split].file_instructions)
        tfrecord_files.check_files(files, what)
        tfrecord_files.check_counts(files, what)
    try:
        for block in source.batch(1024).prefetch(2).as_numpy_iterator():
            stop = start + len(block[label_key])
            images[start:stop], labels[start:stop] = block[image_key], block[label_key]
            start = stop
    except Exception as error:
        reason = tfrecord_files.explain(error, () if files is None else files.name.tolist())
        if reason is None or not type(error).__module__.startswith("tensorflow."):
            raise
        raise DataError(f"{what}: {reason}") from error
    if start != count:
        raise DataError(
            f"{what} holds {start} images where its description says {count}: prepare it anew in "
            f"{os.fspath(info.data_dir)!r}."
        )
    return images, labels


def _held_bytes(count: int, shape: tuple[int, ...], image_size: int | None) -> int:
    """Returns the bytes of `count` uint8 images, as stored or at the requested size, if larger."""
    resized = 0 if image_size is None else image_size**2 * shape[-1]
    return count * max(math.prod(shape), resized)


def _check_size(
    name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]], image_size: int | None
) -> None:
    """Checks that a set that cannot be streamed fits into memory at `image_size`."""
    count = sum(len(labels) for _, labels in splits.values())
    size = _held_bytes(count, splits["train"][0].shape[1:], image_size)
    if size > MEMORY_LIMIT:
        raise error(
            "image_size",
            f"so small that the {count} images of {name!r} fit into {MEMORY_LIMIT // 10**6:,} MB "
            f"of memory (they take {size // 10**6:,} MB)",
            image_size,
        )


def _resized_and_held(
    name: str,
    image_size: int | None,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    max_value: float,
    validation_fraction: float,
    **fields: Any,
) -> InMemoryDataset:
    """`from_splits`, with images of another size."""
    _check_no_validation(name, splits, validation_fraction)
    if image_size is not None:
        splits = {s: (_resized(x, image_size, max_value), y) for s, (x, y) in splits.items()}
    return from_splits(
        name, splits, max_value=max_value, validation_fraction=validation_fraction, **fields
    )


def _check_no_validation(name: str, splits: Any, validation_fraction: float) -> None:
    if validation_fraction and "validation" in splits:
        allowed = f"0 for {name!r}, which has a split 'validation'"
        raise error("validation_fraction", allowed, validation_fraction)


def _split_specs(name: str, sizes: dict[str, int], fraction: float) -> dict[str, str]:
    """Returns TFDS split instructions of a streamed dataset, with a separate validation part."""
    _check_no_validation(name, sizes, fraction)
    specs = {split: split for split in sizes}
    if fraction:
        kept = sizes["train"] - validation_size(fraction, sizes["train"])
        specs.update(train=f"train[:{kept}]", validation=f"train[{kept}:]")
    return specs


def _resized(images: np.ndarray, size: int, max_value: float) -> np.ndarray:
    """Returns uint8 images at another size; only a part at a time is converted to float32."""
    if images.shape[1:3] == (size, size):
        return images
    import tensorflow as tf

    found = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
    step = max(_PIECE // max(math.prod(images.shape[1:]), math.prod(found.shape[1:])), 1)
    for start in range(0, len(images), step):
        block = tf.image.resize(images[start : start + step], (size, size), antialias=True).numpy()
        np.rint(block, out=block)
        found[start : start + step] = np.clip(block, 0, max_value, out=block)
    return found
