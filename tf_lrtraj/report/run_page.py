"""The report of a run as one self-contained page, drawn from its records alone."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj import kernels
from tf_lrtraj.records import RAW, RecordError, RunRecord, load_record, write_atomically
from tf_lrtraj.report import base_page, drawing, number_text, run_figures, run_results, run_summary
from tf_lrtraj.report.probe_figures import gallery

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures", "render_report", "write_figures", "write_report"]

_STATUS_NOTES = {
    "done": "",
    "incomplete": "The run is still going, or was killed: the records end where it stood.",
    "diverged": "The run diverged: the records end there.",
    "interrupted": "The run was stopped before its last step.",
}
_MOST_SPLITS = 10  # whose curves are drawn
_MOST_KERNEL_STEPS = 20_000_000  # largest array of weights, for one kernel at a time
_VERSIONS = ("tf_lrtraj", "tensorflow", "keras", "backend", "numpy", "python")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure on the page; `source` is a data URI."""

    source: str
    alt: str
    width: int
    height: int


def _picture(figure: Figure | None, alt: str) -> list[Picture]:
    """Returns a list of one picture, or an empty list if there was nothing to draw."""
    if figure is None:
        return []
    svg = drawing.to_svg(figure)
    width, height = (round(96 * float(size)) for size in figure.get_size_inches())
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return [Picture(f"data:image/svg+xml;base64,{data}", alt, width, height)]


def _kernel_text(config: Mapping[str, Any]) -> str:
    """`{"kernel": "Exponential", "decay": 0.9}` → `Exponential(decay=0.9)`."""
    arguments = [
        f"{key}={value if len(str(value)) < 40 else '…'}"
        for key, value in config.items()
        if key != "kernel"
    ]
    return f"{config.get('kernel', '?')}({', '.join(arguments)})"


def _first(items: Mapping[str, Any], most: int = run_figures.MOST_LINES) -> dict[str, Any]:
    return dict(itertools.islice(items.items(), most))


