r"""Alignment and noise of the gradients of batches at one point.

Every cosine is that of the gradient itself.  A step of gradient descent is along minus the
gradient, so if the step continues in a direction, the gradient has a *negative* cosine with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.probes import estimators
from tf_lrtraj.probes.base import LossProbe, lacking, put_estimate
from tf_lrtraj.probes.basin import ALL
from tf_lrtraj.probes.batches import size_of
from tf_lrtraj.probes.sketches import Sketch
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.probes.vectors import check_shapes, fingerprint, inner, joined, layers_of, shapes
from tf_lrtraj.records import ArrayRecord


class Segmented:
    """Vectors in weight space as flat arrays, layer after layer.

    Args:
        model: the model whose trainable variables they belong to.
        per_layer: one segment per layer; otherwise there is one segment.

    Attributes:
        names: names of the inner products: of all weights, and of each layer if `per_layer`.
        ends: the ends of the segments.
        size: numbers in a vector.
        dtype: the dtype of a vector.
    """

    def __init__(self, model: Any, per_layer: bool) -> None:
        self._shapes = shapes(model.trainable_variables)
        layers = layers_of(model) if per_layer else {ALL: list(range(len(self._shapes)))}
        wide = any(v.dtype == "float64" for v in model.trainable_variables)
        self.dtype = np.float64 if wide else np.float32
        self._order = [position for positions in layers.values() for position in positions]
        sizes = [sum(int(np.prod(self._shapes[i])) for i in places) for places in layers.values()]
        self.ends = np.cumsum(sizes).tolist()
        self.size = self.ends[-1]
        self.names = [ALL, *layers] if per_layer else [ALL]

    def vector(self, arrays: Sequence[Any], name: str = "arrays") -> np.ndarray:
        """Returns the [D] host vector of arrays in the order of `model.trainable_variables`.

        Raises:
            ValueError: if they are not of the model's shapes.
        """
        arrays = check_shapes(name, arrays, self._shapes)
        return joined(backend.to_numpy([arrays[i] for i in self._order])).astype(
            self.dtype, copy=False
        )

    def with_total(self, by_segment: np.ndarray) -> np.ndarray:
        """Returns [names, …] from [segments, …]: the sum first, then each layer."""
        if len(self.names) == 1:
            return by_segment
        return np.concatenate([by_segment.sum(axis=0, keepdims=True), by_segment])


@dataclasses.dataclass(eq=False, repr=False)
class Gradients(LossProbe):
    r"""All inner products of N batch gradients, cosines, and the gradient noise scale.

    Coordinates: layer (first "(all)"), batch, other (batch), direction.

    Values:
        loss [batch]; gram [layer, batch, other]: in squared units of the gradient.
        batch_rest_cosine, batch_mean_cosine [layer, batch]: each batch against the mean
            of the others, and, biased upwards, against the mean of all.
        per layer, with `_se` from a jackknife over batches: signal = ‖G‖² and noise =
            tr Σ of one example, both unbiased; noise_scale in examples; share, the ratio
            of expectations E⟨g_x, g_y⟩ / E‖g_x‖²; pair_cosine, rest_cosine, mean_cosine.
        direction_cosine [layer, direction, batch], and that of the mean gradient,
            mean_direction_cosine [layer, direction], with `_se`.

    Batches are assumed to be independent draws from unlimited data: `signal` is for the gradient
    over the whole distribution, not over these examples.  Example weights do not enter the noise
    scale.  With `batch_norm="batch"` a batch's gradient is not a mean over examples, so the scale
    is valid only for batches of this size.

    Each gradient is computed once if all of them fit into `memory_limit`; otherwise one block of
    them is kept at a time, and later ones are computed again for every block.

    Args:
        surface: the loss and its mode.
        weights: the point, as `Surface.point` takes it; None for the model's own.
        batches: N ≥ 3 batches of distinct examples.
        per_layer: whether to compute everything for each layer too.
        directions: name → arrays in the order of `model.trainable_variables`; for example the
            displacement θ_t - θ_0.  Its cosine is with the *gradient*, so it is negative if a step
            of descent continues in the direction.
        sketch_size: None for exact products; or the numbers kept of each gradient (of each
            layer's part with `per_layer`): squares stay exact, and a product ⟨g_i, g_j⟩ has
            a standard error of at most :math:`\sqrt{(\|g_i\|^2\|g_j\|^2 + \langle g_i, g_j
            \rangle^2)/k}`.  Memory is then one gradient and N k numbers.
        memory_limit: bytes for gradients kept in memory.
        seed: the seed of the sketches.

    Raises:
        ValueError: for fewer than 3 batches, or a direction of other shapes.
    """

    kind = "gradients"
    fewest_batches = 3

    surface: Surface
    weights: Any
    batches: Any
    _: dataclasses.KW_ONLY
    per_layer: bool = False
    directions: Mapping[str, Sequence[Any]] | None = None
    sketch_size: int | None = None
    memory_limit: int = 1 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = self.surface.point(self.weights)
        self._sizes = [size_of(batch) for batch in self.batches]
        self._space = Segmented(self.surface.model, self.per_layer)
        self._directions = {
            str(name): self._space.vector(direction, f"direction {name!r}")
            for name, direction in (self.directions or {}).items()
        }
        # Rows of gradients kept at a time, besides the current one.
        size = np.dtype(self._space.dtype).itemsize * self._space.size
        self._block = int(min(max(self.memory_limit // size - 1, 1), len(self.batches)))
        self._sketches: list[Sketch] = []
        if self.sketch_size is not None:
            starts = [0, *self._space.ends[:-1]]
            self._sketches = [
                Sketch(end - start, self.sketch_size, seed=[self.seed, number])
                for number, (start, end) in enumerate(zip(starts, self._space.ends, strict=True))
            ]
        self._rows = np.zeros((0, 0), np.float32)
        self._start = -1
        self._known: set[int] = set()

    def coordinates(self) -> dict[str, Any]:
        numbers = np.arange(len(self.batches))
        found: dict[str, Any] = {"layer": self._space.names, "batch": numbers, "other": numbers}
        if self._directions:
            found["direction"] = list(self._directions)
        if self._sketches:
            found["segment"] = np.arange(len(self._sketches))
            found["component"] = np.arange(self._sketches[0].k)
        return found

    def parts(self) -> Collection[str]:
        there = {"directions": self._directions, "sketches": self._sketches}
        return [part for part, measured in there.items() if measured]

    def about(self) -> dict[str, Any]:
        return {
            **self.surface.about(),
            "batches": fingerprint(self.batches),
            "batch_sizes": self._sizes,
            "weights": self.surface.fingerprint(self.weights),
            "directions": [fingerprint(vector) for vector in self._directions.values()],
            "num_weights": self._space.size,
            "sketch_size": self.sketch_size,
            "seed": self.seed if self.sketch_size else None,
        }

    # Measuring ----------------------------------------------------------------------------

    def pieces(self, record: ArrayRecord) -> Sequence[tuple[int, int]]:
        if self._sketches:
            return [(0, i) for i in lacking(record, "sketch")]
        missing, count = record.missing("gram")[0], len(self.batches)
        return [
            (start, column)
            for start in range(0, count, self._block)
            for column in range(start, count)
            if missing[start : min(start + self._block, column + 1), column].any()
        ]

    def measure(self, record: ArrayRecord, piece: tuple[int, int]) -> None:
        start, column = piece
        if self._sketches:
            self._measure_sketch(record, column)
            return
        if start != self._start:
            self._start, self._known = start, set()
        if not self._rows.size:
            self._rows = np.empty((self._block, self._space.size), self._space.dtype)
        rows = self._rows
        stop = min(start + self._block, column + 1)
        for index in range(start, stop):
            if index not in self._known:
                rows[index - start] = self._gradient(record, index)
                self._known.add(index)
        inside = column < start + self._block
        vector = rows[column - start] if inside else self._gradient(record, column)
        products = self._space.with_total(inner(rows[: stop - start], vector, self._space.ends))
        record.put("gram", (slice(None), column, slice(start, stop)), products)
        record.put("gram", (slice(None), slice(start, stop), column), products)  # see `pieces`

    def _gradient(self, record: ArrayRecord, index: int) -> np.ndarray:
        loss, gradient = self.surface.gradient(self.weights, self.batches[index])
        vector = self._space.vector(gradient)
        record.put("loss", index, loss)
        for number, direction in enumerate(self._directions.values()):
            both = self._space.with_total(
                inner(np.stack([vector, direction]), direction, self._space.ends)
            )
            record.put("direction_dot", (slice(None), number, index), both[:, 0])
            record.put("direction_square", (slice(None), number), both[:, 1])
        return vector

    def _measure_sketch(self, record: ArrayRecord, index: int) -> None:
        vector = self._gradient(record, index)
        squares = inner(vector[None], vector, self._space.ends)[:, 0]
        record.put("square", (slice(None), index), self._space.with_total(squares))
        low = 0
        for number, (sketch, end) in enumerate(zip(self._sketches, self._space.ends, strict=True)):
            record.put("sketch", (index, number), sketch(vector[low:end]))
            low = end

    # What follows -------------------------------------------------------------------------

    def finish(self, record: ArrayRecord) -> None:
        if self._sketches:
            sketches = record.values["sketch"]
            gram = self._space.with_total(np.einsum("isk,jsk->sij", sketches, sketches))
            diagonal = np.arange(len(self.batches))
            gram[:, diagonal, diagonal] = record.values["square"]  # these are exact
            record.put("gram", (), gram)
        for layer in range(len(self._space.names)):
            self._summarise(record, layer)

    def _summarise(self, record: ArrayRecord, layer: int) -> None:
        gram = record.values["gram"][layer]
        record.put("batch_rest_cosine", layer, estimators.cosines_to_rest(gram))
        record.put("batch_mean_cosine", layer, estimators.cosines_to_mean(gram))
        for name, estimate in estimators.alignment(gram, self._sizes)._asdict().items():
            put_estimate(record, name, layer, estimate)
        for number in range(len(self._directions)):
            products = record.values["direction_dot"][layer, number]
            square = float(record.values["direction_square"][layer, number])
            found = estimators.direction_cosines(gram, products, square)
            record.put("direction_cosine", (layer, number), found)
            mean = estimators.mean_direction_cosine(gram, products, square)
            put_estimate(record, "mean_direction_cosine", (layer, number), mean)

    def passes(self, pieces: Sequence[tuple[int, int]]) -> float:
        gradients: set[tuple[int, int]] = set()
        for start, column in pieces:
            gradients |= {(start, i) for i in range(start, min(start + self._block, column + 1))}
            gradients.add((start, column))
        count = len(gradients) if not self._sketches else len(pieces)
        return self.spec.passes(count, self.surface.calibration_passes)
