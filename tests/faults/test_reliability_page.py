"""docs/reliability.md: every test that its tables name exists."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def test_every_test_named_exists():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and "tests/" in line]
    assert len(rows) >= 35
    named = set(re.findall(r"`(tests/[^`]*)`", text))
    assert len(named) >= 30 and "…" not in "".join(named)
    for name in sorted(named):
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        if function:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert function in found, name


def test_every_row_of_the_tables_names_a_test():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = text.split("## Faults")[1].split("## The torture")[0]
    for line in section.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| fault ")):
            assert line.count("|") == 5 and "`tests/" in line, line
