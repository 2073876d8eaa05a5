"""What this scale is: data, model, run, seeds and cost, as the records tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tf_lrtraj.report.reproduction.reading import Source

__all__ = ["facts", "scale", "state"]


def scale(source: Source) -> str:
    """The name of the configuration."""
    return source.config.get("name") or source.ledger.get("scale") or "reproduction"


def facts(source: Source) -> list[tuple[str, str]]:
    """(what, as it is) for everything that the records tell."""
    config = source.config
    about = {**config, **_base(source)}  # as it was run, where it was
    told = [
        ("Data", _data(config, about)),
        ("Model", _model(config, about)),
        (
            "Rate",
            _joined(
                _said(about, "learning_rate", "constant {:g}"),
                _said(about, "momentum", "momentum {:g}"),
                _said(about, "weight_decay", "weight decay {:g}"),
                _said(about, "batch_size", "batches of {:,}"),
            ),
        ),
        (
            "Steps",
            _joined(
                _said(about, "burn_in", "{:,} of burn-in"),
                _said(about, "window", "a window of {:,} in which everything is measured"),
                _said(about, "horizon", "averages and schedules over its last {:,}"),
            ),
        ),
        ("Seeds", _seeds(source)),
        ("Cost", _cost(source.run)),
        ("Machine", _machine(source.run)),
    ]
    return [(name, text) for name, text in told if text]


def state(source: Source) -> str:
    """A sentence on a reproduction that has not come to its end; empty for one that has."""
    status = source.run.get("status", "done")
    if status == "done":
        return ""
    why = f": {source.run['message']}" if source.run.get("message") else ""
    return f"Not all of it was made ({status}{why}); what is missing counts as not run."


def _base(source: Source) -> Mapping[str, Any]:
    records = source.tasks.get("base", {})
    return records[min(records)].get("about", {}) if records else {}


def _said(about: Mapping[str, Any], key: str, form: str) -> str:
    value = about.get(key)
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return form.format(value) if known else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _data(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    chosen = config.get("data", {})
    return _joined(
        str(chosen.get("name") or ""),
        _said(about, "num_train", "{:,} training images"),
        _said(about, "num_test", "{:,} test images"),
    )


def _model(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    chosen = config.get("model", {})
    name = f"ResNet-{chosen['depth']}" if "depth" in chosen else str(chosen.get("name") or "")
    return _joined(
        name,
        _said(chosen, "width", "width {:g}"),
        f"{chosen['stem']} stem" if "stem" in chosen else "",
        _said(about, "num_weights", "{:,} weights"),
    )


def _seeds(source: Source) -> str:
    by_count: dict[int, list[str]] = {}
    for task, records in source.tasks.items():
        by_count.setdefault(len(records), []).append(task)
    if not by_count:
        return ""
    most = max(by_count)
    text = f"{most}"
    fewer = [f"{', '.join(sorted(t))}: {n}" for n, t in sorted(by_count.items()) if n < most]
    return text + (f" ({'; '.join(fewer)})" if fewer else "")


def _cost(run: Mapping[str, Any]) -> str:
    seconds = sum(sum(of_seeds.values()) for of_seeds in run.get("seconds", {}).values())
    if seconds <= 0.0:
        return ""
    return f"{seconds / 60:,.0f} minutes" if seconds >= 90 else f"{seconds:,.0f} seconds"


def _machine(run: Mapping[str, Any]) -> str:
    versions = run.get("versions", {})
    parts = [f"{name} {version}" for name, version in versions.items()]
    return _joined(
        f"Keras on {run['keras_backend']}" if run.get("keras_backend") else "",
        _said(run, "processors", "{:,} processors"),
        *parts,
    )
