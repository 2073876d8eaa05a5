"""The committed ledgers are what the committed records give, to the byte."""

import pathlib

import pytest

from tf_lrtraj import claims

RESULTS = sorted((pathlib.Path(__file__).parents[2] / "results").glob("reproduction_*"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_ledger_is_what_the_records_give(folder):
    ledger = claims.make_ledger(folder)
    assert claims.ledger_bytes(ledger) == (folder / "ledger.json").read_bytes()


def test_the_page_of_verdicts_is_in_step():
    scales = ("cifar10_resnet8", "cifar10_cpu")
    folders = [RESULTS[0].parent / f"reproduction_{scale}" for scale in scales]
    page = (RESULTS[0].parents[1] / "docs" / "verdicts.md").read_text(encoding="utf-8")
    assert page == claims.verdicts_page(folders)


def test_every_scale_that_ran_is_there():
    assert [folder.name for folder in RESULTS] == [
        "reproduction_cifar10_cpu",
        "reproduction_cifar10_resnet8",
        "reproduction_digits",
    ]
