"""A small transformer under AdamW: what averages keep of a decay, and how well decays are told.

    python examples/transformer.py FOLDER --seed=0   # twenty minutes of one core; can be resumed
    python examples/transformer.py FOLDER --seed=1
    python examples/transformer.py FOLDER --report   # the table of all seeds, and the figure

The text is the source code of Python's standard library, which every installation has: a network
of 120,000 weights predicts the next byte.  One run has a constant rate.  From its snapshots alone,
`theory.what_if` tells where four decays would end, and the file is written before any of them is
trained.  They then leave the run at its states and are trained; the first one tells more of the
others.  A linear decay over n updates is the schedule that is equivalent to the mean of the n
iterates for any optimizer with frozen directions (docs/theory/equivalence.md), so the share of its
gain that the mean has is a test of that equivalence for AdamW.

Files of a seed, in FOLDER/seedK: forecast.json (before any decay), decays.json (after).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import pathlib
import sysconfig
from collections.abc import Iterable

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import layers

from tf_lrtraj import AveragedOptimizer, averaging, kernels, rates, records, theory
from tf_lrtraj.averaging.advising.advisor import Measurement, advise
from tf_lrtraj.records.archives import load_arrays, save_arrays
from tf_lrtraj.runs.constant_run import measure_curve, plan_curve

RATE, WARM_UP, WEIGHT_DECAY = 2e-3, 200, 0.01
CONTEXT, BATCH, WIDTH, BLOCKS, HEADS = 64, 32, 64, 2, 4
HELD_OUT = 64  # one part in so many is held out
EVALUATED = 2048  # held-out pieces of text whose mean loss is measured
SNAPSHOTS = 400  # over the run
# Decays that end at the last step: shape and share of the run.  The first one is known first.
DECAYS = (("linear", 0.2), ("linear", 0.05), ("linear", 0.35), ("one_minus_sqrt", 0.2))
FORMULAS = {"linear": rates.Linear, "one_minus_sqrt": rates.OneMinusSqrt}
AVERAGES = {"ema": kernels.Exponential(0.998), "half_life": kernels.HalfLife(0.1)}


# Text -----------------------------------------------------------------------------------------


def text() -> np.ndarray:
    """Returns the bytes of the standard library's modules; those outside ASCII become 0."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(
        path
        for folder in (root, *(root / name for name in ("asyncio", "email", "http", "json")))
        for path in folder.glob("*.py")
    )
    found = np.frombuffer(b"".join(path.read_bytes() for path in paths), np.uint8)
    return np.where(found < 128, found, 0).astype(np.int32)


class Batches(keras.utils.PyDataset):
    """Batches of random pieces of text; batch i of a run is the same whenever it is drawn.

    Args:
        data: [N] bytes.
        seed: the seed of the run.
        first: the number of the first batch.
        count: how many.
    """

    def __init__(self, data: np.ndarray, seed: int, first: int, count: int) -> None:
        super().__init__()
        self.data, self.seed, self.first, self.count = data, seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, self.first + index])
        starts = random.integers(0, len(self.data) - CONTEXT - 1, BATCH)
        pieces = self.data[starts[:, None] + np.arange(CONTEXT + 1)]
        return pieces[:, :-1], pieces[:, 1:]


