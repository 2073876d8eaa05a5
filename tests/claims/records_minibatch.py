"""Records of mini-batches: losses along steps, side trips, gradients, segments, batch sizes."""

import numpy as np
from study_records import (
    BURN_IN,
    END,
    EVERY,
    LOG,
    MOMENTUM,
    RATE,
    WINDOW,
    around,
    at_rate,
    changed,
    edit_probe,
    edit_probe_by_seed,
    probed,
    row,
)

BATCHES, HELD, TRIPS, TRIP_LENGTH = 12, 6, 8, 9
LINE_PLACES = (800, BURN_IN, END)
TRIP_PLACES = (BURN_IN, END)
ONE_STEP_RATE = RATE / (1.0 - MOMENTUM)
ONE_STEP_PLACES = (1300, 1360, 1420, 1480, 1540, END)
WEIGHTS = {"wide": 78042, "narrow": 19600}
SIZES = (4, 8, 16, 32, 64, 128)
REACH_STEPS = 400

# Measured tasks -------------------------------------------------------------------------------


def one_step(random, seed):
    steps = np.arange(BURN_IN + LOG, END + 1, LOG)
    losses = at_rate(1) + 0.005 * random.standard_normal(steps.size)
    about = {"learning_rate": ONE_STEP_RATE, "momentum": 0.0, "window": WINDOW}
    return {"about": about, "steps": steps, "batch_loss": losses}


def trained(random, seed):
    return {
        "about": {"step": END},
        "batch_loss": 0.3 * (1.0 + 0.02 * random.standard_normal(BATCHES)),
        "rows": [row(around(random, 0.31, 0.01), "train_part"), row(0.5, "test")],
    }


def reach(random, seed):
    """A reach that is a function of images per weight; a loss that four steps use up."""
    found = []
    for network, step in (("wide", REACH_STEPS), ("narrow", REACH_STEPS), ("wide", END)):
        for size in SIZES:
            images = size / WEIGHTS[network]
            entry = {
                "network": network,
                "step": step,
                "weights": WEIGHTS[network],
                "size": size,
                "start": 1.0,
                "lowest": around(random, 0.3 + 0.08 * np.log2(images * 2**14 + 1.0), 0.02),
                "rate": 1.0,
            }
            if step == END:
                entry |= {
                    "left": around(random, 0.004 * size, 0.05),
                    "share": around(random, 1.0 / (1.0 + 290.0 / size), 0.05),
                }
            found.append(entry)
    about = {"steps": REACH_STEPS, "end": END, "trip_steps": 4, "batch_size": 32}
    return {"about": about, "rows": found}


TASKS = {"one_step": one_step, "trained": trained, "reach": reach}

# Probes ---------------------------------------------------------------------------------------


def line(random, changes, rates, about):
    """A record of `probes.Line`; `changes` is {curve: [rate] change of the loss}."""
    curves, start = list(changes), 0.5
    coordinates = {
        "rate": rates,
        "batch": np.arange(BATCHES),
        "held": np.arange(HELD),
        "other": np.arange(HELD),
        "curve": np.array(curves),
        "degree": np.array([1, 2, 3, 4]),
        "window": np.array([0.5, 1.0, 1.5, 2.0, 3.0]),
        "level": np.array([0.01, 0.05, 0.1]),
        "power": np.arange(3),
    }
    factors = 1.0 + 0.02 * random.standard_normal(BATCHES)
    harder = 1.0 + 0.02 * random.standard_normal(BATCHES)
    values = {"train": start * harder + np.outer(changes["train"], factors)}
    for name in ("held_out", "others"):
        levels = start + 0.02 * random.standard_normal(HELD)
        each = changes[name][:, None, None] * factors[:, None] + levels
        values |= {f"{name}_each": each, name: each.mean(-1)}
    lows = [int(np.argmin(changes[name])) for name in curves]
    gains = [-changes[name][low] for name, low in zip(curves, lows, strict=True)]
    landmarks = {"best_rate": rates[lows], "gain": gains, "zero_crossing": [2.0] * len(curves)}
    for name, found in landmarks.items():
        spread = 1.0 + 0.02 * random.standard_normal((len(curves), BATCHES))
        values[name] = np.array(found)[:, None] * spread
    misfit = np.array([0.2, 0.02, 0.01, 0.005])[:, None, None]
    values["fit_error"] = misfit * random.uniform(0.8, 1.2, (4, 5, BATCHES))
    return probed("line", about, coordinates, values, zero_crossing=("curve", "batch"))


