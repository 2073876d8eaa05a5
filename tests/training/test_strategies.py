"""Strategies by name: what is missing is said before any work."""

import pytest

from tf_lrtraj.training.strategies import StrategyError, is_chief, make_strategy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mirored",), r"must be one of \['one_device'.*Did you mean 'mirrored'\?.*='mirored'"),
        (("one_device", 2), "num_devices=2.*mirrored"),
        (("mirrored", -1), "num_devices=-1"),
        (("mirrored",), "found no GPU.*one_device.*num_devices"),
        (("mirrored", 64), "already"),
        (("multi_worker", 2), "goes with 'mirrored'. Received: num_devices=2"),
        (("tpu",), "found no TPU.*TPU VM"),
    ],
)
def test_errors_name_value_and_remedy(arguments, message):
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU") and arguments[0] == "mirrored":
        pytest.skip("this machine has a GPU")
    tf.config.list_logical_devices()  # TensorFlow has started
    with pytest.raises(StrategyError, match=message):
        make_strategy(*arguments)


@pytest.mark.parametrize("text", ["", "{", '{"cluster": {}}', "[]"])
def test_multi_worker_needs_its_cluster(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(StrategyError, match="TF_CONFIG on every worker"):
        make_strategy("multi_worker")


def test_one_device_is_its_own_chief():
    assert is_chief(make_strategy("one_device"))
