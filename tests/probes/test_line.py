"""Loss along a step: parabolas known in closed form, a slow twin, interruptions, bad input."""

import keras
import numpy as np
import pytest
from keras import ops
from probe_cases import measured

from tf_lrtraj import backend, probes, theory
from tf_lrtraj.probes import Line, Surface, filter_axes_of, random_direction, rate_grid

RATES = rate_grid(0.0, 3.0, 25, "linear")


# Least squares, where every loss is a parabola ------------------------------------------------


def linear(weights):
    weights = np.asarray(weights, np.float32).reshape(-1, 1)
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([weights])
    return model


def half_square(targets, outputs):
    return 0.5 * ops.mean(ops.square(ops.cast(targets, outputs.dtype) - outputs), axis=-1)


class Parabola:
    """Mean of ½(x·w - y)² over a batch, in float64."""

    def __init__(self, batch):
        x, y = (np.asarray(array, np.float64) for array in batch)
        self.h, self.b, self.c = x.T @ x / len(x), x.T @ y[:, 0] / len(x), (y**2).mean() / 2

    def loss(self, w):
        return w @ self.h @ w / 2 - self.b @ w + self.c

    def gradient(self, w):
        return self.h @ w - self.b


def along(weights, batches, **options):
    """The record of a line from `weights`, of half the squared error."""
    return measured(
        probes.Line, linear(weights), half_square, None, batches, **{"rates": RATES, **options}
    )


def least_squares(count, seed, size=6):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(size, 3)).astype(np.float32), rng.normal(size=(size, 1)).astype("f"))
        for _ in range(count)
    ]


