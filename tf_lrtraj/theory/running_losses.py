r"""Computes losses of averages along a run, in one pass and little memory.

Each stream follows one kind of cross-moment along a `Dynamics` and sums :math:`\sum_i w_i\,\mathbb
E[\cdot]` over modes (`w` = half the curvatures for the excess loss).  Modes are processed in blocks
that fit the cache. docs/theory/moments.md proves that each stream is exact.

=================  ==========================================  =============================
stream             follows                                     passes per step, rows of memory
=================  ==========================================  =============================
`RecursiveStream`  E x_t φ_t                                   3, 1
`PairStream`       E θ_t θ_{t-gap}, one gap                    about 7, gap (1 and 1 if the
                                                               rate is constant)
`DenseStream`      E θ_t θ_{t-g}, all gaps to a largest        2 L, L
`FixedStream`      E θ_t θ_s, one s                            2, 1
`WindowStream`     E (sum of the last n)²                      about 14, n
=================  ==========================================  =============================

(for plain SGD; about three times as much with momentum).
"""

from __future__ import annotations

from array import array

import numpy as np
from scipy.linalg.blas import daxpy

from tf_lrtraj.theory.dynamics import Dynamics, flush

# The scale of a recursive stream is folded into its arrays before it underflows.
_SMALLEST_SCALE = 1e-100


class Stream:
    """One cross-moment followed along a run; `total` [T+1] is its sum over modes."""

    rows = 0  # number of arrays [D], which determines how many modes fit the cache

    def __init__(self, rates: array[float]) -> None:
        self.rates = rates
        self.total = np.zeros(len(rates) + 1)
        self._found = array("d")

    def open(self, dynamics: Dynamics, weights: np.ndarray, raw: array[float]) -> None:
        """Starts a block of modes at t = 0; `raw` [t+1] grows with the raw iterate's sums."""
        self.dynamics = dynamics
        self.weights = weights
        self.raw = raw
        self._found = array("d")
        self.start()

    def start(self) -> None:
        raise NotImplementedError

    def step(self, t: int) -> None:
        """Called when `dynamics` has reached step `t` (its rate is still selected)."""
        raise NotImplementedError

    def flush(self) -> None:
        """Called occasionally, to set tiny numbers to zero."""

    def close(self) -> None:
        """Ends the block of modes."""
        self.total += np.asarray(self._found)
        self._found = array("d")


class RecursiveStream(Stream):
    """E θ'_t φ_{t-1} (θ' the new iterate, φ the old average) of a recursive kernel."""

    rows = 1

    def __init__(self, rates: array[float], mixing: np.ndarray) -> None:
        super().__init__(rates)
        self.mixing = array("d", mixing)

    def start(self) -> None:
        # E x φ = scale · array: the factor (1 - α) costs no pass over the modes.
        self._array = self.dynamics.y.copy()
        self._flat, self._y = self._array.reshape(-1), self.dynamics.y.reshape(-1)
        self._scale = 1.0
        self._found.append(0.0)

    def step(self, t: int) -> None:
        self.dynamics.apply(self._array)
        self._found.append(self._scale * float(self.weights.dot(self._array[0])))
        alpha = self.mixing[t]
        if alpha == 1.0:
            self._array[...] = self.dynamics.y
            self._scale = 1.0
        elif alpha != 0.0:
            self._scale *= 1.0 - alpha
            if abs(self._scale) < _SMALLEST_SCALE:
                self._array *= self._scale
                self._scale = 1.0
            daxpy(self._y, self._flat, a=alpha / self._scale)

    def flush(self) -> None:
        flush(self._array)

    def curve(self, raw: np.ndarray) -> np.ndarray:
        """[T+1] sums for the average, from those of the iterate and of the cross-moment."""
        mixing = np.asarray(self.mixing)
        keep = 1.0 - mixing
        added = 2.0 * mixing * keep * self.total + mixing**2 * raw
        curve = np.empty_like(raw)
        curve[0] = value = float(raw[0])
        for t in range(1, raw.size):
            value = float(keep[t]) ** 2 * value + float(added[t])
            curve[t] = value
        return curve


