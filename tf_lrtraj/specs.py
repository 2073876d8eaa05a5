"""The kinds of probes: their options, records and figures, each declared once.

`PROBES` defines the flags of `lrtraj-probe`, the checks of configurations, the values and axes of
records, the titles of figures and the inputs of the fuzzer.

>>> PROBES["line"].check({"batches": 4})["batches"]
4
>>> PROBES["line"].check({"batches": 0})
Traceback (most recent call last):
    ...
ValueError: `line.batches` must be an integer of at least 1. Received: line.batches=0

A new probe needs an entry here, a class in the module of `tf_lrtraj.probes` that has the name of
its kind ("side_trip" has `side_trip.SideTrip`), and a module `KIND_figure` of
`tf_lrtraj.report.probe_figures` with the functions `draw` and `sentences`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from tf_lrtraj.values import (
    Rule,
    boolean,
    closest,
    error,
    integer,
    number,
    one_of,
    sequence_of,
    text,
)

__all__ = [
    "ENSEMBLE_SCALES",
    "GRADIENT_PASSES",
    "PROBES",
    "Option",
    "Part",
    "ProbeSpec",
    "check_kind",
    "options",
    "requestable",
]

GRADIENT_PASSES = 3.0  # time of a gradient, in forward passes
PRODUCT_PASSES = 8.0  # that of a Hessian-vector product
ENSEMBLE_SCALES = (1.0, 0.5, 0.25, 0.125)  # how far members are drawn towards their mean

Dims = dict[str, tuple[str, ...]]
Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a probe.

    Attributes:
        default: the value if none is given.
        rule: the allowed values.
        help: the text for --help.
        type: the type of its values; by default that of `default`.
    """

    default: Any
    rule: Rule
    help: str
    type: type | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self.type or type(self.default))


@dataclasses.dataclass(frozen=True)
class Part:
    """An input of probes that a run provides, and the options that select it.

    Attributes:
        name: its name in `tf_lrtraj.runs.probing.run_probes.Parts`.
        options: name → option.
    """

    name: str
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on several options.

    Attributes:
        option: the option named in the error.
        allowed: the allowed values in words; `{name}` stands for the value of another option.
        holds: returns whether options fulfil the condition.
    """

    option: str
    allowed: str
    holds: Callable[[Options], bool]


@dataclasses.dataclass(frozen=True)
class ProbeSpec:
    """One kind of probe.

    Attributes:
        kind: its name in requests, configurations and records.
        title: the title of its figure.
        dims: value → names of its axes, for all values that a record may hold.
        passes: numbers of what is measured → time, in forward passes of one batch.
        optional: optional part of a record → patterns of the names of its values.
        beside: coordinates of the record that are not axes of a value.
        what: what it measures, in one line; empty for kinds that cannot be requested.
        takes: the parts that its class receives.
        renamed: part → the name of the argument of its class.
        own: its own options.  Its class takes them as keywords, except for `instead` and options
            that replace one of a part.
        conditions: conditions on several options.
        instead: (option, kind): with this option the record is of another kind.
        together: whether its figure shows records of several steps.
    """

    kind: str
    title: str
    dims: Dims
    passes: Callable[..., float]
    optional: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    beside: tuple[str, ...] = ()
    what: str = ""
    takes: tuple[Part, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    instead: tuple[str, str] | None = None
    together: bool = False

    @property
    def class_name(self) -> str:
        """The name of its class in the module `tf_lrtraj.probes.KIND`."""
        return "".join(word.capitalize() for word in self.kind.split("_"))

    @property
    def options(self) -> dict[str, Option]:
        """Name → option, for the options of its parts and its own."""
        of_parts = {name: option for part in self.takes for name, option in part.options.items()}
        of_others = {} if self.instead is None else PROBES[self.instead[1]].options
        return {**of_others, **of_parts, **self.own}

    @property
    def keywords(self) -> list[str]:
        """Names of the options that its class takes as keywords."""
        taken = {name for part in self.takes for name in part.options}
        taken |= {self.instead[0]} if self.instead else set()
        return [name for name in self.own if name not in taken]

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of all coordinates that a record may have."""
        axes = (axis for axes in self.dims.values() for axis in axes)
        return tuple(dict.fromkeys([*axes, *self.beside]))

    def dims_with(self, *parts: str) -> Dims:
        """Returns the dims of a record that has only these optional parts.

        >>> list(PROBES["distance"].dims_with())[:3]
        ['squared', 'norm', 'from_start']
        """
        unknown = sorted(set(parts) - set(self.optional))
        if unknown:
            raise error("parts", f"some of {sorted(self.optional)}", unknown)
        left_out = [
            pattern
            for part, patterns in self.optional.items()
            if part not in parts
            for pattern in patterns
        ]
        return {
            name: axes
            for name, axes in self.dims.items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in left_out)
        }

    def takes_part(self, name: str) -> bool:
        """Returns whether its class receives the part of this name."""
        return any(part.name == name for part in self.takes)

    def measured(self, options: Options) -> ProbeSpec:
        """Returns the spec of the record for checked options: this one, or that of `instead`."""
        if self.instead is not None and options.get(self.instead[0]):
            return PROBES[self.instead[1]]
        return self

    def at_steps(self, options: Options) -> bool:
        """Returns whether it is measured at single steps, and can be measured during training.

        Otherwise it needs several points or the whole run, and therefore snapshots.
        """
        spec = self.measured(options)
        return spec.takes_part("weights") or options.get("points") == ()

    def check(
        self, given: Options, where: str = "", kind: type[Exception] = ValueError
    ) -> dict[str, Any]:
        """Checks options and returns all of them, with defaults for those not given.

        Args:
            given: name → value.
            where: prefix of an option's name in errors; the kind by default.
            kind: class of the error raised.

        Raises:
            ValueError (or `kind`): for unknown options and values that are not allowed.
        """
        known, path = self.options, where or self.kind
        for name in given:
            if name not in known:
                others = [spec.kind for spec in requestable().values() if name in spec.options]
                goes = f"; it goes with {others}" if others else ""
                raise kind(
                    f"`{name}` is not an option of the probe {self.kind!r}{goes}."
                    f"{closest(name, known)} Options of {self.kind!r}: {sorted(known)}"
                )
        found = {
            name: option.rule.check(f"{path}.{name}", given.get(name, option.default), kind)
            for name, option in known.items()
        }
        for condition in self.conditions:
            if not condition.holds(found):
                name = condition.option
                raise error(f"{path}.{name}", condition.allowed.format(**found), found[name], kind)
        return found


