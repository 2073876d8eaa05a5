"""What the figures of a reproduction share: rows picked from records, and seeds as marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.claims.statistics import mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Seeds = Mapping[int, Mapping[str, Any]]  # seed → record of one task
Tasks = Mapping[str, Seeds]  # name of a task → its records

NAMES = {"raw": "raw weights", "ema": "EMA", "swa": "SWA", "two_point": "two points"}
SETS = {
    "train": "training loss, all images",
    "train_part": "training loss, fixed subset",
    "test": "test loss",
    "test_part": "test loss, fixed subset",
}
PREDICTED: dict[str, Any] = {
    "color": "black",
    "marker": "D",
    "markersize": 5,
    "markerfacecolor": "none",
    "linestyle": "none",
    "zorder": 5,
}


def name_of(average: str) -> str:
    """`two_point` → `two points`."""
    return NAMES.get(average, average.replace("_", " "))


def rows(record: Mapping[str, Any], **wanted: Any) -> list[Mapping[str, Any]]:
    """Rows of a record in which every wanted entry has the wanted value.

    >>> rows({"rows": [{"set": "test", "loss": 1.0}, {"set": "train", "loss": 2.0}]}, set="train")
    [{'set': 'train', 'loss': 2.0}]
    """
    return [
        row
        for row in record.get("rows", ())
        if all(_same(row.get(key), value) for key, value in wanted.items())
    ]


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(found, (int, float)):
        return bool(np.isclose(found, wanted, rtol=1e-9, atol=0.0))
    return bool(found == wanted)


def by_seed(records: Seeds, what: str, **wanted: Any) -> dict[int, float]:
    """Per seed the mean of one entry over its matching rows; seeds without any are left out."""
    found = {}
    for seed, record in sorted(records.items()):
        numbers = [float(row[what]) for row in rows(record, **wanted) if what in row]
        if numbers:
            found[seed] = float(np.mean(numbers))
    return found


def known(records: Seeds, key: str, **wanted: Any) -> list[Any]:
    """The values that an entry takes among the matching rows, sorted."""
    return sorted({row[key] for r in records.values() for row in rows(r, **wanted) if key in row})


def array(record: Mapping[str, Any], name: str) -> np.ndarray:
    """An array of a record; empty where there is none."""
    return np.asarray(record.get(name, ()), np.float64)


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t); NaN for fewer than two.

    >>> interval([1.0])
    (1.0, nan)
    """
    numbers = list(values)
    if not numbers:
        return float("nan"), float("nan")
    mean, _, high = mean_of(numbers).interval()
    return mean, high - mean if np.isfinite(high) else float("nan")


def column(
    axes: Axes,
    place: float,
    values: Mapping[int, float] | Sequence[float],
    color: str,
    *,
    spread: float = 0.12,
    marker: str = "o",
) -> None:
    """Seeds as dots side by side, and a bar over them: their mean with its 95 % interval."""
    numbers = list(values.values() if isinstance(values, Mapping) else values)
    if not numbers:
        return
    offsets = np.linspace(-spread, spread, len(numbers)) if len(numbers) > 1 else np.zeros(1)
    axes.plot(
        place + offsets, numbers, marker, color=color, markersize=4, alpha=0.55,
        markeredgecolor="none",
    )  # fmt: skip
    mean, half = interval(numbers)
    wide = 1.8 * spread
    axes.plot([place - wide, place + wide], [mean, mean], color=color, linewidth=2.0)
    if np.isfinite(half):
        axes.errorbar([place], [mean], yerr=[half], color=color, linewidth=1.2, capsize=3)


def level(axes: Axes, values: Mapping[int, float], color: str, **line: Any) -> float:
    """A horizontal line at the mean of seeds, with its interval as a band; returns the mean."""
    mean, half = interval(values.values())
    if np.isfinite(mean):
        axes.axhline(mean, color=color, **{"linewidth": 1.2, "linestyle": (0, (5, 2)), **line})
    if np.isfinite(half):
        axes.axhspan(mean - half, mean + half, color=color, alpha=0.10, linewidth=0)
    return mean


def count_of(seeds: int) -> str:
    """In words, of curves drawn seed by seed.

    >>> count_of(1), count_of(3)
    ('one seed', '3 seeds, a line for each')
    """
    return "one seed" if seeds == 1 else f"{seeds} seeds, a line for each"


def plain_log(axes: Axes, *directions: str) -> None:
    """Log scales whose ticks are plain numbers at 1, 2 and 5; the limits are then final."""
    from matplotlib import ticker

    for direction in directions:
        getattr(axes, f"set_{direction}scale")("log")
        axis = getattr(axes, f"{direction}axis")
        low, high = getattr(axes, f"get_{direction}lim")()
        # Within less than a decade 1, 2 and 5 may be a single tick.
        subs = (1.0, 2.0, 5.0) if high > 8.0 * low > 0.0 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axis.set_major_locator(ticker.LogLocator(subs=subs))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(ticker.NullLocator())
    settle(axes)


def settle(axes: Axes) -> None:
    """Fixes the limits at what the marks drawn so far need, as labels at curves' ends require."""
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())


def percent(number: float, digits: int = 2) -> str:
    """A share as a percentage with so many significant digits; never `-0`.

    >>> percent(0.01234), percent(-0.0), percent(0.5)
    ('1.2 %', '0 %', '50 %')
    """
    return f"{100.0 * number + 0.0:.{digits}g} %" if abs(number) < 1.0 else f"{100 * number:.0f} %"


def errors(pairs: Sequence[tuple[float, float]]) -> str:
    """How far predictions lie from measurements, (predicted, measured): median and worst.

    >>> errors([(1.01, 1.0), (2.0, 2.0), (3.0, 2.9)])
    'median 1 %, worst 3.4 % (3 values)'
    """
    off = np.array([abs(p / m - 1.0) for p, m in pairs if m != 0.0 and np.isfinite(p / m)])
    if not off.size:
        return "no pair to compare"
    middle, worst = percent(float(np.median(off))), percent(float(off.max()))
    return f"median {middle}, worst {worst} ({off.size} value{'s' * (off.size > 1)})"
