"""Records of averages against cooldowns, where the noise holds a slow direction up."""

import numpy as np
from study_records import PART, RATE, around, changed, edit_probe, edit_probe_by_seed, probed, row

LENGTHS = (50, 200, 1000)
RATES = (RATE, RATE / 2)
ENDS = (3000, 4000)
TRACK = 100
RAW = 0.8
NAMES = ("raw", "average", "cooldown")


def missing(rate, length):
    """Loss of the average above the cooldown's."""
    return 0.06 * (rate / RATE * length / LENGTHS[-1]) ** 0.75


def gain(rate):
    """What a cooldown takes off the loss of single iterates."""
    return 0.3 * (rate / RATE) ** 0.5


def cooldown_gain(random, seed):
    found = []
    for rate in RATES:
        for end in ENDS:
            for n in (0, *LENGTHS):
                loss = around(random, RAW, 0.002)
                where = {"rate": rate, "end": end, "of": "raw", "step": end - n}
                found += [row(loss, on, **where) for on in PART]
            for n in LENGTHS:
                lowest = around(random, RAW - gain(rate), 2e-4)
                for of, more in (("average", missing(rate, n)), ("cooldown", 0.0)):
                    where = {"rate": rate, "end": end, "of": of, "length": n}
                    found += [row(lowest + around(random, more, 0.02), on, **where) for on in PART]
    return {"rows": found}


def cooldown_path(random, seed):
    found = []
    begin, end = ENDS[-1] - LENGTHS[-1], ENDS[-1]
    last = missing(RATE, LENGTHS[-1])
    for of, low in (("constant", begin), ("from_average", end), ("from_cooldown", end)):
        for step in range(low + TRACK, end + 1001, TRACK):
            slid = last * np.exp(-(step - end) / 400) if of == "from_cooldown" else 0.0
            loss = around(random, 0.55 - slid, 0.001)
            found.append(row(loss, "train_part", of=of, step=step))
    for step in range(begin + TRACK, end + 1, TRACK):
        loss = around(random, 0.55 - last * (step - begin) / (end - begin), 0.001)
        found.append(row(loss, "train_part", of="cooldown", step=step))
    return {"about": {"begin": begin, "end": end, "track": TRACK}, "rows": found}


def eigenvalues(top):
    def make(random, seed):
        found = around(random, top, 0.02) * np.array([[1.0, 0.7]])
        lanczos = np.ones((1, 3))
        values = {
            "diagonal": lanczos,
            "off_diagonal": lanczos,
            "largest": found[:, :1] * np.array([[0.5, 0.9, 1.0]]),
            "smallest": -0.1 * lanczos,
            "eigenvalues": found,
            "bounds": 0.01 * found,
        }
        coordinates = {"start": [0], "iteration": [1, 2, 3], "eigenvalue": [0, 1]}
        return probed("eigenvalues", {"run_seed": seed}, coordinates, values)

    return make


TASKS = {"cooldown_gain": cooldown_gain, "cooldown_path": cooldown_path}
PROBES = {
    f"eigenvalues-{name}": eigenvalues(top)
    for name, top in zip(NAMES, (9.0, 10.0, 15.0), strict=True)
}


def averages_at(loss):
    """A spoil: `loss(rate, length)` is what averages reach, less what cooldowns do."""

    def change(content):
        for entry in content["rows"]:
            if entry["of"] == "average":
                below = RAW - gain(entry["rate"])
                entry["loss"] = below + loss(entry["rate"], entry["length"])

    return changed("cooldown_gain", change)


def floor(of, loss):
    """A spoil of the losses along a run: `loss(steps since the end)`, which may vary by seed."""

    def change(content):
        for entry in content["rows"]:
            if entry["of"] == of:
                entry["loss"] = loss(entry["step"] - ENDS[-1], content["seed"])

    return changed("cooldown_path", change)


def lower(share):
    """A floor lower by a share of the missing loss, for good."""
    return floor("from_cooldown", lambda t, seed: 0.55 - share * missing(RATE, LENGTHS[-1]))


def sharpness(factor):
    def change(record):
        record.values["eigenvalues"] *= factor

    return lambda folder: edit_probe(folder, "eigenvalues-cooldown", change)


def unlike(record, seed):
    record.values["eigenvalues"] *= (0.4, 0.7, 1.5)[seed]


FALSE = (
    ("O3", "share", averages_at(lambda rate, n: -0.03 * n / LENGTHS[-1])),
    ("O3", "collapse", averages_at(lambda rate, n: 0.06 * (n / LENGTHS[-1]) ** 0.75)),
    ("O3", "lower_floor", lower(0.05)),
    ("O3", "return", lower(1.0)),
    ("O3", "sharper", sharpness(0.3)),
)
FEW = (
    ("O3", lambda folder: edit_probe_by_seed(folder, "eigenvalues-cooldown", unlike)),
    ("O3", floor("from_cooldown", lambda t, seed: 0.55 - 0.02 * seed)),
)