def line_along(step):
    def make(random, seed):
        rates = np.linspace(0.0, 1.0, 41)
        own, other = rates / 0.4, rates / 0.05
        changes = {
            "train": -0.45 * (2 * own - own**2),
            "held_out": -0.01 * (2 * other - other**2),
            "others": -0.012 * (2 * other - other**2),
        }
        about = {"step": step, "held_out_set": "test", "others_set": "train"}
        return line(random, changes, rates, about)

    return make


def line_of_one_step(step):
    def make(random, seed):
        rates = np.linspace(0.0, 2.0 * ONE_STEP_RATE, 21)
        u = rates / (ONE_STEP_RATE * (1.0 + 0.02 * random.standard_normal()))
        changes = {
            "train": -0.3 * (2 * u - u**2),
            "held_out": -0.03 * u * (1.0 - 1.2 * u),
            "others": -0.04 * u * (1.0 - u),
        }
        about = {"step": step, "held_out_set": "test", "others_set": "train"}
        return line(random, changes, rates, about)

    return make


def side_trip(step):
    def make(random, seed):
        coordinates = {
            "trip": np.arange(TRIPS),
            "step": np.arange(TRIP_LENGTH + 1),
            "held_out": np.arange(HELD),
            "others": np.arange(HELD),
        }
        time = np.arange(TRIP_LENGTH + 1)
        harder = 1.0 + 0.02 * random.standard_normal(TRIPS)
        values = {"train_loss": 0.5 * np.outer(harder, np.exp(-1.2 * time))}
        for group in ("held_out", "others"):
            start = 0.52 * (1.0 + 0.02 * random.standard_normal(HELD))
            values[f"{group}_loss"] = start + np.outer(harder, 0.05 * time)[..., None]
        return probed("side_trip", {"step": step}, coordinates, values)

    return make


def gradients(step):
    def make(random, seed):
        coordinates = {"layer": ["(all)"], "batch": np.arange(24)}
        means = {"share": 0.1, "pair_cosine": 0.1, "rest_cosine": 0.28}
        values = {name: around(random, mean, 0.05) for name, mean in means.items()}
        return probed("gradients", {"step": step}, coordinates, values)

    return make


def segments(ends, own, held, about):
    """A record of `probes.Basin`; own, held: [pair, position, batch]."""
    first, second = zip(*ends, strict=True)
    coordinates = {
        "pair": [f"{a} to {b}" for a, b in ends],
        "first": list(first),
        "second": list(second),
        "layer": ["(all)"],
        "position": np.linspace(0.0, 1.0, own.shape[1]),
        "batch": np.arange(own.shape[-1]),
        "held_out": np.arange(held.shape[-1]),
    }
    values = {"loss": own[:, None], "held_out_loss": held[:, None]}
    return probed("basin", about, coordinates, values)


