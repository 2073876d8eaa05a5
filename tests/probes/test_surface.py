"""Losses, gradients and Hessian products against a small network written in NumPy, in float64.

The reference computes in complex numbers: its gradients, by imaginary steps, are exact to
rounding, and differences of them give Hessian products to some nine digits.
"""

import keras
import numpy as np
import pytest

from tf_lrtraj import backend
from tf_lrtraj.probes import Surface, take_batches
from tf_lrtraj.probes.batches import check_batches
from tf_lrtraj.probes.surface import Point

# On torch, Keras multiplies matrices of float64 in float32, and JAX has none by default.
WIDE = backend.name() == "tensorflow"
DTYPE = "float64" if WIDE else "float32"
TIGHT = 1e-9 if WIDE else 1e-5
EPSILON = 1e-3
SHAPES = [(3, 4), (4,), (4,), (4,), (4, 2), (2,)]


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((3,), dtype=DTYPE)
    x = keras.layers.Dense(4, activation="tanh", dtype=DTYPE)(inputs)
    x = keras.layers.BatchNormalization(epsilon=EPSILON, dtype=DTYPE)(x)
    network = keras.Model(inputs, keras.layers.Dense(2, dtype=DTYPE)(x))
    rng = np.random.default_rng(0)
    network.set_weights(
        [rng.normal(size=s) for s in SHAPES[:4]]
        + [rng.normal(size=4), rng.uniform(0.5, 2.0, 4)]
        + [rng.normal(size=s) for s in SHAPES[4:]]
    )
    return network


def batches(count=3, size=8):
    rng = np.random.default_rng(1)
    return [
        (rng.normal(size=(size, 3)).astype(DTYPE), rng.normal(size=(size, 2)).astype(DTYPE))
        for _ in range(count)
    ]


def reference(weights, batch, statistics=None):
    """Mean squared loss of the network, in whatever numbers it is given."""
    w1, b1, gamma, beta, w2, b2 = weights
    x = np.tanh(np.asarray(batch[0], np.float64) @ w1 + b1)
    if statistics is None:
        mean = x.mean(0)
        statistics = mean, ((x - mean) ** 2).mean(0)  # no abs: it would not be analytic
    x = (x - statistics[0]) / np.sqrt(statistics[1] + EPSILON) * gamma + beta
    losses = ((x @ w2 + b2 - batch[1]) ** 2).mean(1)
    shares = np.ones(len(losses)) if len(batch) < 3 else np.asarray(batch[2], np.float64)
    return (shares * losses).sum() / shares.sum()


def reference_gradient(weights, batch, statistics=None):
    found = []
    for i, array in enumerate(weights):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            moved = [np.array(a, np.complex128) for a in weights]
            moved[i][index] += 1e-30j
            gradient[index] = reference(moved, batch, statistics).imag / 1e-30
        found.append(gradient)
    return found


def reference_product(weights, batch, vector, statistics=None, step=1e-5):
    def at(side):
        moved = [w + side * step * v for w, v in zip(weights, vector, strict=True)]
        return reference_gradient(moved, batch, statistics)

    return [(up - down) / (2.0 * step) for up, down in zip(at(1), at(-1), strict=True)]


def weights_of(model):
    return [np.asarray(a, np.float64) for a in backend.to_numpy(model.trainable_variables)]


def statistics_of(model):
    return tuple(
        np.asarray(a, np.float64)
        for a in backend.to_numpy(backend.values(model.non_trainable_variables))[:2]
    )


def assert_near(found, wanted, tolerance):
    found = np.concatenate([np.ravel(a) for a in backend.to_numpy(found)])
    wanted = np.concatenate([np.ravel(a) for a in wanted])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.fixture(params=["batch", "frozen"])
def mode(request, model):
    return request.param, None if request.param == "batch" else statistics_of(model)


def test_loss(model, mode):
    surface = Surface(model, "mse", batch_norm=mode[0])
    for batch in batches():
        wanted = reference(weights_of(model), batch, mode[1])
        np.testing.assert_allclose(surface.loss(surface.point(), batch), wanted, rtol=TIGHT)


