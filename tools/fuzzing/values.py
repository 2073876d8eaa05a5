"""Entry points that take values: durations, kernels, rates, theory, texts, requests of probes."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing.generate import NUMBERS, ODD, SCALARS, TEXTS, edited, edits, mostly
from fuzzing.judge import Fault, Target
from tf_lrtraj import kernels, rates, records, specs, theory
from tf_lrtraj.durations import Duration
from tf_lrtraj.runs import kernel_parsing
from tf_lrtraj.theory import quadratic, schedule_equivalence
from tf_lrtraj.values import Rule

STEPS = 40

# --- What a rule says -------------------------------------------------------------------------


def ruled(rules: Mapping[str, Rule], odd: Any = ODD, most: int = 4) -> Any:
    """Dicts of some of the names, each with a value at its rule's limits, now and then odd."""

    def entry(name: str) -> Any:
        known = rules[name].examples
        return st.tuples(st.just(name), mostly(st.sampled_from(known), odd) if known else odd)

    return st.lists(st.sampled_from(sorted(rules)).flatmap(entry), max_size=most).map(dict)


# --- Durations ------------------------------------------------------------------------------

_AMOUNT = st.one_of(
    st.integers(0, 300), st.floats(0, 30).map("{:.3g}".format), st.sampled_from(["1e3", "9" * 400])
)
_DURATION = st.one_of(
    ODD,
    st.builds(
        lambda amount, space, unit: f"{amount}{space}{unit}",
        _AMOUNT,
        st.sampled_from(["", " ", "  ", "\t"]),
        st.sampled_from(["steps", "step", "epochs", "examples", "percent", "%", "Epochs", "days"]),
    ),
)


def _duration(given: Any, folder: pathlib.Path) -> None:
    text, batch, epoch, total = given
    count = Duration.parse(text, "total").steps(epoch / batch, total, batch, "total")
    if type(count) is not int or count < 0:
        raise Fault(f"{text!r} is {count!r} steps")


DURATIONS = Target(
    "durations",
    st.tuples(_DURATION, st.integers(1, 200), st.integers(1, 2000), st.none() | st.integers(1, 99)),
    _duration,
)

# --- Kernels and rates ----------------------------------------------------------------------

KERNELS = [
    {"kernel": "Exponential", "decay": 0.9, "start": 3},
    {"kernel": "Exponential", "decay": 0.5, "every": 2, "warmup": 1.0},
    {"kernel": "Exponential", "decay": 0.99, "debias": True},
    {"kernel": "Uniform", "start": 5, "every": 3},
    {"kernel": "PowerFunction", "exponent": 2.0, "start": 1, "every": 2},
    {"kernel": "PowerFunction", "exponent": -0.5, "start": 3},
    {"kernel": "HalfLife", "ratio": 0.2, "longest": 5, "start": 1, "every": 2},
    {"kernel": "BEMA", "start": 2},
    {"kernel": "Window", "length": 4, "every": 2},
    {"kernel": "TwoPoint", "gap": 7},
    {"kernel": "Custom", "weights": [0.5, -0.5, 1.0]},
]
RATES = [
    {"rate": "Constant", "constant": 0.1},
    {"rate": "Linear", "start": 0.4, "steps": 20, "end": 0.1},
    {"rate": "Cosine", "start": 0.4, "steps": 30},
    {"rate": "OneMinusSqrt", "start": 0.4, "hold": 5, "steps": 9},
    {"rate": "InverseTime", "start": 0.4, "steps": 9},
    {"rate": "Exponential", "start": 0.4, "factor": 0.5, "steps": 9},
    {"rate": "Cyclical", "start": 0.4, "end": 0.1, "length": 9},
    {"rate": "Triangular", "start": 0.4, "end": 0.1, "length": 8},
    {"rate": "Piecewise", "boundaries": [5, 9], "values": [0.4, 0.2, 0.1]},
    {"rate": "Table", "values": [0.1] * STEPS},
    {"rate": "Scaled", "factor": 0.5, "inner": {"rate": "Constant", "constant": 0.1}},
    {"rate": "Warmup", "steps": 5, "inner": {"rate": "Cosine", "start": 0.4, "steps": 30}},
    {
        "rate": "Sequence",
        "rates": [0.1, {"rate": "Linear", "start": 0.1, "steps": 9}],
        "boundaries": [9],
    },
]


