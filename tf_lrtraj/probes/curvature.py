r"""Curvature of batches' losses along directions: from measured losses, and by products.

:math:`d^\top H d` is the second derivative of :math:`L(\theta - \lambda d)` by λ at 0.  Differences
of losses need a step above the rounding noise, which is measured first.  A Hessian-vector product
is exact to rounding but does not include kinks: with ReLU the product describes the smooth piece at
θ, and the differences describe the loss over the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes import fits
from tf_lrtraj.probes.batches import size_of
from tf_lrtraj.probes.steps import StepProbe
from tf_lrtraj.probes.vectors import flat, norm
from tf_lrtraj.records import ArrayRecord

_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Steps, as multiples of eps^¼ ‖θ‖/‖d‖, near which the two errors balance.
_LADDER = 2.0 ** np.arange(-8, 3)


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class Curvature(StepProbe):
    """dᵀHd of each batch's loss along that batch's direction.

    Coordinates: batch [N]; step [J], in units of `unit`; probe [9].

    Values:
        curvature, curvature_error, step_taken [batch]: from losses at ± steps, the best of
            the J, with an estimate of what noise and the step's length do to it.
        noise [batch]: standard deviation of one loss's rounding noise, from 9 losses at steps of
            eps^⅔ ‖θ‖/‖d‖ along the direction (`noise_losses`).
        product, disagreement [batch]: dᵀ(Hd) by a Hessian-vector product, and
            |curvature - product| / |product|; only with `check`.
        per_square [batch]: curvature / ‖d‖², a Rayleigh quotient of the Hessian.
        gradient_norm, direction_norm, slope, unit [batch]: as in `Line`; `unit` is
            eps^¼ ‖θ‖/‖d‖, in which `step` counts.
        plus, minus [step, batch], middle [batch]: the losses.

    Cost: 32 forward passes, a gradient and a product for every batch.

    Args:
        surface, weights, batches, direction, velocity, momentum, learning_rate, seed: see
            `StepProbe`.
        check: whether to compute the product. With recalibrated batch norm it is left out, because
            it would keep the statistics fixed.

    Raises:
        ValueError: for batches or directions that do not fit.

    Example: (2 - w)² along its gradient -4 has the second derivative 2 · 4².

    >>> import keras
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.zeros((1, 1))])
    >>> batch = np.ones((1, 1)), 2 * np.ones((1, 1))
    >>> record = probes.measure(Curvature(probes.Surface(model, "mse"), None, [batch]))
    >>> record.values["product"]
    array([32.])
    >>> bool(np.isclose(record.values["curvature"][0], 32.0, rtol=1e-4))
    True
    """

    kind = "curvature"

    check: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check = bool(self.check) and self.surface.mode.batch_norm != "recalibrated"
        self.epsilon = _precision(self.surface.model)
        self._length = norm(self.weights.trainable)

    def coordinates(self) -> dict[str, Any]:
        return {
            "batch": np.arange(len(self.batches)),
            "step": _LADDER,
            "probe": np.arange(fits.POINTS) - fits.POINTS // 2,
        }

    def parts(self) -> Collection[str]:
        return ["check"] if self.check else []

    def about(self) -> dict[str, Any]:
        return super().about() | {
            "epsilon": self.epsilon,
            "batch_sizes": sorted({size_of(batch) for batch in self.batches}),
        }

    def pieces(self, record: ArrayRecord) -> list[Any]:
        """Returns (batch, what): "losses" or "product"."""
        found: list[Any] = []
        for i in range(len(self.batches)):
            found += [(i, "losses")] if record.missing("middle")[i] else []
            found += [(i, "product")] if self.check and record.missing("product")[i] else []
        return found

    def measure(self, record: ArrayRecord, piece: Any) -> None:
        i, what = piece
        batch, step = self.batches[i], self.step(i)
        if what == "product":
            product = self.surface.hessian_vector(self.weights, batch, step.vector)
            record.put("product", i, float(flat(product) @ flat(step.vector)))
            return
        scale = self._length / step.norm if step.norm > 0.0 and self._length > 0.0 else 1.0
        unit = self.epsilon**0.25 * scale
        close = self.epsilon ** (2.0 / 3.0) * scale * record.coordinates["probe"]
        far = unit * record.coordinates["step"]
        every = np.concatenate([close, far, -far])
        losses = self.surface.along(self.weights, step.vector, every.tolist(), batch)
        near, plus, minus = np.split(losses, [len(close), len(close) + len(far)])
        self.put_step(record, i)
        record.put("noise_losses", (..., i), near)
        record.put("plus", (..., i), plus)
        record.put("minus", (..., i), minus)
        record.put("unit", i, unit)
        record.put("middle", i, near[len(near) // 2])

    def passes(self, pieces: Sequence[Any]) -> float:
        products = sum(what == "product" for _, what in pieces)
        return self.spec.passes(
            directions=len({i for i, _ in pieces}),
            points=(len(pieces) - products) * (fits.POINTS + 2 * len(_LADDER)),
            products=products,
            calibration=self.surface.calibration_passes,
        )

    def finish(self, record: ArrayRecord) -> None:
        values = record.values
        for i in range(len(self.batches)):
            near = values["noise_losses"][:, i]
            noise = fits.noise_level(near) if np.isfinite(near).all() else np.inf
            steps = values["unit"][i] * record.coordinates["step"]
            found = fits.second_derivative(
                steps, values["minus"][:, i], values["middle"][i], values["plus"][:, i], noise
            )
            record.put("noise", i, noise)
            record.put("curvature", i, found.value)
            record.put("curvature_error", i, found.error)
            record.put("step_taken", i, found.step)
        with np.errstate(invalid="ignore", divide="ignore"):
            record.put("per_square", ..., values["curvature"] / values["direction_norm"] ** 2)
            if self.check:
                product = values["product"]
                off = np.abs(values["curvature"] - product) / np.abs(product)
                record.put("disagreement", ..., off)


def _precision(model: Any) -> float:
    """Returns the largest rounding unit of the compute dtypes of layers with weights."""
    layers = model._flatten_layers(include_self=False, recursive=True)
    dtypes = {layer.compute_dtype for layer in layers if layer.weights}
    return max((_EPSILON.get(dtype, 2.0**-23) for dtype in dtypes), default=2.0**-23)
