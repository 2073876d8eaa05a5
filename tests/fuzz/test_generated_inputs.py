"""A few generated inputs for every entry point, the same every time; tools/fuzz.py makes many."""

import pytest
from fuzzing import judge, targets

# Those that draw figures in full, or load whole models, take the time of a hundred others.
FEW = {"reports of runs": 3, "pages of reproductions": 3, "models (.keras)": 4}
SOME = 6


@pytest.mark.parametrize("target", targets.all_targets(), ids=lambda target: target.name)
def test_inputs_are_used_or_refused_cleanly(target):
    count = FEW.get(target.name, SOME)
    outcomes = judge.fuzz(target, count, seed=7, shrink=False)
    assert outcomes.total() > count // 2
