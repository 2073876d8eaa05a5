"""Missing, cut, altered and wrongly described files: an error that names the file."""

from __future__ import annotations

import itertools
import json
import pathlib

import numpy as np
import pytest

from tf_lrtraj import data

PER_FILE, FILES, RECORD = 12, 4, 700
COUNT = PER_FILE * FILES


@pytest.fixture
def folder(tmp_path, write_tfds, photographs):
    """A streamed set of 4 files of 12 records, every one of the same size."""
    encoded = photographs(1, smallest=6, largest=7)[0]
    padded = encoded + bytes(RECORD - len(encoded))
    files = [[(padded, f * PER_FILE + i) for i in range(PER_FILE)] for f in range(FILES)]
    splits = {"train": files, "validation": files[:1]}
    return write_tfds(tmp_path / "data", "imagenet2012", splits, (None, None, 3), class_names=COUNT)


def opened(folder):
    root = folder.parents[1]
    return data.load("imagenet2012", data_dir=root, image_size=4, shuffle_window=4)


def file_of(folder, number, split="train"):
    return next(folder.glob(f"*-{split}.tfrecord-{number:05d}-*"))


def alter(path, change):
    content = bytearray(path.read_bytes())
    changed = change(content)
    path.write_bytes(bytes(content if changed is None else changed))


def flip(offset):
    def change(content):
        content[offset] ^= 4

    return change


def cut(length):
    return lambda content: bytes(content[:length])


def records(path):
    import tensorflow as tf

    return [r.numpy() for r in tf.data.TFRecordDataset(str(path))]


def rewrite(path, chosen):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in chosen:
            writer.write(record)


# What is seen before training starts -------------------------------------------------------------


@pytest.mark.parametrize("split, number", [("train", 2), ("validation", 0)])
def test_a_missing_file_is_found_on_opening(folder, split, number):
    path = file_of(folder, number, split)
    path.unlink()
    with pytest.raises(data.DataError, match="missing") as error:
        opened(folder)
    assert str(path) in str(error.value)


def test_an_empty_file_is_found_on_opening(folder):
    path = file_of(folder, 1)
    path.write_bytes(b"")
    with pytest.raises(data.DataError, match="has 0 bytes, which cannot hold its 12 rec") as error:
        opened(folder)
    assert str(path) in str(error.value)


# What is seen on reading -------------------------------------------------------------------------


def damage_each(folder):
    """(what happens to a file, words of the error), for the third file."""
    path = file_of(folder, 2)
    size = path.stat().st_size // PER_FILE
    return {
        "a flipped bit": (flip(5 * size + 300), ["record 5 (from 0)", f"byte {5 * size},"]),
        "a flipped length": (flip(7 * size + 1), ["record 7 (from 0)", f"byte {7 * size},"]),
        "cut within a record": (cut(9 * size + 100), ["record 9 (from 0)", f"byte {9 * size},"]),
        "cut between records": (cut(9 * size), ["holds fewer than the 12 records"]),
        "cut within a header": (cut(9 * size + 5), ["holds fewer than the 12 records"]),
        "one record too many": (lambda c: bytes(c + c[:size]), ["holds more than the 12 records"]),
        "removed later on": (None, ["missing"]),
    }


def test_damage_is_told_with_the_file(folder):
    dataset = opened(folder)
    path = file_of(folder, 2)
    sound = path.read_bytes()
    steps = 2 * COUNT // 6
    training, evaluation = dataset.train_batches(6, 0), dataset.eval_batches("train", 6)
    whole = [labels.tolist() for _, labels in itertools.islice(training.as_numpy_iterator(), steps)]
    for what, (change, words) in damage_each(folder).items():
        if change is None:
            path.unlink()
        else:
            alter(path, change)
        for batches in (training.take(steps), evaluation):
            seen = []
            with pytest.raises(data.DataError) as error, dataset.named_faults():
                for batch in batches:
                    seen.append(batch[1].numpy().tolist())
            assert str(path) in str(error.value), what
            assert "\n" not in str(error.value)
            for word in words:
                assert word in str(error.value), what
            # What came before the error was right.
            assert batches is evaluation or seen == whole[: len(seen)]
        path.write_bytes(sound)
    again = [labels.numpy().tolist() for _, labels in training.take(steps)]
    assert again == whole


def test_a_part_of_the_files_does_not_see_the_damage_of_others(folder):
    """A host meets what it reads, and no more."""
    dataset = opened(folder)
    order = dataset.eval_batches("train", 6, 6, (0,))
    alter(file_of(folder, 3), flip(300))
    assert sum(weights.numpy().sum() for _, _, weights in order) == COUNT / 6