class FixedStream(Stream):
    """E θ_t θ_s of one step s, found at t = s … T (zero before)."""

    rows = 1

    def __init__(self, rates: array[float], at: int) -> None:
        super().__init__(rates)
        self.at = at

    def start(self) -> None:
        self._array = np.zeros_like(self.dynamics.y)
        self.step(0)

    def step(self, t: int) -> None:
        if t == self.at:
            self._array[...] = self.dynamics.y
        elif t > self.at:
            self.dynamics.apply(self._array)
        self._found.append(float(self.weights.dot(self._array[0])))

    def flush(self) -> None:
        flush(self._array)


class PairStream(Stream):
    """E θ_t θ_{t-gap}, found at t = gap … T (zero before).

    Time is cut into blocks of `gap` steps.  Within a block the pair straddles
    its start b: E θ_t θ_s = (row of M_{t-1}…M_b) E[x_b θ_s].  The row grows forward; the
    E[x_b θ_s] of the block before come from one backward pass over its stored moments.
    """

    def __init__(self, rates: array[float], gap: int) -> None:
        super().__init__(rates)
        self.gap = gap
        self._constant = all(rate == rates[0] for rate in rates)
        self.rows = 2 if self._constant else gap + 2

    def start(self) -> None:
        dim, size = self.dynamics.y.shape
        if self._constant:
            self._row = np.zeros((dim, size))
            self._row[0] = self.weights
            if self.rates:
                self.dynamics.select(self.rates[0])
            for step in range(self.gap):
                self.dynamics.apply_right(self._row)
                if step % 64 == 63:
                    flush(self._row)
            flush(self._row)
            self._found = array("d", bytes(8 * min(self.gap, len(self.total))))
        else:
            self._ring = np.empty((self.gap, dim, size))
            self._forward = np.empty((dim, dim, size))
            self._backward = np.empty((dim, dim, size))
            self._restart(self._forward, self.weights)
            self._begin = 0
            self._row_views = list(self._forward[:, 0])
            self._slots = list(self._ring)
        self.step(0)

    @staticmethod
    def _restart(matrix: np.ndarray, value: np.ndarray | float) -> None:
        """matrix ← value · identity; the columns (of `forward`) or rows come first."""
        matrix[...] = 0.0
        for i in range(len(matrix)):
            matrix[i, i] = value

    def step(self, t: int) -> None:
        if self._constant:
            if len(self._found) < len(self.total):
                self._found.append(float(self._row.reshape(-1).dot(self.dynamics.y.reshape(-1))))
            return
        slot = t - self._begin
        if slot == self.gap:
            self._carry_back()
            self._begin, slot = t, 0
            self._restart(self._forward, self.weights)
        elif t:
            self.dynamics.apply(self._forward)
        stored = self._slots[slot]
        value = 0.0
        if t >= self.gap:
            for i, part in enumerate(self._row_views):
                value += float(part.dot(stored[i]))
        self._found.append(value)
        stored[...] = self.dynamics.y

    def _carry_back(self) -> None:
        """Turns the stored E[x_s θ_s] of the block that ends now, at b, into E[x_b θ_s]."""
        dynamics, matrix = self.dynamics, self._backward
        now = dynamics.rate
        self._restart(matrix, 1.0)
        for slot in range(self.gap - 1, -1, -1):
            dynamics.select(self.rates[self._begin + slot])
            dynamics.apply_right(matrix)
            if slot % 64 == 0:
                flush(matrix)
            stored = self._slots[slot]
            if dynamics.dim == 1:
                stored *= matrix[0]
            else:
                stored[...] = np.einsum("ijn,jn->in", matrix, stored)
        dynamics.select(now)

    def flush(self) -> None:
        if not self._constant:
            flush(self._forward)


