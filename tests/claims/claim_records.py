"""A folder of records in which every claim is reproduced, and ways to spoil it.

Numbers follow the quadratic model (excess losses in proportion to the rate, averages of n far
points at 1/n of it), with a little noise.  Files are laid out and named as a reproduction
writes them; probe records have the kinds, coordinates and values of the real probes.

    build(folder)                                    # everything
    edit(folder, "decays", lambda content: …)        # change rows in every seed's file
    edit_probe(folder, "line-*", lambda record: …)
    rows(content, set="test", of="run")              # those that fit
"""

import numpy as np

from tf_lrtraj.records import ArrayRecord, read_json, write_json

SEEDS = 3
RATE, MOMENTUM = 0.1, 0.9
BURN_IN, WINDOW, EVERY, LOG = 1200, 400, 10, 20
END = BURN_IN + WINDOW
FLOOR, EXCESS = 0.3, 0.2  # loss at no rate; excess at the base rate
AVERAGES = {"raw": 0.50, "ema": 0.41, "swa": 0.39, "two_point": 0.40}
EQUIVALENCES = ("curvature_free", "curvature", "spectrum")
POINTS = (2, 4, 8)
GAPS = (10, 20, 50)
DECAYS = {"cosine": 0.385, "linear": 0.39, "one_minus_sqrt": 0.38}
CONFIG = {
    "name": "synthetic",
    "command": "lrtraj-reproduce --config=configs/reproduce_digits.py",
    "seeds": SEEDS,
    "batch_size": 32,
    "learning_rate": RATE,
    "momentum": MOMENTUM,
    "burn_in": BURN_IN,
    "window": WINDOW,
    "pairs": {"seeds": 1, "factor": 0.25},
    "speed": {"seeds": 1, "factor": 0.125},
    "probe_seeds": 1,
    "probes": {"steps": [], "trip_steps": []},
}


def accuracy(loss):
    """An accuracy that falls as the loss rises."""
    return float(np.clip(1.0 - 0.2 * loss, 0.0, 1.0))


def row(loss, on, **fields):
    images = {"train": 1437, "train_part": 1000, "test": 360}[on]
    return {**fields, "set": on, "loss": float(loss), "accuracy": accuracy(loss), "images": images}


def around(random, value, relative=0.001):
    return float(value * (1.0 + relative * random.standard_normal()))


def at_rate(divisor):
    return FLOOR + EXCESS / divisor


# Measured tasks -------------------------------------------------------------------------------


def base(random):
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


def levels(random):
    found = []
    for step in np.linspace(BURN_IN, END, 9).astype(int).tolist():
        found.append(row(around(random, at_rate(1), 0.01), "train", step=step))
        found.append(row(around(random, 0.6, 0.01), "test", step=step))
    return {"rows": found}


def averages(random):
    found = []
    for name, loss in AVERAGES.items():
        found.append(row(around(random, loss), "train", average=name, policy="recompute"))
        lost = {"recompute": 0.0, "average": 0.05, "copy": 0.5}
        if name == "raw":
            lost = {"recompute": 0.0, "running": 0.01}
        for policy, more in lost.items():
            test = around(random, loss + 0.1 + more)
            found.append(row(test, "test", average=name, policy=policy))
    kernels = {
        "ema": {"kernel": "Exponential", "decay": 0.97},
        "swa": {"kernel": "Uniform"},
        "two_point": {"kernel": "TwoPoint", "gap": 150},
    }
    return {"about": {"kernels": kernels}, "rows": found}