def _count(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _setting(record: RunRecord, rates: np.ndarray | None) -> str:
    """Returns one line on the training: model, data, steps, batch."""
    run = record.run
    parts = []
    model, data = run.get("model", {}), run.get("dataset", {})
    if (name := model.get("name")) is not None:
        size = model.get("parameters")
        parts.append(f"{name} ({size:,} parameters)" if size is not None else name)
    if (name := data.get("name")) is not None:
        size = data.get("num_examples", {}).get("train")
        unit = run_results.unit(record)
        parts.append(f"{name} ({size:,} training {unit})" if size is not None else name)
    total, per_epoch = run.get("total_steps"), run.get("steps_per_epoch") or 0.0
    if total is not None:
        text = f"{total:,} steps"
        if per_epoch > 0:
            text += f" ({total / per_epoch:,.3g} epochs)"
        parts.append(text)
    if run.get("batch_size") is not None:
        parts.append(f"batch {run['batch_size']:,}")
    if rates is not None and rates.size and np.isfinite(rates).all():
        low, high = float(rates.min()), float(rates.max())
        parts.append(f"rate {high:g}, constant" if low == high else f"rate {low:.3g} to {high:.3g}")
    return " · ".join(parts)


def _speed(record: RunRecord) -> str | None:
    try:
        rows = record.timing()
    except RecordError:
        return None
    speeds = [
        row["images_per_second"]
        for row in rows
        if number_text.is_finite(row.get("images_per_second"))
    ]
    seconds = sum(row["seconds"] for row in rows if number_text.is_finite(row.get("seconds")))
    if not speeds:
        return None
    time = f"; {seconds / 60:,.1f} minutes of training steps" if seconds else ""
    return f"{float(np.median(speeds)):,.0f} {run_results.unit(record)} per second (median){time}"


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    run = record.run
    versions = run.get("versions", {})
    named = [key for key in _VERSIONS if key in versions]
    replicas = run.get("num_replicas")
    strategy = run.get("strategy")
    matched_to = run.get("matched_to")
    facts = [
        ("Status", record.status + (f": {run['message']}" if run.get("message") else "")),
        ("Started", run.get("created")),
        ("Seeds" if record.runs else "Seed", run.get("seed")),
        ("Threads", run.get("threads")),
        ("Strategy", f"{strategy}, {replicas} replica(s)" if replicas else strategy),
        ("Speed", _speed(record)),
        (
            "Versions",
            ", ".join(
                f"{key} {versions[key]}"
                for key in [*named, *sorted(key for key in versions if key not in named)]
            ),
        ),
        ("Resumed at steps", ", ".join(map(str, run.get("resumed_at", [])))),
        (
            "Matched to",
            f"{matched_to.get('average')}, {_kernel_text(matched_to.get('kernel', {}))}, curvature "
            f"{matched_to.get('curvature')}, momentum {matched_to.get('momentum')}"
            if matched_to is not None
            else None,
        ),
    ]
    return [(name, _fact(value)) for name, value in facts if value not in (None, "")]


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


class _RunPage:
    """The content of the page of a run; `problems` collects what cannot be read or drawn."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.matched, self.problems = run_results.load_matched(record)
        self.palette = run_figures.colours(record, *self.matched)
        self.split = run_results.main_split(record)
        known = record.metrics()
        usual = (name for name in ("accuracy", "loss") if name in known)
        self.metrics: list[str] = [*usual, *run_results.other_metrics(record)]
        self.own = self.schedule(record)

    def schedule(self, record: RunRecord) -> np.ndarray | None:
        try:
            return record.schedule()
        except RecordError as error:
            self.problems.append(str(error))
            return None

    def curves(self, split: str) -> dict[str, Figure | None]:
        """Returns metric → its panel on a split."""
        return {
            metric: run_figures.curves(self.record, metric, split, self.palette)
            for metric in self.metrics
        }

    def pair(self, name: str, other: RunRecord) -> dict[str, Figure | None]:
        """Returns panels of an average and its matched run, by metric, and of their rates."""
        found = {
            metric: run_figures.pair_curves(
                self.record, other, name, metric, self.split, self.palette
            )
            for metric in self.metrics
        }
        rates = self.schedule(other)
        if rates is not None:
            found["rates"] = run_figures.rates(self.record, self.own, {name: rates}, self.palette)
        return found

    def split_pictures(self, split: str) -> list[Picture]:
        return [
            picture
            for metric, panel in self.curves(split).items()
            for picture in _picture(
                panel, f"{split} {metric} of the raw weights and every average against steps"
            )
        ]

    def pairs(self) -> list[dict[str, Any]]:
        """Returns a section for each pair."""
        record, sections = self.record, []
        compared = run_results.pairs(record, self.split, self.matched)
        for name, other in _first(self.matched).items():
            pictures = []
            for shown, panel in self.pair(name, other).items():
                alt = (
                    f"rate of this run and of the matched run of {name}"
                    if shown == "rates"
                    else f"{self.split} {shown} of {name} and of its matched run"
                )
                pictures += _picture(panel, alt)
            kernel = _kernel_text(record.averages[name]) if name in record.averages else ""
            sections.append(
                {
                    "name": name,
                    "kernel": kernel,
                    "pair": compared[name],
                    "status": other.status,
                    "same_seed": record.run.get("seed") == other.run.get("seed"),
                    "message": other.run.get("message"),
                    "matched_to": other.run.get("matched_to") or {},
                    "pictures": pictures,
                }
            )
        return sections

    def kernel_pictures(self) -> tuple[list[Picture], list[Picture]]:
        """Returns (the weights of each kernel, their cumulative sums together)."""
        built = {}
        for name, config in _first(self.record.averages).items():
            try:
                built[name] = kernels.from_config(config)
            except (ValueError, TypeError) as error:
                self.problems.append(f"The kernel of {name} cannot be drawn: {error}")
        steps = self.record.run.get("total_steps") or self.record.last_step()
        if steps * len(built) > _MOST_KERNEL_STEPS:
            self.problems.append(
                f"Weights of the averages are not drawn: {len(built)} over {steps:,} steps are "
                f"more than {_MOST_KERNEL_STEPS:,} numbers."
            )
        elif built and steps:
            each: list[Picture] = []
            for name, kernel in built.items():
                panel = run_figures.kernel_weights(name, kernel, steps, self.palette[name])
                each += _picture(panel, f"weights of {name} against the age of the iterate")
            shares = run_figures.cumulative_weights(built, steps, self.palette)
            alt = "share of weight reached by each update, for every average"
            return each, _picture(shares, alt)
        return [], []

    def left_out(self, count: int, what: str, most: int = run_figures.MOST_LINES) -> None:
        """Adds a sentence if figures omit entries of the tables."""
        if count > most:
            self.problems.append(f"Figures show the first {most} of {count:,} {what}.")


def _table(rows: Iterable[run_results.FinalRow], palette: Mapping[str, str]) -> dict[str, Any]:
    rows = list(rows)
    accuracies = [
        row.accuracy
        for row in rows
        if row.accuracy is not None and number_text.is_finite(row.accuracy)
    ]
    losses = [row.loss for row in rows if row.loss is not None and number_text.is_finite(row.loss)]
    steps = {row.step for row in rows}
    others = list(dict.fromkeys(name for row in rows for name in row.others))
    return {
        "rows": rows,
        "others": others,
        "with_accuracy": any(row.accuracy is not None for row in rows),
        "with_highest": not any(row.errors for row in rows),
        "examples": next((row.examples for row in rows if row.examples), None),
        "step": steps.pop() if len(steps) == 1 else None,
        "best_accuracy": max(accuracies, default=None) if len(rows) > 1 else None,
        "best_loss": min(losses, default=None) if len(rows) > 1 else None,
        "colours": palette,
    }


def render_report(record: RunRecord) -> str:
    """Returns the page of a run; `write_report` writes it to a file.

    Raises:
        ImportError: if jinja2 or matplotlib is missing (the remedy is named).
    """
    base_page.require_libraries()
    page = _RunPage(record)
    palette, split = page.palette, page.split
    splits = sorted(record.splits(), key=lambda name: (name != split, name))
    pairs = page.pairs()
    each_kernel, all_kernels = page.kernel_pictures()
    training = [
        picture
        for metric in page.metrics
        for picture in _picture(
            run_figures.training_batches(record, metric), f"{metric} of the training batches"
        )
    ]
    groups, probed = [], []
    for run in record.runs or (record,):
        found = gallery.groups(run.workdir)
        of = f", seed {run.run.get('seed')}" if record.runs else ""
        groups += found
        probed += [
            (group.title + of, group.findings, _picture(group.figure, group.title + of))
            for group in found
        ]
    page.left_out(len(record.weights_names()), "sets of weights")
    page.left_out(len(record.averages), "averages")
    page.left_out(len(page.matched), "matched runs")
    page.left_out(len(splits), "splits", _MOST_SPLITS)
    page.problems += [group.problem for group in groups if group.problem]
    tables = [
        (name, _table(run_results.final_rows(record, name, page.matched), palette))
        for name in splits
    ]
    return base_page.render(
        "run.html.j2",
        {
            "percent": number_text.percent,
            "points": number_text.points,
            "number": number_text.number,
            "count": _count,
        },
        title=str(record.run.get("name") or record.workdir.resolve().name),
        status=record.status,
        status_note=_STATUS_NOTES[record.status],
        message=record.run.get("message"),
        setting=_setting(record, page.own),
        # A number and its unit stay on one line.
        findings=[
            sentence.replace(" %", "\u00a0%")
            for sentence in run_summary.findings(record, split, page.matched)
        ],
        split=split,
        unit=run_results.unit(record),
        tables=tables,
        split_figures=[(name, page.split_pictures(name)) for name in splits[:_MOST_SPLITS]],
        training=training,
        pairs=pairs,
        rates=_picture(
            run_figures.rates(record, page.own, {}, palette), "learning rate of every update"
        ),
        each_kernel=each_kernel,
        all_kernels=all_kernels,
        kernel_texts={name: _kernel_text(config) for name, config in record.averages.items()},
        colours=palette,
        raw=RAW,
        # The page does not show the path of the workdir, which may be private.
        problems=[problem.replace(f"{record.workdir}{os.sep}", "") for problem in page.problems],
        probes=[shown for shown in probed if shown[-1]],
        facts=_facts(record),
        command=record.run.get("command"),
        config=json.dumps(record.config, indent=2, ensure_ascii=False),
    )


def write_report(
    workdir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """Draws the report of a workdir from its records, for a run in any state.

    Args:
        workdir: the workdir of a run that is going, done, killed or diverged, or a folder of
            repeated runs (`records.load_record`), whose means are drawn with bands.
        path: the file to write; `report.html` in the workdir by default.

    Returns:
        The path of the page.

    Raises:
        RecordError: if `workdir` holds no run, or its records are damaged (the file is named).
        OSError: if the page cannot be written.
    """
    record = load_record(workdir)
    target = pathlib.Path(path) if path is not None else record.workdir / "report.html"
    write_atomically(target, base_page.encoded(render_report(record)))
    return target


def figures(workdir: str | os.PathLike[str]) -> dict[str, Figure]:
    """Returns the main figures of a run as Matplotlib figures.

    They are `accuracy` and `loss` of the raw weights and every average, `NAME_accuracy`,
    `NAME_loss` and `NAME_rates` of each average and its matched run, and `rates`, the learning rate
    of every update.  Figures without numbers are left out.

    A notebook displays them, and `figures(workdir)["loss"].savefig("loss.pdf")` writes one.

    Raises:
        RecordError: if the workdir's records are missing or damaged.
    """
    page = _RunPage(load_record(workdir))
    drawn = page.curves(page.split)
    for name, other in _first(page.matched).items():
        drawn |= {f"{name}_{shown}": panel for shown, panel in page.pair(name, other).items()}
    drawn["rates"] = run_figures.rates(page.record, page.own, {}, page.palette)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_figures(workdir: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[str]:
    """Writes the `figures` of a run as SVG files, for documents and slides.

    Returns:
        The names of the files written, such as "accuracy.svg".

    Raises:
        RecordError: if the workdir's records are missing or damaged.
        OSError: if the folder cannot be written.
    """
    drawn = figures(workdir)
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        write_atomically(target / f"{name}.svg", drawing.to_svg(figure))
    return [f"{name}.svg" for name in drawn]
