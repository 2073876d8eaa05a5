"""Figures of the synthetic experiments, from hand-made records."""

from __future__ import annotations

import numpy as np
import pytest

from tf_lrtraj import records
from tf_lrtraj.report import drawing, synthetic_figures


def two_time_scales_record():
    steps = np.arange(201)
    record = {
        "large_rate": 0.5,
        "small_rate": 0.02,
        "decay": 0.98,
        "level": 0.3,
        "simulated_steps": np.array([1, 10, 100]),
    }
    for name, rate in (("large", 0.1), ("ema", 0.1), ("small", 0.02)):
        losses = 5.0 * np.exp(-rate * steps) + 0.2
        record[f"{name}_losses"] = losses
        record[f"{name}_simulated"] = losses[record["simulated_steps"]]
        record[f"{name}_stderr"] = 0.1 * record[f"{name}_simulated"]
        record[f"{name}_steps_to_level"] = None if name == "large" else int(np.argmax(losses < 0.3))
        record[f"{name}_path"] = np.stack([np.sin(steps), 30.0 - 0.1 * steps], axis=1)
    return record


def write(folder, name, record):
    arrays = {key: value for key, value in record.items() if isinstance(value, np.ndarray)}
    np.savez(folder / f"{name}.npz", **arrays)
    rest = {key: value for key, value in record.items() if key not in arrays}
    records.write_json(folder / f"{name}.json", rest)


def test_curves_and_marks_are_those_of_the_record():
    record = two_time_scales_record()
    left, right = synthetic_figures.two_time_scales(record).axes
    drawn = {line.get_label(): line for line in left.get_lines()}
    ema = drawn["rate 0.5, EMA of decay 0.98"]
    steps = ema.get_xdata()
    np.testing.assert_array_equal(ema.get_ydata(), record["ema_losses"][steps])
    marks = {text.get_text() for text in left.texts}
    assert marks == {f"{record[f'{n}_steps_to_level']:,} steps" for n in ("ema", "small")}
    paths = [line for line in right.get_lines() if line.get_xdata().size == 201]
    assert len(paths) == 3


def test_only_records_that_are_there_are_drawn(tmp_path):
    write(tmp_path, "two_time_scales", two_time_scales_record())
    assert synthetic_figures.draw(tmp_path) == [tmp_path / "two_time_scales.svg"]
    first = (tmp_path / "two_time_scales.svg").read_text()
    synthetic_figures.draw(tmp_path)
    assert (tmp_path / "two_time_scales.svg").read_text() == first
    assert "<svg" in first and drawing.GREY in first


def test_missing_and_damaged_records_are_named(tmp_path):
    with pytest.raises(records.RecordError, match="holds no record"):
        synthetic_figures.draw(tmp_path)
    write(tmp_path, "two_time_scales", two_time_scales_record())
    (tmp_path / "two_time_scales.npz").write_bytes(b"not an archive")
    with pytest.raises(records.RecordError, match=r"two_time_scales.npz cannot be read"):
        synthetic_figures.draw(tmp_path)