def equivalent(random):
    raw = AVERAGES["raw"]
    found = [row(raw, "train", average="raw", equivalence="none", of="raw", share=1.0)]
    predicted = [{"average": "raw", "of": "raw", "excess": raw - FLOOR}]
    off = {"curvature_free": 0.02, "curvature": 0.01, "spectrum": 0.001}
    for name, loss in AVERAGES.items():
        if name == "raw":
            continue
        own = {"average": name, "equivalence": "none", "of": "average", "share": 1.0}
        found += [row(loss, "train", **own), row(loss + 0.1, "test", **own)]
        for kind in EQUIVALENCES:
            where = {"average": name, "equivalence": kind}
            end = loss * (1.0 + off[kind])
            for on, more in (("train", 0.0), ("test", 0.1)):
                wobble = around(random, end + more, 0.0005)
                found.append(row(wobble, on, **where, of="run", share=1.0))
            for of, excess in (("average", loss - FLOOR), ("run", end - FLOOR)):
                predicted.append({**where, "of": of, "excess": excess})
        for of, factor in (("average", 1.0), ("run", 1.01)):
            half = {"average": name, "equivalence": "curvature_free", "of": of, "share": 0.5}
            for on, more in (("train_part", 0.0), ("test", 0.1)):
                found.append(row(around(random, (loss + 0.03) * factor + more), on, **half))
    estimates = {
        "curvature": 0.3,
        "curvatures": [0.1, 0.3, 1.0],
        "noise_variances": [0.1, 0.1, 0.1],
        "excess": [0.1, 0.05, 0.05],
        "unresolved": 0.0,
        "set": "train_part",
    }
    return {"about": {"estimates": estimates, "predicted": predicted}, "rows": found}


def lower_rates(random):
    found = []
    for n in POINTS:
        for step in np.linspace(END - 100, END, 5).astype(int).tolist():
            where = {"points": n, "learning_rate": RATE / n, "step": step}
            found.append(row(around(random, at_rate(n), 0.002), "train_part", **where))
            found.append(row(around(random, at_rate(n) + 0.1, 0.002), "test", **where))
    return {"rows": found}


def many_points(random):
    found, predicted = [], []
    for end in (END - 100, END - 50, END):
        where = {"points": 1, "gap": 0, "end": end}
        found.append(row(around(random, at_rate(1), 0.002), "train_part", **where))
        found.append(row(around(random, at_rate(1) + 0.1, 0.002), "test", **where))
    for n in POINTS:
        for gap in GAPS:
            # C(Δ) falls off as 0.9^Δ.
            powers = 0.9 ** (gap * np.abs(np.subtract.outer(np.arange(n), np.arange(n))))
            loss = FLOOR + EXCESS * float(powers.mean())
            predicted.append({"points": n, "gap": gap, "loss": loss})
            for end in (END - 100, END - 50, END):
                where = {"points": n, "gap": gap, "end": end}
                found.append(row(around(random, loss, 0.002), "train_part", **where))
                found.append(row(around(random, loss + 0.1, 0.002), "test", **where))
    return {"rows": found, "predicted": predicted}


def decays(random):
    found = []
    for decay, loss in DECAYS.items():
        for of in ("trained", "emulated"):
            for on, more in (("train", 0.0), ("test", 0.1)):
                found.append(row(around(random, loss + more), on, decay=decay, of=of))
    return {"about": {"snapshot_every": EVERY}, "rows": found}


def sweep(random):
    names = {
        "ema": np.linspace(0.5, 0.98, 8),
        "swa": np.arange(2, 34, 4),
        "two_point": np.arange(1, 33, 4),
    }
    found = []
    for on, other, more in (("train_part", "test_part", 0.0), ("test_part", "train_part", 0.1)):
        found.append({"set": on, "average": "raw", "role": "raw", "measured": 0.5 + more})
        for family, parameters in names.items():
            for i, parameter in enumerate(parameters.tolist()):
                role = "calibration" if family == "swa" and i == 3 else "sweep"
                if i == 7:
                    role = "recommendation"
                entry = {
                    "average": f"{family} {i}",
                    "family": family,
                    "parameter": parameter,
                    "role": role,
                    "chosen_on": on,
                }
                found.append(_predicted(random, {**entry, "set": on}, 0.48 + more - 0.01 * i))
        best = {
            "average": "optimal",
            "family": "weights",
            "parameter": 0.0,
            "role": "recommendation",
            "chosen_on": on,
        }
        found.append(_predicted(random, {**best, "set": on}, 0.409 + more))
        found.append({**best, "set": other, "measured": 0.51 if other == "test_part" else 0.41})
    gaps = {"lags": [1, 8], "jensen_gaps": [0.02, 0.05], "gap_curve": [0.0, 0.02, 0.05]}
    about = {
        "level": 0.9,
        "optimal": "optimal",
        "cost": {"singles": 16, "pairs": 24},
        "mean_single_loss": {"train_part": 0.5, "test_part": 0.6},
    }
    return {"about": about, "rows": found, "train_part": gaps, "test_part": gaps}


