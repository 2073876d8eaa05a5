"""Forecasts of decays: the theorem, the laws against slow twins, bands, findings, bad input."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import integrate, optimize

from tf_lrtraj import kernels, rates, theory
from tf_lrtraj.theory import decay_forecast
from tf_lrtraj.theory.constant_curve import ConstantCurve
from tf_lrtraj.theory.decay_gain import _Residuals, fit_gain, share_with_momentum
from tf_lrtraj.theory.decay_shapes import SHAPES, as_shape
from tf_lrtraj.theory.missing_share import ANY_RUN, LANGUAGE_MODELS, missing_growth

RATE, LAST = 1e-3, 40_000
STEPS = np.arange(200, LAST + 1, 200)
F = as_shape("linear", 1).numbers(0.162, 0.5)[0]  # of a linear decay, at the priors' means


def raw_loss(step):
    return 2.9 + 8.0 * np.asarray(step, np.float64) ** -0.35


def true_gain(length):
    at = np.log(length / 5000.0)
    return 0.15 * np.exp(0.162 * at - 0.01 * at**2)


def true_missing(length):
    growth = missing_growth(0.47 * RATE * length) / missing_growth(0.47 * 2.5)
    return 0.019 * growth


def decay_loss(length, end):
    return float(raw_loss(end - F * length) - true_gain(length))


def average_loss(length, end):
    return decay_loss(length, end) + float(true_missing(length))


def ask(decays, averages=(), cooldowns=(), noise=0.0, seed=0, **more):
    losses = raw_loss(STEPS) + noise * np.random.default_rng(seed).standard_normal(STEPS.size)
    return theory.what_if(STEPS, losses, RATE, decays, averages, cooldowns, **more)


def codes(answers):
    return {finding.code for answer in answers for finding in answer.diagnosis}


# --- The theorem -------------------------------------------------------------------------


def remaining_after_decay(z):
    return integrate.quad(lambda x: math.exp(-z * x * x), 0.0, 1.0)[0]


def remaining_after_average(z):
    return 2.0 * (z - 1.0 + math.exp(-z)) / z**2


@pytest.mark.parametrize("z", np.geomspace(1e-2, 1e4, 25))
def test_averages_keep_less_noise_than_linear_decays(z):
    assert remaining_after_average(z) < remaining_after_decay(z)


def test_the_proof_of_the_theorem():
    w = np.linspace(0.0, 1.0, 100_001)[1:-1]  # w = √y
    difference = (2 * w**2 - w**4) - w  # distribution functions of |u - v| and of u²
    np.testing.assert_allclose(-difference, w * (w - 1) * (w**2 + w - 1), atol=1e-12)
    assert np.sum(np.diff(np.sign(difference)) != 0) == 1  # one change of sign, at equal means
    means = [integrate.quad(lambda y: 1 - (2 * y - y * y), 0, 1)[0]]
    means.append(integrate.quad(lambda y: 1 - math.sqrt(y), 0, 1)[0])
    np.testing.assert_allclose(means, 1.0 / 3.0, rtol=1e-9)


def stationary_case(rate, length):
    """Loss of the raw run, of its average, and of a linear decay, by exact moments."""
    curvatures = np.geomspace(1e-4, 1.0, 60)
    model = theory.QuadraticModel(curvatures, np.ones(60))
    variance = model.stationary_variance(rate)
    falling = rate * (1.0 - np.arange(length) / length)
    losses = model.expected_loss(falling, np.sqrt(variance))
    kept = theory.stationary_factor(kernels.Window(length), 1.0 - rate * curvatures)
    return losses[0], 0.5 * float(np.sum(curvatures * variance * kept)), losses[-1]


@pytest.mark.parametrize(("rate", "length"), [(0.05, 2000), (0.1, 1000), (0.2, 500), (0.1, 2000)])
def test_fixed_curvature_gives_shares_above_one_and_the_finding(rate, length):
    raw, average, decay = stationary_case(rate, length)
    share = (raw - average) / (raw - decay)
    assert 1.01 <= share <= 1.09
    steps = np.arange(100, 10_001, 100)
    noise = 0.02 * raw * np.random.default_rng(0).standard_normal(steps.size)
    (answer,) = theory.what_if(
        steps,
        raw + noise,
        rate,
        [("linear", length, 10_000)],
        [(length, 10_000, average)],
        [("linear", length, 10_000, decay, rate)],
    )
    assert 1.01 <= answer.share <= 1.09
    assert answer.share == pytest.approx(share, abs=0.02)
    assert "share-above-one" in codes([answer])


def gain_of_decay(rate, momentum, length, settle=600):
    """The share of the noise that a linear decay removes, by exact moments."""
    curvatures = np.geomspace(1e-4, 1.0, 40) * (1.0 - momentum) / rate
    model = theory.QuadraticModel(curvatures, np.ones(40))
    falling = np.full(settle + length, rate)
    falling[settle:] *= 1.0 - np.arange(length) / length
    start = model.stationary_variance(rate, momentum)
    losses = [
        model.expected_loss(rates, np.zeros(40), momentum=momentum, initial_covariance=start)[-1]
        for rates in (np.full(settle, rate), falling)
    ]
    return 1.0 - losses[1] / losses[0]


@pytest.mark.parametrize("momentum", [0.8, 0.9, 0.95])
def test_the_gain_that_momentum_takes_against_exact_moments(momentum):
    lengths = np.round(np.array([5, 8, 12, 20, 50]) * momentum / (1.0 - momentum)).astype(int)
    exact = [
        gain_of_decay(0.1, momentum, n) / gain_of_decay(0.1 / (1.0 - momentum), 0.0, n)
        for n in lengths.tolist()
    ]
    np.testing.assert_allclose(share_with_momentum(lengths, momentum), exact, atol=0.025)
    assert (share_with_momentum(lengths, 0.0) == 1.0).all()


def test_momentum_lowers_the_gain_of_short_decays_and_widens_their_bands():
    decays, averages = [("linear", n, LAST) for n in (100, 4000)], [(4000, LAST, 3.0)]
    plain, told = (ask(decays, averages, noise=1e-3, momentum=beta) for beta in (0.0, 0.9))
    ratios = [after.gain / before.gain for before, after in zip(plain, told, strict=True)]
    assert ratios[0] == pytest.approx(share_with_momentum(100.0, 0.9), abs=0.01)
    assert ratios[1] == pytest.approx(1.0, abs=0.01)
    widths = [(answer.high - answer.low) / answer.gain for answer in (plain[0], told[0])]
    assert widths[1] > widths[0]


# --- Shapes and the missing share against slow twins ----------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_numbers_against_quadrature(shape):
    p, s = 0.163, 0.66
    left = {
        "linear": lambda x: x,
        "cosine": lambda x: 0.5 * (1.0 - math.cos(math.pi * x)),
        "one_minus_sqrt": lambda x: 1.0 - math.sqrt(1.0 - x),
    }[shape]
    grid = np.linspace(0.0, 1.0, 20_001)
    height = np.array([left(x) for x in grid])
    summed = integrate.cumulative_trapezoid(height**s, grid, initial=0.0)
    f, k = as_shape(shape, 1).numbers(p, s)
    assert f == pytest.approx(1.0 - summed[-1], abs=1e-4)
    middle = 0.5 * (summed[1:] + summed[:-1])
    assert k == pytest.approx(float(np.diff(height) @ middle**p), abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "shape"),
    [
        (rates.Linear(start=1.0, steps=4000), "linear"),
        (rates.Cosine(start=1.0, steps=4000), "cosine"),
        (rates.OneMinusSqrt(start=1.0, hold=0, steps=4000), "one_minus_sqrt"),
    ],
)
def test_rates_give_the_numbers_of_their_shapes(rate, shape):
    ours = as_shape(rate, 4000).numbers(0.163, 0.66)
    np.testing.assert_allclose(ours, as_shape(shape, 1).numbers(0.163, 0.66), atol=2e-3)


def test_a_drop_to_half_the_rate_gains_the_half_of_a_full_stop():
    shape = as_shape(rates.Constant(0.5), 1000)
    f, k = shape.numbers(0.163, 0.66)
    assert f == pytest.approx(1.0 - 0.5**0.66)
    assert k == pytest.approx(0.5 * (0.5**0.66) ** 0.163)


def test_linearised_numbers_are_those_nearby():
    shape = as_shape("one_minus_sqrt", 1)
    (f, f_p, f_s), (log_k, k_p, k_s) = shape.linearised(0.16, 0.5)
    f_near, k_near = shape.numbers(0.17, 0.53)
    assert f + 0.01 * f_p + 0.03 * f_s == pytest.approx(f_near, abs=1e-3)
    assert log_k + 0.01 * k_p + 0.03 * k_s == pytest.approx(math.log(k_near), abs=1e-3)


@pytest.mark.parametrize("reach", [0.01, 0.3, 1.0, 5.0, 40.0, 1000.0])
def test_missing_growth_against_quadrature(reach):
    slow = 1.0 - remaining_after_decay(0.5 * reach) ** 2
    assert missing_growth(reach) == pytest.approx(slow, rel=1e-6)


# --- The curve ---------------------------------------------------------------------------


def test_smoothing_against_least_squares():
    losses = raw_loss(STEPS) + 0.01 * np.random.default_rng(0).standard_normal(STEPS.size)
    curve = ConstantCurve(STEPS, losses)
    for at in (1000.0, 12_345.0, 40_000.0):
        away = np.log(STEPS / at)
        width = max(0.25, 1.001 * np.sort(np.abs(away))[9])
        roots = np.sqrt(np.clip(1.0 - np.abs(away / width) ** 3, 0.0, None) ** 3)
        design = np.vander(away, 3, increasing=True)
        found = np.linalg.lstsq(design * roots[:, None], losses * roots, rcond=None)[0]
        levels = curve.levels([at])
        assert levels.losses[0] == pytest.approx(found[0], abs=1e-10)
        assert levels.slopes[0] == pytest.approx(found[1] / at, rel=1e-6, abs=1e-12)


def test_noise_and_errors_are_those_of_many_runs():
    places = [3000.0, 20_000.0, 40_000.0]
    found, stated, noises = [], [], []
    for seed in range(200):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(STEPS.size)
        levels = (curve := ConstantCurve(STEPS, raw_loss(STEPS) + noise)).levels(places)
        found.append(levels.losses)
        stated.append(levels.errors)
        noises.append(curve.noise)
    assert np.mean(noises) == pytest.approx(0.01, rel=0.15)
    np.testing.assert_allclose(np.std(found, axis=0), np.mean(stated, axis=0), rtol=0.25)
    np.testing.assert_allclose(np.mean(found, axis=0), raw_loss(places), atol=3e-3)


def test_the_curve_goes_on_beyond_its_end():
    curve = ConstantCurve(STEPS, raw_loss(STEPS))
    levels = curve.levels([44_000.0, 56_000.0])
    np.testing.assert_array_less(np.abs(levels.losses - raw_loss([44_000.0, 56_000.0])), 3e-3)
    assert np.all(np.abs(levels.losses - raw_loss([44_000.0, 56_000.0])) < 2.0 * levels.errors)
    assert levels.errors[1] > levels.errors[0] > curve.levels([40_000.0]).errors[0]


def test_one_spike_moves_neither_noise_nor_curve_far():
    losses = raw_loss(STEPS) + 0.001 * np.random.default_rng(0).standard_normal(STEPS.size)
    plain = ConstantCurve(STEPS, losses).noise
    losses[150] += 0.02  # twenty deviations
    assert ConstantCurve(STEPS, losses).noise < 2.0 * plain


# --- Answers ------------------------------------------------------------------------------


def test_averages_and_a_decay_give_the_law_back():
    ends = [20_000, 30_000, 40_000]
    averages = [(n, end, average_loss(n, end)) for end in ends for n in (500, 2000, end // 5)]
    cooldown = ("linear", 6000, 30_000, decay_loss(6000, 30_000), RATE)
    decays = [("linear", part * end // 10, end) for end in ends for part in (1, 2, 3)]
    for answers in (ask(decays, averages), ask(decays, averages, [cooldown])):
        for (_, length, end), answer in zip(decays, answers, strict=True):
            assert answer.loss == pytest.approx(decay_loss(length, end), abs=4e-3)
            assert answer.low < decay_loss(length, end) < answer.high
            assert answer.average == pytest.approx(average_loss(length, end), abs=4e-3)


def test_a_known_decay_narrows_the_bands_and_moves_all_answers():
    decays = [("linear", 8000, LAST), ("one_minus_sqrt", 6000, LAST)]
    averages = [(8000, LAST, average_loss(8000, LAST))]
    lower = decay_loss(6000, 30_000) - 0.01
    before = ask(decays, averages)
    after = ask(decays, averages, [("linear", 6000, 30_000, lower, RATE)])
    for one, other in zip(before, after, strict=True):
        assert other.high - other.low < 0.7 * (one.high - one.low)
        assert other.loss < one.loss - 0.005


def test_noise_shared_by_curve_and_gain_cancels():
    """With a noisy curve an average still tells the decay to the missing share."""
    length = 8000
    averages = [(length, LAST, average_loss(length, LAST), 1e-4)]
    errors = [
        ask([("linear", length, LAST)], averages, noise=0.05, seed=seed)[0].loss
        - decay_loss(length, LAST)
        for seed in range(20)
    ]
    raw = [
        ConstantCurve(STEPS, raw_loss(STEPS) + 0.05 * np.random.default_rng(seed).normal(size=200))
        .levels([LAST - F * length])
        .losses[0]
        - raw_loss(LAST - F * length)
        for seed in range(20)
    ]
    assert np.std(errors) < 0.5 * np.std(raw)


def test_bands_hold_at_about_their_rate_for_runs_of_the_priors():
    """Truths drawn from the priors, with noise on curve and averages."""
    held, half, count = 0, 0, 120
    random = np.random.default_rng(1)
    length, end = 6000, 30_000
    for seed in range(count):
        size = random.normal(0.019, 0.0038)
        power, bend = random.normal(0.15, 0.02), random.normal(0.0, 0.015)
        slow = math.exp(random.normal(math.log(0.47), 0.5))
        f = as_shape("linear", 1).numbers(0.162, random.normal(0.5, 0.12))[0]

        def averaged(n, power=power, bend=bend):
            at = math.log(n / 5000.0)
            return 0.125 * math.exp(power * at + 0.5 * bend * at**2)

        missing = size * missing_growth(slow * RATE * length) / missing_growth(slow * 2.5)
        truth = float(raw_loss(end - f * length)) - averaged(length) - missing
        averages = [
            (n, step, float(raw_loss(step - f * n)) - averaged(n) * (1 + random.normal(0, 0.01)))
            for step in (24_000, 30_000)
            for n in (500, 5000)
        ]
        answer = ask([("linear", length, end)], averages, noise=0.002, seed=seed)[0]
        held += answer.low <= truth <= answer.high
        half += answer.half_low <= truth <= answer.half_high
    assert 0.8 <= held / count <= 0.98
    assert 0.35 <= half / count <= 0.7


def test_the_fit_is_the_minimum_and_its_covariance_the_curvature_there():
    averages = [(n, LAST, average_loss(n, LAST)) for n in (500, 2000, 8000)]
    cooldowns = [("one_minus_sqrt", 6000, 30_000, decay_loss(6000, 30_000) - 0.005, RATE)]
    curve = ConstantCurve(
        STEPS, raw_loss(STEPS) + 0.003 * np.random.default_rng(0).standard_normal(STEPS.size)
    )
    measured = decay_forecast.read_averages(averages, curve)
    trained, _ = decay_forecast.read_cooldowns(cooldowns, curve, RATE)
    known = decay_forecast._known(curve, measured, trained)
    gain = fit_gain(curve, known, float(LAST), RATE, LANGUAGE_MODELS)
    residuals = _Residuals(curve, known, float(LAST), gain)
    p = LANGUAGE_MODELS
    start = p.gain[0]
    pairs = [(start, 3.0), p.power, p.bend, (start, 3.0), p.average_power, p.average_bend]
    mean, spread = np.array([*pairs, p.summed_power, p.missing, p.slowness]).T

    def scaled(z):
        return np.sum(residuals(mean + spread * z) ** 2) + np.sum(z**2)

    slow = optimize.minimize(scaled, np.zeros(9), method="BFGS", options={"gtol": 1e-6})
    ours = (gain.mean - mean) / spread
    assert scaled(ours) <= slow.fun + 0.01  # twice a log probability
    np.testing.assert_allclose(ours, slow.x, atol=0.1)
    hessian = np.zeros((9, 9))
    for i, j in itertools.product(range(9), repeat=2):
        ends = []
        for a, b in itertools.product((1e-3, -1e-3), repeat=2):
            z = ours.copy()
            z[i] += a
            z[j] += b
            ends.append(scaled(z) * np.sign(a * b))
        hessian[i, j] = sum(ends) / 4e-6
    deviation = np.sqrt(np.diag(np.linalg.inv(0.5 * hessian)))
    stated = np.sqrt(np.diag(gain.root @ gain.root.T)) / spread
    np.testing.assert_allclose(stated, deviation, rtol=0.1)


def test_the_same_call_gives_the_same_bits_and_order_does_not_matter():
    decays = [("linear", 8000, LAST), ("cosine", 4000, 42_000), ("one_minus_sqrt", 6000, 30_000)]
    averages = [(8000, LAST, average_loss(8000, LAST))]
    one, two = ask(decays, averages, noise=0.01), ask(decays, averages, noise=0.01)
    assert one == two
    back = ask(decays[:2][::-1], averages, noise=0.01)[::-1]
    assert [a.loss for a in back] == [a.loss for a in one[:2]]


def test_bands_grow_with_their_level_and_hold_the_half():
    narrow, wide = (ask([("linear", 8000, LAST)], level=level)[0] for level in (0.6, 0.95))
    assert wide.low < narrow.low < narrow.half_low < narrow.loss
    assert narrow.loss < narrow.half_high < narrow.high < wide.high


def test_flags_and_doubled_bands():
    decays = [("linear", n, end) for n, end in [(16_000, LAST), (16_010, LAST), (25_000, LAST)]]
    inside, beyond, far = ask(decays)
    assert (inside.flag, beyond.flag, far.flag) == ("ok", "outside", "outside")
    assert beyond.high - beyond.low == pytest.approx(2.0 * (inside.high - inside.low), rel=0.1)
    assert math.isnan(far.loss)
    assert math.isnan(far.low)
    asked = ask(decays, outside=True)[2]
    assert asked.low < asked.loss < asked.high
    (now,) = ask([("linear", 8000, LAST + 8000)])
    assert now.flag == "extrapolated"
    (almost,) = ask([("linear", 8000, LAST + 100)])  # between two losses of the curve
    assert almost.flag == "ok"


def test_no_decays_no_answers():
    assert ask([]) == []


def test_longer_decays_of_a_falling_run_gain_more_and_cost_steps():
    answers = ask([("linear", n, LAST) for n in range(1000, 16_001, 1000)])
    gains = [answer.gain for answer in answers]
    raws = [answer.raw for answer in answers]
    assert gains == sorted(gains)
    assert raws == sorted(raws)


def test_the_best_decay_and_what_it_cannot_be_told_apart_from():
    averages = [(n, LAST, average_loss(n, LAST)) for n in (500, 2000, 8000)]
    answers = ask([("linear", n, LAST) for n in (100, 8000, 8001, 30_000)], averages)
    choice = theory.best_decays(answers)
    assert choice.best.length in (8000, 8001)
    assert set(choice.alike) == {1, 2}
    assert theory.best_decays(answers[3:]) is None


# --- Findings ----------------------------------------------------------------------------


def test_a_sound_run_has_no_findings():
    assert codes(ask([("linear", 8000, LAST)], [(8000, LAST, average_loss(8000, LAST))])) == set()


def test_findings_name_what_is_wrong():
    average = [(8000, LAST, average_loss(8000, LAST))]
    stale = [(500, step, average_loss(500, 20_000)) for step in (20_000, 20_200, 20_400)]
    assert codes(ask([("linear", 8000, LAST)], stale)) == {"stale-averages"}
    assert "gain-unknown" in codes(ask([("linear", 8000, LAST)]))
    assert "raw-noisy" in codes(ask([("linear", 8000, LAST)], average, noise=0.1))
    losses = 2.9 + 300.0 * STEPS**-0.7
    early = [(800, 4000, float(losses[19]) - 0.1)]
    assert "warming-up" in codes(
        theory.what_if(STEPS, losses, RATE, [("linear", 800, 4000)], early)
    )
    other = [("linear", 6000, 30_000, 2.9, 2e-3)]
    assert codes(ask([("linear", 8000, LAST)], average, other)) == {"other-rate"}
    decaying = raw_loss(STEPS) - np.where(STEPS > 36_000, 0.1 * (STEPS - 36_000) / 4000, 0.0)
    found = theory.what_if(STEPS, decaying, RATE, [("linear", 8000, LAST)], average)
    assert "not-constant" in codes(found)


def test_repeated_losses_count_once():
    average = (8000, LAST - 400, average_loss(8000, LAST - 400))
    again = [average, (8000, LAST - 200, average[2]), (8000, LAST, average[2])]
    (one,), (many,) = (ask([("linear", 8000, LAST)], a) for a in ([average], again))
    assert one.loss == many.loss


def test_runs_unlike_language_models_get_shares_for_priors():
    """The scale of the loss does not matter where only shares are assumed."""
    losses = raw_loss(STEPS) - 2.9 + 0.05
    average = (8000, LAST, float(losses[-1]) - 0.12)
    (one,) = theory.what_if(STEPS, losses, 0.1, [("linear", 8000, LAST)], [average])
    (scaled,) = theory.what_if(
        STEPS, 7.0 * losses, 0.1, [("linear", 8000, LAST)], [(8000, LAST, 7.0 * average[2])]
    )
    assert scaled.loss == pytest.approx(7.0 * one.loss, rel=1e-4)
    assert scaled.share == pytest.approx(one.share, rel=1e-4)
    assert one.share == pytest.approx(1.0 - ANY_RUN.missing[0], abs=0.02)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_missing_loss_in_nats_is_for_gains_of_that_scale_only(factor):
    """At the rates of language models too: half their gain, or twice, is another kind of run."""
    curve = raw_loss(STEPS)
    gain = curve[-1] - average_loss(8000, LAST)
    averages = [(8000, LAST, curve[-1] - factor * gain)]
    asked = [("linear", 8000, LAST)]
    (found,) = theory.what_if(STEPS, curve, RATE, asked, averages)
    priors = LANGUAGE_MODELS if factor == 1.0 else ANY_RUN
    (wanted,) = theory.what_if(STEPS, curve, RATE, asked, averages, priors=priors)
    assert found.loss == wanted.loss
    other = ANY_RUN if factor == 1.0 else LANGUAGE_MODELS
    assert theory.what_if(STEPS, curve, RATE, asked, averages, priors=other)[0].loss != found.loss


# --- Bad input ---------------------------------------------------------------------------


def changed(array, at, value):
    found = np.array(array, np.float64)
    found[at] = value
    return found


GOOD = {
    "steps": STEPS,
    "losses": raw_loss(STEPS),
    "learning_rate": RATE,
    "decays": [("linear", 8000, LAST)],
}
BAD = {
    "unsorted steps": ({"steps": changed(STEPS, 3, 1400)}, "`steps` must increase"),
    "few steps": ({"steps": STEPS[:5], "losses": STEPS[:5]}, "at least 8 steps above 0"),
    "a loss that is no number": ({"losses": changed(STEPS, 5, np.nan)}, "finite numbers"),
    "too few losses": ({"losses": STEPS[:-1]}, r"shape \[200\]"),
    "a rate of zero": ({"learning_rate": 0.0}, "`learning_rate` must be a number above 0"),
    "a rate that changes": (
        {"learning_rate": np.where(STEPS > 30_000, 5e-4, 1e-3)},
        "must be constant after a warm-up. Received: 0.0005 at step 30200, 0.001 at step 200",
    ),
    "a warm-up over most of the run": (
        {"learning_rate": np.minimum(STEPS / 30_000, 1.0) * 1e-3},
        "must be constant after a warm-up",
    ),
    "a momentum of one": ({"momentum": 1.0}, "`momentum` must be a number of at least 0 and below"),
    "an unknown shape": (
        {"decays": [("linaer", 8000, LAST)]},
        r"`decays\[0\]`: `shape` must be .* Did you mean 'linear'\? Received: shape='linaer'",
    ),
    "a rate above the run's": (
        {"decays": [(rates.Linear(start=2.0, steps=8000), 8000, LAST)]},
        r"`decays\[0\]`: `shape` must be a rate with values in \[0, 1\]",
    ),
    "a rate that stays": (
        {"decays": [(rates.Constant(1.0), 8000, LAST)]},
        "must be a rate that falls below 1",
    ),
    "a decay longer than the run": (
        {"decays": [("linear", 50_000, LAST)]},
        "`length` must be below `end`.* Received: length=50000, end=40000",
    ),
    "a decay far ahead": (
        {"decays": [("linear", 8000, 100_000)]},
        "`end` must be at most 80000, .* Received: end=100000",
    ),
    "a fraction of a step": ({"decays": [("linear", 8000.5, LAST)]}, "an integer of at least 1"),
    "a decay of two numbers": ({"decays": [("linear", 8000)]}, r"`decays\[0\]` must be \(shape,"),
    "a text for decays": ({"decays": "linear"}, r"`decays` must be a list of \(shape,"),
    "an average longer than its steps": (
        {"averages": [(500, 400, 3.0)]},
        r"`averages\[0\]`: `length` must be at most step \+ 1",
    ),
    "an average after the run": (
        {"averages": [(500, 50_000, 3.0)]},
        r"`averages\[0\]`: `step` must be at most 40000, .* Received: step=50000",
    ),
    "an average without a loss": ({"averages": [(500, 20_000, np.nan)]}, "loss.* must be a finite"),
    "a decay's loss that is no number": (
        {"cooldowns": [("linear", 6000, 30_000, np.inf, RATE)]},
        r"`cooldowns\[0\]: loss` must be a finite number",
    ),
    "a trained decay of unknown shape": (
        {"cooldowns": [("sqrt", 6000, 30_000, 2.9, RATE)]},
        r"`cooldowns\[0\]`: `shape` must be",
    ),
    "a level of one": ({"level": 1.0}, "`level` must be a number above 0 and below 1"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_that_names_it(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        theory.what_if(**{**GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("power", (0.1, 0.0)), ("missing", 0.2), ("law", -1.0), ("length", 0.0), ("gain", (1, 2, 3))],
)
def test_priors_refuse_what_is_no_pair(field, value):
    with pytest.raises(ValueError, match=rf"`{field}"):
        dataclasses.replace(LANGUAGE_MODELS, **{field: value})
