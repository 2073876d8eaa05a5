"""The record of a probe: its arrays, a short summary, and its figure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.records import ArrayRecord, encode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ProbeRecord(ArrayRecord):
    """Measured arrays over named coordinates, as `measure` returns them.

    `coordinates`, `dims`, `values` and `about` are as in `tf_lrtraj.records.ArrayRecord`, and
    `ProbeRecord.read(path)` reads a file written by `write` or `measure`. A value that has not been
    measured is NaN; a measured value that is not finite is infinite.

    >>> record = ProbeRecord.empty(
    ...     "line", {"rate": [0.0, 0.1], "batch": [0, 1, 2]}, {"train": ("rate", "batch")}
    ... )
    >>> record.put("train", 0, [2.25, 2.0, 2.5])
    >>> record
    ProbeRecord of kind 'line': 3 of 6 numbers measured
      rate [2]: 0.0 to 0.1
      batch [3]: 0 to 2
      train [rate, batch]: 2 to 2.5
    """

    @classmethod
    def of(cls, record: ArrayRecord) -> ProbeRecord:
        """Returns a `ProbeRecord` that shares the arrays of another record."""
        return cls(record.kind, record.coordinates, record.dims, record.values, record.about)

    def __repr__(self) -> str:
        numbers = sum(value.size for value in self.values.values())
        known = sum(int(np.sum(~np.isnan(value))) for value in self.values.values())
        state = "complete" if known == numbers else f"{known:,} of {numbers:,} numbers measured"
        where = f" at step {self.about['step']:,}" if "step" in self.about else ""
        lines = [f"{type(self).__name__} of kind {self.kind!r}{where}: {state}"]
        lines += [_coordinate_line(name, axis) for name, axis in self.coordinates.items()]
        for name, value in self.values.items():
            axes = f" [{', '.join(self.dims[name])}]" if self.dims[name] else ""
            lines.append(f"  {name}{axes}: {_range(value)}")
        return "\n".join(lines)

    def plot(self, *others: ArrayRecord) -> Figure:
        """Draws the figure of this kind of probe, as in a run's report.

        Args:
            *others: records of the same kind, such as of later steps, to draw in the same figure
                if it supports several.

        Returns:
            A Matplotlib figure, which a notebook shows; `savefig` writes it.

        Raises:
            ValueError: if there is no figure of this kind, a record is not complete, or
                several are given of a kind whose figure shows one.
        """
        from tf_lrtraj import report

        return report.plot([self, *others])

    def to_xarray(self) -> Any:
        """Returns an `xarray.Dataset` of all values over their coordinates.

        `about` and `kind` become its attributes; entries that are not numbers or text are stored as
        JSON. `.to_dataframe()` of it, or of one of its values, returns a pandas table.

        Raises:
            ImportError: if xarray is not installed (`pip install tf_lrtraj[xarray]`).
        """
        try:
            import xarray
        except ImportError:
            raise ImportError(
                "`to_xarray` needs xarray: pip install xarray (or tf_lrtraj[xarray])"
            ) from None
        attributes = {
            name: value
            if isinstance(value, (str, int, float)) and not isinstance(value, bool)
            else json.dumps(encode(value))
            for name, value in self.about.items()
        }
        return xarray.Dataset(
            {name: (self.dims[name], value) for name, value in self.values.items()},
            {name: (name, axis) for name, axis in self.coordinates.items()},
            {"kind": self.kind, **attributes},
        )


def _coordinate_line(name: str, axis: np.ndarray) -> str:
    if not axis.size:
        return f"  {name} [0]"
    if axis.dtype.kind == "U":
        shown = "; ".join(axis[:6].tolist()) + ("; …" if axis.size > 6 else "")
    else:
        shown = f"{axis[0]} to {axis[-1]}" if axis.size > 1 else f"{axis[0]}"
    return f"  {name} [{axis.size}]: {shown}"


def _range(value: np.ndarray) -> str:
    """Returns the smallest and largest finite number of an array, and the count of others."""
    finite = value[np.isfinite(value)]
    missing, infinite = int(np.sum(np.isnan(value))), int(np.sum(np.isinf(value)))
    if not finite.size:
        return "not measured" if missing else "not finite"
    low, high = float(finite.min()), float(finite.max())
    text = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    return text + (f", {infinite:,} not finite" if infinite else "")
