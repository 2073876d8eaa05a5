"""Records of claims S1 to S8."""

import numpy as np
from study_records import (
    END,
    RATE,
    SEEDS,
    around,
    changed,
    edit_probe_by_seed,
    probed,
    row,
    rows,
    scatter_rows,
    spoil_rows,
)

START, LENGTH = END - 400, 50
ENDS = list(range(START + LENGTH, END + 1, LENGTH))
HIGH, LOW = 0.5 * RATE, 0.005 * RATE
HELD, TRAINED = 4, 3  # batches

# Method → test accuracy with recomputed statistics, training loss, test loss.
METHODS = {
    "conventional": (0.900, 0.20, 0.42),
    "swa_constant": (0.912, 0.24, 0.36),
    "swa_cyclical": (0.910, 0.23, 0.37),
    "swa_constant_last": (0.830, 0.50, 0.60),
    "swa_cyclical_last": (0.890, 0.30, 0.42),
    "fge": (0.918, 0.22, 0.33),
}
# (method, policy) → test accuracy.
OTHERS = {
    ("swa_constant_last", "running"): 0.80,
    ("swa_cyclical_last", "running"): 0.885,
    ("swa_constant", "copy"): 0.60,
    ("swa_cyclical", "copy"): 0.80,
    ("swa_constant", "average"): 0.90,
    ("swa_cyclical", "average"): 0.905,
}


def states(random, method, test, train_loss, test_loss, **more):
    found = []
    for on, accuracy, loss in (("train_part", test + 0.05, train_loss), ("test", test, test_loss)):
        entry = row(around(random, loss), on, method=method, member=-1, policy="recompute", **more)
        found.append({**entry, "accuracy": around(random, accuracy, 0.0005)})
    return found


def budget(random, seed):
    found = []
    for method, numbers in METHODS.items():
        found += states(random, method, *numbers)
    for member, step in enumerate(ENDS):
        where = {"step": step}
        for method, numbers in (
            ("fge_member", (0.89, 0.30, 0.42)),
            ("constant_iterate", (0.83, 0.50, 0.60)),
        ):
            found += [{**r, "member": member} for r in states(random, method, *numbers, **where)]
    for (method, policy), test in OTHERS.items():
        entry = row(0.5, "test", method=method, member=-1, policy=policy)
        found.append({**entry, "accuracy": around(random, test, 0.0005)})
    t = (np.arange(END - START) % LENGTH + 1.0) / LENGTH
    curve = (1.0 - t) * HIGH + t * LOW
    cycle = {"length": LENGTH, "high": HIGH, "low": LOW, "first_step": START}
    return {
        "about": {"total": END, "start": START, "swa_rate": 0.5, "cycle": cycle},
        "rows": found,
        "optimizer_rates": curve.astype(np.float32).astype(np.float64),
        "collected": ENDS,
    }


def independent(random, seed):
    entry = row(0.25, "test", method="independent", member=-1, policy="recompute")
    return {"about": {"members": SEEDS}, "rows": [{**entry, "accuracy": 0.925}]}


def cost(random, seed):
    found = []
    for network, size, step in (("own", 78042, 0.02), ("large", 21_000_000, 3.0)):
        for repeat in range(6):
            for precision, copies in (("single", 1), ("auto", 2)):
                found.append(
                    {
                        "network": network,
                        "precision": precision,
                        "repeat": repeat,
                        "step_seconds": around(random, step, 0.02),
                        "update_seconds": around(random, 0.01 * copies * step, 0.05),
                        "weights_bytes": 4 * size,
                        "extra_bytes": 4 * size * copies + 64,
                    }
                )
    return {"about": {"steps_per_epoch": 80}, "rows": found}


TASKS = {"budget": budget, "independent": independent, "cost": cost}


def width(random, seed):
    distance = np.concatenate([[0.0], np.geomspace(0.05, 0.8, 9)])
    rays, points = 4, ["sgd", "swa"]
    coordinates = {"point": points, "ray": np.arange(rays), "distance": distance}
    coordinates["batch"] = np.arange(HELD)
    found = []
    for best, steep in ((0.9, 0.8), (0.91, 0.5)):
        slope = steep * (1.0 + 0.05 * random.standard_normal(rays))
        rise = slope[:, None, None] * distance[None, :, None] ** 2
        found.append(best - rise + 0.002 * random.standard_normal(HELD))
    return probed("width", {"ray_kind": "filter"}, coordinates, {"accuracy": np.array(found)})


def sgd_to_swa(random, seed):
    position = np.linspace(-1.0, 2.0, 13)
    coordinates = {
        "pair": ["sgd to swa"],
        "first": ["sgd"],
        "second": ["swa"],
        "layer": ["(all)"],
        "position": position,
        "batch": np.arange(TRAINED),
        "held_out": np.arange(HELD),
    }
    noise, bowl = 0.002 * random.standard_normal(HELD), (position - 1.2) ** 2
    values = {
        "loss": (0.2 + 0.05 * position**2)[:, None] + np.zeros(TRAINED),
        "held_out_accuracy": 0.91 - 0.02 * bowl[:, None] + noise,
    }
    return probed("basin", {}, coordinates, values)