def test_every_number_of_a_parabola():
    w = np.array([1.5, -1.0, 0.5])
    batches, held_out, others = (least_squares(n, seed) for n, seed in ((4, 0), (3, 1), (2, 2)))
    record = along(w, batches, held_out=held_out, others=others)
    v = record.values
    rates = record.coordinates["rate"]
    for i, batch in enumerate(batches):
        own = Parabola(batch)
        g = own.gradient(w)
        square = g @ own.h @ g
        wanted = own.loss(w) - rates * (g @ g) + rates**2 * square / 2
        np.testing.assert_allclose(v["train"][:, i], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(v["gradient_norm"][i], np.sqrt(g @ g), rtol=1e-6)
        np.testing.assert_allclose(v["direction_norm"][i], np.sqrt(g @ g), rtol=1e-6)
        np.testing.assert_allclose(v["slope"][i], -(g @ g), rtol=1e-6)
        best = (g @ g) / square
        np.testing.assert_allclose(v["best_rate"][0, i], best, rtol=1e-4)
        np.testing.assert_allclose(v["gain"][0, i], best * (g @ g) / 2, rtol=1e-5)
        np.testing.assert_allclose(v["zero_crossing"][0, i], 2 * best, rtol=1e-4)
        np.testing.assert_allclose(v["curvature"][i], square, rtol=1e-4)
        for name, group in (("held_out", held_out), ("others", others)):
            curves = []
            for j, other in enumerate(group):
                there = Parabola(other)
                curve = [there.loss(w - rate * g) for rate in rates]
                np.testing.assert_allclose(v[f"{name}_each"][:, i, j], curve, rtol=1e-5, atol=1e-6)
                curves.append(curve)
            np.testing.assert_allclose(v[name][:, i], np.mean(curves, 0), rtol=1e-5)
            row = record.coordinates["curve"].tolist().index(name)
            slope = np.mean([Parabola(o).gradient(w) for o in group], 0) @ g
            bend = g @ np.mean([Parabola(o).h for o in group], 0) @ g
            gains = slope > 0 and 2 * slope / bend < rates[-1] and slope / bend > rates[1]
            if gains:
                np.testing.assert_allclose(v["best_rate"][row, i], slope / bend, rtol=1e-3)
                np.testing.assert_allclose(v["zero_crossing"][row, i], 2 * slope / bend, rtol=1e-3)
    # A parabola fits to rounding wherever four points or more lie inside; a line does not.
    inside = np.isfinite(v["fit_error"][1])
    assert inside.sum() > 8 and (v["fit_error"][1][inside] < 2e-6).all()
    assert (v["fit_error"][0, 3] > 0.1).all()
    assert (v["bracketed"] == 1.0).all()
    valid = v["valid_to"][1] * v["best_rate"][0]
    np.testing.assert_allclose(valid, rates[-1], rtol=1e-6)


def every_sign(a, scale):
    """Batches ½(w-ξ)ᵀdiag(a)(w-ξ) with ξ all of ±scale: exactly the model's expectation."""
    found = []
    for signs in np.ndindex(*(2,) * len(a)):
        x = np.diag(np.sqrt(np.asarray(a) * len(a))).astype(np.float32)
        minimiser = scale * (2.0 * np.array(signs) - 1.0)
        found.append((x, (x @ minimiser)[:, None].astype(np.float32)))
    return found


def test_means_are_those_of_the_quadratic_model():
    a, scale, w = np.array([1.0, 0.3, 0.1]), np.array([0.5, 1.0, 0.7]), [1.0, -2.0, 1.5]
    batches = every_sign(a, scale)
    record = along(w, batches, held_out=batches, bracket="mean")
    model, rates = theory.QuadraticModel(a, scale**2), record.coordinates["rate"]
    for curve, held_out in ((0, False), (1, True)):
        wanted = model.one_step_loss(rates, w, held_out)
        np.testing.assert_allclose(record.values["mean"][curve], wanted, rtol=2e-6)
        best = model.best_step(w, held_out)
        for name in ("best_rate", "gain", "zero_crossing"):
            found = record.values[f"mean_{name}"][curve]
            np.testing.assert_allclose(found, getattr(best, name), rtol=2e-5, err_msg=name)
        _, slope, square = record.values["mean_fit"][curve]
        np.testing.assert_allclose(-0.5 * slope / square, best.best_rate, rtol=2e-5)
    assert (record.values["mean_best_rate_se"] > 0.0).all()


def test_stationary_noise_gains_nothing_at_the_rate_it_came_from():
    # Claim B4 in the model itself: start points spread as SGD at rate 0.4 leaves them.
    rate, a, scale = 0.4, np.array([1.0]), np.array([1.0])
    spread = np.sqrt(theory.QuadraticModel(a, scale**2).stationary_variance(rate))
    batches, grid = every_sign(a, scale), rate_grid(0.0, 0.6, 7, "linear")
    records = [
        along(w, batches, held_out=batches, rates=grid, bracket="none") for w in (spread, -spread)
    ]
    curves = [record.values["mean"][1] for record in records]
    gain = np.mean(curves, 0)[0] - np.mean(curves, 0)
    np.testing.assert_allclose(gain[4], 0.0, atol=1e-6)  # at 0.4
    assert np.argmax(gain) == 2  # at 0.2


# Directions -----------------------------------------------------------------------------------


def test_momentum_is_the_step_the_optimizer_makes():
    rate, momentum = 0.2, 0.9
    x, y = least_squares(1, 3)[0]
    w, v = np.array([[1.0], [-1.0], [2.0]], "f"), np.array([[0.3], [0.1], [-0.2]], "f")
    model = linear(w)
    surface = Surface(model, half_square)
    options = {"velocity": [v], "momentum": momentum, "learning_rate": rate}
    direction = Line(surface, None, [(x, y)], direction="momentum", **options).step(0)
    moved = surface.moved(surface.point(), direction.vector, rate).trainable[0]
    optimizer = keras.optimizers.SGD(rate, momentum=momentum)
    variable = keras.Variable(w)
    optimizer.build([variable])
    optimizer.momentums[0].assign(v)
    gradient = Parabola((x, y)).gradient(w[:, 0].astype(np.float64))
    optimizer.apply_gradients([(ops.convert_to_tensor(gradient[:, None].astype("f")), variable)])
    wanted = ops.convert_to_numpy(variable.value)
    np.testing.assert_allclose(ops.convert_to_numpy(moved), wanted, rtol=1e-5)
    d = gradient - momentum * v[:, 0] / rate
    np.testing.assert_allclose(direction.slope, -(gradient @ d), rtol=1e-5)
    np.testing.assert_allclose(direction.norm, np.linalg.norm(d), rtol=1e-5)
    np.testing.assert_allclose(direction.gradient_norm, np.linalg.norm(gradient), rtol=1e-5)


def test_random_directions_are_filter_normalised_and_as_long_as_the_gradient():
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    surface = Surface(model, "mse")
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(4, 5, 5, 2)).astype("f"), rng.normal(size=(4, 1)).astype("f")
    random = Line(surface, None, [batch, batch], direction="random", seed=5)
    steps = [random.step(number) for number in (0, 1, 0)]
    raw = random_direction(
        surface.point().trainable, [5, 0], "filter", filter_axes=filter_axes_of(model)
    )
    for part, old in zip(backend.to_numpy(steps[0].vector), raw, strict=True):
        factor = steps[0].gradient_norm / np.sqrt(sum((r**2).sum() for r in raw))
        np.testing.assert_allclose(part, factor * old, rtol=1e-5, atol=1e-7)
    kernel, bias, gamma, beta, *_ = backend.to_numpy(steps[0].vector)
    assert (bias == 0).all() and (gamma == 0).all() and (beta == 0).all()
    weights = backend.to_numpy(model.trainable_variables)[0]
    ratio = np.linalg.norm(kernel.reshape(-1, 3), axis=0) / np.linalg.norm(
        weights.reshape(-1, 3), axis=0
    )
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    np.testing.assert_allclose(steps[0].norm, steps[0].gradient_norm, rtol=1e-5)
    np.testing.assert_array_equal(*(backend.to_numpy(steps[i].vector)[0] for i in (0, 2)))
    assert (backend.to_numpy(steps[1].vector)[0] != kernel).all()