def _predicted(random, entry, measured):
    predicted = measured * (1.0 + 0.002 * random.uniform(-1.0, 1.0))
    return {
        **entry,
        "predicted": predicted,
        "quadratic": 1.01 * predicted,
        "low": 0.996 * predicted,
        "high": 1.004 * predicted,
        "measured": measured,
    }


def displacement(random):
    lags = np.array([10, 20, 40, 80, 120, 160, 200])
    squares = 4.0 * (1.0 - np.exp(-lags / 15.0)) * (1.0 + 0.002 * random.standard_normal(lags.size))
    errors = 0.02 * squares
    return {
        "about": {"total_lag": 400},
        "lags": lags,
        "mean_squared": squares,
        "standard_error": errors,
    }


def rates(random):
    found = []
    for divisor in (1, 2, 4, 8):
        for half in (1, 2):
            found.append(
                {
                    "learning_rate": RATE / divisor,
                    "half": half,
                    "squared_distance": around(random, 4.0 / divisor, 0.02),
                    "batch_loss": around(random, at_rate(divisor), 0.005),
                    "batch_loss_se": 0.002,
                }
            )
    return {"rows": found}


def shell(random):
    steps = np.arange(BURN_IN, END + 1, EVERY)
    squares = 2.0 * (1.0 + 0.1 * random.standard_normal(steps.size))
    places = {"raw": 2.0, "ema": 0.5, "swa": 0.1, "two_point": 1.0}
    found = [
        {"average": name, "squared_distance": around(random, place, 0.02), "loss": AVERAGES[name]}
        for name, place in places.items()
    ]
    return {
        "about": {"predicted_cv": 0.1},
        "steps": steps,
        "squared_distance": squares,
        "rows": found,
    }


def pairs(random):
    found = []
    for batches, rate in (("shared", RATE), ("independent", RATE), ("independent", RATE / 4)):
        for step in range(0, WINDOW + 1, EVERY):
            square = 4.0 * np.exp(-step * rate / 10) + 0.05
            if batches == "independent":
                square = 4.0 * rate / RATE * (1.0 - np.exp(-step / 40))
            where = {"batches": batches, "learning_rate": rate, "step": step}
            found.append({**where, "squared_distance": around(random, square, 0.01)})
    return {"rows": found}


ONE_STEP_RATE = RATE / (1.0 - MOMENTUM)
ONE_STEP_PLACES = (1300, 1360, 1420, 1480, 1540, 1600)


def one_step(random):
    steps = np.arange(BURN_IN + LOG, END + 1, LOG)
    losses = at_rate(1) + 0.005 * random.standard_normal(steps.size)
    return {
        "about": {"learning_rate": ONE_STEP_RATE, "momentum": 0.0, "window": WINDOW},
        "steps": steps,
        "batch_loss": losses,
    }


CYCLE = {"length": 50, "high": RATE, "low": 0.1 * RATE, "first_step": BURN_IN}


def budget(random):
    accuracies = {
        "conventional": 0.90,
        "swa_constant": 0.912,
        "swa_cyclical": 0.914,
        "fge": 0.918,
    }
    found = []
    for method, test in accuracies.items():
        for on, more in (("test", 0.0), ("train_part", 0.05)):
            entry = row(0.2 if on == "train_part" else 0.35, on, method=method, member=-1)
            found.append({**entry, "accuracy": around(random, test + more, 0.0005)})
    for member in range(8):
        for on, more in (("test", 0.0), ("train_part", 0.05)):
            entry = row(0.3, on, method="fge_member", member=member)
            found.append({**entry, "accuracy": around(random, 0.89 + more, 0.001)})
    t = (np.arange(WINDOW) % CYCLE["length"] + 1.0) / CYCLE["length"]
    curve = (1.0 - t) * CYCLE["high"] + t * CYCLE["low"]
    return {
        "about": {"total": END, "cycle": CYCLE},
        "rows": found,
        "rates": curve.astype(np.float32).astype(np.float64),
        "collected": np.arange(BURN_IN + 50, END + 1, 50),
    }


