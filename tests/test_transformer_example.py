"""The transformer example: its data, rates, resuming, and the table of its results."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from tf_lrtraj import kernels, schedules

PATH = pathlib.Path(__file__).parents[1] / "examples/transformer.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("transformer", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(example):
    return example.split(example.text()[:400_000])


def test_held_out_pieces_are_not_in_the_training_text(example, data):
    training, (inputs, targets) = data
    assert inputs.shape == targets.shape == (64 * (400_000 // 65 // 64 // 64), 64)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert training.min() >= 0 and training.max() < 128
    # Blocks of the training text, of which no held-out piece is one.
    blocks = {block.tobytes() for block in training.reshape(-1, 65)}
    pieces = np.concatenate([inputs, targets[:, -1:]], axis=1)
    same = sum(piece.tobytes() in blocks for piece in pieces.astype(training.dtype))
    assert same < 0.02 * len(pieces)  # some text stands twice in the library


def test_a_batch_depends_on_its_number_alone(example, data):
    whole = example.Batches(data[0], seed=3, first=0, count=9)
    rest = example.Batches(data[0], seed=3, first=4, count=5)
    for i in range(5):
        for a, b in zip(whole[4 + i], rest[i], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(whole[0][0], whole[1][0])
    assert not np.array_equal(whole[0][0], example.Batches(data[0], 4, 0, 1)[0][0])


def test_a_linear_decay_is_the_schedule_of_the_mean(example):
    steps, length = 600, 100
    rates = example.decayed(steps, "linear", length)
    kernel = kernels.Uniform(start=steps - length)
    wanted = schedules.EquivalentSchedule(kernel, example.constant(steps), steps).rates
    assert np.abs(rates - wanted).max() <= 1.01 * example.RATE / length  # a step's difference
    root = example.decayed(steps, "one_minus_sqrt", length)
    np.testing.assert_allclose(
        root[-length:], example.RATE * (1.0 - np.sqrt(np.arange(length) / length))
    )
    np.testing.assert_array_equal(root[:-length], example.constant(steps)[:-length])


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(example, data, tmp_path):
    rates, ends = example.constant(6), []
    for name, parts in (("whole", [[0, 3, 6]]), ("parts", [[0, 3], [0, 3, 6], [0, 3, 6]])):
        folder = tmp_path / name
        folder.mkdir()
        for stops in parts:  # a process each
            model = example.compiled(example.network(0))
            if not example.state_path(folder, 0).exists():
                example.save(model, example.state_path(folder, 0))
            example.train(model, data[0], 0, rates, folder, stops, every=3)
        ends.append([*model.get_weights(), *model.optimizer.get_average("ema")])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def forecast(loss, raw=2.0):
    return {"loss": loss, "low": loss - 0.02, "high": loss + 0.02, "raw": raw}


def test_the_table_has_errors_and_bands(example, tmp_path, capsys):
    for seed, off in enumerate((0.01, -0.03)):
        rows = [
            {
                "shape": shape, "length": 100, "trained": 1.5, "mean": 1.6, "share": 0.8 + off,
                "from_run_alone": forecast(1.5 + off), "with_first_decay": forecast(1.5),
            }
            for shape in ("linear", "one_minus_sqrt")
        ]  # fmt: skip
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        (folder / "decays.json").write_text(json.dumps({"about": {}, "decays": rows}))
    example.report(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| linear, 100 updates | 1.5000 ± 0.0000 | 0.7900 ± 0.0200 |")
    assert "-0.67, at most 2.00 (-2.0); 1 of 2 | (known) |" in lines[2]
    assert "+0.00, at most 0.00 (+0.0); 2 of 2 |" in lines[3]
    assert (tmp_path / "decays.svg").stat().st_size > 5000
    with pytest.raises(SystemExit, match="run the seeds first"):
        example.report(tmp_path / "seed0")
