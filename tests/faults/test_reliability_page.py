"""docs/reliability.md: every test that its tables name exists."""

from helpers import ROOT, named_tests

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_named_exists():
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and "tests/" in line]
    assert len(rows) >= 35
    named = named_tests(TEXT)
    assert len(named) >= 30 and "…" not in "".join(named)


def test_every_row_of_the_tables_names_a_test():
    section = TEXT.split("## Faults")[1].split("## The torture")[0]
    for line in section.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| fault ")):
            assert line.count("|") == 5 and "`tests/" in line, line