def independent(random):
    entry = row(0.25, "test", method="independent", member=-1)
    return {"about": {"members": SEEDS}, "rows": [{**entry, "accuracy": 0.925}]}


def cost(random):
    return {
        "about": {"weights_bytes": 4 * 78042, "extra_bytes": 4 * 78042 + 64},
        "step_seconds": 0.02 * (1.0 + 0.02 * random.standard_normal(10)),
        "update_seconds": 0.0002 * (1.0 + 0.05 * random.standard_normal(10)),
    }


def speed(random):
    found = []
    for step in (100, 200, 300, 400):
        fall = np.exp(-step / 100)
        for of, rate, loss in (
            ("raw", RATE, 0.5 + fall),
            ("average", RATE, 0.4 + 1.1 * fall),
            ("raw", RATE / 8, 0.5 + 3.0 * fall),
        ):
            for on, more in (("train_part", 0.0), ("test", 0.1)):
                where = {"learning_rate": rate, "of": of, "step": step}
                found.append(row(around(random, loss + more), on, **where))
    return {"rows": found}


def two_time_scales(random):
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


def single_runs(random):
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


OF_SEEDS = {
    "base": base,
    "levels": levels,
    "averages": averages,
    "equivalent": equivalent,
    "lower_rates": lower_rates,
    "many_points": many_points,
    "decays": decays,
    "displacement": displacement,
    "rates": rates,
    "shell": shell,
    "sweep": sweep,
    "budget": budget,
}
SINGLE = {
    "pairs": pairs,
    "one_step": one_step,
    "speed": speed,
    "cost": cost,
    "independent": independent,
    "two_time_scales": two_time_scales,
    "single_runs": single_runs,
}
ONCE = ("cost", "independent", "two_time_scales", "single_runs")
TASKS = (*OF_SEEDS, *SINGLE)


# Probes ---------------------------------------------------------------------------------------

BATCHES, HELD = 12, 6


def line(random, changes, rates_, about):
    """A record of `probes.Line`; `changes` is {curve: [rate] change of the loss}."""
    curves = list(changes)
    start = 0.5
    coordinates = {
        "rate": rates_,
        "batch": np.arange(BATCHES),
        "held": np.arange(HELD),
        "other": np.arange(HELD),
        "curve": np.array(curves),
        "degree": np.array([1, 2, 3, 4]),
        "window": np.array([0.5, 1.0, 1.5, 2.0, 3.0]),
        "level": np.array([0.01, 0.05, 0.1]),
        "power": np.arange(3),
    }
    dims = {
        "train": ("rate", "batch"),
        "held_out": ("rate", "batch"),
        "held_out_each": ("rate", "batch", "held"),
        "others": ("rate", "batch"),
        "others_each": ("rate", "batch", "other"),
        "mean": ("curve", "rate"),
        "mean_se": ("curve", "rate"),
        "mean_fit": ("curve", "power"),
        "fit_error": ("degree", "window", "batch"),
        "valid_to": ("degree", "level", "batch"),
    }
    of_batch = ("gradient_norm", "direction_norm", "slope", "bracketed", "curvature")
    dims |= dict.fromkeys(of_batch, ("batch",))
    for name in ("best_rate", "gain", "zero_crossing"):
        dims |= {name: ("curve", "batch")}
        dims |= {f"mean_{name}": ("curve",), f"mean_{name}_se": ("curve",)}
    record = ArrayRecord.empty("line", coordinates, dims, about)
    harder = 1.0 + 0.02 * random.standard_normal(BATCHES)
    scale = 1.0 + 0.02 * random.standard_normal(BATCHES)
    record.put("train", ..., start * harder + np.outer(changes["train"], scale))
    for name in ("held_out", "others"):
        levels_ = start + 0.02 * random.standard_normal(HELD)
        each = changes[name][:, None, None] * scale[:, None] + levels_
        record.put(f"{name}_each", ..., each)
        record.put(name, ..., each.mean(-1))
    for c, name in enumerate(curves):
        curve = changes[name]
        low = int(np.argmin(curve))
        after = np.flatnonzero(curve[low:] >= 0.0)
        crossing = rates_[low + after[0]] if low and after.size else np.inf
        found = {"best_rate": rates_[low], "gain": -curve[low], "zero_crossing": crossing}
        record.put("mean", c, start + curve)
        record.put("mean_se", c, 0.01)
        record.put("mean_fit", c, [start, -1.0, 1.0])
        for what, value in found.items():
            record.put(what, c, value)
            record.put(f"mean_{what}", c, value)
            record.put(f"mean_{what}_se", c, 0.03 * value)
    misfit = np.array([0.2, 0.02, 0.01, 0.005])[:, None, None]
    record.put("fit_error", ..., misfit * random.uniform(0.8, 1.2, (4, 5, BATCHES)))
    record.put("valid_to", ..., 2.0)
    for name, value in zip(of_batch, (1.0, 1.0, -1.0, 1.0, 2.0), strict=True):
        record.put(name, ..., value)
    return record


