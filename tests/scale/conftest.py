"""Runs that several tests compare, made once each; helpers beside the tests can be imported."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def one_device(tmp_path_factory):
    """A run on one device without probes, models and matched run."""
    from run_contents import BARE, scale_config
    from run_helpers import make

    workdir = tmp_path_factory.mktemp("scale") / "one_device"
    make(workdir, scale_config(**BARE))
    return workdir


@pytest.fixture(scope="session")
def everything_on_one_device(tmp_path_factory):
    """A run on one device with everything on."""
    from run_contents import scale_config
    from run_helpers import make

    workdir = tmp_path_factory.mktemp("scale") / "everything"
    make(workdir, scale_config())
    return workdir
