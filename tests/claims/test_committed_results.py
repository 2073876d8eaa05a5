"""The committed ledgers are what the committed records give, to the byte."""

import pathlib

import pytest

from tf_lrtraj import claims

RESULTS = sorted((pathlib.Path(__file__).parents[2] / "results").glob("reproduction_*"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_ledger_is_what_the_records_give(folder):
    ledger = claims.make_ledger(folder)
    assert claims.ledger_bytes(ledger) == (folder / "ledger.json").read_bytes()


def test_both_scales_that_ran_are_there():
    assert [folder.name for folder in RESULTS] == [
        "reproduction_cifar10_cpu",
        "reproduction_digits",
    ]
