"""Records for tests of claims."""

import pathlib
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import study_records as module


@pytest.fixture(scope="session")
def study_records():
    """The module that builds records."""
    return module


@pytest.fixture(scope="session")
def kept_records(tmp_path_factory):
    """A folder in which every claim is reproduced; not to be changed."""
    return module.build(tmp_path_factory.mktemp("claims") / "records")


@pytest.fixture
def folder(kept_records, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(kept_records, tmp_path / "records")