def test_images_and_records_that_are_none(folder, photographs):
    dataset = opened(folder)
    path = file_of(folder, 0)
    sound = records(path)
    image = photographs(1, smallest=6, largest=7)[0]
    broken = sound[3].replace(image[:40], bytes(40))
    assert broken != sound[3]
    for third, words in [(broken, "image cannot be decoded"), (b"\1\2\3", "cannot be parsed")]:
        rewrite(path, [*sound[:3], third, *sound[4:]])
        with pytest.raises(data.DataError, match=words), dataset.named_faults():
            list(dataset.eval_batches("train", 6))


def test_other_errors_stay_as_they_are(folder):
    import tensorflow as tf

    dataset = opened(folder)
    with pytest.raises(ZeroDivisionError), dataset.named_faults():
        raise ZeroDivisionError
    other = tf.errors.NotFoundError(None, None, "/elsewhere/events; No such file or directory")
    with pytest.raises(tf.errors.NotFoundError), dataset.named_faults():
        raise other
    assert data.explain(other) is None and data.explain(ValueError("no")) is None
    missing = tf.errors.NotFoundError(None, None, f"{file_of(folder, 1)}; No such file")
    assert "is missing" in data.explain(missing)


# Sets held in memory -----------------------------------------------------------------------------


def test_sets_held_in_memory_are_read_whole_and_checked(tmp_path, write_tfds):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 6, 6, 3)).astype(np.uint8)
    files = [[(images[f * 4 + i], i % 2) for i in range(4)] for f in range(2)]
    folder = write_tfds(tmp_path, "tiny", {"train": files}, (6, 6, 3), "png", class_names=2)
    path = file_of(folder, 1)
    sound = path.read_bytes()
    assert data.load("tiny", data_dir=tmp_path).num_examples == {"train": 8}
    last = len(sound) - 30
    for change, words in [
        (flip(last), "record 3"),
        (cut(last), "record 3"),
        (lambda content: bytes(content + content), "holds 8 records instead of 4"),
        (cut(0), "has 0 bytes"),
    ]:
        alter(path, change)
        with pytest.raises(data.DataError, match=words) as error:
            data.load("tiny", data_dir=tmp_path)
        assert str(path) in str(error.value)
        path.write_bytes(sound)
    path.unlink()
    with pytest.raises(data.DataError, match="missing"):
        data.load("tiny", data_dir=tmp_path)


# The program -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_stops_with_one_line_and_goes_on_once_the_file_is_mended(
    folder, tmp_path, capsys, monkeypatch
):
    from tf_lrtraj import records as run_records
    from tf_lrtraj.bin.common import FAILED, clean_errors
    from tf_lrtraj.runs import train_run
    from tf_lrtraj.runs.run_config import default_config
    from tf_lrtraj.training.strategies import make_strategy

    config = default_config()
    for key, value in {
        "data.name": "imagenet2012",
        "data.dir": str(folder.parents[1]),
        "data.image_size": 8,
        "data.augmentation": "random_resized_crop",
        "data.batch_size": 6,
        "model.width": 4,
        "total": "20 steps",
        "log_every": "2 steps",
        "evaluate.every": "20 steps",
        "evaluate.batch_size": 6,
        "checkpoint.every": "2 steps",
        "steps_per_call": 2,
        "batch_norm.batches": 1,
    }.items():
        config.update_from_flattened_dict({key: value})

    def run(workdir):
        with clean_errors():
            plain, dataset = train_run.prepare(config, workdir)
            train_run.run(plain, dataset, workdir, make_strategy("one_device"), tell=lambda _: None)

    run(tmp_path / "whole")
    path = file_of(folder, 1)
    sound = path.read_bytes()
    # The last record of a file is wanted near the end of an epoch of 8 steps.
    alter(path, flip(len(sound) - 300))
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run")
    assert stop.value.code == FAILED
    told = capsys.readouterr().err.strip()
    assert str(path) in told and "record 11" in told and "\n" not in told
    described = json.loads((tmp_path / "run" / run_records.RUN).read_text())
    assert described["status"] == "interrupted" and str(path) in described["message"]
    path.write_bytes(sound)
    run(tmp_path / "run")
    described = json.loads((tmp_path / "run" / run_records.RUN).read_text())
    assert described["status"] == "done"
    rows = [pathlib.Path(tmp_path, name, run_records.METRICS) for name in ("whole", "run")]
    assert rows[0].read_bytes() == rows[1].read_bytes()