def spoilt(valid: list[Any], value: Any = ODD) -> Any:
    """One of some valid inputs, edited; now and then as it is, or something else altogether."""
    sound = st.sampled_from(valid)
    small = st.integers(0, 30) | st.floats(0, 1)
    return mostly(
        st.one_of(
            st.builds(edited, sound, edits(value)),
            st.builds(edited, sound, edits(mostly(small, value, 3), 2)),
            st.builds(edited, sound, edits(small, 2)),
            sound,
        ),
        ODD,
    )


def _finite_weights(weights: np.ndarray, size: int) -> None:
    if weights.shape != (size,) or not np.isfinite(weights).all():
        raise Fault(f"weights {weights}")
    if abs(weights.sum() - 1.0) > 1e-5 * max(1.0, float(np.abs(weights).sum())):
        raise Fault(f"weights sum to {weights.sum()}")


def _kernel(given: Any, folder: pathlib.Path) -> None:
    config, steps = given
    kernel = kernels.from_config(config)
    if kernels.from_config(kernel.get_config()) != kernel:
        raise Fault(f"{kernel} is another than its configuration's")
    records.write_json(folder / "kernel.json", kernel.get_config())
    if kernels.from_config(records.read_json(folder / "kernel.json")) != kernel:
        raise Fault(f"{kernel} does not survive JSON")
    _finite_weights(kernel.weights(steps), int(steps) + 1)
    str(kernel), kernel.copies, kernel.memory_bytes(10)


KERNEL_CONFIGS = Target(
    "kernels.from_config",
    st.tuples(spoilt(KERNELS), st.integers(0, STEPS) | st.sampled_from([None, -1, 1.5, True, "3"])),
    _kernel,
    share=2,
)


def _rate(given: Any, folder: pathlib.Path) -> None:
    config, steps = given
    rate = rates.as_rate(config)
    if rates.from_config(rate.get_config()) != rate:
        raise Fault(f"{rate} is another than its configuration's")
    values = rates.as_array(rate, steps)
    if values.shape != (steps,) or not np.isfinite(values).all() or (values < 0).any():
        raise Fault(f"rates {values}")


RATE_CONFIGS = Target(
    "rates.from_config",
    st.tuples(spoilt(RATES), st.integers(0, STEPS) | st.sampled_from([None, -1, 1.5, "3"])),
    _rate,
    share=2,
)

# --- Theory ---------------------------------------------------------------------------------

_VECTOR = st.one_of(
    st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    st.lists(NUMBERS, max_size=5),
    ODD,
)


def _weights(draw: Any, size: int) -> np.ndarray:
    found = np.array(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))) + 0.01
    return found / found.sum()


def _floats(draw: Any, size: int, low: float, high: float) -> list[float]:
    return draw(st.lists(st.floats(low, high), min_size=size, max_size=size))