def test_loss_with_example_weights(model, mode):
    surface = Surface(model, "mse", batch_norm=mode[0])
    batch = (*batches(1)[0], np.arange(8.0))
    wanted = reference(weights_of(model), batch, mode[1])
    np.testing.assert_allclose(surface.loss(surface.point(), batch), wanted, rtol=TIGHT)


def test_gradient(model, mode):
    surface = Surface(model, "mse", batch_norm=mode[0])
    for batch in batches():
        loss, gradient = surface.gradient(surface.point(), batch)
        np.testing.assert_allclose(loss, reference(weights_of(model), batch, mode[1]), rtol=TIGHT)
        assert_near(gradient, reference_gradient(weights_of(model), batch, mode[1]), TIGHT)


def test_hessian_vector_product(model, mode):
    surface = Surface(model, "mse", batch_norm=mode[0])
    rng = np.random.default_rng(2)
    for batch in batches(2):
        vector = [rng.normal(size=shape) for shape in SHAPES]
        found = surface.hessian_vector(surface.point(), batch, vector)
        wanted = reference_product(weights_of(model), batch, vector, mode[1])
        assert_near(found, wanted, 1e-7 if WIDE else 1e-4)


def test_keras_own_moments_would_give_wrong_products_on_tensorflow(model):
    # Why the surface takes moments itself; if this fails, Keras has changed.
    if backend.name() != "tensorflow":
        pytest.skip("Keras stops no gradient on other backends")
    surface = Surface(model, "mse")
    wrong = backend.hessian_vector_product(surface._mean_loss)
    batch = batches(1)[0]
    point, vector = surface.point(), [np.ones(shape) for shape in SHAPES]
    given = [keras.ops.cast(array, DTYPE) for array in vector]
    found = wrong(point.trainable, given, point.non_trainable, batch)
    wanted = reference_product(weights_of(model), batch, vector)
    with pytest.raises(AssertionError):
        assert_near(found, wanted, 0.01)


