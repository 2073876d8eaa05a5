"""Random projections: linear, unbiased, and no worse than their stated error."""

import numpy as np
import pytest

from tf_lrtraj.probes.sketches import Sketch


def test_linear():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 5003))
    sketch = Sketch(5003, 256, seed=3)
    np.testing.assert_allclose(sketch(2 * a - 3 * b), 2 * sketch(a) - 3 * sketch(b), atol=1e-10)


@pytest.mark.parametrize("kind", ["normal", "sparse", "constant"])
@pytest.mark.parametrize("k", [32, 200])
def test_unbiased_and_within_the_stated_error(kind, k):
    size, random = 3000, np.random.default_rng(1)
    a, b = random.standard_normal((2, size))
    if kind == "sparse":
        a[20:], b[20:] = 0.0, 0.0
        a, b = a[random.permutation(size)], a
    elif kind == "constant":
        a, b = np.ones(size), np.ones(size) + 0.1 * b
    square, product = float(a @ a), float(a @ b)
    squares, products = [], []
    for seed in range(600):
        sketch = Sketch(size, k, seed)
        u, v = sketch(a), sketch(b)
        squares.append(float(u @ u))
        products.append(float(u @ v))
    bound = np.sqrt((square * float(b @ b) + product**2) / k)
    for values, true, allowed in (
        (squares, square, sketch.relative_error * square),
        (products, product, bound),
    ):
        spread = np.std(values)
        assert abs(np.mean(values) - true) < 4.0 * spread / np.sqrt(len(values)) + 1e-9
        assert spread < 1.1 * allowed
    if kind == "normal":  # where nothing is concentrated, the bound is the error
        assert np.std(squares) > 0.85 * sketch.relative_error * square


@pytest.mark.parametrize("size", [1, 7, 64])
def test_short_vectors_are_kept_exactly(size):
    a = np.random.default_rng(2).standard_normal(size)
    sketch = Sketch(size, 64)
    assert sketch.relative_error == 0.0
    assert float(sketch(a) @ sketch(a)) == pytest.approx(float(a @ a), rel=1e-14)


def test_a_slow_twin_and_blocks():
    """The matrix, column by column: one entry of ±1 each, no two of one row of `k` together."""
    size, k = 600_000, 1000
    sketch, places = Sketch(size, k, [4, 2]), [0, 1, 999, 1000, 262_143, 263_000, 599_999]
    for place in places:
        unit = np.zeros(size, np.float32)
        unit[place] = 1.0
        found = sketch(unit)
        assert np.count_nonzero(found) == 1 and abs(found.sum()) == 1.0
    for row in (0, 262, 599):
        ones = np.zeros(size)
        ones[row * k : (row + 1) * k] = 1.0
        np.testing.assert_array_equal(np.abs(sketch(ones)), 1.0)


def test_the_seed_decides():
    a = np.random.default_rng(3).standard_normal(500)
    np.testing.assert_array_equal(Sketch(500, 16, 7)(a), Sketch(500, 16, [7])(a))
    assert not np.allclose(Sketch(500, 16, 7)(a), Sketch(500, 16, 8)(a))
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the global stream stays alone)
    Sketch(500, 16, 7)(a)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("given", [(0, 4), (4, 0), (4, True), (4.5, 2)])
def test_sizes_must_be_counts(given):
    with pytest.raises(ValueError, match=r"must be an integer of at least 1. Received"):
        Sketch(*given)


def test_a_vector_of_another_size():
    with pytest.raises(ValueError, match=r"shape \(4,\). Received: shape=\(5,\)"):
        Sketch(4, 2)(np.zeros(5))