# letter → a sound argument, from (draw, T updates, D directions)
_SOUND: dict[str, Any] = {
    "w": lambda draw, t, d: _weights(draw, t + 1),
    "b": lambda draw, t, d: _floats(draw, t, 0.0, 0.9),
    "r": lambda draw, t, d: draw(st.floats(0.01, 0.9)),
    "a": lambda draw, t, d: _floats(draw, d, 0.0, 1.0),
    "d": lambda draw, t, d: _floats(draw, d, 0.0, 3.0),
    "l": lambda draw, t, d: _floats(draw, t + 1, 0.0, 3.0),
    "g": lambda draw, t, d: list(range(1, t + 1)),
    "j": lambda draw, t, d: _floats(draw, t, -0.1, 1.0),
    "c": lambda draw, t, d: draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
    "m": lambda draw, t, d: draw(st.sampled_from([0.0, 0.0, 0.5, 0.9])),
    "n": lambda draw, t, d: draw(st.integers(1, 12)),
    "t": lambda draw, t, d: t,
    "k": lambda draw, t, d: kernels.from_config(draw(st.sampled_from(KERNELS))),
    "v": lambda draw, t, d: draw(st.sampled_from(["keras", "pytorch"])),
    "x": lambda draw, t, d: [_floats(draw, d, -2.0, 2.0) for _ in range(t + 1)],
    "h": lambda draw, t, d: draw(st.booleans()),
    "s": lambda draw, t, d: draw(st.sampled_from(["free", "monotone", "linear", "exponential"])),
    "M": lambda draw, t, d: theory.QuadraticModel(_floats(draw, d, 0.1, 1.0), [1.0] * d),
}
# function, letters of its arguments
_THEORY: dict[str, tuple[Any, str]] = {
    "schedule_from_weights": (theory.schedule_from_weights, "wbcm"),
    "weights_from_schedule": (theory.weights_from_schedule, "bbcm"),
    "equivalent_schedule": (theory.equivalent_schedule, "wbcm"),
    "response": (schedule_equivalence.response, "wbcmv"),
    "stationary_factor": (theory.stationary_factor, "ka"),
    "stationary_factor of weights": (theory.stationary_factor, "wr"),
    "effective_learning_rate": (theory.effective_learning_rate, "krc"),
    "time_scales": (theory.time_scales, "w"),
    "time_scales of a kernel": (theory.time_scales, "kt"),
    "fold_onto_snapshots": (theory.fold_onto_snapshots, "wn"),
    "fold onto these": (theory.fold_onto_snapshots, "wg"),
    "ema_decay_for_window": (theory.ema_decay_for_window, "n"),
    "window_for_ema_decay": (theory.window_for_ema_decay, "r"),
    "ema_decay_for_factor": (theory.ema_decay_for_factor, "rr"),
    "window_length_for_factor": (theory.window_length_for_factor, "rr"),
    "predict_average_loss": (theory.predict_average_loss, "wlgj"),
    "optimal_weights": (theory.optimal_weights, "lgjh"),
    "AveragePredictor": (theory.AveragePredictor, "lgj"),
    "SparsePredictor": (theory.SparsePredictor, "nglggj"),
    "QuadraticModel": (theory.QuadraticModel, "ad"),
    "stationary_variance": (lambda m, *a: m.stationary_variance(*a), "Mrm"),
    "stationary_loss": (lambda m, *a: m.stationary_loss(*a), "Mr"),
    "expected_loss": (lambda m, *a: m.expected_loss(*a), "Mbd"),
    "expected_loss_of_average": (lambda m, *a: m.expected_loss_of_average(*a), "Mkbd"),
    "one_step_loss": (lambda m, *a: m.one_step_loss(*a), "Mbdh"),
    "simulate": (lambda m, *a: m.simulate(*a), "Mbdnnk"),
    "fit_schedule": (
        lambda *a: theory.fit_schedule(*a[:4], shape=a[4], max_iterations=5),
        "Mlbds",
    ),
    "schedule_mismatch": (theory.schedule_mismatch, "bwbam"),
    "noise_of_batches": (quadratic.noise_of_batches, "dnnh"),
    "squared_distances": (theory.squared_distances, "x"),
    "predict_squared_distance": (theory.predict_squared_distance, "wlgj"),
    "estimate_spectrum": (theory.estimate_spectrum, "gjnnr"),
}
_BIG = 1000


def _large(value: Any) -> bool:
    """Whether an argument asks for a large computation, which is no fault."""
    return isinstance(value, (int, float)) and math.isfinite(min(value, 10**9)) and value > _BIG


@st.composite
def _theory_inputs(draw: Any) -> tuple[str, list[Any]]:
    name = draw(st.sampled_from(sorted(_THEORY)))
    steps, directions = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    letters = _THEORY[name][1]
    arguments = [_SOUND[letter](draw, steps, directions) for letter in letters]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(letters) - 1))
        if letters[place] == "M":
            continue
        now = arguments[place]
        if isinstance(now, (list, np.ndarray)) and getattr(now, "ndim", 1) and draw(st.booleans()):
            arguments[place] = edited(list(now), draw(edits(NUMBERS, 2)))
        else:
            arguments[place] = draw(_VECTOR)
    return name, [None if _large(a) else a for a in arguments]