def test_products_through_convolutions_are_differences_of_gradients():
    if not WIDE:
        pytest.skip("differences of gradients need float64 throughout")
    inputs = keras.Input((6, 6, 3), dtype="float64")
    x = inputs
    for filters in (4, 5):
        x = keras.layers.Conv2D(filters, 3, use_bias=False, dtype="float64")(x)
        x = keras.layers.BatchNormalization(dtype="float64")(x)
        x = keras.layers.Activation("gelu", dtype="float64")(x)
    x = keras.layers.GlobalAveragePooling2D(dtype="float64")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, dtype="float64")(x))
    surface = Surface(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(3)
    batch = rng.normal(size=(5, 6, 6, 3)), rng.integers(0, 3, 5)
    point = surface.point()
    vector = [rng.normal(size=tuple(v.shape)) for v in model.trainable_variables]
    step = 1e-5
    _, down = surface.gradient(surface.moved(point, vector, step), batch)
    _, up = surface.gradient(surface.moved(point, vector, -step), batch)
    down, up = backend.to_numpy(down), backend.to_numpy(up)
    wanted = [(a - b) / (2.0 * step) for a, b in zip(up, down, strict=True)]
    assert_near(surface.hessian_vector(point, batch, vector), wanted, 1e-7)


def test_along_is_the_loss_at_moved_points(model, mode):
    surface = Surface(model, "mse", batch_norm=mode[0])
    batch, steps = batches(1)[0], [0.0, 0.01, -0.2, 3.0]
    vector = [np.random.default_rng(4).normal(size=shape) for shape in SHAPES]
    found = surface.along(surface.point(), vector, steps, batch)
    for step, loss in zip(steps, found, strict=True):
        moved = [w - step * v for w, v in zip(weights_of(model), vector, strict=True)]
        np.testing.assert_allclose(loss, reference(moved, batch, mode[1]), rtol=TIGHT)
        at_point = surface.loss(surface.moved(surface.point(), vector, step), batch)
        np.testing.assert_allclose(loss, at_point, rtol=1e-12 if WIDE else 1e-6)


def test_along_in_recalibrated_mode_measures_statistics_at_every_point(model):
    moments = batches(2, 16)
    surface = Surface(model, "mse", batch_norm="recalibrated", moment_batches=moments)
    batch = batches(3)[2]
    vector = [np.random.default_rng(5).normal(size=shape) for shape in SHAPES]
    for step, loss in zip(
        [0.0, 0.3], surface.along(surface.point(), vector, [0.0, 0.3], batch), strict=True
    ):
        w = [w - step * v for w, v in zip(weights_of(model), vector, strict=True)]
        seen = np.tanh(np.concatenate([x for x, _ in moments]).astype(np.float64) @ w[0] + w[1])
        wanted = reference(w, batch, (seen.mean(0), seen.var(0)))
        np.testing.assert_allclose(loss, wanted, rtol=1e-6 if WIDE else 1e-4)
    assert surface.calibration_passes == 2


def test_evaluate_gives_accuracies_of_classes():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False)])
    model.set_weights([np.eye(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    surface = Surface(model, loss)
    inputs = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    targets = np.array([0, 1, 2, 0])
    per_example = np.log(np.exp(1.0) + 2.0) - np.array([1.0, 1.0, 1.0, 0.0])
    sparse, column, weighted = (
        surface.evaluate(surface.point(), [batch])
        for batch in (
            (inputs, targets),
            (inputs, targets[:, None]),
            (inputs, targets, np.array([1.0, 1.0, 0.0, 2.0])),
        )
    )
    for losses, accuracies in (sparse, column):
        np.testing.assert_allclose(losses, [per_example.mean()], rtol=1e-6)
        assert accuracies.tolist() == [0.75]
    np.testing.assert_allclose(weighted[0], [per_example @ [0.25, 0.25, 0.0, 0.5]], rtol=1e-6)
    assert weighted[1].tolist() == [0.5]
    one_hot = Surface(model, keras.losses.CategoricalCrossentropy(from_logits=True))
    losses, accuracies = one_hot.evaluate(one_hot.point(), [(inputs, np.eye(3)[targets])])
    np.testing.assert_allclose(losses, [per_example.mean()], rtol=1e-6)
    assert accuracies.tolist() == [0.75]


def test_regression_has_no_accuracy(model):
    surface = Surface(model, "mse")
    _, accuracies = surface.evaluate(surface.point(), batches(2))
    assert np.isnan(accuracies).all()


def test_a_point_is_a_copy_that_later_training_does_not_move(model):
    surface = Surface(model, "mse")
    batch, point = batches(1)[0], surface.point()
    before, kept = surface.loss(point, batch), model.get_weights()
    model.set_weights([2.0 * array for array in kept])
    assert surface.loss(point, batch) == before
    assert surface.loss(surface.point(), batch) != before
    model.set_weights(kept)


def test_points_from_arrays(model):
    surface = Surface(model, "mse", batch_norm="frozen")
    batch = batches(1)[0]
    weights, (mean, variance) = weights_of(model), statistics_of(model)
    own = surface.loss(surface.point(), batch)
    assert surface.loss(surface.point(weights), batch) == own
    assert surface.loss(surface.point([*weights, mean, variance]), batch) == own
    other = mean + 1.0, 2.0 * variance
    found = surface.loss(surface.point([*weights, *other]), batch)
    np.testing.assert_allclose(found, reference(weights, batch, other), rtol=TIGHT)
    point = surface.point()
    assert surface.point(point) is point


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:-1], r"Received: 5 arrays; the first that does not fit is number 5"),
        (lambda w: [*w, w[0]], r"Received: 7 arrays; the first that does not fit is number 6"),
        (lambda w: [w[0].T, *w[1:]], r"is number 0 of shape \(4, 3\)"),
    ],
)
def test_points_of_another_architecture(model, change, message):
    with pytest.raises(ValueError, match=message):
        Surface(model, "mse").point(change(weights_of(model)))


