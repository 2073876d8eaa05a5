"""Records of trajectories and of averages on two time scales."""

import numpy as np
from study_records import (
    BURN_IN,
    END,
    EVERY,
    LOG,
    MOMENTUM,
    PART,
    RATE,
    WINDOW,
    around,
    at_rate,
    changed,
    rows,
    scatter_rows,
    scored,
    spoil_rows,
)

DIVISORS = (1, 2, 4, 8)
SMALL = RATE / 8
PLATEAU = 4.0  # squared distance of two runs at the base rate


def base(random, seed):
    steps = np.arange(LOG, END + 1, LOG)
    losses = at_rate(1) + 1.5 * np.exp(-steps / 150) + 0.01 * random.standard_normal(steps.size)
    snapshots = np.arange(BURN_IN, END + 1, EVERY)
    return {
        "about": {
            "learning_rate": RATE,
            "momentum": MOMENTUM,
            "weight_decay": 2e-3,
            "batch_size": 32,
            "burn_in": BURN_IN,
            "window": WINDOW,
            "horizon": 200,
            "every": EVERY,
            "num_train": 1437,
            "num_test": 360,
            "num_weights": 78042,
        },
        "steps": steps,
        "batch_loss": losses,
        "snapshot_steps": snapshots,
        "squared_norm": 200.0 + 0.5 * random.standard_normal(snapshots.size),
    }


def displacement(random, seed):
    lags = np.array([10, 20, 40, 80, 120, 160, 200])
    squares = PLATEAU * (1.0 - np.exp(-lags / 15.0))
    return {
        "about": {"total_lag": WINDOW},
        "lags": lags,
        "mean_squared": squares * (1.0 + 0.002 * random.standard_normal(lags.size)),
        "standard_error": 0.02 * squares,
    }


def rates(random, seed):
    found, norms = [], []
    for divisor in DIVISORS:
        rate = {"learning_rate": RATE / divisor}
        for half in (1, 2):
            found.append(
                {
                    **rate,
                    "half": half,
                    "lag": 20 * divisor,
                    "squared_distance": around(random, PLATEAU / 2 / divisor, 0.02),
                    "filters_squared_distance": around(random, 0.01 / divisor, 0.02),
                    "batch_loss": around(random, at_rate(divisor), 0.005),
                }
            )
        for step in range(END - 150, END + 1, EVERY):
            norms.append({**rate, "step": step, "squared_norm": around(random, 200.0, 0.002)})
    excess = [{"learning_rate": RATE / n, "excess": at_rate(n) - at_rate(1e9)} for n in DIVISORS]
    return {
        "about": {"single_loss": around(random, at_rate(1)), "learning_rate": RATE},
        "rows": found,
        "norms": norms,
        "predicted": excess,
    }


def pairs(random, seed):
    found, switch, last = [], 80, 160
    for rate, left in ((RATE, 0.3), (SMALL, 0.1)):
        for step in range(0, last + 1, EVERY):
            where = {"learning_rate": rate, "step": step}
            square = PLATEAU * rate / RATE * (1.0 - np.exp(-2.0 * step * rate / RATE / 15))
            independent = around(random, square, 0.01)
            found.append({**where, "batches": "independent", "squared_distance": independent})
            if step >= switch:
                share = left + (1.0 - left) * np.exp(-(step - switch) / 15)
                square *= share
                shared = around(random, square, 0.01)
                found.append({**where, "batches": "shared", "squared_distance": shared})
    return {"about": {"switch": switch, "learning_rate": RATE}, "rows": found}


def start(random, seed):
    found = []
    for step in (0, 1, 3, 10, 30, 100, BURN_IN):
        entry = {"step": step, "pair_cosine": around(random, 0.5 / (1.0 + step / 100), 0.02)}
        if step < BURN_IN:
            entry["cosine_to_start"] = 1.0 / (1.0 + step)
        if 0 < step < BURN_IN:
            entry["cosine_to_displacement"] = 0.3
            entry["squared_displacement"] = around(random, 0.01 * step**1.5, 0.02)
            entry["squared_distance"] = around(random, 0.01 * step**1.5, 0.02)
        found.append(entry)
    return {"about": {"learning_rate": RATE}, "rows": found}


def shell(random, seed):
    steps = np.arange(BURN_IN, END + 1, EVERY)
    found = []
    for to in (BURN_IN + 100, BURN_IN + 200, BURN_IN + 300, END):
        where = {"from_step": to - 100, "to_step": to, "iterates": 2.0}
        for of, place in (("window", 0.3), ("two_point", 1.1)):
            found.append({**where, "of": of, "squared_distance": around(random, place, 0.02)})
        for scale, change in ((0.5, 0.3), (1.0, 0.01), (1.5, -0.4)):
            before = 2.0 * scale**2
            after = before + around(random, 2.0 * change, 0.05)
            found.append({**where, "of": "walk", "scale": scale, "before": before, "after": after})
    return {
        "about": {"updates": 20, "num_weights": 78042},
        "steps": steps,
        "squared_distance": 2.0 * (1.0 + 0.1 * random.standard_normal(steps.size)),
        "rows": found,
    }


