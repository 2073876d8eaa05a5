"""Workdirs as the report, the claims and the figures read them; pages must be sound HTML."""

from __future__ import annotations

import contextlib
import html.parser
import json
import pathlib
import shutil
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st

from fuzzing import judge
from fuzzing.files import (
    ARRAYS,
    BYTES,
    FATE,
    TREE,
    reading,
    spoil,
    spoilt,
    template,
    things,
)
from fuzzing.generate import CANARY, PLAIN, edits, mostly
from fuzzing.judge import Fault, Target
from fuzzing.programs import ROOT
from tf_lrtraj import kernels, records
from tf_lrtraj.records import ArrayRecord, RecordError

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
# Figures are embedded by this package; these cannot come out of a record.
FORBIDDEN = {"script", "iframe", "object", "embed", "form", "base", "foreignobject"}


class _Checker(html.parser.HTMLParser):
    """Tags that close in order; nothing that runs."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in FORBIDDEN:
            raise Fault(f"the page has a <{tag}>")
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                raise Fault(f"the page has <{tag} {name}={value!r}>")
            inner = (value or "").startswith(("#", "data:image/"))
            if name in ("src", "href", "xlink:href") and not inner:
                raise Fault(f"the page loads {value!r}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            raise Fault(f"</{tag}> closes nothing")


def check_page(text: str) -> None:
    """Raises `Fault` for a page that is no sound, inert HTML."""
    checker = _Checker()
    checker.feed(text)
    checker.close()
    if checker.open:
        raise Fault(f"never closed: {checker.open}")
    if CANARY in text:
        raise Fault("a text of the records is not escaped")


# Drawing an SVG takes far longer than everything else, so most pages have this in its place.
_FLAT = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" width="9" height="9"></svg>'


# --- Reports of runs ------------------------------------------------------------------------


def _row(step: int, weights: str, split: str, loss: float) -> dict[str, Any]:
    return {
        "kind": "eval",
        "step": step,
        "epoch": step / 10,
        "split": split,
        "weights": weights,
        "batch_norm": "running" if weights == "raw" else "recompute(8 batches)",
        "loss": loss,
        "accuracy": 1.0 - loss / 4,
        "examples": 300,
    }


def _build_run(folder: pathlib.Path, matched: bool = True) -> None:
    averages = {"ema": kernels.Exponential(0.9), "swa": kernels.Uniform(20)}
    rows: list[dict[str, Any]] = []
    for step in range(0, 41, 10):
        if step:
            rows.append(
                {
                    "kind": "train",
                    "step": step,
                    "epoch": step / 10,
                    "learning_rate": 0.1,
                    "loss": 2.0 / step,
                    "accuracy": 0.5,
                }
            )
        for weights in ("raw", *(averages if matched else ())):
            rows.append(_row(step, weights, "test", 2.0 - step / 40))
    run = {
        "format": records.FORMAT,
        "status": "done",
        "name": "a run",
        "command": "lrtraj-train --x=1",
        "created": "2024-05-01T12:00:00Z",
        "versions": {"python": "3.11.2", "keras": "3.15.0"},
        "seed": 0,
        "threads": {"intra": 2},
        "strategy": "one_device",
        "num_replicas": 1,
        "total_steps": 40,
        "batch_size": 64,
        "steps_per_epoch": 10,
        "dataset": {"name": "digits", "num_examples": {"train": 640}},
        "model": {"name": "resnet8", "parameters": 1000},
        "averages": {n: k.get_config() for n, k in averages.items()} if matched else {},
        "batch_norm": {},
        "message": None,
        "resumed_at": [20],
        "matched_to": None
        if matched
        else {
            "average": "ema",
            "kernel": averages["ema"].get_config(),
            "curvature": 0.0,
            "momentum": 0.9,
        },
    }
    folder.mkdir(exist_ok=True)
    records.write_json(folder / "run.json", run)
    records.write_json(folder / "config.json", {"name": "a run", "seed": 0, "a": [1, {"b": "c"}]})
    records.write_schedule(folder / "schedule.npz", np.linspace(0.1, 0.0, 40))
    records.append_rows(folder / "metrics.jsonl", rows)
    records.append_rows(
        folder / "timing.jsonl", [{"step": 10, "seconds": 1.5, "images_per_second": 400.0}]
    )


def _run(folder: pathlib.Path) -> None:
    _build_run(folder)
    (folder / "matched").mkdir()
    _build_run(folder / "matched" / "ema", matched=False)


RUN = template(_run)
_TEXT = st.sampled_from(
    [CANARY, "\u202e", "\ud800", "]]>", "<!--", "$x$", "$\\frac{", "a" * 400, "\x00"]
)
_HTML_TREE = st.tuples(st.just("tree"), edits(mostly(_TEXT, PLAIN, 2), 3))


def _report(given: Any, folder: pathlib.Path, flat: bool) -> None:
    from tf_lrtraj import report
    from tf_lrtraj.report import drawing

    work = spoilt(RUN, given, folder)
    outside = folder / "page.html"
    with contextlib.ExitStack() as stack:
        if flat:
            stack.enter_context(mock.patch.object(drawing, "to_svg", lambda figure: _FLAT))

        def read() -> None:
            report.text_summary(work)
            report.write_report(work, outside)

        try:
            reading(work, read, RecordError)
        except RecordError:
            if outside.exists():
                raise Fault("the page was written") from None
            raise
    check_page(outside.read_text("utf-8"))
    judge.leftovers(judge.content(folder))


def _reported(given: Any, folder: pathlib.Path) -> None:
    changes, drawn = given
    _report(changes, folder, flat=not drawn)


REPORT = Target(
    "reports of runs",
    st.tuples(
        things(_HTML_TREE, _HTML_TREE, ARRAYS, BYTES), mostly(st.just(False), st.just(True), 25)
    ),
    _reported,
    (RecordError,),
    share=0.5,
)

# --- Probes of runs -------------------------------------------------------------------------

_PROBES = [
    p.name
    for p in sorted((ROOT / "results/cifar10_resnet8_cpu/seed0/probes").glob("*.npz"))
    if p.stat().st_size < 200_000
]


def _gallery(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.report.probe_figures import gallery

    place, changes = given
    work = folder / "work"
    (work / "probes").mkdir(parents=True)
    name = _PROBES[place % len(_PROBES)]
    path = work / "probes" / name
    shutil.copyfile(ROOT / "results/cifar10_resnet8_cpu/seed0/probes" / name, path)
    for how in changes:
        if path.is_file() and not path.is_symlink():
            if how[0] == "about":
                _edit_about(path, how[1])
            else:
                spoil(path, how)

    def read() -> None:
        gallery.findings(work)
        for group in gallery.groups(work):
            if group.figure is None and not group.problem:
                raise Fault("no figure and no reason")

    reading(work, read, RecordError)


def _edit_about(path: pathlib.Path, changes: Any) -> None:
    from fuzzing.generate import edited

    try:
        record = ArrayRecord.read(path)
    except RecordError:
        return
    about = edited(record.about, changes)
    record.about = about if isinstance(about, dict) else {}
    with contextlib.suppress(TypeError):  # what no record can hold
        record.write(path)


_ABOUT = st.tuples(st.just("about"), edits(most=2))
GALLERY = Target(
    "probes of runs",
    st.tuples(
        st.integers(0, 50),
        st.lists(
            mostly(st.one_of(ARRAYS, ARRAYS, _ABOUT, BYTES), FATE, 15), min_size=1, max_size=2
        ),
    ),
    _gallery,
    (RecordError,),
    share=0.5,
)

# --- Advice and synthetic records -----------------------------------------------------------


def _advice(folder: pathlib.Path) -> None:
    for name in ("advice.json", "advice.npz"):
        shutil.copyfile(ROOT / "results/cifar10_resnet8_cpu/seed0/advice" / name, folder / name)


ADVICE = template(_advice)


def _draw_advice(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.report import advice_figure

    work = spoilt(ADVICE, given, folder)
    before = judge.content(work)
    with mock.patch.object(advice_figure, "to_svg", lambda figure: _FLAT):
        try:
            advice_figure.draw(work)
        except RecordError:
            judge.unchanged(before, judge.content(work))
            raise


ADVISED = Target(
    "records of advice", things(TREE, ARRAYS, BYTES), _draw_advice, (RecordError,), 0.5
)


def _synthetic(folder: pathlib.Path) -> None:
    for path in (ROOT / "results/synthetic").iterdir():
        if path.suffix in (".json", ".npz"):
            shutil.copyfile(path, folder / path.name)


SYNTHETIC_MADE = template(_synthetic)


def _draw_synthetic(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.report import synthetic_figures

    name, how = given
    work = folder / "work"
    work.mkdir()
    for suffix in (".json", ".npz"):
        shutil.copyfile(SYNTHETIC_MADE() / f"{name}{suffix}", work / f"{name}{suffix}")
    for place, what in how:
        path = work / f"{name}{('.json', '.npz')[place % 2]}"
        if path.is_file() and not path.is_symlink():
            spoil(path, what)
    before = judge.content(work)
    with mock.patch.object(synthetic_figures, "to_svg", lambda figure: _FLAT):
        try:
            synthetic_figures.draw(work)
        except RecordError:
            judge.unchanged(before, judge.content(work))
            raise


SYNTHETIC = Target(
    "records of synthetic experiments",
    st.tuples(
        st.sampled_from(["two_time_scales", "averaging_length"]),
        things(TREE, ARRAYS, BYTES, most=2),
    ),
    _draw_synthetic,
    (RecordError,),
    0.4,
)

# --- Reproductions --------------------------------------------------------------------------

_REPRODUCTION = ROOT / "results/reproduction_digits"
_TASKS = sorted(
    p.relative_to(_REPRODUCTION).as_posix()
    for p in [*_REPRODUCTION.glob("measured/*/*.json"), *_REPRODUCTION.glob("probes/*/*.npz")]
    if p.stat().st_size < 120_000
)


def _of_task(name: str) -> tuple[Any, ...]:
    from tf_lrtraj import claims
    from tf_lrtraj.claims.layout import PROBES_OF

    part = pathlib.PurePosixPath(name)
    if part.parts[0] == "measured":
        tasks = {part.parts[1]}
    else:
        tasks = {
            task for task, patterns in PROBES_OF.items() for p in patterns if part.match(f"{p}.npz")
        }
    return tuple(c for c in claims.CLAIMS if tasks & set(c.needs))


def _links(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A folder with the records of a reproduction, and a copy of one that is to be spoilt."""
    work = folder / "work"
    for path in _REPRODUCTION.rglob("*"):
        part = path.relative_to(_REPRODUCTION)
        if path.is_file() and part.parts[0] in ("measured", "probes"):
            (work / part).parent.mkdir(parents=True, exist_ok=True)
            (work / part).symlink_to(path)
    for other in ("config.json", "run.json", name):
        (work / other).unlink(missing_ok=True)
        shutil.copyfile(_REPRODUCTION / other, work / other)
    return work