def _theory(given: Any, folder: pathlib.Path) -> None:
    name, arguments = given
    _THEORY[name][0](*arguments)


THEORY = Target("theory", _theory_inputs(), _theory, share=3)

# --- Texts ----------------------------------------------------------------------------------

_CALLS = [
    "Exponential(decay=0.9)",
    "ema:0.9",
    "swa:start=5",
    "window:20,every=2",
    "two_point:3",
    "power:1.5",
    "half_life:0.05,longest=10",
    "bema:start=3",
    '{"kernel": "TwoPoint", "gap": 3}',
    "late=swa:start=5",
    "Custom([0.5, 0.5])",
    "Uniform()",
    "Uniform",
    "a=Window(3)",
    "ema:0.9,start=2",
    "Custom(weights=[1.0])",
]
_LETTERS = st.sampled_from([*"()[]{}=:,.'\"\\*-+0 \n#;_aT", "**{}", "__import__", "lambda:0"])


def spoilt_text(valid: list[str]) -> Any:
    """One of some texts with pieces written into it or cut out of it."""

    def spoil(text: str, changes: list[tuple[int, int, str]]) -> str:
        for where, cut, piece in changes:
            place = where % (len(text) + 1)
            text = text[:place] + piece + text[place + cut :]
        return text

    piece = mostly(st.one_of(st.just(""), _LETTERS, st.integers(0, 20).map(str)), TEXTS, 5)
    change = st.tuples(st.integers(0, 60), st.integers(0, 3), piece)
    return mostly(
        st.builds(spoil, st.sampled_from(valid), st.lists(change, max_size=2)),
        TEXTS | st.text(),
    )


def _text(given: Any, folder: pathlib.Path) -> None:
    name, kernel = kernel_parsing.parse_average(given)
    (folder / f"{name}.keras").write_bytes(b"")  # the name is safe for a file
    _finite_weights(kernel.weights(STEPS), STEPS + 1)


TEXT = Target("kernels in text", spoilt_text(_CALLS), _text)

# --- Requests of probes ---------------------------------------------------------------------


def _request(given: Any, folder: pathlib.Path) -> None:
    kind, options = given
    specs.PROBES[specs.check_kind(kind)].check(options)


def _options_of(kind: str) -> Any:
    rules = {name: option.rule for name, option in specs.PROBES[kind].options.items()}
    strange = st.dictionaries(st.sampled_from(sorted(specs.options())) | TEXTS, ODD, max_size=2)
    return st.tuples(st.just(kind), mostly(ruled(rules), strange, 4))


REQUESTS = Target(
    "probe requests",
    mostly(
        st.sampled_from(sorted(specs.requestable())).flatmap(_options_of),
        st.tuples(ODD, st.just({})),
    ),
    _request,
)

# --- Timetables and names -------------------------------------------------------------------


def _timetable(given: Any, folder: pathlib.Path) -> None:
    from tf_lrtraj.averaging.snapshots import Timetable

    arguments, step = given
    table = Timetable(*arguments)
    due = [s for s in range(60) if table.due(s)]
    table.kept(due, 60)
    if table.next_due(step) <= step:
        raise Fault("the next is not later")
    dataclasses.asdict(table)


TIMETABLES = Target(
    "timetables",
    st.tuples(
        st.lists(st.one_of(st.integers(0, 12), SCALARS, ODD), min_size=1, max_size=4),
        st.integers(0, 100),
    ),
    _timetable,
    share=0.5,
)


def _name(given: Any, folder: pathlib.Path) -> None:
    name = records.check_average_name(given)
    path = records.matched_dir(folder, given)
    path.mkdir(parents=True)
    if path.resolve().parent != (folder / "matched").resolve():
        raise Fault(f"{name!r} leads to {path}")


NAMES = Target(
    "names of averages", TEXTS | ODD | st.from_regex(r"[\w.+=/-]{1,70}"), _name, share=0.5
)

TARGETS = [
    DURATIONS,
    KERNEL_CONFIGS,
    RATE_CONFIGS,
    THEORY,
    TEXT,
    REQUESTS,
    TIMETABLES,
    NAMES,
]