def test_a_given_vector():
    w = np.array([1.0, 2.0, 3.0])
    batches, vector = least_squares(2, 4), np.array([[1.0], [0.0], [-1.0]])
    record = along(w, batches, held_out=batches[:1], direction=[vector], bracket="none")
    for i, batch in enumerate(batches):
        wanted = [Parabola(batch).loss(w - rate * vector[:, 0]) for rate in RATES]
        np.testing.assert_allclose(record.values["train"][:, i], wanted, rtol=1e-5)
    assert record.about["direction"] == "given"


# A small network against a slow twin ----------------------------------------------------------


@pytest.mark.parametrize("batch_norm", ["batch", "frozen", "recalibrated"])
def test_a_network_is_measured_as_by_assigning_and_evaluating(network, batch_norm):
    model, evaluate = network.model, network.loss
    batches, held_out, moments = network.batches[:2], network.held_out[:2], network.batches[2:]
    rates = np.array([0.0, 0.1, 0.5, 2.0])
    record = measured(
        probes.Line,
        model, evaluate, None, batches, held_out=held_out, rates=rates, bracket="none",
        batch_norm=batch_norm, moment_batches=moments,
    )  # fmt: skip
    surface = Surface(model, evaluate, batch_norm=batch_norm, moment_batches=moments)
    twin = network.at("here")
    norm, dropout = twin.layers[1], twin.layers[4]
    dropout.rate = 0.0
    for i, batch in enumerate(batches):
        gradient = backend.to_numpy(surface.gradient(surface.point(), batch)[1])
        for k, rate in enumerate(rates):
            values = zip(twin.trainable_variables, model.trainable_variables, gradient, strict=True)
            for variable, start, part in values:
                variable.assign(ops.convert_to_numpy(start.value) - rate * part)
            norm.moving_mean.assign(model.layers[1].moving_mean)
            norm.moving_variance.assign(model.layers[1].moving_variance)
            if batch_norm == "recalibrated":
                seen = np.concatenate([ops.convert_to_numpy(twin.layers[0](x)) for x, _ in moments])
                norm.moving_mean.assign(seen.mean((0, 1, 2)))
                norm.moving_variance.assign(seen.var((0, 1, 2)))
            training = batch_norm == "batch"

            def loss(data, training=training):
                return float(evaluate(data[1], twin(data[0], training=training)))

            found = record.values["train"][k, i]
            np.testing.assert_allclose(found, loss(batch), rtol=1e-4)
            wanted = [loss(data) for data in held_out]
            np.testing.assert_allclose(record.values["held_out_each"][k, i], wanted, rtol=1e-4)
            np.testing.assert_allclose(record.values["held_out"][k, i], np.mean(wanted), rtol=1e-4)


# The grid -------------------------------------------------------------------------------------


def test_the_grid_is_extended_until_every_minimum_is_passed():
    w, batches = [1.0, -1.0, 1.0], least_squares(3, 5)
    short = rate_grid(0.0, 0.2, 5, "linear")
    record = along(w, batches, held_out=batches, rates=short, extensions=6)
    rates = record.coordinates["rate"]
    assert (record.values["bracketed"] == 1.0).all()
    np.testing.assert_allclose(np.diff(rates), 0.05)
    doublings = np.log2(rates[-1] / 0.2)
    np.testing.assert_allclose(doublings, np.round(doublings), atol=1e-9)
    assert rates[-1] / 2.0 < 1.01 * record.values["best_rate"][0].max()  # no further than needed
    whole = along(w, batches, held_out=batches, rates=rates, bracket="none")
    np.testing.assert_allclose(record.values["train"], whole.values["train"], rtol=1e-5, atol=1e-6)
    assert not np.isnan(np.concatenate([v.ravel() for v in record.values.values()])).any()


def test_extensions_are_bounded_and_may_be_refused():
    batches = least_squares(2, 5)
    short = rate_grid(0.0, 1e-3, 3, "linear")
    for options, end in (({"extensions": 2}, 4e-3), ({"bracket": "none"}, 1e-3)):
        record = along([1.0, -1.0, 1.0], batches, held_out=batches, rates=short, **options)
        np.testing.assert_allclose(record.coordinates["rate"][-1], end)
        assert (record.values["bracketed"] == 0.0).all()
        np.testing.assert_allclose(record.values["best_rate"][0], end)


def test_rate_zero_is_put_in_front():
    batches = least_squares(1, 5)
    probe = Line(
        Surface(linear([0.0] * 3), half_square), None, batches, held_out=batches, rates=[0.1, 0.2]
    )
    assert probe.rates.tolist() == [0.0, 0.1, 0.2]


def test_a_loss_that_overflows_is_infinite_and_ends_the_search():
    batches = least_squares(1, 0)
    record = along([1.0, 0.0, 0.0], batches, held_out=batches, rates=[0.0, 0.5, 1e30])
    assert np.isinf(record.values["train"][-1]).all()
    assert record.coordinates["rate"].size == 3 and record.complete
