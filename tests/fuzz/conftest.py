"""tools/fuzzing can be imported here."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))


@pytest.fixture(scope="session", autouse=True)
def _templates():
    yield
    from fuzzing import targets

    targets.clean_up()