def basin(random, seed):
    early, late = TRIP_PLACES
    found = [
        ("ends", f"trip-{early}-{i}", f"trip-{late}-{i}", [early, late], i) for i in range(TRIPS)
    ]
    found += [
        ("to_main", f"trip-{step}-{i}", f"main-{step}", [step, step], i)
        for step in TRIP_PLACES
        for i in range(TRIPS)
    ]
    found.append(("main", f"main-{early}", f"main-{late}", [early, late], None))
    for kind in ("ends", "to_main"):
        other = "other-trip-{0}-{1}" if kind == "ends" else "other-main-{0}"
        found += [
            (f"control_{kind}", f"trip-{late}-{i}", other.format(late, i), [late, late], i)
            for i in range(TRIPS)
        ]
    found.append(("control_main", f"main-{late}", f"other-main-{late}", [late, late], None))
    position = np.linspace(0.0, 1.0, 11)
    bowl = -0.2 * position * (1.0 - position)
    hump = np.sin(np.pi * position) ** 2
    own = np.zeros((len(found), position.size, TRIPS))
    held = np.zeros((len(found), position.size, HELD))
    for p, (kind, *_) in enumerate(found):
        apart = kind.startswith("control")
        along = (bowl + 1.5 * apart * hump)[:, None]
        own[p] = 0.4 + along + 0.01 * random.standard_normal(TRIPS)
        at_end, at_other = (0.97, 0.52) if kind.endswith("to_main") else (1.0, 1.0)
        straight = at_end + (at_other - at_end) * position
        held[p] = straight[:, None] + along + 0.02 * random.standard_normal(HELD)
    about = {
        "segments": [{"kind": k, "steps": steps, "batch": i} for k, _, _, steps, i in found],
        "loss_at_starts": 0.5,
    }
    return segments([(a, b) for _, a, b, *_ in found], own, held, about)


def convexity(random, seed):
    pairs, curves = [], []
    position = np.linspace(0.0, 1.0, 9)
    for apart in (EVERY, 60, WINDOW):
        for first in sorted({BURN_IN, END - apart}):
            pairs.append((str(first), str(first + apart)))
            depth = apart / WINDOW * around(random, 0.3, 0.1)
            curves.append(0.5 - depth * position * (1.0 - position))
    own = np.array(curves)[..., None] * (1.0 + 0.02 * random.standard_normal(4))
    return segments(pairs, own, own[..., :1], {})


PROBES = {
    **{f"line-{step:09d}": line_along(step) for step in LINE_PLACES},
    **{f"one_step-{step:09d}": line_of_one_step(step) for step in ONE_STEP_PLACES},
    **{f"side_trip-{step:09d}": side_trip(step) for step in TRIP_PLACES},
    **{f"gradients-{step:09d}": gradients(step) for step in LINE_PLACES},
    "basin": basin,
    "convexity": convexity,
}

# Ways to spoil them -----------------------------------------------------------------------------


def probe(pattern, change):
    return lambda folder: edit_probe(folder, pattern, change)


def put(name, index, change):
    """A change of a value of a probe record."""

    def apply(record):
        record.values[name][index] = change(record.values[name][index])

    return apply


def scatter(pattern, name, index, more):
    """A value that differs between seeds so much that they decide nothing."""

    def change(record, seed):
        record.values[name][index] += more * (seed - 1)

    return lambda folder: edit_probe_by_seed(folder, pattern, change)


def along_one_step(shape):
    """Curves of the stationary run of another shape, a function of the rate over the run's."""

    def change(record):
        u = record.coordinates["rate"] / ONE_STEP_RATE
        start = record.values["others_each"][:1]
        record.values["others_each"][...] = start + 0.04 * shape(u)[:, None, None]

    return probe("one_step-*", change)


def one_step_by_seed(record, seed):
    """The gain lasts half as long, as long, and three times as long as it should."""
    u = record.coordinates["rate"] / ONE_STEP_RATE
    change = 0.04 * u * (u / (0.4, 1.0, 1.9)[seed] - 1.0)
    record.values["others_each"][...] = record.values["others_each"][:1] + change[:, None, None]


def still_falls(content):
    steps = np.asarray(content["steps"])
    content["batch_loss"] = (1.0 - 0.5 * (steps - steps[0]) / np.ptp(steps)).tolist()


def on_segments(kind, shape, name="loss"):
    """Adds a function of the position to the segments of one kind."""

    def change(record):
        more = shape(record.coordinates["position"])
        for i, segment in enumerate(record.about["segments"]):
            if segment["kind"] == kind:
                record.values[name][i, 0] += more[:, None]

    return probe("basin", change)


