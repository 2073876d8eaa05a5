"""Every claim: records that bear it out, that contradict it, and that are too few to tell."""

import pytest
import study_records

from tf_lrtraj import claims

GROUPS = study_records.groups()
FALSE = [case for group in GROUPS for case in group.FALSE]
FEW = [case for group in GROUPS for case in group.FEW]
TRUE = {key: make for group in GROUPS for key, make in getattr(group, "TRUE", {}).items()}
IDS = [claim.id for claim in claims.CLAIMS]


def found(folder, key):
    return claims.make_ledger(folder, claims.chosen([key]))["claims"][0]


@pytest.fixture(scope="module")
def entries(kept_records):
    return {entry["id"]: entry for entry in claims.make_ledger(kept_records)["claims"]}


@pytest.mark.parametrize("key", IDS)
def test_true_records_reproduce_it(entries, folder, key):
    entry = entries[key]
    if key in TRUE:
        TRUE[key](folder)
        entry = found(folder, key)
    assert entry["verdict"] == "reproduced", entry["reason"]
    wanted = {one.name for claim in claims.chosen([key]) for one in claim.wanted}
    for part in entry["parts"]:
        assert part["verdict"] == "reproduced"
        assert any(part["name"].startswith(name) for name in wanted), part["name"]
        assert set(part["wanted"]) == {"low", "high"}


def test_every_claim_is_contradicted_and_left_undecided():
    assert {key for key, *_ in FALSE} == set(IDS)
    assert {key for key, *_ in FEW} == set(IDS)


def test_every_wanted_number_is_contradicted(entries):
    """A number that nothing contradicts may be one that cannot fail."""
    for claim in claims.CLAIMS:
        for one in claim.wanted:
            tried = [part for key, part, _ in FALSE if key == claim.id]
            assert any(part.startswith(one.name) for part in tried), (claim.id, one.name)


@pytest.mark.parametrize(("key", "part", "spoil"), FALSE, ids=[f"{c[0]}-{c[1]}" for c in FALSE])
def test_false_records_contradict_it(folder, key, part, spoil):
    spoil(folder)
    entry = found(folder, key)
    failing = [p["name"] for p in entry["parts"] if p["verdict"] == "not reproduced"]
    assert any(name.startswith(part) for name in failing), (failing, entry["reason"])
    assert entry["verdict"] == "not reproduced", entry["reason"]


@pytest.mark.parametrize(("key", "spoil"), FEW, ids=[f"{c[0]}-{i}" for i, c in enumerate(FEW)])
def test_too_little_is_not_enough(folder, key, spoil):
    spoil(folder)
    entry = found(folder, key)
    assert entry["verdict"] == "inconclusive", entry["reason"]


def judged_with(folder, claim, **config):
    """What is said of records under a changed configuration."""
    records = claims.Records(folder)
    records.config |= config
    return claims.judge(claim, records)


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=IDS)
def test_a_smoke_test_has_no_verdicts(kept_records, claim):
    assert judged_with(kept_records, claim, judged=False).verdict == "not judged"


def test_parts_of_a_smoke_test_have_no_verdicts_either(one_seed):
    for entry in claims.make_ledger(one_seed)["claims"]:
        assert entry["verdict"] == "not judged" and entry["parts"], entry["reason"]
        assert {part["verdict"] for part in entry["parts"]} == {"not judged"}


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=IDS)
def test_a_scale_that_is_not_there_for_it(kept_records, claim):
    others = [other for other in IDS if other != claim.id]
    assert judged_with(kept_records, claim, claims=others).verdict == "not run at this scale"


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    return study_records.smoke(tmp_path_factory.mktemp("one") / "W")


@pytest.mark.parametrize("claim", [c for c in claims.CLAIMS if c.seeds > 1], ids=lambda c: c.id)
def test_one_seed_says_nothing_of_networks(one_seed, claim):
    found = judged_with(one_seed, claim, judged=True)
    assert found.verdict == "not measured" and "seed" in found.reason
