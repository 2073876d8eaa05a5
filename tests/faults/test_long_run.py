"""What a run holds and leaves does not grow with its steps: the long run, shortened."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    import importlib.util

    spec = importlib.util.spec_from_file_location("long_run", ROOT / "tools" / "long_run.py")
    long_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(long_run)
    return long_run, long_run.watch(tmp_path_factory.mktemp("long") / "run", 160)


def test_nothing_is_traced_again_and_files_are_bounded(samples):
    long_run, found = samples
    assert found["step"] == [50, 100, 150, 160]
    # One trace for evaluation and one for moments, in the first evaluation of four (step 40).
    assert found["traces"] == [2] * 4
    assert max(found["files"]) <= long_run.files_allowed(160)
    assert found["descriptors"][-1] <= max(found["descriptors"][:2])
