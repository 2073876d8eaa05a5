"""The benchmark of the ImageNet pipeline counts every round, those that read a window too."""

import argparse
import doctest
import importlib.util
import pathlib

import numpy as np
import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "imagenet_input.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("imagenet_input", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rates_are_sums_over_whole_windows(benchmark):
    seconds = [9.0, 1.0, 1.0, 1.0] * 2  # one round in four reads
    found = benchmark.summed(seconds, per_round=6, window=4)
    assert found == {"rate": 2.0, "windows": [2.0, 2.0]}
    assert not doctest.testmod(benchmark).failed


@pytest.mark.parametrize(
    ("images", "window", "rounds"), [(4096, 2048, 8), (2048, 2048, 8), (1024, 2048, 4), (96, 64, 3)]
)
def test_rounds_fill_windows_or_epochs(benchmark, images, window, rounds):
    options = argparse.Namespace(images=images, window=window, per_round=8, batch=32)
    assert benchmark.rounds_of_window(options) == rounds


@pytest.mark.parametrize(("boxed", "resized"), [(False, False), (True, False), (True, True)])
def test_decoding_alone_comes_in_batches(benchmark, boxed, resized):
    import tensorflow as tf

    picture = np.full((20, 30, 3), 77, np.uint8)
    images = [tf.io.encode_jpeg(picture).numpy()] * 3
    boxes = np.array([[0, 0, 8, 9], [1, 2, 5, 6], [3, 3, 7, 7]], np.int32) if boxed else None
    batch = next(iter(benchmark.decoding(images, boxes, 4, resized)))
    assert batch.shape == ((4, 224, 224, 3) if resized else (4, 3))
    assert np.abs(np.asarray(batch, int) - 77).max() <= 2