def speed(random, seed):
    found = []
    for step in range(50, 401, 50):
        fall = np.exp(-step / 100)
        for of, rate, loss in (
            ("raw", RATE, 0.5 + fall),
            ("average", RATE, 0.4 + 1.1 * fall),
            ("raw", SMALL, 0.35 + 3.0 * fall),
        ):
            found += scored(random, loss, sets=PART, learning_rate=rate, of=of, step=step)
    return {"rows": found}


def ema_times(random, seed):
    found = []
    times = [0.0, *(10.0 * 10.0 ** (np.arange(13) / 4)).tolist()]
    for phase, noise, lag in (("early", 0.3, 1e-3), ("window", 0.1, 0.0)):
        for time in times:
            loss = 0.4 + noise / (1.0 + 0.1 * time) + lag * min(time, 2000.0)
            found += scored(random, loss, sets=PART, phase=phase, time=time, step=END)
    return {"about": {"per_decade": 4}, "rows": found}


def two_time_scales(random, seed):
    steps = np.unique(np.geomspace(1, 1999, 40).astype(int))
    time = np.arange(2000)
    curves = {
        "large": 8.0 + 4.5 * np.exp(-0.005 * time),
        "ema": 0.2 + 4.5 * np.exp(-0.005 * time),
        "small": 0.2 + 4.5 * np.exp(-0.0005 * time),
    }
    content = {
        "large_rate": 0.5,
        "small_rate": 0.05,
        "decay": 0.98,
        "stationary_loss_large": 8.0,
        "stationary_loss_small": 0.2,
        "level": 0.25,
        "simulated_steps": steps,
        "num_runs": 100,
        "large_steps_to_level": None,
        "ema_steps_to_level": 900,
        "small_steps_to_level": 9000,
    }
    for name, curve in curves.items():
        errors = 0.01 * curve[steps]
        content[f"{name}_losses"] = curve
        content[f"{name}_stderr"] = errors
        content[f"{name}_simulated"] = curve[steps] + errors * random.uniform(-2, 2, steps.size)
        content[f"{name}_largest_miss"] = 2.0
    return content


def single_runs(random, seed):
    rates_ = np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    lags = np.unique(np.geomspace(1, 2500, 30).astype(int))
    exact = {
        "zero_crossings": rates_,
        "distances": np.sqrt(rates_),
        "displacement": 2.0 * (1.0 - 0.99**lags),
    }
    content = {"rates": rates_, "lags": lags, "rate": 0.2}
    for name, values in exact.items():
        content[name] = values
        noise = 0.03 * random.standard_normal(values.size)
        content[f"{name}_measured"] = values * (1.0 + noise)
    return content


def averaging_length(random, seed):
    lengths = np.unique(np.geomspace(1, 1000, 16).round().astype(int))
    variance = np.array([[0.5 * rate / n for n in lengths] for rate in (0.1, 0.5, 1.5)])
    bias = np.tile(1e-7 * lengths.astype(float) ** 2, (3, 1))
    return {
        "lengths": lengths,
        "rates": [0.1, 0.5, 1.5],
        "ema_bias": bias,
        "ema_variance": variance,
    }


TASKS = {
    "base": base,
    "displacement": displacement,
    "rates": rates,
    "pairs": pairs,
    "start": start,
    "shell": shell,
    "speed": speed,
    "ema_times": ema_times,
    "two_time_scales": two_time_scales,
    "single_runs": single_runs,
    "averaging_length": averaging_length,
}
PROBES = {}


def put(task, names, change):
    """Replaces arrays of the file."""

    def spoil(recorded):
        for name in names:
            recorded[name] = change(np.array(recorded[name])).tolist()

    return changed(task, spoil)


def set_rows(task, field, formula, **wanted):
    """A field of the rows that fit, from the row."""

    def change(recorded):
        for found in rows(recorded, **wanted):
            found[field] = formula(found)

    return changed(task, change)


def slow(recorded):
    """Displacement that is as large at long lags and takes long to get there."""
    recorded["mean_squared"] = [0.5 if lag < 160 else 4.0 for lag in recorded["lags"]]


def cloud(squares):
    return squares * (1.0 + 0.6 * (-1.0) ** np.arange(squares.size))


def walk(scale, change):
    return set_rows("shell", "after", lambda r: r["before"] + change, of="walk", scale=scale)


def by_time(change):
    """The loss of early EMAs."""

    def apply(recorded):
        for found in rows(recorded, phase="early", set="train_part"):
            found["loss"] = change(found["time"])

    return changed("ema_times", apply)


def _one_miss(recorded):
    """A miss that chance gives once in some thirty runs."""
    step = recorded["simulated_steps"][5]
    off = 3.8 * recorded["ema_stderr"][5]
    recorded["ema_simulated"][5] = recorded["ema_losses"][step] + off


