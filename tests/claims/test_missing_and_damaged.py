"""Records that are missing, damaged, of another shape or not finite are never a pass."""

import json
import pathlib
import re

import numpy as np
import pytest

import tf_lrtraj
from tf_lrtraj import claims
from tf_lrtraj.claims import layout
from tf_lrtraj.records import ArrayRecord, read_json, write_json

NOT_RUN, OPEN = "not run at this scale", "inconclusive"
BY_ID = {claim.id: claim for claim in claims.CLAIMS}
MEASURED = [
    (claim.id, task)
    for claim in claims.CLAIMS
    for task in claim.needs
    if task not in layout.PROBES_OF
]
PROBED = [
    (claim.id, pattern)
    for claim in claims.CLAIMS
    for task in claim.needs
    for pattern in layout.PROBES_OF.get(task, ())
]


def judged(folder, key):
    return claims.make_ledger(folder, claims.chosen([key]))["claims"][0]


def refused(folder, key, *words):
    found = judged(folder, key)
    assert found["verdict"] == OPEN
    assert found["reason"].startswith("A record cannot be used:")
    assert all(word in found["reason"] for word in words), found["reason"]
    assert str(folder) not in json.dumps(found)


# Missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "task"), MEASURED)
def test_without_a_measured_record_nothing_is_run(folder, key, task):
    for path in (folder / "measured" / task).iterdir():
        path.unlink()
    found = judged(folder, key)
    assert found["verdict"] == NOT_RUN
    assert f"measured/{task}/seed0.json" in found["reason"]
    assert found["statistic"] == "" and found["numbers"] == {}


@pytest.mark.parametrize(("key", "task"), MEASURED)
def test_without_the_last_seed_nothing_is_run(claim_records, folder, key, task):
    last = sorted((folder / "measured" / task).iterdir())[-1]
    last.unlink()
    found = judged(folder, key)
    assert found["verdict"] == NOT_RUN
    assert f"measured/{task}/{last.name}" in found["reason"]


@pytest.mark.parametrize(("key", "pattern"), PROBED)
def test_without_a_probe_nothing_is_run(folder, key, pattern):
    for path in folder.glob(f"probes/seed0/{pattern}.npz"):
        path.unlink()
    found = judged(folder, key)
    assert found["verdict"] == NOT_RUN
    assert f"probes/seed0/{pattern}.npz" in found["reason"]


@pytest.mark.parametrize(
    ("key", "name"), [("B1", "line"), ("B5", "side_trip"), ("B11", "gradients")]
)
def test_without_one_point_nothing_is_run(folder, key, name):
    """The configuration tells at how many steps is probed."""
    sorted(folder.glob(f"probes/seed0/{name}-*.npz"))[0].unlink()
    found = judged(folder, key)
    assert found["verdict"] == NOT_RUN
    assert f"{name}-*.npz (1 of " in found["reason"]


def test_a_scale_that_was_not_run(tmp_path):
    write_json(tmp_path / "config.json", {"name": "large", "runs_here": False, "seeds": 3})
    ledger = claims.make_ledger(tmp_path)
    assert ledger["counts"][NOT_RUN] == len(claims.CLAIMS)
    assert ledger["scale"] == "large"


def test_an_empty_folder_has_no_verdict(tmp_path):
    assert claims.make_ledger(tmp_path)["counts"][NOT_RUN] == len(claims.CLAIMS)


# Damaged --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "task"), MEASURED)
def test_half_a_file(folder, key, task):
    path = folder / "measured" / task / "seed0.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(folder, key, f"measured/{task}/seed0.json", "damaged")


@pytest.mark.parametrize("content", [[], 3, None, {"about": []}, {"rows": {}}, {"rows": [1]}])
@pytest.mark.parametrize(("key", "task"), [("A1", "equivalent"), ("B7", "displacement")])
def test_something_else_in_a_file(folder, key, task, content):
    write_json(folder / "measured" / task / "seed0.json", content)
    refused(folder, key, f"measured/{task}/seed0.json")


@pytest.mark.parametrize(("key", "task"), MEASURED)
def test_the_record_of_another_task(folder, key, task):
    path = folder / "measured" / task / "seed0.json"
    write_json(path, {**read_json(path), "task": "another"})
    refused(folder, key, f"measured/{task}/seed0.json", "another task")


@pytest.mark.parametrize(("key", "task"), MEASURED)
def test_no_rows_and_no_arrays(folder, key, task):
    path = folder / "measured" / task / "seed0.json"
    write_json(path, {"task": task, "seed": 0, "about": {}, "rows": []})
    refused(folder, key, f"measured/{task}/seed0.json")


def spoilt(value, replacement):
    """A copy in which every number is replaced."""
    if isinstance(value, dict):
        return {key: spoilt(item, replacement) for key, item in value.items()}
    if isinstance(value, list):
        return [spoilt(item, replacement) for item in value]
    return replacement if isinstance(value, float) else value


@pytest.mark.parametrize("replacement", [float("nan"), float("inf"), None, "much", [], True])
@pytest.mark.parametrize(("key", "task"), MEASURED)
def test_numbers_that_are_none(folder, key, task, replacement):
    """Every fractional number of the last seed is something else; the file says so."""
    path = sorted((folder / "measured" / task).iterdir())[-1]
    content = read_json(path)
    if task == "cost" or task == "budget":  # their byte counts and steps are whole numbers
        content = {**content, "about": spoilt(content["about"], replacement)}
    write_json(path, spoilt(content, replacement))
    found = judged(folder, key)
    assert found["verdict"] == OPEN
    assert f"measured/{task}/{path.name}" in found["reason"]


