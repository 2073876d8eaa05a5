"""Every kind of probe in the ways in which it works: what the contract is tested on."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.specs import PROBES

_MODE = ("batch_norm", "dropout", "moment_batches", "penalties")
_RUN = ("path", "tell", "about")


def measured(kind, model, loss, *given, **options):
    """The record of a probe of a model: options of its surface, of itself and of `measure`."""
    surface = probes.Surface(model, loss, **{k: options.pop(k) for k in _MODE if k in options})
    run = {k: options.pop(k) for k in _RUN if k in options}
    return probes.measure(kind(surface, *given, **options), progress=False, **run)


class Clock:
    """Counts forward passes, and interrupts when none is left."""

    left = math.inf
    passes = 0

    def tick(self, passes):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.passes += passes


class Watched(probes.Surface):
    """A surface that counts what is asked of it."""

    def __init__(self, clock, *args, **options):
        super().__init__(*args, **options)
        self.clock = clock

    def evaluate(self, point, batches):
        batches = list(batches)
        self.clock.tick(len(batches))
        return super().evaluate(point, batches)

    def along(self, origin, direction, steps, batch):
        if self.mode.batch_norm != "recalibrated":  # which evaluates
            self.clock.tick(len(steps))
        return super().along(origin, direction, steps, batch)

    def predict(self, point, inputs):
        self.clock.tick(1)
        return super().predict(point, inputs)

    def gradient(self, point, batch):
        self.clock.tick(3)
        return super().gradient(point, batch)

    def hessian_vector(self, point, batch, vector):
        self.clock.tick(8)
        return super().hessian_vector(point, batch, vector)

    def seconds_per_pass(self, batch, repeats=3):
        return 0.01


class Steps:
    """A trajectory that counts how often it is read."""

    def __init__(self, clock, points):
        self.clock, self.points, self.reads = clock, points, []
        self.steps = np.array(sorted(points))

    def read(self, step):
        if self.clock is not None:
            self.clock.tick(0)
        self.reads.append(step)
        return self.points[step]


def trajectory(points, clock=None):
    """Twelve steps from the first point, past the second."""
    first, second, *_ = points.values()
    rows = {
        2 * i: [a + 0.1 * i * (b - a) for a, b in zip(first, second, strict=True)]
        for i in range(12)
    }
    return Steps(clock, rows)


@dataclasses.dataclass
class Case:
    """A probe of (surface, three batches, three points by name).

    Attributes:
        build: makes it.
        mode: of its surface.
        ticks: calls of the surface, or reads, to be interrupted after, one more every time.
        kind: of its record.
        parts: optional parts of the record.
    """

    build: Callable
    kind: str
    parts: tuple = ()
    mode: dict = dataclasses.field(default_factory=dict)
    ticks: int = 4


def _clock(surface):
    return getattr(surface, "clock", None)


def _reads(surface, points):
    return trajectory(points, _clock(surface))


_GRID = [0.1, 0.2, 0.4]
_SHORT = probes.rate_grid(0.0, 0.1, 11, "linear")
CASES = {
    "line": Case(
        lambda s, b, p: probes.Line(
            s, p["a"], b[:2], held_out=b[2:], others=b[2:], rates=_GRID, bracket="none"
        ),
        "line",
        ("held_out", "others"),
        ticks=3,
    ),
    "line alone": Case(
        lambda s, b, p: probes.Line(s, p["a"], b[:2], rates=_GRID, bracket="none"), "line", ticks=1
    ),
    "line growing": Case(
        lambda s, b, p: probes.Line(s, p["a"], b[:2], held_out=b[1:], rates=_SHORT),
        "line",
        ("held_out",),
        {"dropout": "pinned"},
        3,
    ),
    "line recalibrated": Case(
        lambda s, b, p: probes.Line(s, p["a"], b[:2], held_out=b[2:], rates=_GRID, bracket="none"),
        "line",
        ("held_out",),
        {"batch_norm": "recalibrated"},
    ),
    "curvature": Case(
        lambda s, b, p: probes.Curvature(s, p["a"], b, direction="random"),
        "curvature",
        ("check",),
        ticks=3,
    ),
    "eigenvalues": Case(
        lambda s, b, p: probes.Eigenvalues(s, p["a"], b[:2], iterations=3, count=2, starts=2),
        "eigenvalues",
        ticks=4,
    ),
    "side_trip": Case(
        lambda s, b, p: probes.SideTrip(
            s, p["a"], [b[0], b[1:]], held_out=b[2:], others=b[:1], num_steps=3, learning_rate=0.2,
            momentum=0.5,
        ),
        "side_trip",
        ("held_out", "others"),
        {"dropout": "pinned"},
        6,
    ),
    "side_trip of Adam": Case(
        lambda s, b, p: probes.SideTrip(s, p["a"], b[:2], optimizer="adam", num_steps=2),
        "side_trip",
        ticks=4,
    ),
    "basin": Case(
        lambda s, b, p: probes.Basin(s, p, b[:2], held_out=b[2:], num=3, extend=0.5),
        "basin",
        ("held_out",),
        {"batch_norm": "frozen"},
    ),
    "width": Case(
        lambda s, b, p: probes.Width(
            s, p, b[:2], held_out=b[2:], distances=[0.0, 0.5, 1.0], num_rays=2
        ),
        "width",
        ("held_out",),
        {"dropout": "pinned"},
    ),
    "plane": Case(
        lambda s, b, p: probes.Plane(
            s, p, b[:2], held_out=b[2:], num=3, trajectory=_reads(s, p)
        ),
        "plane",
        ("held_out",),
        ticks=5,
    ),
    "gradients": Case(
        lambda s, b, p: probes.Gradients(s, p["a"], b, directions={"way": p["b"]}),
        "gradients",
        ("directions",),
        ticks=1,
    ),
    "gradients in blocks": Case(
        lambda s, b, p: probes.Gradients(s, p["a"], b, memory_limit=1, per_layer=True),
        "gradients",
        ticks=2,
    ),
    "gradients in sketches": Case(
        lambda s, b, p: probes.Gradients(s, p["a"], b, sketch_size=16),
        "gradients",
        ("sketches",),
        ticks=1,
    ),
    "lagged_gradients": Case(
        lambda s, b, p: probes.LaggedGradients(s, trajectory(p), b, lags=[2, 4]),
        "lagged_gradients",
        ticks=14,
    ),
    "lagged_gradients about all": Case(
        lambda s, b, p: probes.LaggedGradients(s, trajectory(p), b, lags=[2, 4], mean="all"),
        "lagged_gradients",
        ticks=14,
    ),
    "lagged_gradients in sketches": Case(
        lambda s, b, p: probes.LaggedGradients(s, trajectory(p), b, lags=[2, 4], sketch_size=16),
        "lagged_gradients",
        ("sketch",),
        ticks=7,
    ),
    "ensemble": Case(
        lambda s, b, p: probes.Ensemble(s, p, b, logits=False, scales=(1.0, 0.5)),
        "ensemble",
        (),
        {"batch_norm": "frozen"},
        7,
    ),
    "ensemble of logits": Case(
        lambda s, b, p: probes.Ensemble(s, p, b, scales=(1.0, 0.5)), "ensemble", ("logits",),
        ticks=7,
    ),
    "distance": Case(
        lambda s, b, p: probes.Distance(_reads(s, p), lags=[2, 6], memory_limit=1),
        "distance",
        ticks=8,
    ),
    "distance of filters": Case(
        lambda s, b, p: probes.Distance(_reads(s, p), filters=True, reference=p["c"]),
        "distance",
        ("filters", "reference"),
        ticks=6,
    ),
    "distance in sketches": Case(
        lambda s, b, p: probes.Distance(
            _reads(s, p), lags=[2, 6], exact=False, sketch_size=8, filters=True
        ),
        "distance",
        ("filters", "sketch"),
        ticks=6,
    ),
    "separation": Case(
        lambda s, b, p: probes.Separation(
            _reads(s, p), trajectory({name: p[name] for name in "acb"}), filters=True
        ),
        "separation",
        ("filters",),
    ),
}  # fmt: skip
# Each kind once or twice, with the names of batches' and points' parts that a store must keep.
OF_LOSSES = [name for name in CASES if not name.startswith(("distance", "separation"))]
FIRST = [name for name in OF_LOSSES if name in (*PROBES, "line alone", "side_trip of Adam")]


def shifted(model, seed=3):
    """Three named points around a model's weights."""
    here = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    rng = np.random.default_rng(seed)
    return {
        name: [a + 0.2 * rng.normal(size=a.shape).astype(a.dtype) for a in here] for name in "abc"
    }


def of_case(name, model, loss, batches):
    """The record of a case on another model."""
    probe = CASES[name].build(probes.Surface(model, loss), batches, shifted(model))
    return probes.measure(probe, progress=False)
