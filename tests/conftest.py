"""Set-up shared by all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_collection_modifyitems(items):
    """Splits the CPU in four, before TensorFlow starts, where tests of replicas were collected."""
    rooms = {"training", "runs", "study", "scale", "test_strategies.py"}
    if any("tests" in item.path.parts and rooms & set(item.path.parts) for item in items):
        from tf_lrtraj.training.strategies import split_cpu

        split_cpu(4)