def line_along(random, step):
    rates_ = np.linspace(0.0, 1.0, 41)
    own, other = rates_ / 0.4, rates_ / 0.05
    changes = {
        "train": -0.45 * (2 * own - own**2),
        "held_out": -0.01 * (2 * other - other**2),
        "others": -0.012 * (2 * other - other**2),
    }
    about = {"step": step, "held_out_set": "test", "others_set": "train"}
    return line(random, changes, rates_, about)


def line_of_one_step(random, step):
    rates_ = np.linspace(0.0, 2.0 * ONE_STEP_RATE, 21)
    u = rates_ / (ONE_STEP_RATE * (1.0 + 0.02 * random.standard_normal()))
    changes = {
        "train": -0.3 * (2 * u - u**2),
        "held_out": -0.03 * u * (1.0 - 1.2 * u),
        "others": -0.04 * u * (1.0 - u),
    }
    about = {"step": step, "held_out_set": "test", "others_set": "train"}
    return line(random, changes, rates_, about)


TRIPS, TRIP_STEPS, TRIP_PLACES = 8, 9, (1200, 1600)


def side_trip(random, step):
    groups = ("held_out", "others")
    coordinates = {
        "trip": np.arange(TRIPS),
        "step": np.arange(TRIP_STEPS + 1),
        **{group: np.arange(HELD) for group in groups},
    }
    of_trip = ("train_loss", "train_accuracy", "distance", "gradient_norm")
    dims = dict.fromkeys(of_trip, ("trip", "step"))
    for group in groups:
        dims |= {f"{group}_{what}": ("trip", "step", group) for what in ("loss", "accuracy")}
    for group in ("train", *groups):
        dims |= {
            f"{group}_{what}": ("step",) for what in ("mean", "mean_se", "change", "change_se")
        }
    record = ArrayRecord.empty("side_trip", coordinates, dims, {"step": step})
    time = np.arange(TRIP_STEPS + 1)
    harder = 1.0 + 0.02 * random.standard_normal(TRIPS)
    own = 0.5 * np.outer(harder, np.exp(-1.2 * time))
    record.put("train_loss", ..., own)
    record.put("train_accuracy", ..., 1.0 - 0.2 * own)
    record.put("distance", ..., np.broadcast_to(0.3 * time, own.shape))
    record.put("gradient_norm", ..., own)
    for group in groups:
        start = 0.52 * (1.0 + 0.02 * random.standard_normal(HELD))
        rise = np.outer(harder, 0.05 * time)
        record.put(f"{group}_loss", ..., start + rise[..., None])
        record.put(f"{group}_accuracy", ..., 0.85)
        record.put(f"{group}_mean", ..., (start + rise[..., None]).mean(axis=(0, 2)))
        record.put(f"{group}_change", ..., rise.mean(axis=0))
    record.put("train_mean", ..., own.mean(axis=0))
    record.put("train_change", ..., own.mean(axis=0) - 0.5)
    for group in ("train", *groups):
        record.put(f"{group}_mean_se", ..., 0.01)
        record.put(f"{group}_change_se", ..., 0.01)
    return record