# Options and parts ----------------------------------------------------------------------------


def _text(help: str) -> Option:
    return Option(None, text().or_none(), help, str)


def _positive(help: str) -> Option:
    return Option(None, number(above=0).or_none(), help, float)


def _points(fewest: int, most: int | None = None) -> dict[str, Option]:
    count = "exactly" if fewest == most else "at least"
    words = f"a list of {count} {fewest} points" if fewest else "a list of texts"
    return {
        "points": Option(
            (),
            sequence_of(text(), words, fewest, most),
            'points: steps (500), shares of the run (50%), "first", "last", averages such as '
            "swa=Uniform(start=500), or, for basin, ends of side trips (trip:STEP:BATCH)",
        )
    }


_SEED = {"seed": Option(0, integer(0), "seed of the batches and of random directions")}
_BATCHES = {
    "batches": Option(8, integer(1), "number of training batches"),
    "batch_size": Option(
        None, integer(1).or_none(), "images per batch; the run's own by default", int
    ),
}
_MODE = {
    "batch_norm": Option(
        "batch",
        one_of(["batch", "frozen", "recalibrated"]),
        "batch-norm statistics: each batch's own moments (batch), those stored with the weights "
        "(frozen), or those recomputed for every point (recalibrated)",
    ),
    "dropout": Option(
        "off",
        one_of(["off", "pinned"]),
        "dropout: off, or with the same masks at every point (pinned)",
    ),
}
_TRIP = {
    "num_steps": Option(9, integer(1), "steps of a side trip"),
    "learning_rate": _positive(
        "learning rate of a side trip; by default the effective rate of the run, λ/(1 - β)"
    ),
    "momentum": Option(0.0, number(0, below=1), "momentum of a side trip"),
}
_PER_LAYER = {"per_layer": Option(False, boolean(), "whether to measure layer by layer too")}