def _tilt(recorded):
    """Seeds with different powers of the rate."""
    for found in recorded["rows"]:
        power = 0.2 * (recorded["seed"] % 3 - 1)
        found["squared_distance"] *= (found["learning_rate"] / RATE) ** power


def apart(factor, **wanted):
    """Scales squared distances of pairs of runs."""
    return spoil_rows("pairs", "squared_distance", factor, **wanted)


def walks(pace):
    """Two runs that part as random walks do."""
    return set_rows("pairs", "squared_distance", lambda r: pace * r["step"], **INDEPENDENT)


def each(task, name, change):
    """Applies a change to the entries of a named list that have what it needs."""
    return changed(task, lambda content: [change(entry) for entry in content[name]])


CURVES = ("large", "ema", "small")
INDEPENDENT = {"batches": "independent", "learning_rate": RATE}
SHARED = {"batches": "shared", "learning_rate": RATE}
FALSE = [
    ("B7", "plateau", apart(3.0, **INDEPENDENT)),
    ("B7", "levels", walks(0.027)),
    ("B7", "half_time", changed("displacement", slow)),
    ("B8", "distance", set_rows("rates", "squared_distance", lambda r: r["learning_rate"] ** 2)),
    (
        "B8",
        "angle",
        set_rows("rates", "filters_squared_distance", lambda r: r["learning_rate"] ** 0.3),
    ),
    ("B9", "scatter", put("shell", ["squared_distance"], cloud)),
    ("B9", "inside_averages_of_a", spoil_rows("shell", "squared_distance", 9.0, of="window")),
    ("B9", "inside_averages_of_two", spoil_rows("shell", "squared_distance", 2.0, of="two_point")),
    ("B9", "grows_inside", walk(0.5, -0.1)),
    ("B9", "shrinks_outside", walk(1.5, 0.1)),
    ("B10", "shared", apart(3.0, **SHARED)),
    ("B10", "settles", walks(0.02)),
    ("B10", "depends_on_rate", apart(8.0, batches="independent", learning_rate=SMALL)),
    ("O4", "small_rate", apart(8.0, batches="shared", learning_rate=SMALL)),
    ("O4", "larger", apart(0.2, **SHARED)),
    ("B13", "falls", spoil_rows("lower_rates", "loss", 1.5, learning_rate=RATE / 4)),
    ("B13", "explained", each("rates", "predicted", lambda p: p.update(excess=0.3 * p["excess"]))),
    ("B14", "aligned_step_0", spoil_rows("start", "pair_cosine", 0.1, step=0)),
    ("B14", "aligned_step_100", spoil_rows("start", "pair_cosine", 0.1, step=100)),
    (
        "B14",
        "parts",
        changed(
            "start",
            lambda c: [
                r.update(squared_distance=0.1) for r in c["rows"] if "squared_distance" in r
            ],
        ),
    ),
    ("A6", "model_speed", changed("two_time_scales", lambda c: c.update(ema_steps_to_level=8500))),
    ("A6", "model_speed", changed("two_time_scales", lambda c: c.update(ema_steps_to_level=None))),
    ("A6", "model_lower", put("two_time_scales", ["ema_simulated"], lambda v: 100.0 * v)),
    ("A6", "network_lower", spoil_rows("speed", "loss", 2.0, of="average")),
    ("A6", "network_speed", spoil_rows("speed", "loss", 0.2, of="raw", learning_rate=SMALL)),
    ("A7", "agreement", put("two_time_scales", ["ema_simulated"], lambda v: 1.2 * v)),
    (
        "A7",
        "precision",
        put("two_time_scales", [f"{name}_stderr" for name in CURVES], lambda v: 50.0 * v),
    ),
    ("A7", "deviation", put("single_runs", ["displacement_measured"], lambda v: 1.5 * v)),
    ("A10", "model_shorter", put("averaging_length", ["ema_variance"], lambda v: 0.0 * v + 1.0)),
    ("A10", "model_longer", put("averaging_length", ["ema_bias"], lambda v: 0.0 * v)),
    ("A10", "network_shorter", by_time(lambda time: 0.4 + 1e-4 * time if time else 0.8)),
    ("A10", "network_longer", by_time(lambda time: 0.4 + 0.3 / (1.0 + time))),
]
FEW = [
    ("B7", scatter_rows("pairs", "squared_distance", 0.3, **INDEPENDENT)),
    ("B8", changed("rates", _tilt)),
    ("B9", scatter_rows("shell", "after", 0.4, of="walk", scale=0.5)),
    ("B10", scatter_rows("pairs", "squared_distance", 0.9, **SHARED)),
    ("O4", scatter_rows("pairs", "squared_distance", 0.9, batches="shared", learning_rate=SMALL)),
    ("B13", scatter_rows("lower_rates", "loss", 0.3, set="train_part")),
    ("B14", scatter_rows("start", "pair_cosine", 0.9)),
    ("A6", scatter_rows("speed", "loss", 0.5, of="average")),
    ("A7", changed("two_time_scales", _one_miss)),
    ("A10", scatter_rows("ema_times", "loss", 0.5, phase="early", set="train_part")),
]
