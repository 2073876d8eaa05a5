"""How far rounding takes a running average from the exact one, as a share of its fluctuation.

    python benchmarks/long_horizons.py    # writes benchmarks/results/long_horizons.json

20,000 updates of white noise (1 ± 0.1 for each of 256 weights, float32).  The error is the root
mean square over the weights, against float64, divided by the standard deviation that the
average itself has in the long run, 0.1·√((1-d)/(1+d)).  Ours is `AverageState` on the Keras
backend in use, stored in each of its precisions; the textbook forms in float32 are beside it.
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np

from tf_lrtraj import backend, kernels, records
from tf_lrtraj.averaging import AverageState

RESULT = pathlib.Path(__file__).parent / "results" / "long_horizons.json"
STEPS, WEIGHTS, SPREAD = 20_000, 256, 0.1
DECAYS = (0.99, 0.999, 0.9995, 0.9999, 0.99999)
PRECISIONS = ("single", "double", "pair", "auto")


def textbook_forms(values: np.ndarray, decay: float) -> dict[str, np.ndarray]:
    """avg += (1-d)(w - avg) and avg = d·avg + (1-d)·w, all in float32."""
    d, rest = np.float32(decay), np.float32(1 - decay)
    lerp = multiply = values[0]
    for value in values[1:]:
        lerp = lerp + rest * (value - lerp)
        multiply = d * multiply + rest * value
    return {"float32: avg + (1-d)(w - avg)": lerp, "float32: d·avg + (1-d)w": multiply}


def main() -> None:
    rng = np.random.default_rng(0)
    values = (1.0 + SPREAD * rng.normal(size=(STEPS + 1, WEIGHTS))).astype(np.float32)
    named = {str(decay): kernels.Exponential(decay) for decay in DECAYS}
    variable = keras.Variable(values[0])
    states = {p: AverageState([variable], named, p) for p in PRECISIONS}
    everything = [v for state in states.values() for v in state.variables]
    step = backend.scalars(np.asarray(1))

    def move(value: object) -> None:
        variable.assign(value)
        for state in states.values():
            state.update(step)

    update = backend.compiled_update(move, None, writes=[variable, *everything], reads=[])
    for value in values[1:]:
        update(keras.ops.convert_to_tensor(value))
    rows = []
    for decay in DECAYS:
        exact = named[str(decay)].weights(STEPS) @ values.astype(np.float64)
        fluctuation = SPREAD * np.sqrt((1 - decay) / (1 + decay))
        found = {
            f"ours, {p}": backend.to_numpy(state.average(str(decay), STEPS))[0]
            for p, state in states.items()
        }
        for name, average in {**textbook_forms(values, decay), **found}.items():
            error = float(np.sqrt(np.mean((average - exact) ** 2)) / fluctuation)
            rows.append({"decay": decay, "form": name, "error_over_fluctuation": error})
            print(f"decay {decay:<8} {name:<32} {error:10.2e}")
    records.write_json(
        RESULT, {"backend": backend.name(), "steps": STEPS, "weights": WEIGHTS, "rows": rows}
    )


if __name__ == "__main__":
    main()