_SUMMARY = (
    "barrier",
    "barrier_at",
    "barrier_se",
    "barrier_cross",
    "barrier_cross_se",
    "barrier_upper",
    "barrier_level",
    "verdict",
    "middle",
    "middle_se",
    "rise",
    "rise_se",
    "error_barrier",
    "error_barrier_se",
)


def segments(ends, position, own, held, error, about):
    """A record of `probes.Segments`; own, held, error: [pair, position, batch]."""
    first, second = zip(*ends, strict=True)
    coordinates = {
        "pair": [f"{a} to {b}" for a, b in ends],
        "first": list(first),
        "second": list(second),
        "point": sorted({*first, *second}),
        "layer": ["(all)"],
        "position": position,
        "offset": np.array([0.5]),
        "batch": np.arange(own.shape[-1]),
        "held_out": np.arange(held.shape[-1]),
    }
    dims = {"length": ("pair", "layer")}
    for prefix, last in (("", "batch"), ("held_out_", "held_out")):
        for what in ("loss", "accuracy"):
            dims[f"{prefix}{what}"] = ("pair", "layer", "position", last)
        dims |= {f"{prefix}{name}": ("pair", "layer") for name in _SUMMARY}
        for name in ("asymmetry", "asymmetry_se"):
            dims[f"{prefix}{name}"] = ("pair", "layer", "offset")
    record = ArrayRecord.empty("basin", coordinates, dims, about)
    record.put("length", ..., 1.0)
    record.put("loss", (slice(None), 0), own)
    record.put("accuracy", (slice(None), 0), 1.0 - 0.2 * own)
    record.put("held_out_loss", (slice(None), 0), held)
    record.put("held_out_accuracy", (slice(None), 0), 1.0 - error)
    for prefix in ("", "held_out_"):
        for name in _SUMMARY:
            record.put(f"{prefix}{name}", ..., -1.0 if name == "verdict" else 0.01)
        record.put(f"{prefix}asymmetry", ..., 0.0)
        record.put(f"{prefix}asymmetry_se", ..., 0.01)
    return record


def basin(random):
    position = np.linspace(0.0, 1.0, 11)
    early, late = TRIP_PLACES
    ends = [(f"trip-{early}-{i}", f"trip-{late}-{i}") for i in range(TRIPS)]
    between = len(ends)
    ends += [(f"trip-{step}-{i}", f"main-{step}") for step in TRIP_PLACES for i in range(TRIPS)]
    ends.append(tuple(f"main-{step}" for step in TRIP_PLACES))
    bowl = -0.2 * position * (1.0 - position)
    own = np.zeros((len(ends), position.size, TRIPS))
    held = np.zeros((len(ends), position.size, HELD))
    for p in range(len(ends)):
        noise = 0.01 * random.standard_normal((position.size, TRIPS))
        own[p] = 0.4 + bowl[:, None] + noise
        at_end, at_other = (1.0, 1.0) if p < between else (0.97, 0.52)
        straight = at_end + (at_other - at_end) * position
        levels_ = 0.02 * random.standard_normal(HELD)
        held[p] = (straight + bowl)[:, None] + levels_
    about = {"own": TRIPS, "loss_at_starts": 0.5, "level": 0.025, "held_out_set": "test"}
    return segments(ends, position, own, held, 0.2 * held, about)


def sgd_to_swa(random):
    position = np.linspace(-0.5, 1.5, 21)
    bowl = (position - 1.2) ** 2
    noise = 0.002 * random.standard_normal(HELD)
    own = 0.2 + 0.05 * (position - 0.3)[None, :, None] ** 2 + np.zeros((1, 21, TRIPS))
    held = 0.3 + 0.05 * bowl[None, :, None] + noise
    error = 0.09 + 0.02 * bowl[None, :, None] + noise
    return segments([("sgd", "swa")], position, own, held, error, {"points": {}})


