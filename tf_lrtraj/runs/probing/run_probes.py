"""From a request to a record: the run's loss surface, its batches, and the probes built on them."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.probes.vectors import flat
from tf_lrtraj.runs.assembly import Assembly
from tf_lrtraj.runs.probing.probe_batches import ProbeBatches
from tf_lrtraj.runs.probing.run_points import Places, spaced
from tf_lrtraj.runs.run_config import ConfigError
from tf_lrtraj.training.step import per_example_loss

Options = Mapping[str, Any]


class Measurer:
    """Measures probes of one run.

    Args:
        assembly: the run's parts.
        tell: told what each measurement will cost before it starts.
        progress: show progress bars on a terminal.
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

    # What probes are built from -----------------------------------------------------------

    def surface(self, options: Options) -> Surface:
        """The loss that training minimised, without weight decay, in the mode asked for."""
        key = options["batch_norm"], options["dropout"]
        if key not in self._surfaces:
            smoothing = self.assembly.config["optimizer"]["label_smoothing"]
            moments = self.batches(options).moments() if key[0] == "recalibrated" else None
            self._surfaces[key] = Surface(
                self.assembly.model,
                functools.partial(per_example_loss, label_smoothing=smoothing),
                batch_norm=key[0],
                dropout=key[1],
                moment_batches=moments,
            )
        return self._surfaces[key]

    def batches(self, options: Options) -> ProbeBatches:
        key = options["batch_size"], options["seed"]
        if key not in self._batches:
            self._batches[key] = ProbeBatches(self.assembly, *key)
        return self._batches[key]

    def training(self, options: Options) -> Any:
        return self.batches(options).training(options["batches"])

    def others(self, options: Options) -> Any:
        """Training batches that no step is taken on."""
        return self.batches(options).training(options["held_out_batches"], skip=options["batches"])

    def held_out(self, options: Options) -> Any:
        split = options["held_out"] or self.assembly.eval_split
        return self.batches(options).held_out(split, options["held_out_batches"])

    def rate(self, step: int) -> float:
        """The run's rate of the update after `step` of them."""
        rates = self.assembly.learning_rates
        return float(rates[min(step, len(rates) - 1)])

    def effective_rate(self, step: int, momentum: float) -> float:
        """The rate at which SGD with `momentum` moves as the run does on a steady gradient.

        The run's momentum β makes λ / (1 - β) of its rate λ.
        """
        own = self.assembly.config["optimizer"]["momentum"]
        return self.rate(step) * (1.0 - momentum) / (1.0 - own)

    # Probes -------------------------------------------------------------------------------

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
            kind, options: from `requests`.
            weights: None for the model's own.
            step: the number of updates made at that point.
            path: of the record.
            velocity: the optimizer's velocity there, if it can be had.
        """
        if kind == "line":
            probe: probes.Probe = self._line(options, weights, step, velocity)
        elif kind == "curvature":
            probe = probes.Curvature(
                self.surface(options),
                weights,
                self.training(options),
                direction=options["direction"],
                seed=options["seed"],
                **self._momentum(options, step, velocity),
            )
        elif kind == "side_trip":
            probe = self._side_trip(options, weights, step)
        elif kind == "gradients":
            probe = probes.Gradients(
                self.surface(options),
                weights,
                self.training(options),
                per_layer=options["per_layer"],
                seed=options["seed"],
            )
        else:
            points = {str(step): self.surface(options).point(weights)}
            probe = self._width(options, points)
        self._measure(probe, path, {"step": step})

    def of_the_run(
        self,
        kind: str,
        options: Options,
        places: Places,
        path: pathlib.Path,
    ) -> None:
        """Measures a probe that takes several points of a run."""
        about: dict[str, Any] = {}
        probe: probes.Probe
        if kind == "distance":
            probe = self._distance(options, places)
        elif kind == "gradients":
            trajectory = spaced(places, options["first"], options["last"])
            probe = probes.LaggedGradients(
                self.surface(options), trajectory, self.training(options), seed=options["seed"]
            )
        else:
            end = functools.partial(self._trip_end, options, places) if kind == "basin" else None
            points = places.named(options["points"], end)
            about["points"] = dict(zip(points, options["points"], strict=True))
            probe = self._with_points(kind, options, points, places)
        self._measure(probe, path, about)

    def _measure(self, probe: probes.Probe, path: pathlib.Path, about: Options) -> None:
        config = self.assembly.config
        run = {"run": config["name"], "run_seed": config["seed"], "data": config["data"]["name"]}
        path.parent.mkdir(exist_ok=True)
        probes.measure(
            probe, path, progress=self._progress, tell=self._tell, about={**run, **about}
        )

    def _line(
        self,
        options: Options,
        weights: Any,
        step: int,
        velocity: Callable[[], Sequence[Any]] | None,
    ) -> probes.Probe:
        rates = probes.rate_grid(
            options["low"], options["high"], options["num"], scale=options["scale"]
        )
        return probes.Line(
            self.surface(options),
            weights,
            self.training(options),
            held_out=self.held_out(options),
            others=self.others(options),
            rates=rates,
            direction=options["direction"],
            seed=options["seed"],
            **self._momentum(options, step, velocity),
        )

    def _momentum(
        self, options: Options, step: int, velocity: Callable[[], Sequence[Any]] | None
    ) -> dict[str, Any]:
        """What a step along the optimizer's velocity needs; nothing for other directions."""
        if options["direction"] != "momentum":
            return {}
        if velocity is None:
            raise ConfigError("`direction='momentum'` needs a velocity, which is not at hand")
        return {
            "velocity": velocity(),
            "momentum": self.assembly.config["optimizer"]["momentum"],
            "learning_rate": self.rate(step),
        }

    def _side_trip(
        self, options: Options, weights: Any, step: int, keep_ends: bool = False
    ) -> probes.SideTrip:
        rate = options["learning_rate"] or self.effective_rate(step, options["momentum"])
        return probes.SideTrip(
            self.surface(options),
            weights,
            self.training(options),
            held_out=self.held_out(options),
            others=self.others(options),
            learning_rate=rate,
            num_steps=options["num_steps"],
            momentum=options["momentum"],
            weight_decay=self.assembly.config["optimizer"]["weight_decay"],
            keep_ends=keep_ends,
        )

    def _trip_end(self, options: Options, places: Places, step: int, batch: int) -> Any:
        if batch >= options["batches"]:
            raise ConfigError(
                f"a side trip's batch must be one of the {options['batches']} training batches, "
                f"from 0. Received: {batch}"
            )
        return self._side_trip(options, places.read(step), step).end_point(batch)

    def _with_points(
        self, kind: str, options: Options, points: Mapping[str, Any], places: Places
    ) -> probes.Probe:
        surface, training = self.surface(options), self.training(options)
        held_out = self.held_out(options)
        if kind == "basin":
            return probes.Basin(
                surface,
                points,
                training,
                held_out=held_out,
                num=options["num"],
                extend=options["extend"],
                per_layer=options["per_layer"],
                level=options["level"],
            )
        if kind == "width":
            return self._width(options, points)
        if kind == "plane":
            trajectory = places.snapshots if places.snapshots is not None else places
            return probes.Plane(
                surface,
                points,
                training,
                held_out=held_out,
                num=options["num"],
                margin=options["margin"],
                trajectory=trajectory,
            )
        return probes.Ensemble(surface, points, held_out)

    def _width(self, options: Options, points: Mapping[str, Any]) -> probes.Probe:
        surface = self.surface(options)
        radius = options["radius"] or _usual_radius(surface, points)
        return probes.Width(
            surface,
            points,
            self.training(options),
            held_out=self.held_out(options),
            distances=np.linspace(0.0, radius, options["num"]).tolist(),
            num_rays=options["rays"],
            seed=options["seed"],
            ray_kind=options["ray_kind"],
        )

    def _distance(self, options: Options, places: Places) -> probes.Probe:
        trajectory = spaced(places, options["first"], options["last"])
        filters = {"filters": True, "filter_axes": probes.filter_axes_of(self.assembly.model)}
        if options["other"] is not None:
            other = spaced(Places(self.assembly, options["other"]), None, None)
            return probes.Separation(trajectory, other, **filters)
        sketch = {"exact": False, "sketch_size": options["sketch"]} if options["sketch"] else {}
        return probes.Distance(trajectory, seed=options["seed"], **filters, **sketch)


def _usual_radius(surface: Surface, points: Mapping[str, Any]) -> float:
    """Three times the largest distance between the points; of a single one, half its norm."""
    weights = [flat(surface.point(point).trainable) for point in points.values()]
    if len(weights) == 1:
        return 0.5 * float(np.linalg.norm(weights[0]))
    return 3.0 * max(float(np.linalg.norm(a - b)) for a in weights for b in weights)