def test_bad_surfaces(model):
    with pytest.raises(ValueError, match="`loss` must be given"):
        Surface(model)
    with pytest.raises(ValueError, match="Received: loss=3"):
        Surface(model, 3)
    with pytest.raises(ValueError, match="batch_norm='running'"):
        Surface(model, "mse", batch_norm="running")
    with pytest.raises(ValueError, match="dropout='on'"):
        Surface(model, "mse", dropout="on")
    with pytest.raises(ValueError, match="needs `moment_batches`"):
        Surface(model, "mse", batch_norm="recalibrated")
    with pytest.raises(ValueError, match="`model` must be built"):
        Surface(keras.Sequential([keras.layers.Dense(1)]), "mse")


def test_the_loss_the_model_was_compiled_with():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    batch = batches(1)[0]
    model.compile("sgd", "mae")
    given, own = Surface(model, "mae"), Surface(model)
    assert own.loss(own.point(), batch) == given.loss(given.point(), batch)


def test_nothing_of_the_model_moves():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(2),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    x, y = batches(1, 32)[0]
    model.fit(x, y, verbose=0)
    everything = [*model.variables, *model.optimizer.variables]

    def values():
        return backend.to_numpy(backend.values(everything))

    before = values()
    for batch_norm in ("batch", "frozen", "recalibrated"):
        for dropout in ("off", "pinned"):
            surface = Surface(
                model, batch_norm=batch_norm, dropout=dropout, moment_batches=batches(1)
            )
            point, batch = surface.point(), batches(1)[0]
            _, gradient = surface.gradient(point, batch)
            surface.along(point, gradient, [0.0, 0.1], batch)
            surface.evaluate(point, [batch])
            surface.hessian_vector(point, batch, gradient)
            surface.predict(point, batch[0])
            surface.seconds_per_pass(batch, 1)
    for old, new in zip(before, values(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not any("call" in vars(layer) for layer in model.layers)


def test_fingerprints_see_what_counts(model):
    frozen, free = Surface(model, "mse", batch_norm="frozen"), Surface(model, "mse")
    weights, (mean, variance) = weights_of(model), statistics_of(model)
    one, other = ([*weights, mean + shift, variance] for shift in (0.0, 1.0))
    assert frozen.fingerprint(frozen.point(one)) != frozen.fingerprint(frozen.point(other))
    assert free.fingerprint(free.point(one)) == free.fingerprint(free.point(other))
    moved = [weights[0] + 1.0, *weights[1:]]
    assert free.fingerprint(free.point(moved)) != free.fingerprint(free.point(weights))


# Batches


def test_taken_batches_hold_distinct_examples():
    x = np.arange(20)
    found = take_batches(x, x, 6, 3, seed=1)
    together = np.concatenate([inputs for inputs, _ in found])
    assert len(set(together.tolist())) == 18
    for (inputs, targets), (again, _) in zip(found, take_batches(x, x, 6, 3, seed=1), strict=True):
        np.testing.assert_array_equal(inputs, targets)
        np.testing.assert_array_equal(inputs, again)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((11, 2), "11, count=2"),
        ((21, 1), "need 21 examples; the data holds 20"),
        ((0, 1), "batch_size=0"),
        ((4, True), "count=True"),
    ],
)
def test_batches_larger_than_the_data(sizes, message):
    with pytest.raises(ValueError, match=message):
        take_batches(np.arange(20), np.arange(20), *sizes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least 1 batch"),
        ([np.zeros(3)], "an element of type ndarray"),
        ([(np.zeros(3),)], "an element of type tuple"),
        ([(np.zeros((3, 1)), np.zeros(2))], r"Received: \[2, 3\]"),
        ([(np.zeros((0, 1)), np.zeros(0))], r"Received: \[0\]"),
    ],
)
def test_things_that_are_no_batches(given, message):
    with pytest.raises(ValueError, match=message):
        check_batches(given, "held_out")


def test_a_point_is_two_lists(model):
    point = Surface(model, "mse").point()
    assert isinstance(point, Point)
    assert len(point.trainable) == 6 and len(point.non_trainable) == 2