class DenseStream(Stream):
    """E θ_t θ_{t-g} for many gaps g at once: every stored cross-moment moves at every step."""

    def __init__(self, rates: array[float], gaps: np.ndarray) -> None:
        super().__init__(rates)
        self.gaps = gaps
        self.total = np.zeros((len(rates) + 1, gaps.size))
        self._length = int(gaps.max()) + 1
        self.rows = self._length

    def start(self) -> None:
        self._ring = np.zeros((self._length, *self.dynamics.y.shape))
        self.step(0)

    def step(self, t: int) -> None:
        filled = self._ring[: min(t, self._length)]
        self.dynamics.apply(filled)
        self._ring[t % self._length] = self.dynamics.y
        self.total[t] += (self._ring[:, 0] @ self.weights)[(t - self.gaps) % self._length]

    def close(self) -> None:
        pass

    def flush(self) -> None:
        flush(self._ring)


class WindowStream(Stream):
    """E (θ_t + … + θ_{t-n+1})² / n² (fewer terms at the start): the window's own sums.

    Blocks of n steps again: the window is the end U of the block before plus the part V of this
    block, so its square is E U² (backward pass) + 2 E UV (as in `PairStream`) + E V². All terms are
    sums of moments without subtractions, so nothing cancels.
    """

    def __init__(self, rates: array[float], length: int) -> None:
        super().__init__(rates)
        self.length = length
        self.rows = length + 6

    def start(self) -> None:
        dim, size = self.dynamics.y.shape
        self._ring = np.zeros((self.length, dim, size))
        self._forward = np.empty((dim, dim, size))
        self._backward = np.empty((dim, dim, size))
        self._reach = np.empty((dim, size))  # row of weights·(V) as a response to x_b
        self._sum = np.empty((dim, size))  # E x_t V_t
        self._ends = [0.0] * (self.length + 1)  # E U² by the slot U begins at
        self._begin_block(0)

    def _begin_block(self, t: int) -> None:
        PairStream._restart(self._forward, self.weights)
        self._begin = t
        self._reach[...] = self._forward[:, 0]
        self._sum[...] = self.dynamics.y
        self._square = self.raw[t]  # E V²
        self._emit(t)

    def step(self, t: int) -> None:
        if t - self._begin == self.length:
            self._carry_back()
            self._begin_block(t)
            return
        dynamics = self.dynamics
        dynamics.apply(self._forward)
        self._reach += self._forward[:, 0]
        dynamics.apply(self._sum)
        self._square += 2.0 * float(self.weights.dot(self._sum[0])) + self.raw[t]
        self._sum += dynamics.y
        self._emit(t)

    def _emit(self, t: int) -> None:
        slot = t - self._begin
        square, count = self._square, self.length
        if t < self.length:
            count = t + 1
        elif slot + 1 < self.length:
            straddling = self._reach.reshape(-1).dot(self._ring[slot + 1].reshape(-1))
            square += self._ends[slot + 1] + 2.0 * float(straddling)
        self._found.append(square / (count * count))
        self._ring[slot] = self.dynamics.y

    def _carry_back(self) -> None:
        """Turns stored E[x_s θ_s] into E[x_b U] for every U that begins at s, and finds E U²."""
        dynamics, matrix = self.dynamics, self._backward
        now = dynamics.rate
        PairStream._restart(matrix, 1.0)
        follow = np.zeros_like(self._sum)  # row: weights · (θ_{s+1} + … + θ_{b-1}) from x_s
        joint = np.zeros_like(self._sum)
        self._ends[self.length] = 0.0
        for slot in range(self.length - 1, -1, -1):
            s = self._begin + slot
            dynamics.select(self.rates[s])
            dynamics.apply_right(matrix)
            stored = self._ring[slot]
            if slot + 1 < self.length:
                follow[0] += self.weights
                dynamics.apply_right(follow)
            mixed = float(follow.reshape(-1).dot(stored.reshape(-1)))
            self._ends[slot] = self._ends[slot + 1] + self.raw[s] + 2.0 * mixed
            if dynamics.dim == 1:
                joint += matrix[0] * stored
            else:
                joint += np.einsum("ijn,jn->in", matrix, stored)
            stored[...] = joint
            if slot % 64 == 0:
                flush(matrix)
        dynamics.select(now)

    def flush(self) -> None:
        flush(self._forward)
