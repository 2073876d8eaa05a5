"""Common averages of equally spaced snapshots, the candidates of a sweep."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.kernels import Exponential, Kernel, TwoPoint, Window

__all__ = ["FAMILIES", "Candidate", "ages_of", "candidate", "full_sweep", "sweep"]

FAMILIES = ("ema", "swa", "two_point", "spaced")
_EMA_TRIED = 40  # number of log-spaced decays in a full sweep


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One average of K snapshots.

    Attributes:
        name: family and parameter, such as "swa_40".
        family: "ema", "swa" (the mean of the last snapshots), "two_point", "spaced" (a window with
            gaps), "weights" or "raw".
        parameter: decay per snapshot; or length, gap or spacing in snapshots.
        weights: [K] weights on the snapshots, oldest first.
    """

    name: str
    family: str
    parameter: float
    weights: np.ndarray

    @property
    def mean_age(self) -> float:
        """Mean age of its snapshots, in snapshots."""
        return float(self.weights[::-1] @ np.arange(self.weights.size))


def candidate(family: str, parameter: float, count: int, points: int = 4) -> Candidate:
    """Makes a member of a family over `count` snapshots.

    Args:
        family: one of `FAMILIES`.
        parameter: decay per snapshot ("ema"), length ("swa"), gap ("two_point") or distance
            between neighbours ("spaced"), in snapshots.
        count: K, the number of snapshots.
        points: number of snapshots in a "spaced" average.

    Raises:
        ValueError: if the family is unknown, or the average reaches beyond the snapshots.

    >>> candidate("two_point", 2, 4).weights
    array([0. , 0.5, 0. , 0.5])
    """
    kernel: Kernel
    if family == "ema":
        kernel, reach, name = Exponential(parameter), 0, f"ema_{parameter:.6g}"
    elif family == "swa":
        kernel, reach, name = Window(int(parameter)), int(parameter) - 1, f"swa_{int(parameter)}"
    elif family == "two_point":
        kernel, reach = TwoPoint(int(parameter)), int(parameter)
        name = f"two_point_{int(parameter)}"
    elif family == "spaced":
        kernel, reach = Window(points, int(parameter)), (points - 1) * int(parameter)
        name = f"spaced_{points}x{int(parameter)}"
    else:
        raise values.error("family", f"one of {list(FAMILIES)}", family)
    if reach >= count:
        raise ValueError(f"{name} reaches beyond the {count} snapshots")
    return Candidate(name, family, float(parameter), kernel.weights(count - 1))


def ages_of(count: int, number: int) -> np.ndarray:
    """Returns [number] log-spaced mean ages, in snapshots, for EMAs over `count` snapshots."""
    return np.geomspace(0.5, max(0.5 * count, 1.0), number)


def full_sweep(count: int) -> list[Candidate]:
    """Returns the averages of a full sweep: each SWA length, each gap and 40 decays."""
    found = [candidate("ema", age / (1.0 + age), count) for age in ages_of(count, _EMA_TRIED)]
    found += [candidate("swa", length, count) for length in range(2, count + 1)]
    return found + [candidate("two_point", gap, count) for gap in range(1, count)]


def sweep(count: int, number: int) -> list[Candidate]:
    """Returns about `number` averages of `count` snapshots, log-spaced in every family.

    >>> [c.name for c in sweep(20, 8)]
    ['ema_0.333333', 'ema_0.909091', 'swa_2', 'swa_6', 'swa_20', 'two_point_1', 'two_point_19', \
'spaced_4x1']
    """
    ema = max(round(0.3 * number), 1)
    swa = max(round(0.35 * number), 1)
    two = max(round(0.2 * number), 1)
    spaced = max(number - ema - swa - two, 1)
    found = [candidate("ema", age / (1.0 + age), count) for age in ages_of(count, ema)]
    found += [candidate("swa", n, count) for n in _log_integers(2, count, swa)]
    found += [candidate("two_point", n, count) for n in _log_integers(1, count - 1, two)]
    for points, some in ((4, -(-spaced // 2)), (8, spaced // 2)):
        widest = (count - 1) // (points - 1)
        if some and widest >= 1:
            found += [candidate("spaced", n, count, points) for n in _log_integers(1, widest, some)]
    return found


def _log_integers(low: int, high: int, number: int) -> list[int]:
    """Returns at most `number` distinct integers from `low` to `high`, about log-spaced."""
    number = min(number, high - low + 1)
    tried = number
    while True:
        values = np.unique(np.round(np.geomspace(low, high, tried)).astype(int))
        if values.size >= number or tried > 50 * number:
            break
        tried += 1
    if values.size > number:
        values = values[np.round(np.linspace(0, values.size - 1, number)).astype(int)]
    return values.tolist()
