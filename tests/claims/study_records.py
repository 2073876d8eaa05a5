"""A folder of records in which every claim is reproduced, and ways to spoil it.

Numbers follow the quadratic model (excess losses in proportion to the rate, averages of n far
points at 1/n of it), with a little noise.  Files are laid out and named as a reproduction
writes them; probe records have the kinds, coordinates and values of the real probes.  Each module
`records_GROUP.py` beside this one makes those of one module of claims:

    TASKS    task → make(random, seed) → content of its file
    PROBES   name of a probe record → make(random, seed) → `ArrayRecord`
    FALSE    (claim, how the name of a failing part begins, spoil(folder)): the sentence is false
    FEW      (claim, spoil(folder)): too little data to tell
    TRUE     claim → make(folder): the sentence is true, where it contradicts another; may be absent
"""

import importlib
import pathlib
import sys

import numpy as np

from tf_lrtraj import claims
from tf_lrtraj.claims.layout import ONCE
from tf_lrtraj.records import ArrayRecord, read_json, write_json
from tf_lrtraj.specs import PROBES

AXES = {kind: spec.dims for kind, spec in PROBES.items()}

SEEDS = 3
RATE, MOMENTUM = 0.1, 0.9
BURN_IN, WINDOW, EVERY, LOG = 1200, 400, 10, 20
END = BURN_IN + WINDOW
FLOOR, EXCESS = 0.3, 0.2  # loss at no rate; excess at the base rate
CONFIG = {
    "name": "synthetic",
    "command": "lrtraj-reproduce --config=configs/reproduce_digits.py",
    "seeds": SEEDS,
    "batch_size": 32,
    "learning_rate": RATE,
    "momentum": MOMENTUM,
    "burn_in": BURN_IN,
    "window": WINDOW,
    "pairs": {"seeds": SEEDS, "factor": 0.25},
    "speed": {"seeds": SEEDS, "factor": 0.125},
    "probe_seeds": SEEDS,
    "one_step": {"iterates": 6},
    "probes": {"steps": [], "trip_steps": []},
}
_HERE = pathlib.Path(__file__).parent


def groups():
    """The modules of records, in the order of their names."""
    if str(_HERE) not in sys.path:
        sys.path.insert(0, str(_HERE))
    names = sorted(path.stem for path in _HERE.glob("records_*.py"))
    return [importlib.import_module(name) for name in names]


def accuracy(loss):
    """An accuracy that falls as the loss rises."""
    return float(np.clip(1.0 - 0.2 * loss, 0.0, 1.0))


def row(loss, on, **fields):
    images = {"train": 1437, "train_part": 1000, "test": 360, "test_part": 300}[on]
    return {**fields, "set": on, "loss": float(loss), "accuracy": accuracy(loss), "images": images}


def around(random, value, relative=0.001):
    return float(value * (1.0 + relative * random.standard_normal()))


def at_rate(divisor):
    return FLOOR + EXCESS / divisor


def scored(random, loss, relative=0.001, sets=("train", "test"), **fields):
    """Rows of one state on two sets of images, the second with a loss higher by 0.1."""
    return [
        row(around(random, loss + more, relative), on, **fields)
        for on, more in zip(sets, (0.0, 0.1), strict=True)
    ]


PART = ("train_part", "test")


def probed(kind, about, coordinates, values, **other_axes):
    """A probe record; its values are over the axes that claims expect of that kind."""
    axes = {name: {**AXES[kind], **other_axes}[name] for name in values}
    record = ArrayRecord.empty(kind, coordinates, axes, about)
    for name, value in values.items():
        record.put(name, ..., value)
    return record


def build(folder, seeds=SEEDS):
    """Writes every record into `folder`, for so many seeds, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "seeds": seeds}
    write_json(folder / "config.json", config)
    write_json(folder / "run.json", {"status": "done", "format": 1})
    number = 0
    for group in groups():
        for task, make in group.TASKS.items():
            number += 1
            assert not (folder / "measured" / task).exists(), f"two groups make {task}"
            (folder / "measured" / task).mkdir(parents=True, exist_ok=True)
            for seed in range(1 if task in ONCE else seeds):
                content = {"task": task, "seed": seed, "about": {}, "rows": []}
                content |= make(np.random.default_rng([number, seed]), seed)
                write_json(folder / "measured" / task / f"seed{seed}.json", content)
        for name, make in group.PROBES.items():
            number += 1
            for seed in range(seeds):
                place = folder / "probes" / f"seed{seed}"
                place.mkdir(parents=True, exist_ok=True)
                record = make(np.random.default_rng([number, seed]), seed)
                assert record.complete, name
                record.write(place / f"{name}.npz")
    return folder


def smoke(folder):
    """Records of one seed, as a smoke test leaves them."""
    build(folder, seeds=1)
    one = {"seeds": 1}
    config = {**read_json(folder / "config.json"), "probe_seeds": 1, "judged": False}
    write_json(folder / "config.json", {**config, "pairs": one, "speed": one})
    return folder


def judgements(folder):
    """Claim → what its judge says of the records in a folder."""
    return {claim.id: found for claim, found in claims.Study(folder).judgements.items()}


def judged(folder, key):
    (claim,) = claims.chosen([key])
    return claims.judge(claim, claims.Records(folder))


def contents(folder, task):
    """The file of every seed of a task."""
    return [read_json(folder / "measured" / task / f"seed{seed}.json") for seed in range(SEEDS)]


def probes(folder, name):
    """A probe record of every seed."""
    return [
        ArrayRecord.read(folder / "probes" / f"seed{seed}" / f"{name}.npz") for seed in range(SEEDS)
    ]


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
    edit_probe_by_seed(folder, pattern, lambda record, seed: change(record))


def edit_probe_by_seed(folder, pattern, change):
    """The same, of `change(record, seed)`."""
    paths = sorted(folder.glob(f"probes/seed*/{pattern}.npz"))
    assert paths, pattern
    for path in paths:
        record = ArrayRecord.read(path)
        change(record, int(path.parent.name.removeprefix("seed")))
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


def changed(task, change):
    """A spoil that applies `change(content)` to every seed's file of a task."""
    return lambda folder: edit(folder, task, change)


def spoil_rows(task, field, factor, **wanted):
    """A spoil that scales a field of the rows that fit, in every seed's file of a task."""
    return changed(task, lambda content: scale(content, field, factor, **wanted))


def scatter_rows(task, field, relative, **wanted):
    """A spoil that makes the seeds differ, so that they decide nothing.

    Seed k's field is multiplied by 1 + `relative` times one of -1, 0, 1.
    """

    def change(content):
        scale(content, field, 1.0 + relative * (content["seed"] % 3 - 1), **wanted)

    return changed(task, change)
