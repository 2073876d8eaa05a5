"""Checkpoints: whole or absent, checked, with a fallback."""

import logging

import keras
import numpy as np
import pytest

from tf_lrtraj.training.checkpoints import Checkpointer, CheckpointError


def values(variables):
    return [variable.numpy().copy() for variable in variables]


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints of two variables that hold the step they were saved at."""
    variables = [keras.Variable(np.zeros((3, 2), "float32")), keras.Variable(np.int32(0))]
    checkpointer = Checkpointer(tmp_path / "checkpoints", {"model": variables})
    for step in (1, 2):
        for variable in variables:
            variable.assign(np.full(variable.shape, step))
        checkpointer.save(step, {"window": {"losses": [0.1 * step]}})
    return checkpointer, variables


def test_the_newest_is_restored_to_the_bit(saved):
    checkpointer, variables = saved
    odd = np.float32(1) / np.float32(3)
    variables[0].assign(np.full((3, 2), odd))
    checkpointer.save(7, {"window": {"losses": [1 / 3]}})
    variables[0].assign(np.zeros((3, 2)))
    step, progress = checkpointer.restore()
    assert (step, progress["window"]) == (7, {"losses": [1 / 3]})
    np.testing.assert_array_equal(values(variables)[0], np.full((3, 2), odd))
    assert checkpointer.steps() == [2, 7]  # keep=2


def test_one_step_can_be_chosen(saved):
    checkpointer, variables = saved
    assert checkpointer.restore(1)[0] == 1
    assert variables[1].numpy() == 1
    with pytest.raises(FileNotFoundError, match=r"step 5 .* steps: \[1, 2\]"):
        checkpointer.restore(5)


def flip_bit(content):
    return b"".join([content[:40], bytes([content[40] ^ 1]), content[41:]])


# Name of the file, and what becomes of its content; None: it is deleted.
DAMAGES = {
    "cut": (".data-", lambda content: content[:-1]),
    "a flipped bit": (".data-", flip_bit),
    "no manifest": ("manifest.json", None),
    "a manifest that is no JSON": ("manifest.json", lambda _: b"[1, 2"),
}


def damage(folder, kind="cut"):
    name, change = DAMAGES[kind]
    path = next(path for path in folder.iterdir() if name in path.name)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(saved, kind, caplog):
    checkpointer, variables = saved
    damage(checkpointer.path(2), kind)
    with caplog.at_level(logging.WARNING, logger="absl"):
        step, _ = checkpointer.restore()
    assert (step, variables[1].numpy()) == (1, 1)
    assert "is damaged" in caplog.text and "falling back to the checkpoint of step 1" in caplog.text
    assert checkpointer.steps() == [1]


def test_when_all_are_damaged_the_error_names_each(saved):
    checkpointer, _ = saved
    for step in (1, 2):
        damage(checkpointer.path(step))
    with pytest.raises(CheckpointError, match=r"step_000000002.*step_000000001.*Delete"):
        checkpointer.restore()
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpointer.restore(2)


def test_a_checkpoint_of_another_model_is_refused(saved, tmp_path):
    _, variables = saved
    other = Checkpointer(
        tmp_path / "checkpoints", {"model": [keras.Variable(np.zeros(5)), variables[1]]}
    )
    with pytest.raises(CheckpointError, match="another model or other averages"):
        other.restore()


def test_none_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Checkpointer(tmp_path / "nothing", {"model": []}).restore()


def test_leftovers_of_a_killed_save_are_ignored_and_removed(saved):
    checkpointer, _ = saved
    leftover = checkpointer.directory / ".step_000000003.999.tmp"
    leftover.mkdir()
    (leftover / "variables.index").write_bytes(b"half")
    assert checkpointer.restore()[0] == 2
    checkpointer.save(3, {})
    assert sorted(path.name for path in checkpointer.directory.iterdir()) == [
        "step_000000002",
        "step_000000003",
    ]