def ensemble(random, seed):
    scales = np.array([1.0, 0.5, 0.25, 0.125])
    coordinates = {"scale": scales, "batch": np.arange(HELD)}
    about = {"run": "cyclical", "steps": ENDS[-5:]}
    values = {"spread": 1.3 * scales}
    for who, size, power in (("pair", 0.3, 1.0), ("ensemble", 0.04, 2.0)):
        values[f"mean_{who}_difference"] = around(random, size, 0.02) * scales**power
        values[f"{who}_difference_exponent"] = around(random, power, 0.02)
        values[f"{who}_difference_exponent_se"] = 0.02
    return probed("ensemble", about, coordinates, values, spread=("scale",))


PROBES = {"width": width, "sgd_to_swa": sgd_to_swa, "ensemble": ensemble}


# Spoils ---------------------------------------------------------------------------------------


def accuracy(method, change, policy="recompute", **wanted):
    """Adds to the test accuracy of a method, in every seed."""

    def add(content):
        for found in rows(content, method=method, policy=policy, set="test", **wanted):
            found["accuracy"] += change

    return changed("budget", add)


def of_budget(change):
    return changed("budget", change)


def of_cost(field, factor, **wanted):
    return spoil_rows("cost", field, factor, precision="single", **wanted)


def probe(pattern, name, change):
    """Replaces a value of a probe record by a function of it and of the seed."""

    def put(record, seed):
        record.values[name][...] = change(record.values[name], seed)

    return lambda folder: edit_probe_by_seed(folder, pattern, put)


def shift(content):
    """The rates one step late."""
    used = content["optimizer_rates"]
    content["optimizer_rates"] = [HIGH, *used[:-1]]


def early(content):
    content["collected"] = [step - 1 for step in content["collected"]]


FALSE = [
    ("S1", "swa_gain_constant", accuracy("swa_constant", -0.03)),
    ("S1", "swa_gain_cyclical", accuracy("swa_cyclical", -0.03)),
    ("S2", "deviation", of_budget(shift)),
    ("S2", "misplaced", of_budget(early)),
    ("S2", "misplaced", of_budget(lambda content: content["collected"].pop())),
    ("S3", "copies_larger", of_cost("extra_bytes", 2.0, network="large")),
    ("S3", "copies_scale", of_cost("extra_bytes", 2.0, network="own")),
    ("S3", "time_larger", of_cost("update_seconds", 100.0, network="large")),
    ("S4", "wider", probe("width", "accuracy", lambda v, seed: v[::-1])),
    ("S4", "better", probe("sgd_to_swa", "held_out_accuracy", lambda v, seed: v[:, :, ::-1])),
    ("S5", "pairs", probe("ensemble", "pair_difference_exponent", lambda v, seed: v + 1.0)),
    ("S5", "ensemble", probe("ensemble", "ensemble_difference_exponent", lambda v, seed: v - 1.0)),
    ("S6", "over_members", accuracy("fge_member", 0.05)),
    ("S6", "over_run", accuracy("conventional", 0.05)),
    # Copied statistics cost SWA no more than its own cost the raw iterate.
    ("S7", "recomputed_constant", accuracy("swa_constant", 0.3, policy="copy")),
    ("S7", "recomputed_cyclical", accuracy("swa_cyclical_last", -0.3, policy="running")),
    ("S8", "members", accuracy("constant_iterate", 0.08)),
]


def few_seeds_agree(method, relative=0.05, **wanted):
    return scatter_rows("budget", "accuracy", relative, method=method, set="test", **wanted)


def turned(values, seed):
    """The segment the other way round for one seed."""
    return values if seed else values[:, :, ::-1]


def slow_at_times(content):
    """Every other update is very slow."""
    for found in rows(content, network="large", precision="single"):
        found["update_seconds"] *= 20.0 if found["repeat"] % 2 else 1.0


FEW = [
    ("S1", few_seeds_agree("swa_constant", policy="recompute")),
    # A schedule is exact: only a record that does not hold all of it says nothing.
    ("S2", of_budget(lambda content: content.update(optimizer_rates=[HIGH]))),
    ("S3", changed("cost", slow_at_times)),
    ("S4", probe("sgd_to_swa", "held_out_accuracy", turned)),
    ("S5", probe("ensemble", "ensemble_difference_exponent", lambda v, seed: v * (0.5 + seed / 2))),
    ("S6", few_seeds_agree("fge")),
    ("S7", few_seeds_agree("swa_constant", 0.5, policy="copy")),
    ("S8", few_seeds_agree("fge_member")),
]