def split(data: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns the training text, and held-out pieces from all over the text."""
    blocks = data[: len(data) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    held = np.arange(len(blocks)) // 64 % HELD_OUT == HELD_OUT - 1  # 64 pieces in a row
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(held))[:EVALUATED]
    pieces = blocks[np.sort(chosen)]
    return blocks[~held].ravel(), (pieces[:, :-1], pieces[:, 1:])


# Network --------------------------------------------------------------------------------------


def network(seed: int) -> keras.Model:
    """Returns a decoder with normalisation before each part (Xiong et al. 2020)."""
    keras.utils.set_random_seed(seed)
    tokens = keras.Input((CONTEXT,), dtype="int32")
    places = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    x = layers.Embedding(128, WIDTH)(tokens) + layers.Embedding(CONTEXT, WIDTH)(places)
    for _ in range(BLOCKS):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, activation="gelu")(y))
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(tokens, layers.Dense(128)(x))


def compiled(model: keras.Model) -> keras.Model:
    """Compiles it with AdamW, whose averages are kept inside of the step."""
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=WEIGHT_DECAY)
    model.compile(
        AveragedOptimizer(optimizer, AVERAGES),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.build(model.trainable_variables)
    return model


class Rates(keras.callbacks.Callback):
    """Sets the rate of each update.

    Args:
        values: [T] rates of the run.
        first: the number of the first update.
    """

    def __init__(self, values: np.ndarray, first: int) -> None:
        super().__init__()
        self.values, self.first = values, first

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self.model.optimizer.learning_rate = float(self.values[self.first + batch])


# Runs -----------------------------------------------------------------------------------------


def constant(steps: int) -> np.ndarray:
    """Returns the rates of the run at constant rate, [T]."""
    return RATE * np.minimum(np.arange(1, steps + 1) / WARM_UP, 1.0)


def decayed(steps: int, shape: str, length: int) -> np.ndarray:
    """Returns the rates of the run that decays over its last `length` updates, [T]."""
    found = constant(steps)
    options = {"hold": 0} if shape == "one_minus_sqrt" else {}
    found[-length:] = rates.as_array(FORMULAS[shape](start=RATE, steps=length, **options), length)
    return found


def state_path(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"state-{step:06d}.npz"


def save(model: keras.Model, path: pathlib.Path) -> None:
    """Writes weights, the optimizer's state and the averages."""
    values = [keras.ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]
    save_arrays(path, {f"{i:04d}": value for i, value in enumerate(values)})


def load(model: keras.Model, path: pathlib.Path) -> None:
    """Reads what `save` wrote."""
    found = load_arrays(path, largest=None)
    for i, variable in enumerate([*model.variables, *model.optimizer.variables]):
        variable.assign(found[f"{i:04d}"])


def train(
    model: keras.Model,
    data: np.ndarray,
    seed: int,
    values: np.ndarray,
    folder: pathlib.Path,
    stops: list[int],
    every: int | None = None,
) -> None:
    """Trains from the first of `stops` to the last; a state is kept at each.

    Args:
        model: the compiled model, whose weights are replaced by those of the last state.
        values: [T] rates.
        folder: of states and snapshots.
        stops: steps, ascending.
        every: updates between snapshots; None for none.
    """
    if state_path(folder, stops[-1]).exists():
        return load(model, state_path(folder, stops[-1]))
    at = max(step for step in stops if state_path(folder, step).exists())
    load(model, state_path(folder, at))
    for low, high in itertools.pairwise(stops):
        if low < at:
            continue
        watching = [Rates(values, low)]
        if every is not None:
            watching.append(averaging.SnapshotRecorder(folder / "snapshots", every=every))
        batches = Batches(data, seed, low, high - low)
        logs = model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=watching)
        print(f"{folder.name}: step {high:,}, loss {logs.history['loss'][-1]:.4f}", flush=True)
        save(model, state_path(folder, high))
    return None


# One seed -------------------------------------------------------------------------------------


def row(answer: theory.decay_forecast.DecayAnswer) -> dict[str, object]:
    """Returns an answer of `what_if` as plain data."""
    found = {key: getattr(answer, key) for key in ("shape", "length", "loss", "low", "high")}
    found |= {key: getattr(answer, key) for key in ("raw", "gain", "average", "flag")}
    return found | {"diagnosis": [finding.code for finding in answer.diagnosis]}