def hump(height):
    return lambda t: height * 4.0 * t * (1.0 - t)


def flat_control(*kinds):
    """No barrier between different seeds either."""

    def change(record):
        for i, segment in enumerate(record.about["segments"]):
            if segment["kind"] in kinds:
                for name in ("loss", "held_out_loss"):
                    t = record.coordinates["position"][:, None]
                    record.values[name][i, 0] = 0.5 + 0.2 * t**2

    return probe("basin", change)


def wave(record):
    """A loss that waves along the step."""
    rates = record.coordinates["rate"]
    record.values["train"] += 0.2 * np.sin(40.0 * rates)[:, None]


def bumps(record):
    t = record.coordinates["position"]
    record.values["loss"] += hump(0.3)(t)[:, None]


def by_images(content):
    """A reach that the number of images decides, whatever the network."""
    for entry in content["rows"]:
        entry["lowest"] = 0.3 + 0.08 * np.log2(entry["size"] * 2**14 / WEIGHTS["wide"] + 1.0)


def networks_by_seed(content):
    """What decides differs between seeds."""
    if content["seed"] == 0:
        by_images(content)


def flat_reach(content):
    for entry in content["rows"]:
        entry["lowest"] = 0.5 + 0.001 * entry["size"] / 128


FALSE = [
    ("B1", "misfit", probe("line-*", put("fit_error", (1, 3), lambda v: v + 0.2))),
    ("B2", "difference", probe("line-*", put("train", ..., lambda v: v + 0.5))),
    ("B3", "best_rate_ratio", probe("line-*", put("best_rate", 1, lambda v: 8 * v))),
    ("B3", "gain_ratio", probe("line-*", put("gain", 1, lambda v: 40 * v))),
    ("B3", "change", probe("line-*", put("held_out", slice(1, None), lambda v: v - 3.0))),
    ("B4", "zero_crossing", along_one_step(lambda u: u**2 / 1.8 - u)),
    ("B4", "best_rate", along_one_step(lambda u: np.where(u < 0.9, -u, 9.0 * u - 9.0))),
    (
        "B5",
        "left",
        probe("side_trip-*", put("train_loss", (..., slice(1, None)), lambda v: v + 0.3)),
    ),
    ("B5", "start", probe("side_trip-*", put("held_out_loss", ..., lambda v: v + 0.5))),
    (
        "B5",
        "rise",
        probe("side_trip-*", put("held_out_loss", (..., -1, slice(None)), lambda v: 0.1)),
    ),
    ("B6", "between_ends", on_segments("ends", hump(1.0))),
    ("B6", "to_trajectory", on_segments("to_main", hump(2.0), "held_out_loss")),
    ("B6", "held_out_rise", on_segments("to_main", lambda t: 2.0 * t - 1.0, "held_out_loss")),
    ("B11", "share", probe("gradients-*", put("share", ..., lambda v: v + 0.5))),
    ("B12", "line", probe("line-*", wave)),
    ("B12", "segment", probe("convexity", bumps)),
    ("O5", "dependence", changed("reach", flat_reach)),
    ("O5", "position", changed("reach", by_images)),
]
FEW = [
    ("B1", scatter("line-*", "fit_error", (1, 3), 0.06)),
    ("B2", scatter("line-*", "train", ..., 0.4)),
    ("B3", scatter("line-*", "best_rate", 1, 0.1)),
    ("B4", lambda folder: edit_probe_by_seed(folder, "one_step-*", one_step_by_seed)),
    ("B4", changed("one_step", still_falls)),
    ("B5", scatter("side_trip-*", "train_loss", (..., slice(1, None)), 0.04)),
    ("B6", scatter("basin", "held_out_loss", (slice(TRIPS, 3 * TRIPS), 0, 0), 0.4)),
    ("B6", flat_control("control_ends")),
    ("B6", flat_control("control_to_main")),
    ("B11", scatter("gradients-*", "share", ..., 0.09)),
    ("B12", flat_control("control_main")),
    ("O5", changed("reach", networks_by_seed)),
]
