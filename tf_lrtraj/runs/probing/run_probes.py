"""Builds probes from the parts of a run and measures them."""

from __future__ import annotations

import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.probes.vectors import flat
from tf_lrtraj.runs.assembly import Assembly
from tf_lrtraj.runs.probing.probe_batches import ProbeBatches
from tf_lrtraj.runs.probing.run_points import RunWeights, check_trip, spaced
from tf_lrtraj.runs.run_config import ConfigError
from tf_lrtraj.specs import PROBES, ProbeSpec

Options = Mapping[str, Any]


class Measurer:
    """Measures probes of one run.

    Args:
        assembly: the run's parts.
        tell: called with a sentence about the cost of each measurement before it starts.
        progress: whether to show progress bars on a terminal.
    """

    def __init__(
        self,
        assembly: Assembly,
        *,
        tell: Callable[[str], None] | None = None,
        progress: bool = True,
    ) -> None:
        self.assembly = assembly
        self._tell = tell
        self._progress = progress
        self._surfaces: dict[tuple[str, str], Surface] = {}
        self._batches: dict[tuple[int | None, int], ProbeBatches] = {}

    def at_a_step(
        self,
        kind: str,
        options: Options,
        weights: Any,
        step: int,
        path: pathlib.Path,
        velocity: Callable[[], Sequence[Any]] | None = None,
    ) -> None:
        """Measures a probe at one point.

        Args:
            kind, options: the kind, and the result of `ProbeSpec.check`.
            weights: None for the model's own.
            step: the number of updates made at that point.
            path: the path of the record.
            velocity: the optimizer's velocity there, if available.
        """
        parts = Parts(self, kind, options, step=step, weights=weights, velocity=velocity)
        self._measure(parts, path, {"step": step})

    def of_the_run(
        self, kind: str, options: Options, run_weights: RunWeights, path: pathlib.Path
    ) -> None:
        """Measures a probe that takes several points of a run."""
        self._measure(Parts(self, kind, options, run_weights=run_weights), path, {})

    def _measure(self, parts: Parts, path: pathlib.Path, about: Options) -> None:
        probe, config = parts.probe(), self.assembly.config
        run = {"run": config["name"], "run_seed": config["seed"], "data": config["data"]["name"]}
        path.parent.mkdir(exist_ok=True)
        probes.measure(
            probe,
            path,
            progress=self._progress,
            tell=self._tell,
            about={**run, **about, **parts.about},
        )

    def surface(self, options: Options) -> Surface:
        """Returns the training loss without weight decay, in the requested mode."""
        key = options["batch_norm"], options["dropout"]
        if key not in self._surfaces:
            moments = self.batches(options).moments() if key[0] == "recalibrated" else None
            self._surfaces[key] = Surface(
                self.assembly.model,
                self.assembly.objective.loss,
                batch_norm=key[0],
                dropout=key[1],
                moment_batches=moments,
            )
        return self._surfaces[key]

    def batches(self, options: Options) -> ProbeBatches:
        """Returns the batches of a size and a seed."""
        key = options["batch_size"], options["seed"]
        if key not in self._batches:
            self._batches[key] = ProbeBatches(self.assembly, *key)
        return self._batches[key]


def check_trip_rate(config: Options, options: Options) -> None:
    """Checks that the steps of a side trip, which are of SGD, have a rate.

    Raises:
        ConfigError: if the run has another optimizer, whose rate is none of SGD.
    """
    name = config["optimizer"]["name"]
    if name != "SGD" and not options["learning_rate"]:
        raise ConfigError(
            f"side trips make steps of SGD, and the run's rate is one of {name}: give them a rate, "
            "`learning_rate`"
        )


