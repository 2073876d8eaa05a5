"""Records that are missing, damaged, of another shape or not finite are never a pass."""

import json

import numpy as np
import pytest

from tf_lrtraj import claims
from tf_lrtraj.claims import layout
from tf_lrtraj.records import ArrayRecord, read_json, write_json
from tf_lrtraj.report.study import markdown_page

NOT_MEASURED, OPEN = "not measured", "inconclusive"
NEEDED = sorted({task for claim in claims.CLAIMS for task in claim.needs})
TASKS = [task for task in NEEDED if task not in layout.PROBES_OF]
PATTERNS = [p for task in NEEDED for p in layout.PROBES_OF.get(task, ())]
OTHERS = [[], 3, None, {"about": []}, {"rows": {}}, {"rows": [1]}]


def concerned(name):
    """The claims that need a task or a probe."""
    return [c for c in claims.CLAIMS if any(f"/{name}" in pattern for pattern in c.records)]


@pytest.fixture(scope="module")
def read(kept_records):
    """Claim → tasks and patterns of probes that its judge reads of good records."""
    found = {}
    for claim in claims.CLAIMS:
        records = claims.Study(kept_records, [claim]).records
        found[claim.id] = {name for name, *_ in records._read}
    return found


def refused(folder, name, *words, verdicts=(OPEN,), read=None):
    """Every claim that needs the record, or reads it, has one of these verdicts, and says why."""
    some = [claim for claim in concerned(name) if read is None or name in read[claim.id]]
    entries = claims.make_ledger(folder, some)["claims"]
    assert entries, name
    for entry in entries:
        assert entry["verdict"] in verdicts, (entry["id"], entry["verdict"], entry["reason"])
        assert all(word in entry["reason"] for word in words), (entry["id"], entry["reason"])
    assert str(folder) not in json.dumps(entries)


def last(folder, task):
    return sorted((folder / "measured" / task).iterdir())[-1]


# Missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_without_a_seed_nothing_is_measured(folder, task):
    path = last(folder, task)
    path.unlink()
    name = f"measured/{task}/{path.name}"
    refused(folder, task, name, "missing", verdicts=[NOT_MEASURED])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_without_a_probe_nothing_is_measured(folder, pattern):
    for path in folder.glob(f"probes/seed0/{pattern}.npz"):
        path.unlink()
    refused(folder, pattern, f"probes/seed0/{pattern}.npz", verdicts=[NOT_MEASURED])


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if "*" in p])
def test_without_one_point_nothing_is_measured(folder, pattern):
    """The configuration tells at how many steps is probed."""
    paths = sorted(folder.glob(f"probes/seed0/{pattern}.npz"))
    if len(paths) < 2:
        pytest.skip("one point only")
    paths[0].unlink()
    refused(folder, pattern, f"{pattern}.npz (1 of ", verdicts=[NOT_MEASURED])


def test_an_empty_folder_has_no_verdict(tmp_path):
    write_json(tmp_path / "config.json", {"name": "large", "runs_here": False, "seeds": 3})
    ledger = claims.make_ledger(tmp_path)
    assert ledger["counts"] == ({NOT_MEASURED: len(claims.CLAIMS)} if claims.CLAIMS else {})
    assert ledger["scale"] == "large"


# Damaged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_half_a_file(folder, read, task):
    path = folder / "measured" / task / "seed0.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(
        folder, task, "A record cannot be used", f"measured/{task}/seed0.json", "damaged", read=read
    )


@pytest.mark.parametrize("task", TASKS)
def test_something_else_in_a_file(folder, read, task):
    path = folder / "measured" / task / "seed0.json"
    whole = read_json(path)
    for content in [*OTHERS, {**whole, "task": "another"}]:
        write_json(path, content)
        refused(folder, task, "A record cannot be used", f"measured/{task}/seed0.json", read=read)
    write_json(path, {"task": task, "seed": 0, "about": {}, "rows": []})
    refused(folder, task, verdicts=[OPEN, NOT_MEASURED], read=read)


def replaced(value, replacement):
    """A copy in which every number is replaced."""
    if isinstance(value, dict):
        return {key: replaced(item, replacement) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, replacement) for item in value]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return replacement if number else value


@pytest.mark.parametrize("task", TASKS)
def test_numbers_that_are_none(folder, read, task):
    path = last(folder, task)
    whole = read_json(path)
    for replacement in (float("nan"), float("inf"), None, "much", [], True):
        write_json(path, {**replaced(whole, replacement), "seed": whole["seed"]})
        refused(folder, task, verdicts=[OPEN, NOT_MEASURED], read=read)


def spoil_probes(folder, pattern, change):
    for path in folder.glob(f"probes/seed0/{pattern}.npz"):
        record = ArrayRecord.read(path)
        (change(record) or record).write(path)


def other_axes(record):
    """The right names over other coordinates are another measurement."""
    dims = dict.fromkeys(record.dims, ("odd",))
    odd = ArrayRecord.empty(record.kind, {"odd": np.arange(2)}, dims, record.about)
    for value in odd.values.values():
        value[...] = 1.0
    return odd


def no_values(record):
    record.values.clear()
    record.dims.clear()


def all_values(value):
    def change(record):
        for found in record.values.values():
            if found.dtype.kind == "f":
                found[...] = value

    return change


PROBE_CHANGES = {
    "of another kind": lambda record: setattr(record, "kind", "other"),
    "over other axes": other_axes,
    "without values": no_values,
    "not measured": all_values(np.nan),
    "overflowed": all_values(np.inf),
}


@pytest.mark.parametrize("change", PROBE_CHANGES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_probes_that_are_no_use(folder, read, pattern, change):
    spoil_probes(folder, pattern, PROBE_CHANGES[change])
    refused(folder, pattern, verdicts=[OPEN, NOT_MEASURED], read=read)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_half_a_probe(folder, read, pattern):
    path = sorted(folder.glob(f"probes/seed0/{pattern}.npz"))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(
        folder,
        pattern,
        "A record cannot be used",
        f"probes/seed0/{path.name}",
        "damaged",
        read=read,
    )


def test_one_damaged_file_hides_no_other_verdict(folder, read):
    def verdicts():
        return {claim.id: j.verdict for claim, j in claims.Study(folder).judgements.items()}

    before = verdicts()
    (folder / "measured" / TASKS[-1] / "seed0.json").write_text("{")
    after = verdicts()
    hidden = {key for key in after if TASKS[-1] in read[key]}
    assert hidden and {key for key in after if after[key] != before[key]} == hidden


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


@pytest.mark.parametrize("task", TASKS)
def test_whatever_is_wrong_is_told_and_not_raised(folder, task):
    """Eight random changes of a file: each claim gets a verdict, and all of them a page."""
    path = folder / "measured" / task / "seed0.json"
    whole = read_json(path)
    random = np.random.default_rng(len(task))
    for _ in range(8):
        write_json(path, mutated(random, whole))
        study = claims.Study(folder, concerned(task))
        for entry in study.ledger()["claims"]:
            assert entry["verdict"] in claims.VERDICTS and entry["reason"]
        assert markdown_page(study).startswith(b"# ")


def test_claims_read_only_what_they_need(read):
    """What they do not need is not known to be whole."""
    for claim in claims.CLAIMS:
        known = {p for task in claim.needs for p in layout.PROBES_OF.get(task, (task,))}
        assert read[claim.id] <= known, claim.id


def test_claims_need_what_the_plan_makes():
    from tf_lrtraj.study import task_plan

    assert set(NEEDED) <= {task.name for task in task_plan.TASKS}