def width(random):
    distance = np.linspace(0.0, 3.0, 7)
    rays, points = 8, ["sgd", "swa"]
    coordinates = {
        "point": points,
        "other": points,
        "ray": np.arange(rays),
        "distance": distance,
        "batch": np.arange(TRIPS),
        "held_out": np.arange(HELD),
    }
    dims = {}
    for prefix, last in (("", "batch"), ("held_out_", "held_out")):
        for what in ("loss", "accuracy"):
            dims[f"{prefix}{what}"] = ("point", "ray", "distance", last)
        dims[f"{prefix}width"] = ("point", "ray")
        for name in ("width_mean", "width_se"):
            dims[f"{prefix}{name}"] = ("point",)
        for name in ("width_difference", "width_difference_se"):
            dims[f"{prefix}{name}"] = ("point", "other")
    record = ArrayRecord.empty("width", coordinates, dims, {"rise": 0.1, "ray_kind": "uniform"})
    for p, steep in enumerate((0.04, 0.02)):
        slope = steep * (1.0 + 0.05 * random.standard_normal(rays))
        rise = slope[:, None, None] * distance[None, :, None] ** 2
        for prefix, count in (("", TRIPS), ("held_out_", HELD)):
            noise = 0.002 * random.standard_normal(count)
            record.put(f"{prefix}loss", p, 0.3 + 5 * rise + noise)
            record.put(f"{prefix}accuracy", p, 0.91 - rise + noise)
            record.put(f"{prefix}width", p, np.sqrt(0.02 / slope))
            record.put(f"{prefix}width_mean", p, np.sqrt(0.02 / slope).mean())
            record.put(f"{prefix}width_se", p, 0.01)
            record.put(f"{prefix}width_difference", p, 0.3 * (1 - 2 * p))
            record.put(f"{prefix}width_difference_se", p, 0.01)
    return record


def gradients(random, step):
    count = 24
    coordinates = {"layer": ["(all)"], "batch": np.arange(count), "other": np.arange(count)}
    names = ("signal", "noise", "noise_scale", "share", "pair_cosine", "rest_cosine", "mean_cosine")
    dims = {
        "loss": ("batch",),
        "gram": ("layer", "batch", "other"),
        "batch_rest_cosine": ("layer", "batch"),
        "batch_mean_cosine": ("layer", "batch"),
    }
    dims |= {f"{name}{end}": ("layer",) for name in names for end in ("", "_se")}
    record = ArrayRecord.empty("gradients", coordinates, dims, {"step": step})
    record.put("loss", ..., 0.5 + 0.02 * random.standard_normal(count))
    record.put("gram", ..., 0.1 + 0.9 * np.eye(count))
    record.put("batch_rest_cosine", ..., 0.28)
    record.put("batch_mean_cosine", ..., 0.37)
    for name, value in zip(names, (0.1, 29.0, 290.0, 0.1, 0.1, 0.28, 0.37), strict=True):
        record.put(name, ..., value)
        record.put(f"{name}_se", ..., 0.05 * value)
    return record


def ensemble(random):
    members, scales = [str(i) for i in range(5)], np.array([1.0, 0.5, 0.25, 0.125])
    coordinates = {
        "member": members,
        "other": members,
        "batch": np.arange(HELD),
        "scale": scales,
    }
    pairs_ = ("scale", "member", "other", "batch")
    dims = {
        "distance": ("member", "other"),
        "from_average": ("member",),
        "spread": ("scale",),
        "pair_difference": pairs_,
        "ensemble_difference": ("scale", "batch"),
        "pair_logit_difference": pairs_,
        "ensemble_logit_difference": ("scale", "batch"),
        "member_loss": ("member", "batch"),
        "member_accuracy": ("member", "batch"),
    }
    scores = [f"{who}_{what}" for who in ("ensemble", "average") for what in ("loss", "accuracy")]
    dims |= dict.fromkeys(scores, ("batch",))
    for name in ("member_loss", "member_accuracy", *scores):
        dims |= {f"mean_{name}": (), f"mean_{name}_se": ()}
    for name in scores:
        dims |= {f"{name}_change": (), f"{name}_change_se": ()}
    for who in ("pair", "ensemble"):
        for end in ("difference", "logit_difference"):
            for more in ("", "_se"):
                dims |= {f"mean_{who}_{end}{more}": ("scale",), f"{who}_{end}_exponent{more}": ()}
    record = ArrayRecord.empty("ensemble", coordinates, dims, {"logits": True})
    apart = 1.0 - np.eye(5)
    record.put("distance", ..., 2.0 * apart)
    record.put("from_average", ..., 1.3)
    record.put("spread", ..., 1.3 * scales)
    for end in ("difference", "logit_difference"):
        easy = 1.0 + 0.05 * random.standard_normal(HELD)
        record.put(
            f"pair_{end}", ..., np.multiply.outer(scales, np.multiply.outer(0.3 * apart, easy))
        )
        record.put(f"ensemble_{end}", ..., np.outer(0.04 * scales**2, easy))
        for who, size, power in (("pair", 0.3, 1.0), ("ensemble", 0.04, 2.0)):
            record.put(f"mean_{who}_{end}", ..., size * scales**power)
            record.put(f"mean_{who}_{end}_se", ..., 0.02 * size * scales**power)
            record.put(f"{who}_{end}_exponent", (), power + 0.02)
            record.put(f"{who}_{end}_exponent_se", (), 0.02)
    for name, value in (("member", 0.89), ("ensemble", 0.918), ("average", 0.914)):
        for what, number in (("accuracy", value), ("loss", 1.2 - value)):
            record.put(f"{name}_{what}", ..., number)
            record.put(f"mean_{name}_{what}", ..., number)
            record.put(f"mean_{name}_{what}_se", ..., 0.005)
            if name != "member":
                record.put(f"{name}_{what}_change", ..., 0.01)
                record.put(f"{name}_{what}_change_se", ..., 0.002)
    return record


