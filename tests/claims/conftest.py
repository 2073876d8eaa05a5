"""Records for tests of claims."""

import importlib.util
import pathlib
import shutil

import pytest

_PATH = pathlib.Path(__file__).with_name("claim_records.py")


def _load():
    spec = importlib.util.spec_from_file_location("claim_records", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def claim_records():
    """The module that builds records."""
    return _load()


@pytest.fixture(scope="session")
def kept_records(claim_records, tmp_path_factory):
    """A folder in which every claim is reproduced; not to be changed."""
    return claim_records.build(tmp_path_factory.mktemp("claims") / "records")


@pytest.fixture
def folder(kept_records, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(kept_records, tmp_path / "records")