SURFACE = Part("surface", {**_BATCHES, **_MODE, **_SEED})
SEED = Part("seed", _SEED)
WEIGHTS = Part("weights")
TRAINING = Part("batches")
HELD_OUT = Part(
    "held_out",
    {
        "held_out": _text("split of the held-out batches; the run's evaluation split by default"),
        "held_out_batches": Option(4, integer(1), "number of held-out batches"),
    },
)
OTHERS = Part("others")  # training batches on which no step is made; as many as held-out ones
DIRECTION = Part(
    "direction",
    {
        "direction": Option(
            "gradient",
            one_of(["gradient", "momentum", "random"]),
            "direction of the step: each batch's gradient, the optimizer's velocity, or random",
        )
    },
)
RATES = Part(
    "rates",
    {
        "low": Option(1e-2, number(above=0), "smallest positive learning rate of the grid"),
        "high": Option(
            1.0, number(above=0), "largest learning rate of the grid, which is extended if needed"
        ),
        "num": Option(24, integer(3), "number of rates in the grid"),
        "scale": Option("log", one_of(["log", "linear"]), "spacing of the rates"),
    },
)
TRIP = Part("trip", _TRIP)
TRIP_ENDS = Part("trip_ends", _TRIP)  # side trips' ends are points too
RAYS = Part(
    "rays",
    {
        "num": Option(24, integer(3), "number of distances along a ray"),
        "rays": Option(8, integer(2), "number of random rays"),
        "radius": _positive(
            "length of the rays; by default three times the largest distance between the points, "
            "or half the norm of a single one"
        ),
    },
)
TRAJECTORY = Part(
    "trajectory",
    {
        "first": _text(
            "first step of the trajectory, such as 500 or 10%; the first of all by default"
        ),
        "last": _text(
            "last step of the trajectory, such as 900 or 90%; the last of all by default"
        ),
    },
)
WHOLE_TRAJECTORY = Part("whole_trajectory")
FILTERS = Part("filters")
SKETCH = Part(
    "sketch",
    {
        "sketch": Option(
            0, integer(0), "numbers kept of each iterate (a random projection); 0: all weights"
        )
    },
)
OTHER_RUN = Part(
    "other_run",
    {"other": _text("workdir of a second run, to measure the distance between the two")},
)


# Values of records ----------------------------------------------------------------------------


def _over(axes: str, *names: str, errors: bool = False) -> Dims:
    """Values with the same axes, and with `errors` their standard errors NAME_se."""
    ends = ("", "_se") if errors else ("",)
    return {f"{name}{end}": tuple(axes.split()) for name in names for end in ends}


def _losses(axes: str) -> Dims:
    """Losses and accuracies of training and held-out batches."""
    return {
        **_over(f"{axes} batch", "loss", "accuracy"),
        **_over(f"{axes} held_out", "held_out_loss", "held_out_accuracy"),
    }


_HELD_OUT_VALUES = {"held_out": ("held_out_*",)}
_LANDMARKS = ("best_rate", "gain", "zero_crossing")
_SCORES = ("ensemble_loss", "ensemble_accuracy", "average_loss", "average_accuracy")
_ALIGNMENT = (
    *("signal", "noise", "noise_scale", "share"),
    *("pair_cosine", "rest_cosine", "mean_cosine"),
)


def _line_dims() -> Dims:
    return {
        **_over("rate batch", "train", "held_out"),
        **_over("rate batch held", "held_out_each"),
        **_over("rate batch", "others"),
        **_over("rate batch other", "others_each"),
        **_over("batch", "gradient_norm", "direction_norm", "slope", "bracketed", "curvature"),
        **_over("curve batch", *_LANDMARKS),
        **_over("degree window batch", "fit_error"),
        **_over("degree level batch", "valid_to"),
        **_over("curve rate", "mean", errors=True),
        **_over("curve power", "mean_fit"),
        **_over("curve", *(f"mean_{name}" for name in _LANDMARKS), errors=True),
    }


def _curvature_dims() -> Dims:
    return {
        **_over("batch", "curvature", "curvature_error", "step_taken", "noise", "per_square"),
        **_over("batch", "unit", "gradient_norm", "direction_norm", "slope", "middle"),
        **_over("batch", "product", "disagreement"),
        **_over("step batch", "plus", "minus"),
        **_over("probe batch", "noise_losses"),
    }


