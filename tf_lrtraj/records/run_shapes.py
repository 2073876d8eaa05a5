"""The shapes of a run's JSON files; docs/records.md describes them."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from tf_lrtraj.records.rows import Row
from tf_lrtraj.records.shapes import Count


class _RunBase(TypedDict):
    format: Literal[1]
    status: Literal["incomplete", "done", "diverged", "interrupted"]


class MatchedTo(TypedDict, total=False):
    """The average that a matched run emulates."""

    average: str
    kernel: dict[str, Any]
    curvature: float
    momentum: float


class TrainedModel(TypedDict, total=False):
    """The model of a run."""

    name: str
    parameters: Count


class TrainedOn(TypedDict, total=False):
    """The data of a run."""

    name: str
    num_examples: dict[str, Count]
    num_classes: Count | None
    unit: str


class TrainedWith(TypedDict, total=False):
    """The optimizer of a run."""

    name: str
    weight_decay: str


class Run(_RunBase, total=False):
    """`run.json`; see docs/records.md."""

    name: str
    command: str
    created: str
    versions: dict[str, str]
    seed: (
        int | None
    )  # may be unknown for runs of Keras' `fit`, as are the entries that may be None below
    threads: dict[str, int | None]
    strategy: str | None
    num_replicas: Count
    total_steps: Count | None
    batch_size: Count | None
    steps_per_epoch: float | None
    dataset: TrainedOn
    model: TrainedModel
    optimizer: TrainedWith
    loss: str
    averages: dict[str, dict[str, Any]] | None
    average_bytes: dict[str, Any]
    batch_norm: dict[str, str]
    matched_to: MatchedTo | None
    message: str | None
    resumed_at: list[Count]
    forked_at: Count


class MetricsRow(Row, total=False):
    """A row of `metrics.jsonl`."""

    kind: str
    epoch: float
    split: str
    weights: str
    batch_norm: str | None
    loss: float | None
    accuracy: float | None
    learning_rate: float | None
    examples: Count | None


class TimingRow(Row, total=False):
    """A row of `timing.jsonl`."""

    seconds: float
    images_per_second: float
