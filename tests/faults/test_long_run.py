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
    return long_run, long_run.watch(tmp_path_factory.mktemp("long") / "run", 400)


def test_nothing_is_traced_again_and_files_are_bounded(samples):
    long_run, found = samples
    assert found["step"] == list(range(50, 401, 50))
    # One trace for evaluation and one for moments, by the second evaluation (step 200).
    assert found["traces"][4:] == [2] * 4
    assert max(found["files"]) <= long_run.files_allowed(400)
    assert max(found["descriptors"][4:]) <= max(found["descriptors"][:4])
    # The bound is of use: all snapshots there are would not fit.
    assert long_run.files_allowed(400) < 400 // long_run.EVERY["snapshot"] + 20
