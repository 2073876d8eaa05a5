"""docs/scaling.md: its tables are those the benchmark prints, and its formulas hold."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_tables_that_are_printed(scaling):
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for name, table in scaling.computed().items():
        assert f"<!-- {name} -->\n{table}\n" in page, name


def test_memory_is_what_averages_say_they_hold(scaling):
    import keras

    from tf_lrtraj import kernels
    from tf_lrtraj.averaging import AverageState

    shapes = ((7, 3), (5,))
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in shapes]
    rules = {
        "ema": kernels.Exponential(0.9),
        "swa": kernels.Uniform(),
        "long": kernels.Exponential(0.99999),
        "window": kernels.Window(4),
    }
    held = AverageState(variables, rules).memory_bytes()
    copies = rules["window"].copies
    expected = scaling.state_bytes(26, single=1, double=2, copies=copies)  # SWA has no end
    assert sum(held.values()) == expected


def test_a_ring_sends_each_number_twice_but_for_one_share(scaling):
    # Four replicas: three of four quarters in the first half, three in the second.
    assert scaling.all_reduce_bytes(1000, 4) == 4 * (750 + 750)
    assert scaling.update_bytes(10, single=2) == 10 * (4 + 16)