def _eigenvalues_dims() -> Dims:
    return {
        **_over("start iteration", "diagonal", "off_diagonal", "largest", "smallest"),
        **_over("start eigenvalue", "eigenvalues", "bounds"),
    }


def _side_trip_dims() -> Dims:
    dims = _over("trip step", "train_loss", "train_accuracy", "distance", "gradient_norm")
    for group in ("held_out", "others"):
        dims |= _over(f"trip step {group}", f"{group}_loss", f"{group}_accuracy")
    for group in ("train", "held_out", "others"):
        dims |= _over("step", f"{group}_mean", f"{group}_change", errors=True)
    return dims


def _basin_dims() -> Dims:
    dims = {**_losses("pair layer position"), **_over("pair layer", "length")}
    for group in ("", "held_out_"):
        dims |= _over("pair layer", f"{group}barrier", f"{group}barrier_at", f"{group}barrier_se")
        dims |= _over("pair layer", f"{group}barrier_cross", errors=True)
        dims |= _over("pair layer", f"{group}barrier_upper", f"{group}barrier_level")
        dims |= _over("pair layer", f"{group}verdict")
        for name in ("middle", "rise", "error_barrier"):
            dims |= _over("pair layer", f"{group}{name}", errors=True)
        dims |= _over("pair layer offset", f"{group}asymmetry", errors=True)
    return dims


def _width_dims() -> Dims:
    dims = _losses("point ray distance")
    for group in ("", "held_out_"):
        dims |= _over("point ray", f"{group}width")
        dims |= _over("point", f"{group}width_mean", f"{group}width_se")
        dims |= _over("point other", f"{group}width_difference", errors=True)
    return dims


def _gradients_dims() -> Dims:
    return {
        **_over("batch", "loss"),
        **_over("layer batch other", "gram"),
        **_over("layer batch", "batch_rest_cosine", "batch_mean_cosine"),
        **_over("layer", *_ALIGNMENT, errors=True),
        **_over("layer direction batch", "direction_dot"),
        **_over("layer direction", "direction_square"),
        **_over("layer direction batch", "direction_cosine"),
        **_over("layer direction", "mean_direction_cosine", errors=True),
        **_over("batch segment component", "sketch"),
        **_over("layer batch", "square"),
    }


def _lagged_gradients_dims() -> Dims:
    means = ("mean_cosine", "full_cosine", "mean_start_cosine", "mean_end_cosine")
    return {
        **_over("lag step", "dot", "dot_across", "cosine", "start_cosine", "end_cosine"),
        **_over("step", "loss", "off_mean_cosine"),
        **_over("lag", *means, errors=True),
        **_over("step vector component", "sketch"),
    }


def _distance_dims() -> Dims:
    pairs = ("squared", "filters_squared")
    dims = {
        **_over("lag step", *pairs),
        **_over("step", "norm", "from_start", "from_mean", "from_reference"),
    }
    for name in pairs:
        dims |= _over("lag", f"mean_{name}", errors=True)
        dims |= _over("", f"{name}_growth", errors=True)
    return dims | _over("step component", *(f"{name}_sketch" for name in pairs))


def _ensemble_dims() -> Dims:
    pair, both = "scale member other batch", ("pair", "ensemble")
    dims = {
        **_over("member other", "distance"),
        **_over("member", "from_average"),
        **_over("scale", "spread"),
        **_over(pair, "pair_difference"),
        **_over("scale batch", "ensemble_difference"),
        **_over("member batch", "member_loss", "member_accuracy"),
        **_over(pair, "pair_logit_difference"),
        **_over("scale batch", "ensemble_logit_difference"),
        **_over("batch", *_SCORES),
    }
    for name in ("member_loss", "member_accuracy", *_SCORES):
        dims |= _over("", f"mean_{name}", errors=True)
    dims |= _over("", *(f"{name}_change" for name in _SCORES), errors=True)
    for name in (f"{who}_{what}" for who in both for what in ("difference", "logit_difference")):
        for end in ("", "_se"):
            dims |= _over("scale", f"mean_{name}{end}") | _over("", f"{name}_exponent{end}")
    return dims


# Costs ----------------------------------------------------------------------------------------


def _of_steps(steps: float) -> float:
    """Of a probe that reads weights, `steps` times, and evaluates nothing."""
    return float(steps)


