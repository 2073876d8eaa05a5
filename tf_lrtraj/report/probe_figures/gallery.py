"""Figures of probes: of given records, and of all probes of a run with a sentence each."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tf_lrtraj.records import ArrayRecord, RecordError, write_atomically
from tf_lrtraj.report.drawing import UNDRAWN, reason, to_svg
from tf_lrtraj.specs import PROBES
from tf_lrtraj.values import error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "probes"

_STEP = re.compile(r"(.+)-(\d{9})")


def plot(records: ArrayRecord | Sequence[ArrayRecord]) -> Figure:
    """Draws the figure of a probe from its record, or from several records of one kind.

    Args:
        records: records from `tf_lrtraj.probes.measure` or `ArrayRecord.read`.

    Returns:
        A Matplotlib figure, as in the report of a run.

    Raises:
        ValueError: if there is no record, no figure of its kind, a record is not complete, or
            there are several of a kind whose figure shows one.
    """
    given = [records] if isinstance(records, ArrayRecord) else list(records)
    kinds = sorted({str(getattr(record, "kind", type(record).__name__)) for record in given})
    if len(kinds) != 1 or kinds[0] not in PROBES:
        raise error("records", f"of one kind of probe, one of {sorted(PROBES)}", kinds)
    unfinished = [i for i, record in enumerate(given) if not record.complete]
    if unfinished:
        raise ValueError(
            "`records` must be complete: measure what they lack first. Received: unfinished "
            f"records at positions {unfinished}"
        )
    together = PROBES[kinds[0]].together
    if not together and len(given) > 1:
        raise ValueError(
            f"the figure of {kinds[0]!r} shows a single record. Received: {len(given)} records"
        )
    figure: Figure = _module(kinds[0]).draw(given if together else given[0])
    return figure


def sentences(record: ArrayRecord) -> list[str]:
    """Returns sentences on the findings of a record; none if it is not complete.

    >>> record = ArrayRecord.empty("plane", {"step": [0, 9]}, {"trajectory_residual": ["step"]})
    >>> record.put("trajectory_residual", ..., [0.0, 1.5])
    >>> sentences(record)
    ['the trajectory lies up to 1.5 off the plane']
    """
    if record.kind not in PROBES or not record.complete:
        return []
    where = f"step {record.about['step']:,}: " if "step" in record.about else ""
    return [f"{where}{text}" for text in _module(record.kind).sentences(record)]


def _module(kind: str) -> Any:
    """Returns the module of a kind, with `draw` for its figure and `sentences` on findings."""
    return importlib.import_module(f"tf_lrtraj.report.probe_figures.{kind}_figure")


@dataclasses.dataclass(frozen=True)
class Group:
    """Records of one probe, at one point or several.

    Attributes:
        name: the name of the probe in the run.
        records: in the order of their steps.
        figure: the figure; None if drawing failed.
        title: the title of the figure.
        problem: why there is no figure, or what is missing in it.
    """

    name: str
    records: list[ArrayRecord]
    figure: Figure | None
    title: str
    problem: str = ""

    @property
    def findings(self) -> list[str]:
        """Returns the findings of its complete records, a sentence each."""
        return [text for record in self.records for text in sentences(record)]


def groups(workdir: str | os.PathLike[str]) -> list[Group]:
    """Draws the probes of a run; a damaged record affects only its own figure."""
    found, problems = _read(workdir)
    return [
        _draw(name, found.get(name, []), problems.get(name, ""))
        for name in sorted({*found, *problems})
    ]


def findings(workdir: str | os.PathLike[str]) -> list[str]:
    """Returns the findings of the probes of a run as text, without drawing."""
    lines = []
    for name, records in sorted(_read(workdir)[0].items()):
        told = [f"  {text}" for record in records for text in sentences(record)]
        lines += [f"probe {name}", *told] if told else []
    return lines


def _read(
    workdir: str | os.PathLike[str],
) -> tuple[dict[str, list[ArrayRecord]], dict[str, str]]:
    """Reads records by the name of their probe, in the order of steps, and collects errors."""
    folder = pathlib.Path(workdir) / FOLDER
    found: dict[str, list[ArrayRecord]] = {}
    problems: dict[str, str] = {}
    for path in sorted(folder.glob("*.npz")):
        match = _STEP.fullmatch(path.stem)
        name = match.group(1) if match else path.stem
        try:
            found.setdefault(name, []).append(ArrayRecord.read(path))
        except RecordError as damage:
            problems[name] = str(damage)
    return found, problems


def _draw(name: str, records: list[ArrayRecord], problem: str) -> Group:
    if not records:
        return Group(name, [], None, name, problem)
    kind = records[0].kind
    if kind not in PROBES:
        return Group(name, records, None, name, f"{name}: no figure is known for {kind!r}")
    together, title = PROBES[kind].together, PROBES[kind].title
    unfinished = sum(not record.complete for record in records)
    if unfinished:
        problem = problem or f"{name}: {unfinished} of {len(records)} records are not complete"
    try:
        drawn = [r for r in records if r.complete]
        figure = plot(drawn if together else drawn[-1]) if drawn else None
    except UNDRAWN as problem_found:
        why = f"{name} could not be drawn: {reason(problem_found)}"
        return Group(name, records, None, title, why)
    return Group(name, records, figure, title, problem)


def draw(workdir: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Writes one SVG per probe to the run's folder of probes; returns their paths."""
    folder = pathlib.Path(workdir) / FOLDER
    written = []
    for group in groups(workdir):
        if group.figure is not None:
            path = folder / f"{group.name}.svg"
            write_atomically(path, to_svg(group.figure))
            written.append(path)
    return written
