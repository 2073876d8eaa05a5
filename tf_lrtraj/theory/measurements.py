"""Checks of measured losses and Jensen gaps, and the positions of their pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj import values

__all__ = ["errors", "lags", "pair_matrix", "pairs"]


def errors(name: str, value: Any, size: int) -> np.ndarray:
    """Returns [size] standard errors from a number or a vector."""
    errors = values.array().check(name, value)
    if errors.shape not in ((), (size,)) or np.any(errors < 0.0):
        raise values.error(name, f"a number or of shape [{size}], and at least 0", value)
    return np.array(np.broadcast_to(errors, (size,)))


def lags(name: str, value: Any, size: int, count: int) -> np.ndarray:
    """Returns [size] integer lags within a run of `count` snapshots."""
    lags = values.vector(size).check(name, value)
    if np.any(lags != np.round(lags)) or np.any(lags < 1) or np.any(lags >= count):
        allowed = f"integers from 1 to {count - 1}, within the run of {count} snapshots"
        raise values.error(name, allowed, value)
    return lags.astype(np.int64)


def pairs(gaps: np.ndarray, starts: Any, counts: Any, count: int) -> list[np.ndarray]:
    """Returns for each measured gap the earlier snapshots of its pairs."""
    if starts is not None:
        if counts is not None:
            raise values.error("counts", "None where `starts` are given", counts)
        first = values.vector(gaps.size).check("starts", starts)
        outside = (first < 0) | (first + gaps >= count) | (first != np.round(first))
        if outside.any():
            where = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"`starts` must be integers with starts + gaps within the run of {count} "
                f"snapshots. Received: start {first[where]:g} with gap {gaps[where]}"
            )
        return [np.array([index]) for index in first.astype(np.int64).tolist()]
    each = values.vector(gaps.size).check(
        "counts", np.ones(gaps.size) if counts is None else counts
    )
    if np.any(each < 1) or np.any(each != np.round(each)):
        raise values.error("counts", "integers of at least 1", counts)
    pairs: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * gaps.size
    for lag in np.unique(gaps).tolist():
        rows = np.flatnonzero(gaps == lag)
        total = int(each[rows].sum())
        # Evenly spread, a single pair in the middle.
        places = (np.arange(total) + 0.5) / total * (count - lag) - 0.5
        places = np.clip(np.round(places), 0, count - 1 - lag).astype(np.int64)
        for row, part in zip(
            rows, np.split(places, np.cumsum(each[rows].astype(int))[:-1]), strict=True
        ):
            pairs[row] = part
    return pairs


def pair_matrix(gaps: np.ndarray, count: int) -> np.ndarray:
    """Returns the [K, K] Jensen gaps of all pairs, exactly symmetric."""
    if gaps.shape != (count, count):
        raise ValueError(
            f"`jensen_gaps` must have shape [{count}, {count}], or [M]. Received: {gaps.shape}"
        )
    scale = np.abs(gaps).max()
    if np.abs(gaps - gaps.T).max() > 1e-8 * scale or np.any(np.diag(gaps) != 0.0):
        raise ValueError(
            "`jensen_gaps` must be a symmetric matrix with 0 on its diagonal. Received: asymmetry "
            f"{np.abs(gaps - gaps.T).max()!r}, diagonal up to {np.abs(np.diag(gaps)).max()!r}"
        )
    return 0.5 * (gaps + gaps.T)