def _of_points(points: float, batches: float, calibration: float = 0) -> float:
    """Losses of `batches` at `points`; `calibration` passes for the statistics of each point."""
    return float(points * (batches + calibration))


def _of_lines(
    directions: float, points: float, batches: float = 1, calibration: float = 0
) -> float:
    """A gradient for each of `directions`, and losses at `points` along them."""
    return GRADIENT_PASSES * directions + _of_points(points, batches, calibration)


def _of_curvatures(
    directions: float, points: float, products: float, calibration: float = 0
) -> float:
    lines = _of_lines(directions, points, calibration=calibration)
    return lines + PRODUCT_PASSES * products


def _of_products(products: float) -> float:
    return PRODUCT_PASSES * products


def _of_trips(points: float, batches: float, calibration: float = 0) -> float:
    """The gradient and the losses of `batches` at `points`, each with statistics of its own."""
    return GRADIENT_PASSES * points + _of_points(points, batches, 2 * calibration)


def _of_gradients(gradients: float, calibration: float = 0) -> float:
    """`calibration` is that of all points together."""
    return GRADIENT_PASSES * gradients + calibration


def _of_ensembles(predictors: float, batches: float, calibration: float = 0) -> float:
    """Members, at each scale, and the average."""
    return _of_points(predictors + 1, batches, calibration)


# Kinds ----------------------------------------------------------------------------------------

