"""Files of models and their weights: saved atomically, and loaded without running stored code."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.records import open_file, replacing, scheme_of, sync, temporary_path
from tf_lrtraj.records.archives import check_archive
from tf_lrtraj.records.tensor_files import distinct_names, dtype_of, write_tensors

# Endings of a whole model, and of its weights for other tools.
ENDINGS = (".keras", ".safetensors")


def check_model_path(path: str | os.PathLike[str], name: str = "path") -> str | pathlib.Path:
    """Returns `path` if `save_model` can write there, or raises ValueError.

    Args:
        path: a local path, or one with a scheme of TensorFlow's file systems.
        name: name of the argument, for errors.

    >>> check_model_path("models/ema.keras").name
    'ema.keras'
    """
    endings = " or ".join(map(repr, ENDINGS))
    if not isinstance(path, (str, os.PathLike)):
        raise values.error(name, f"a path that ends in {endings}", path)
    if not os.fspath(path).endswith(ENDINGS):
        raise ValueError(f"`{name}` must end in {endings}. Received: {name}={os.fspath(path)!r}")
    if scheme_of(path) is None:
        return pathlib.Path(path)
    _check_reachable(str(path), name)
    return str(path)


def _check_reachable(path: str, name: str) -> None:
    import tensorflow as tf

    schemes = sorted(scheme for scheme in tf.io.gfile.get_registered_schemes() if scheme)
    if scheme_of(path) not in schemes:
        raise ValueError(
            f"`{name}` must be a local path or begin with one of {[f'{s}://' for s in schemes]}. "
            f"Received: {path!r}"
        )
    try:
        found = tf.io.gfile.isdir("/".join(path.split("/")[:3]))
        reason = "it does not exist or cannot be read"
    except tf.errors.OpError as error:
        found, reason = False, str(error).splitlines()[0]
    if not found:
        raise ValueError(f"`{name}` must be in an existing bucket. Received: {path!r}: {reason}")


def load_model(path: str | os.PathLike[str]) -> Any:
    """Loads a `.keras` file without running any code stored in it.

    Raises:
        ValueError: if the file cannot be loaded, unpacks to far more than its own size, or
            contains code (a `Lambda` layer).
        OSError: if the file cannot be read, or is not a regular file.
    """
    import keras

    open_file(path).close()  # errors of the file system are raised as they are
    try:
        check_archive(path)
        return keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # zipfile, h5py, JSON and layers raise many types on damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the model {os.fspath(path)} cannot be loaded: {reason}") from None


def save_model(
    model: Any, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Saves a model or its weights.  The file appears whole or not at all.

    A local file is written under a temporary name and renamed.  A remote file is written locally
    and copied; buckets show an object only when it is complete.

    Args:
        model: a built Keras model.
        path: path of the file.  It ends in `.keras` for the model, or in `.safetensors` for
            `model.weights` (batch-norm statistics included) in their own types, named by the
            variables' paths.
        metadata: texts for the header of a `.safetensors` file.

    Raises:
        ValueError: if `path` has another ending or cannot be reached.
    """
    target = check_model_path(path)
    if isinstance(target, str):
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, f"model{os.path.splitext(target)[1]}")
            save_model(model, local, metadata)
            tf.io.gfile.makedirs(os.path.dirname(target))
            tf.io.gfile.copy(local, target, overwrite=True)
    elif target.suffix == ".safetensors":
        arrays = [
            np.asarray(array, dtype_of(str(variable.dtype)))
            for variable, array in zip(model.weights, model.get_weights(), strict=True)
        ]
        named = dict(zip(weight_names(model), arrays, strict=True))
        write_tensors(target, named, {"model": str(model.name), **(metadata or {})})
    else:
        with _replacing(target, ".keras") as temporary:
            model.save(temporary)


def weight_names(model: Any) -> list[str]:
    """Returns the names of a model's weights in a file: their paths, numbered if equal."""
    return distinct_names([variable.path for variable in model.weights])


def save_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Saves a `.keras`, `.safetensors` or local `.weights.h5` file atomically."""
    target = pathlib.Path(path)
    if target.suffix in ENDINGS:
        save_model(model, target)
        return
    with _replacing(target, ".weights.h5") as temporary:
        model.save_weights(temporary)


@contextlib.contextmanager
def _replacing(target: pathlib.Path, ending: str) -> Iterator[pathlib.Path]:
    """`records.replacing` with the ending that Keras needs and a name unique to the call."""
    temporary = temporary_path(target.with_name(uuid.uuid4().hex), ending)
    with replacing(target, temporary):
        yield temporary
    sync(target.parent)
