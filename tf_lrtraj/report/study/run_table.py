"""Tables about a run: its settings, and what its size can decide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from tf_lrtraj import claims
from tf_lrtraj.claims.power import planned
from tf_lrtraj.claims.verdicts import bounds_shown, number
from tf_lrtraj.records import Count, RecordError, read_json
from tf_lrtraj.report.study.page_blocks import Block, Fold, Link, Paragraph, Table


class _Run(TypedDict, total=False):
    status: str
    message: str | None
    seconds: dict[str, dict[str, float]]
    versions: dict[str, str]
    keras_backend: str
    processors: Count | None


class RunState:
    """`run.json` of a reproduction.

    Attributes:
        content: its content; empty if it is missing or damaged.
        problem: a sentence on an incomplete run; empty for a complete one.
    """

    def __init__(self, study: claims.Study) -> None:
        self.content: Mapping[str, Any] = {}
        self.problem = ""
        path = study.records.folder / "run.json"
        if not path.exists():
            return
        try:
            self.content = read_json(path, _Run)
        except RecordError as error:
            self.problem = str(error).replace(str(path), path.name)
            return
        status = self.content.get("status", "done")
        if status != "done":
            message = self.content.get("message")
            why = f"{status}: {message}" if message else status
            self.problem = f"The run is not complete ({why}). What is missing is not measured."


def facts(study: claims.Study, run: RunState) -> Table:
    """Returns the settings of the run, one number per row."""
    config = study.records.config
    about = {**config, **_of_base(study)}  # the actual command, if the scale was run
    rows = [
        *_texts(config),
        *_numbers(about),
        ("Seeds", _number(config, "seeds")),
        ("Duration, minutes", _minutes(run.content)),
        ("Keras backend", str(run.content.get("keras_backend") or "")),
        ("Processors", _number(run.content, "processors")),
        *((f"Version of {k}", str(v)) for k, v in run.content.get("versions", {}).items()),
    ]
    return Table(("What", "Value"), [(name, text) for name, text in rows if text])


def power(study: claims.Study) -> list[Block]:
    """Returns the expectation for each part, and whether the run is large enough to decide it."""
    rows = study.records.config.get("power")
    if not rows:
        return [Paragraph("The configuration has no table of what it can decide.")]
    try:
        plans = planned(rows, tuple(study.judgements))
        table = Table(
            ("Claim and part", "Wanted", "Expected", "Scatter", "Units", "Half-width", "Decidable"),
            [
                (
                    (Link(plan.claim, plan.claim), f": {plan.wanted.what}"),
                    bounds_shown(plan.wanted.low, plan.wanted.high),
                    number(plan.expected),
                    number(plan.scatter),
                    f"{plan.count:,} {plan.of}",
                    number(plan.half_width),
                    "yes" if plan.decidable else "no",
                )
                for plan in plans
            ],
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        return [Paragraph(f"The table of what the run can decide is damaged: {error}", notice=True)]
    pilot = study.records.config.get("pilot")
    told = (
        "Fixed before the run: the value that is expected of a part, the scatter of one unit, and "
        "half the width of the interval that follows. A part is decidable if the expected value "
        "with that interval lies wholly on one side of its thresholds."
    )
    decidable = sum(plan.decidable for plan in plans)
    return [
        Paragraph(told + (f" The scatter comes from: {pilot}" if pilot else "")),
        Paragraph(f"{decidable} of {len(plans)} parts are decidable."),
        Fold("Expected value and half-width of each part", [table]),
    ]


def _of_base(study: claims.Study) -> Mapping[str, Any]:
    try:
        return study.records.one("base").about
    except (claims.NotMeasured, RecordError):
        return {}


def _texts(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, model = config.get("data", {}), config.get("model", {})
    yield "Data", str(data.get("name") or "")
    size = _number(data, "image_size")
    yield "Image size", f"{size} × {size}" if size else ""
    yield "Augmentation", str(data.get("augmentation") or "")
    depth = _number(model, "depth")
    yield "Network", f"ResNet-{depth}" if depth else str(model.get("name") or "")
    yield "Width of the network", _number(model, "width")


_NUMBERS = {
    "num_weights": "Weights",
    "num_train": "Training images",
    "num_test": "Test images",
    "learning_rate": "Learning rate, constant",
    "momentum": "Momentum",
    "weight_decay": "Weight decay, on all weights",
    "batch_size": "Batch size",
    "burn_in": "Burn-in, steps",
    "window": "Window in which everything is measured, steps",
    "horizon": "Stretch that averages and schedules cover, steps",
}


def _numbers(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name in _NUMBERS.items():
        yield name, _number(about, key)


def _number(about: Mapping[str, Any], key: str) -> str:
    """Returns a finite number as text; empty for anything else."""
    value = about.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _minutes(run: Mapping[str, Any]) -> str:
    seconds = math.fsum(
        x for of_seeds in run.get("seconds", {}).values() for x in of_seeds.values()
    )
    return f"{seconds / 60:,.0f}" if 30.0 <= seconds < 1e15 else ""