@pytest.mark.parametrize(("key", "pattern"), PROBED)
def test_half_a_probe(folder, key, pattern):
    path = sorted(folder.glob(f"probes/seed0/{pattern}.npz"))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(folder, key, f"probes/seed0/{path.name}", "damaged")


@pytest.mark.parametrize(("key", "pattern"), PROBED)
def test_a_probe_of_another_kind(claim_records, folder, key, pattern):
    claim_records.edit_probe(folder, pattern, lambda record: setattr(record, "kind", "other"))
    refused(folder, key, "probes/seed0/", "record of 'other'")


READ = {
    "B1": "fit_error",
    "B2": "train",
    "B3": "held_out_each",
    "B4": "others_each",
    "B5": "train_loss",
    "B6": "loss",
    "B11": "share",
    "S4": "held_out_accuracy",
    "S5": "pair_difference_exponent",
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("key", "pattern"), PROBED)
def test_probes_that_are_not_measured_or_overflowed(claim_records, folder, key, pattern, value):
    def change(record):
        record.values[READ[key]][...] = value

    claim_records.edit_probe(folder, pattern, change)
    refused(folder, key, "probes/seed0/")


@pytest.mark.parametrize(("key", "pattern"), PROBED)
def test_probes_without_what_is_needed(claim_records, folder, key, pattern):
    def change(record):
        del record.values[READ[key]], record.dims[READ[key]]

    claim_records.edit_probe(folder, pattern, change)
    refused(folder, key, "probes/seed0/", READ[key])


@pytest.mark.parametrize(("key", "pattern"), PROBED)
def test_probes_over_other_axes(claim_records, folder, key, pattern):
    """The right name over other coordinates is another measurement."""
    for path in folder.glob(f"probes/seed0/{pattern}.npz"):
        record = ArrayRecord.read(path)
        coordinates = {**record.coordinates, "odd": np.arange(2)}
        odd = ArrayRecord.empty(
            record.kind, coordinates, {**record.dims, READ[key]: ("odd",)}, record.about
        )
        for name, value in record.values.items():
            odd.values[name][...] = 1.0 if name == READ[key] else value
        odd.write(path)
    refused(folder, key, "probes/seed0/", "over ('odd',)")


def test_points_by_other_names(claim_records, folder):
    def change(record):
        for end in ("first", "second"):
            record.coordinates[end] = np.array([f"p{n}" for n in record.coordinates[end]])

    claim_records.edit_probe(folder, "basin", change)
    refused(folder, "B6", "trip-STEP-BATCH")
    claim_records.edit_probe(folder, "sgd_to_swa", change)
    refused(folder, "S4", "'sgd' and 'swa'")


def test_a_rate_that_is_not_there(claim_records, folder):
    """Runs at the neighbouring rates are needed, and one of them is missing."""

    def change(content):
        content["rows"] = [row for row in content["rows"] if row["points"] != 4]

    claim_records.edit(folder, "lower_rates", change)
    refused(folder, "A3", "measured/lower_rates/seed0.json", "points=4")


def test_one_damaged_file_hides_no_other_verdict(folder):
    (folder / "measured" / "decays" / "seed1.json").write_text("{")
    counts = claims.make_ledger(folder)["counts"]
    assert counts == {
        "reproduced": len(claims.CLAIMS) - 1,
        "not reproduced": 0,
        OPEN: 1,
        NOT_RUN: 0,
    }


def test_claims_need_what_the_plan_makes():
    """The names of tasks, and whose numbers of seeds are whose, are those of the runner."""
    path = pathlib.Path(tf_lrtraj.__file__).parent / "experiments" / "reproduction" / "plan.py"
    source = path.read_text(encoding="utf-8")
    tasks = dict(re.findall(r'Task\(\s*"(\w+)",\s*[\w.()]+,\s*(_ALL|"[\w.]+"|\d+),', source))
    needed = {task for claim in claims.CLAIMS for task in claim.needs}
    assert needed <= set(tasks)
    for task in needed:
        seeds = ".".join(layout.SEEDS_OF.get(task, ("1",)))
        assert tasks[task].strip('"').replace("_ALL", "seeds") == seeds, task


def mutated(random, value):
    """A copy of JSON content with one random place replaced or removed."""
    if isinstance(value, (dict, list)) and value and random.uniform() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(random.integers(len(keys)))]
        copy = dict(value) if isinstance(value, dict) else list(value)
        if random.uniform() < 0.15:
            del copy[key]
        else:
            copy[key] = mutated(random, copy[key])
        return copy
    choices = [None, "x", [], {}, -1, 0, 1e300, float("nan"), float("inf"), True, [[1.0]], {"a": 1}]
    return choices[int(random.integers(len(choices)))]


@pytest.mark.parametrize("task", sorted({task for _, task in MEASURED}))
def test_whatever_is_wrong_is_told_and_not_raised(folder, task):
    """Eight random changes of a file: each claim gets a verdict."""
    path = folder / "measured" / task / "seed0.json"
    whole = read_json(path)
    keys = [key for key, needed in MEASURED if needed == task]
    random = np.random.default_rng(len(task))
    for _ in range(8):
        write_json(path, mutated(random, whole))
        for entry in claims.make_ledger(folder, claims.chosen(keys))["claims"]:
            assert entry["verdict"] in claims.VERDICTS and entry["reason"]