class Parts:
    """The parts of one probe.

    The public methods, except `probe`, are the parts that `tf_lrtraj.specs` names.  Each returns
    arguments of the probe's class.

    Args:
        measurer: the measurer of the run.
        kind, options: the kind, and the result of `ProbeSpec.check`.
        step, weights, velocity: a single point, as for `Measurer.at_a_step`.
        run_weights: the iterates of the whole run, for probes that take several points.
    """

    def __init__(
        self,
        measurer: Measurer,
        kind: str,
        options: Options,
        *,
        step: int | None = None,
        weights: Any = None,
        velocity: Callable[[], Sequence[Any]] | None = None,
        run_weights: RunWeights | None = None,
    ) -> None:
        self._measurer, self._assembly = measurer, measurer.assembly
        self._spec, self._options = PROBES[kind].measured(options), options
        self._step, self._weights, self._velocity = step, weights, velocity
        self._run_weights = run_weights
        self.about: dict[str, Any] = {}  # entries of the record's `about`

    def probe(self) -> probes.Probe:
        """Builds the probe from the parts that its spec names and from its own options."""
        arguments: dict[str, Any] = {}
        for part in self._spec.takes:
            arguments |= getattr(self, part.name)()
        arguments |= {name: self._options[name] for name in self._spec.keywords}
        renamed = self._spec.renamed
        return probe_class(self._spec)(**{renamed.get(n, n): v for n, v in arguments.items()})

    # The loss and its batches -------------------------------------------------------------

    def surface(self) -> dict[str, Any]:
        return {"surface": self._surface}

    def batches(self) -> dict[str, Any]:
        return {"batches": self._batches.training(self._options["batches"])}

    def held_out(self) -> dict[str, Any]:
        split = self._options["held_out"] or self._assembly.eval_split
        return {"held_out": self._batches.held_out(split, self._options["held_out_batches"])}

    def others(self) -> dict[str, Any]:
        count, skip = self._options["held_out_batches"], self._options["batches"]
        return {"others": self._batches.training(count, skip=skip)}

    def seed(self) -> dict[str, Any]:
        return {"seed": self._options["seed"]}

    # Steps --------------------------------------------------------------------------------

    def rates(self) -> dict[str, Any]:
        low, high, num = (self._options[name] for name in ("low", "high", "num"))
        return {"rates": probes.rate_grid(low, high, num, scale=self._options["scale"])}

    def direction(self) -> dict[str, Any]:
        found = {"direction": self._options["direction"]}
        if found["direction"] != "momentum":
            return found
        if self._velocity is None:
            raise ConfigError("`direction='momentum'` needs a velocity, which is not at hand")
        return {
            **found,
            "velocity": self._velocity(),
            "momentum": self._assembly.config["optimizer"]["momentum"],
            "learning_rate": self._rate(self._step or 0),
        }

    def trip(self) -> dict[str, Any]:
        return self._trip_from(self._step or 0)

    def trip_ends(self) -> dict[str, Any]:
        """Returns no arguments: the ends of side trips are among the points."""
        return {}

    def _trip_from(self, step: int) -> dict[str, Any]:
        # The effective rate of the run with momentum β is λ / (1 - β).
        own, momentum = self._assembly.config["optimizer"], self._options["momentum"]
        check_trip_rate(self._assembly.config, self._options)
        usual = self._rate(step) * (1.0 - momentum) / (1.0 - own["momentum"])
        if own["weight_decay"] and own["weight_decay_on"] != "kernels":
            raise ConfigError("side trips need config.optimizer.weight_decay_on='kernels'")
        return {
            "learning_rate": self._options["learning_rate"] or usual,
            "num_steps": self._options["num_steps"],
            "momentum": momentum,
            "weight_decay": own["weight_decay"],
        }

    def _rate(self, step: int) -> float:
        """Returns the run's rate of the update after `step` updates."""
        rates = self._assembly.learning_rates
        return float(rates[min(step, len(rates) - 1)])

    # Points -------------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        return {"weights": self._weights}

    def points(self) -> dict[str, Any]:
        return {"points": self._points}

    def rays(self) -> dict[str, Any]:
        radius = self._options["radius"] or _usual_radius(self._surface, self._points)
        distances = np.linspace(0.0, radius, self._options["num"]).tolist()
        return {"distances": distances, "num_rays": self._options["rays"]}

    @functools.cached_property
    def _points(self) -> dict[str, Any]:
        if self._run_weights is None:
            return {str(self._step): self._surface.point(self._weights)}
        texts = self._options["points"]
        trip_end = self._trip_end if self._spec.takes_part("trip_ends") else None
        found = self._run_weights.named(texts, trip_end)
        self.about["points"] = dict(zip(found, texts, strict=True))
        return found

    def _trip_end(self, step: int, batch: int) -> Any:
        """Returns the weights at the end of the side trip from a step on a training batch."""
        check_trip(batch, self._options["batches"], batch)
        trip = probes.SideTrip(
            self._surface,
            self._of_run.read(step),
            **self.batches(),
            **self.held_out(),
            **self.others(),
            **self._trip_from(step),
        )
        return trip.end_point(batch)

    # The whole run ------------------------------------------------------------------------

    def trajectory(self) -> dict[str, Any]:
        first, last = self._options["first"], self._options["last"]
        return {"trajectory": spaced(self._of_run, first, last)}

    def whole_trajectory(self) -> dict[str, Any]:
        snapshots = self._of_run.snapshots
        return {"trajectory": snapshots if snapshots is not None else self._of_run}

    def other_run(self) -> dict[str, Any]:
        other = RunWeights(self._assembly, self._options["other"])
        return {"other_run": spaced(other, None, None)}

    def filters(self) -> dict[str, Any]:
        return {"filters": True, "filter_axes": probes.filter_axes_of(self._assembly.model)}

    def sketch(self) -> dict[str, Any]:
        size = self._options["sketch"]
        return {"exact": False, "sketch_size": size} if size else {}

    # Kept ---------------------------------------------------------------------------------

    @property
    def _surface(self) -> Surface:
        return self._measurer.surface(self._options)

    @property
    def _batches(self) -> ProbeBatches:
        return self._measurer.batches(self._options)

    @property
    def _of_run(self) -> RunWeights:
        assert self._run_weights is not None
        return self._run_weights


def probe_class(spec: ProbeSpec) -> Callable[..., probes.Probe]:
    """Returns the class of a kind of probe."""
    module = importlib.import_module(f"tf_lrtraj.probes.{spec.kind}")
    found: Callable[..., probes.Probe] = getattr(module, spec.class_name)
    return found


def _usual_radius(surface: Surface, points: Mapping[str, Any]) -> float:
    """Returns three times the largest distance between the points, or half the norm of a single."""
    weights = [flat(surface.point(point).trainable) for point in points.values()]
    if len(weights) == 1:
        return 0.5 * float(np.linalg.norm(weights[0]))
    return 3.0 * max(float(np.linalg.norm(a - b)) for a in weights for b in weights)
