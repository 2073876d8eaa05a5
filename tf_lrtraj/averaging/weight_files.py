"""Files that hold the weights of a Keras model, read without trust."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import numpy as np

from tf_lrtraj.records.archives import load_arrays

__all__ = ["ENDINGS", "read_npz", "read_weights"]

ENDINGS = (".keras", ".weights.h5", ".npz")
_NUMBERED = re.compile(r"arr_([0-9]+)")


def check_ending(path: str | os.PathLike[str]) -> str:
    """The ending of a weight file.

    Raises:
        ValueError: if it is none of `ENDINGS`.
    """
    name = os.fspath(path)
    for ending in ENDINGS:
        if name.endswith(ending):
            return ending
    raise ValueError(f"a file of weights must end in {', '.join(ENDINGS)}. Received: {name!r}")


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file; those without names of their own (`arr_0`, …) in order.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, empty, or holds something else than numbers.
    """
    try:
        arrays = load_arrays(path, largest=None)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: {error}") from None
    if not arrays or any(array.dtype.kind not in "fiub" for array in arrays.values()):
        raise ValueError(f"{os.fspath(path)} must hold arrays of numbers. Received: {list(arrays)}")
    if all(_NUMBERED.fullmatch(name) for name in arrays):
        return dict(sorted(arrays.items(), key=lambda item: int(item[0][len("arr_") :])))
    return arrays


def read_weights(path: str | os.PathLike[str], model: Any) -> list[np.ndarray]:
    """The weights in a file, in the order of `model.weights`; the model stays as it is.

    Args:
        path: `.keras`, `.weights.h5`, or `.npz` with an array for each of `model.weights` (or
            for the trainable ones only, the others being the model's own): by the paths of
            the variables as names, or in their order (`arr_0`, …).
        model: a built Keras model of the same architecture.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it does not hold weights of the model; the file is named.
    """
    ending, place = check_ending(path), os.fspath(path)
    if ending == ".npz":
        arrays = _from_npz(path, model)
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
            f"{place} does not hold weights of the model, which has {len(expected)} variables: it "
            f"holds {len(found)}, and number {at} (from 0) is the first that differs"
        )
    return arrays


def _from_npz(path: str | os.PathLike[str], model: Any) -> list[np.ndarray]:
    named = read_npz(path)
    own = dict(zip([v.path for v in model.weights], model.get_weights(), strict=True))
    if set(named) & set(own):
        unknown = sorted(set(named) - set(own))
        missing = [v.path for v in model.trainable_weights if v.path not in named]
        if unknown or missing:
            raise ValueError(
                f"{os.fspath(path)} does not hold weights of the model: unknown {unknown[:3]}, "
                f"missing {missing[:3]}"
            )
        return list({**own, **named}.values())
    arrays = list(named.values())
    trainable = [v.path for v in model.trainable_weights]
    if len(arrays) == len(trainable) != len(own):
        return list({**own, **dict(zip(trainable, arrays, strict=True))}.values())
    return arrays


def _from_h5(path: str | os.PathLike[str], model: Any) -> list[np.ndarray]:
    open(path, "rb").close()
    before = model.get_weights()
    try:
        model.load_weights(pathlib.Path(path))
        return model.get_weights()
    except Exception as error:  # h5py and Keras raise many kinds on damaged and foreign files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{os.fspath(path)} does not hold weights of the model: {reason}"
        ) from None
    finally:
        model.set_weights(before)