def one_seed(folder: pathlib.Path, seed: int, steps: int) -> None:
    """Trains, tells, decays and compares; what is done already is read from the folder."""
    folder = records.prepare_workdir(folder / f"seed{seed}")
    everything = text()
    data, held_out = split(everything)
    model = compiled(network(seed))
    about = {
        "seed": seed, "steps": steps, "rate": RATE, "weight_decay": WEIGHT_DECAY,
        "weights": model.count_params(), "backend": keras.backend.backend(),
        "keras": keras.__version__, "bytes": int(everything.size),
        "text": hashlib.sha256(everything.tobytes()).hexdigest()[:16],
    }  # fmt: skip

    def loss(arrays: list[np.ndarray]) -> float:
        for variable, array in zip(model.trainable_variables, arrays, strict=True):
            variable.assign(array)
        return float(model.evaluate(*held_out, batch_size=256, verbose=0))

    # The run at constant rate.
    lengths = [(shape, round(share * steps)) for shape, share in DECAYS]
    base = records.prepare_workdir(folder / "constant")
    if not state_path(base, 0).exists():
        save(model, state_path(base, 0))
    stops = sorted({*range(0, steps + 1, 500), steps, *(steps - length for _, length in lengths)})
    train(model, data, seed, constant(steps), base, stops, max(steps // SNAPSHOTS, 1))
    own = {name: loss(model.optimizer.get_average(name)) for name in AVERAGES}

    # What its snapshots tell.
    snapshots = averaging.Snapshots(base / "snapshots")
    measurement = Measurement("held_out", loss, about, EVALUATED)
    plan = plan_curve(snapshots.steps, 2 * WARM_UP, singles=48)
    curve = measure_curve(snapshots, measurement, plan, folder / "whatif", tell=print)
    advice = advise(snapshots, measurement, first=steps // 2, folder=folder / "advice")
    advised = {key: advice.record[key] for key in ("recommended", "raw_loss", "summary")}
    asked = [(shape, length, steps) for shape, length in lengths]
    told = theory.what_if(curve.steps, curve.losses, RATE, asked, curve.averages)
    forecast = {"about": about, "decays": [row(one) for one in told], "advice": advised}
    forecast |= {"averages": own, "curve": {"steps": curve.steps, "losses": curve.losses}}
    if not (folder / "forecast.json").exists():
        records.write_json(folder / "forecast.json", forecast)

    # The decays themselves.
    ends = []
    for shape, length in lengths:
        way = records.prepare_workdir(folder / f"{shape}-{length}")
        first = state_path(way, steps - length)
        if not first.exists():
            load(model, state_path(base, steps - length))
            save(model, first)
        schedule = decayed(steps, shape, length)
        train(model, data, seed, schedule, way, [s for s in stops if s >= steps - length])
        ends.append(float(model.evaluate(*held_out, batch_size=256, verbose=0)))
    known = [("linear", lengths[0][1], steps, ends[0], RATE)]
    again = theory.what_if(curve.steps, curve.losses, RATE, asked, curve.averages, known)
    means = averaging.average_snapshots(
        snapshots,
        {str(length): kernels.Uniform(start=steps - length) for _, length in lengths},
        steps,
        progress=False,
    )
    rows = []
    for (shape, length), end, before, after in zip(lengths, ends, told, again, strict=True):
        mean = loss(means[str(length)].arrays)
        rows.append(
            {
                "shape": shape,
                "length": length,
                "trained": end,
                "mean": mean,
                "share": (before.raw - mean) / (before.raw - end),
                "from_run_alone": row(before),
                "with_first_decay": row(after),
            }
        )
    records.write_json(folder / "decays.json", {"about": about, "decays": rows})


# All seeds ------------------------------------------------------------------------------------


def report(folder: pathlib.Path) -> None:
    """Prints a table of all seeds, and writes it with a figure."""
    found = [records.read_json(path) for path in sorted(folder.glob("seed*/decays.json"))]
    if not found:
        raise SystemExit(f"{folder} has no seed*/decays.json: run the seeds first")
    lines = [
        "| decay | trained loss | share of its gain that the mean of the iterates has "
        "| forecast from the run alone: error, % of the loss (of the gain), in band "
        "| with the first decay known |",
        "|---|---|---|---|---|",
    ]
    for i, one in enumerate(found[0]["decays"]):
        rows = [seed["decays"][i] for seed in found]
        cells = [f"{one['shape']}, {one['length']:,} updates", spread(r["trained"] for r in rows)]
        cells.append(spread(r["share"] for r in rows))
        for key in ("from_run_alone", "with_first_decay"):
            known = key == "with_first_decay" and i == 0
            cells.append("(known)" if known else told(rows, key))
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    print(table)
    (folder / "table.md").write_text(table + "\n")
    draw(folder, found)


def spread(values: Iterable[float]) -> str:
    """Returns a mean with its standard error over seeds."""
    numbers = np.array(list(values))
    if len(numbers) < 2:
        return f"{numbers.mean():.4f}"
    return f"{numbers.mean():.4f} ± {numbers.std(ddof=1) / np.sqrt(len(numbers)):.4f}"


def told(rows: list[dict], key: str) -> str:
    """Returns the mean error of forecasts, its largest size, and how many bands hold it."""
    off = np.array([r[key]["loss"] - r["trained"] for r in rows])
    losses = np.array([r["trained"] for r in rows])
    gains = np.array([r[key]["raw"] - r["trained"] for r in rows])
    inside = sum(r[key]["low"] <= r["trained"] <= r[key]["high"] for r in rows)
    return (
        f"{100 * np.mean(off / losses):+.2f}, at most {100 * np.max(np.abs(off / losses)):.2f} "
        f"({100 * np.mean(off / gains):+.1f}); {inside} of {len(rows)}"
    )


def draw(folder: pathlib.Path, found: list[dict]) -> None:
    """Writes forecasts with their bands beside the trained decays, relative to the gain."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    names = [f"{r['shape'].replace('_', ' ')}\n{r['length']:,}" for r in found[0]["decays"]]
    styles = (("from_run_alone", "forecast from the run alone", "tab:blue", -0.12),)
    styles += (("with_first_decay", "forecast with the first decay known", "tab:green", 0.12),)
    for key, label, color, aside in styles:
        for i in range(len(names)):
            if key == "with_first_decay" and i == 0:
                continue
            for j, seed in enumerate(found):
                r = seed["decays"][i]
                gain = r[key]["raw"] - r["trained"]
                low, middle, high = (
                    100 * (r[key][name] - r["trained"]) / gain for name in ("low", "loss", "high")
                )
                axes.errorbar(
                    i + aside + 0.06 * (j - 1), middle, yerr=[[middle - low], [high - middle]],
                    fmt="o", markersize=4, color=color, label=label if (i, j) == (1, 0) else None,
                )  # fmt: skip
    for i in range(len(names)):
        means = [100 * (1 - seed["decays"][i]["share"]) for seed in found]
        axes.plot(
            [i + 0.3] * len(means), means, "_", color="tab:orange", markersize=12,
            label="the mean of the iterates as it is" if i == 0 else None,
        )  # fmt: skip
    axes.axhline(0.0, color="black", linewidth=1.0)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("above the trained decay, % of its gain")
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    figure.savefig(folder / "decays.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="of the results")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and batches")
    parser.add_argument("--steps", type=int, default=10000, help="updates of each run")
    parser.add_argument("--report", action="store_true", help="the table and figure of all seeds")
    given = parser.parse_args()
    if given.seed < 0 or given.steps < 1000:
        parser.error(f"--seed must be at least 0 and --steps at least 1000. Received: {given}")
    if given.report:
        report(given.folder)
    else:
        one_seed(given.folder, given.seed, given.steps)


if __name__ == "__main__":
    main()
