"""Reads files of the weights of a Keras model, without running stored code."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import numpy as np

from tf_lrtraj.averaging.snapshots import SCALE
from tf_lrtraj.records.archives import load_arrays
from tf_lrtraj.records.tensor_files import TensorFile

__all__ = ["ENDINGS", "NAMED", "read_named", "read_weights"]

ENDINGS = (".keras", ".weights.h5", ".npz", ".safetensors")
NAMED = (".npz", ".safetensors")  # can be read without a model
_NUMBERED = re.compile(r"arr_([0-9]+)")


def check_ending(path: str | os.PathLike[str]) -> str:
    """Returns the ending of a weight file; raises ValueError if it is none of `ENDINGS`."""
    name = os.fspath(path)
    for ending in ENDINGS:
        if name.endswith(ending):
            return ending
    raise ValueError(f"a file of weights must end in {', '.join(ENDINGS)}. Received: {name!r}")


def read_named(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` or `.safetensors` file, by name.

    Unnamed arrays of an `.npz` file (`arr_0`, …) are in order.  In a `.safetensors` file, integers
    with a scalar `NAME_scale` are multiplied by it, as in snapshots, and types that NumPy lacks
    become float32.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is damaged, empty, or holds anything but numbers.
    """
    if check_ending(path) == ".safetensors":
        arrays = _read_tensors(path)
    else:
        try:
            arrays = load_arrays(path, largest=None)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} cannot be read: {error}") from None
    if not arrays or any(array.dtype.kind not in "fiub" for array in arrays.values()):
        raise ValueError(f"{os.fspath(path)} must hold arrays of numbers. Received: {list(arrays)}")
    if all(_NUMBERED.fullmatch(name) for name in arrays):
        return dict(sorted(arrays.items(), key=lambda item: int(item[0][len("arr_") :])))
    return arrays


def _read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        arrays = {name: file.read(name) for name in file.tensors}
    for name, array in list(arrays.items()):
        scale = arrays.get(name + SCALE)
        if array.dtype.kind == "i" and scale is not None and scale.shape == ():
            factor = float(arrays.pop(name + SCALE))
            arrays[name] = np.multiply(array, factor, dtype=np.float32, casting="same_kind")
        elif array.dtype.kind not in "fiub":
            arrays[name] = array.astype(np.float32)
    return arrays


def read_weights(path: str | os.PathLike[str], model: Any) -> list[np.ndarray]:
    """Reads the weights in a file, in the order of `model.weights`.  The model does not change.

    Args:
        path: path of a `.keras`, `.weights.h5`, `.npz` or `.safetensors` file.  The last two hold
            an array for each of `model.weights`, or for each trainable weight; other weights are
            then those of the model.  Arrays are named by the variables' paths, or are in order
            (`arr_0`, …; for `.safetensors` only in files of this package).
        model: a built Keras model of the same architecture.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file does not hold weights of the model.
    """
    ending, place = check_ending(path), os.fspath(path)
    if ending in NAMED:
        arrays = _by_name(path, model)
    elif ending == ".keras":
        from tf_lrtraj.averaging.model_files import load_model

        arrays = load_model(path).get_weights()
    else:
        arrays = _from_h5(path, model)
    expected = [tuple(v.shape) for v in model.weights]
    found = [array.shape for array in arrays]
    if found != expected:
        pairs = zip(expected, found, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
        raise ValueError(
            f"{place} does not hold weights of the model: the model has {len(expected)} variables "
            f"and the file {len(found)}, and number {at} (from 0) is the first that differs"
        )
    return arrays


def _by_name(path: str | os.PathLike[str], model: Any) -> list[np.ndarray]:
    from tf_lrtraj.averaging.model_files import weight_names

    named = read_named(path)
    names = weight_names(model)
    own = dict(zip(names, model.get_weights(), strict=True))
    ids = {id(v) for v in model.trainable_weights}
    trainable = [n for n, v in zip(names, model.weights, strict=True) if id(v) in ids]
    if set(named) & set(own):
        unknown = sorted(set(named) - set(own))
        missing = [name for name in trainable if name not in named]
        if unknown or missing:
            raise ValueError(
                f"{os.fspath(path)} does not hold weights of the model: unknown {unknown[:3]}, "
                f"missing {missing[:3]}"
            )
        return list({**own, **named}.values())
    if check_ending(path) == ".safetensors":
        with TensorFile(path) as file:
            ordered = file.is_ours
        if not ordered:  # other programs sort arrays by name
            raise ValueError(
                f"{os.fspath(path)} does not hold weights of the model: it names "
                f"{list(named)[:3]}, and the model's variables are {names[:3]}"
            )
    arrays = list(named.values())
    if len(arrays) == len(trainable) != len(own):
        return list({**own, **dict(zip(trainable, arrays, strict=True))}.values())
    return arrays


def _from_h5(path: str | os.PathLike[str], model: Any) -> list[np.ndarray]:
    open(path, "rb").close()
    before = model.get_weights()
    try:
        model.load_weights(pathlib.Path(path))
        return model.get_weights()
    except Exception as error:  # h5py and Keras raise many types on damaged and foreign files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{os.fspath(path)} does not hold weights of the model: {reason}"
        ) from None
    finally:
        model.set_weights(before)