LINE_PLACES = (800, 1200, 1600)
PROBES = {
    **{f"line-{step:09d}": (line_along, step) for step in LINE_PLACES},
    **{f"one_step-{step:09d}": (line_of_one_step, step) for step in ONE_STEP_PLACES},
    **{f"side_trip-{step:09d}": (side_trip, step) for step in TRIP_PLACES},
    **{f"gradients-{step:09d}": (gradients, step) for step in LINE_PLACES},
    "basin": (basin,),
    "width": (width,),
    "sgd_to_swa": (sgd_to_swa,),
    "ensemble": (ensemble,),
}


# Folders --------------------------------------------------------------------------------------


def build(folder, seeds=SEEDS, single=1):
    """Writes every record into `folder` and returns it.

    Args:
        folder: made if missing.
        seeds: of what every seed makes.
        single: seeds of pairs, speed and probes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "seeds": seeds, "probe_seeds": single}
    for task in ("pairs", "speed"):
        config[task] = {**CONFIG[task], "seeds": single}
    write_json(folder / "config.json", config)
    write_json(folder / "run.json", {"status": "done", "format": 1})
    for number, (task, make) in enumerate({**OF_SEEDS, **SINGLE}.items()):
        count = seeds if task in OF_SEEDS else 1 if task in ONCE else single
        (folder / "measured" / task).mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            content = {"task": task, "seed": seed, "about": {}, "rows": []}
            content |= make(np.random.default_rng([number, seed]))
            write_json(folder / "measured" / task / f"seed{seed}.json", content)
    for seed in range(single):
        (folder / "probes" / f"seed{seed}").mkdir(parents=True, exist_ok=True)
        for number, (name, (make, *more)) in enumerate(PROBES.items()):
            record = make(np.random.default_rng([1000 + number, seed]), *more)
            assert record.complete, name
            record.write(folder / "probes" / f"seed{seed}" / f"{name}.npz")
    return folder


def edit(folder, task, change):
    """Applies `change(content)` to every seed's file of a task, in place."""
    paths = sorted((folder / "measured" / task).glob("seed*.json"))
    assert paths, task
    for path in paths:
        content = read_json(path)
        change(content)
        write_json(path, content)


def edit_probe(folder, pattern, change):
    """Applies `change(record)` to every probe record that fits a pattern, in place."""
    paths = sorted(folder.glob(f"probes/seed*/{pattern}.npz"))
    assert paths, pattern
    for path in paths:
        record = ArrayRecord.read(path)
        change(record)
        record.write(path)


def rows(content, **wanted):
    """The rows with these values; there must be some."""
    found = [r for r in content["rows"] if all(r.get(k) == v for k, v in wanted.items())]
    assert found, wanted
    return found


def scale(content, field, factor, **wanted):
    """Multiplies a field of the rows that fit."""
    for found in rows(content, **wanted):
        found[field] *= factor