def _judged(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj import claims

    place, changes, config = given
    name = _TASKS[place % len(_TASKS)]
    work = _links(folder, name)
    for how in changes:
        if (work / name).is_file() and not (work / name).is_symlink():
            spoil(work / name, how)
    if config is not None:
        spoil(work / "config.json", config)
    wanted = _of_task(name)[:2]

    def read() -> None:
        ledger = claims.make_ledger(work, wanted)
        json.dumps(ledger["counts"])
        claims.ledger_bytes(ledger)
        claims.ledger_text(ledger)

    reading(work, read, RecordError)


_SPOILT = st.lists(mostly(st.one_of(TREE, ARRAYS, BYTES), FATE, 15), min_size=1, max_size=2)
CLAIMS = Target(
    "claims",
    st.tuples(st.integers(0, 10**4), _SPOILT, mostly(st.none(), st.one_of(TREE, BYTES), 4)),
    _judged,
    (RecordError,),
    share=0.7,
)


def _page(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj import claims
    from tf_lrtraj.report.study import study_page

    place, changes, other, more = given
    name = _TASKS[place % len(_TASKS)]
    work = _links(folder, name)
    for how in changes:
        if (work / name).is_file() and not (work / name).is_symlink():
            spoil(work / name, how)
    spoil(work / other, more)
    before = judge.content(work)
    try:
        study = claims.Study(work, _of_task(name)[:2])
        with mock.patch.object(study_page, "to_svg", lambda figure: _FLAT):
            text = study_page.write_page(study).read_text("utf-8")
        study_page.markdown_page(study)
    except RecordError:
        judge.unchanged(before, judge.content(work))
        raise
    check_page(text)
    judge.leftovers(judge.content(work))


PAGE = Target(
    "pages of reproductions",
    st.tuples(
        st.integers(0, 10**4),
        st.lists(st.one_of(_HTML_TREE, TREE, ARRAYS), max_size=1),
        st.sampled_from(["config.json", "run.json"]),
        mostly(st.one_of(_HTML_TREE, _HTML_TREE, BYTES), FATE, 15),
    ),
    _page,
    (RecordError,),
    share=0.5,
)

TARGETS = [REPORT, GALLERY, ADVISED, SYNTHETIC, CLAIMS, PAGE]