PROBES: dict[str, ProbeSpec] = {
    spec.kind: spec
    for spec in (
        ProbeSpec(
            "line",
            "Loss along one step",
            _line_dims(),
            _of_lines,
            optional={"held_out": ("held_out*",), "others": ("others*",)},
            what="losses of training, held-out and other batches along a step, as a function "
            "of the rate",
            takes=(SURFACE, WEIGHTS, TRAINING, HELD_OUT, OTHERS, RATES, DIRECTION, SEED),
            conditions=(Condition("low", "below `high`, {high}", lambda o: o["low"] < o["high"]),),
            together=True,
        ),
        ProbeSpec(
            "curvature",
            "Curvature along one step",
            _curvature_dims(),
            _of_curvatures,
            optional={"check": ("product", "disagreement")},
            what="curvature along a step from measured losses, and by Hessian-vector products",
            takes=(SURFACE, WEIGHTS, TRAINING, DIRECTION, SEED),
            together=True,
        ),
        ProbeSpec(
            "eigenvalues",
            "Outer eigenvalues of the Hessian",
            _eigenvalues_dims(),
            _of_products,
            what="largest and smallest eigenvalues of the Hessian of the mean loss of batches",
            takes=(SURFACE, WEIGHTS, TRAINING, SEED),
            own={
                "iterations": Option(30, integer(1), "Lanczos iterations"),
                "count": Option(3, integer(1), "number of the largest eigenvalues in the record"),
                "starts": Option(1, integer(1), "number of random first vectors"),
            },
            conditions=(
                Condition(
                    "batch_norm",
                    "batch or frozen: products keep the statistics of a recalibrated point fixed",
                    lambda o: o["batch_norm"] != "recalibrated",
                ),
            ),
            together=True,
        ),
        ProbeSpec(
            "side_trip",
            "Side trips on one fixed batch",
            _side_trip_dims(),
            _of_trips,
            optional={"held_out": ("held_out_*",), "others": ("others_*",)},
            what="steps on one fixed batch from a point: losses of training, held-out and "
            "other batches",
            takes=(SURFACE, WEIGHTS, TRAINING, HELD_OUT, OTHERS, TRIP),
            together=True,
        ),
        ProbeSpec(
            "basin",
            "Segments between points",
            _basin_dims(),
            _of_points,
            optional=_HELD_OUT_VALUES,
            beside=("first", "second", "point"),
            what="losses along the segments between points, and the heights of barriers",
            takes=(Part("points", _points(2)), TRIP_ENDS, SURFACE, TRAINING, HELD_OUT),
            own={
                "num": Option(24, integer(3), "number of positions along a segment"),
                "extend": Option(
                    0.0,
                    number(0),
                    "extension of a segment beyond both ends, in lengths of the segment",
                ),
                "level": _positive(
                    "height below which a barrier counts as none; by default 5 % of the mean "
                    "loss of the ends"
                ),
                **_PER_LAYER,
            },
        ),
        ProbeSpec(
            "gradients",
            "Alignment of batch gradients",
            _gradients_dims(),
            _of_gradients,
            optional={"directions": ("*direction_*",), "sketches": ("sketch", "square")},
            what="alignment of batch gradients with each other, the mean, and along the run",
            takes=(SURFACE, WEIGHTS, TRAINING, SEED),
            own={
                # A jackknife needs three batches.
                "batches": dataclasses.replace(_BATCHES["batches"], rule=integer(3)),
                "along": Option(
                    False,
                    boolean(),
                    "whether to compare gradients of the same batches along the run",
                ),
                **_PER_LAYER,
            },
            instead=("along", "lagged_gradients"),
            together=True,
        ),
        ProbeSpec(
            "distance",
            "Distances along the run",
            _distance_dims(),
            _of_steps,
            optional={
                "filters": ("*filters_squared*",),
                "reference": ("from_reference",),
                "sketch": ("*_sketch",),
            },
            what="squared displacement by lag, norm, distance to the mean; with `other`, "
            "between two runs",
            takes=(TRAJECTORY, FILTERS, SKETCH, SEED),
            instead=("other", "separation"),
        ),
        ProbeSpec(
            "width",
            "Random rays",
            _width_dims(),
            _of_points,
            optional=_HELD_OUT_VALUES,
            what="losses along random rays from points",
            takes=(Part("points", _points(0)), SURFACE, TRAINING, HELD_OUT, RAYS, SEED),
            own={
                "ray_kind": Option(
                    "uniform",
                    one_of(["uniform", "filter"]),
                    "random directions: uniform, or normalised filter by filter",
                ),
            },
            together=True,
        ),
        ProbeSpec(
            "plane",
            "A plane through three points",
            {
                **_losses("v u"),
                **_over("step", "trajectory_u", "trajectory_v", "trajectory_residual"),
            },
            _of_points,
            optional=_HELD_OUT_VALUES,
            beside=("point", "point_u", "point_v"),
            what="losses on the plane through three points, with the trajectory projected on it",
            takes=(Part("points", _points(3, 3)), SURFACE, TRAINING, HELD_OUT, WHOLE_TRAJECTORY),
            own={
                "num": Option(24, integer(3), "number of positions along each side of the plane"),
                "margin": Option(
                    0.3, number(0), "margin around the three points, as a share of their extent"
                ),
            },
        ),
        ProbeSpec(
            "ensemble",
            "Predictions of several weights",
            _ensemble_dims(),
            _of_ensembles,
            optional={"logits": ("*logit_difference*",)},
            what="accuracy of averaged predictions, and difference of predictions by "
            "distance of weights",
            takes=(Part("points", _points(2)), SURFACE, HELD_OUT),
            renamed={"points": "members", "held_out": "batches"},
        ),
        ProbeSpec(
            "lagged_gradients",
            "Gradients along the run",
            _lagged_gradients_dims(),
            _of_gradients,
            optional={"sketch": ("sketch",)},
            takes=(TRAJECTORY, SURFACE, TRAINING, SEED),
        ),
        ProbeSpec(
            "separation",
            "Distance between two runs",
            _over("step", "distance", "norm_a", "norm_b", "displacement_cosine", "filters_squared"),
            _of_steps,
            optional={"filters": ("filters_squared",)},
            takes=(TRAJECTORY, OTHER_RUN, FILTERS),
            renamed={"trajectory": "trajectory_a", "other_run": "trajectory_b"},
        ),
    )
}


def requestable() -> dict[str, ProbeSpec]:
    """Returns the kinds that a command line or a configuration may request."""
    return {kind: spec for kind, spec in PROBES.items() if spec.what}


def check_kind(kind: Any, name: str = "probe", error_kind: type[Exception] = ValueError) -> str:
    """Checks the kind of a probe and returns it.

    Raises:
        ValueError (or `error_kind`): if there is no such kind; the message lists all kinds.
    """
    return str(one_of(list(requestable())).check(name, kind, error_kind))


def options() -> dict[str, dict[str, Option]]:
    """Returns name of an option → {kind: its option of this name}."""
    found: dict[str, dict[str, Option]] = {}
    for kind, spec in requestable().items():
        for name, option in spec.options.items():
            found.setdefault(name, {})[kind] = option
    return found
