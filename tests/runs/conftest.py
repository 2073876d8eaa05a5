"""One finished run for all tests that only read it."""

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a run with snapshots of every step and a matched run."""
    from run_helpers import FINISHED, make, tiny_config

    workdir = tmp_path_factory.mktemp("finished")
    make(workdir, tiny_config(**FINISHED))
    return workdir
