"""The ledger as a whole: order, counts, bytes, texts, and what becomes of judges that fail."""

import json
import pathlib
import shutil

import pytest

from tf_lrtraj import claims
from tf_lrtraj.claims import verdicts as v
from tf_lrtraj.records import RecordError, write_json

ROOT = pathlib.Path(__file__).parents[2]
IDS = [claim.id for claim in claims.CLAIMS]
GAIN = v.Wanted("gain", "gain of something", low=1.0)


def a_claim(judge, **fields):
    """A claim made by hand; it reads a record of two seeds."""
    texts = {"title": "Something is gained", "sentence": "Something is gained."}
    texts |= {"source": "a test", "experiment": "a run", "argument": "As the word says."}
    return claims.Claim(
        **{"id": "B1", "needs": ("things",), "wanted": (GAIN,), "judge": judge, **texts, **fields}
    )


def gained(records):
    found = [record.value("gain") for record in records.measured("things")]
    return v.conclude([GAIN.judge(found)], numbers=[v.ExtraNumber("n", "seeds", len(found))])


@pytest.fixture
def things(tmp_path):
    folder = tmp_path / "W"
    (folder / "measured" / "things").mkdir(parents=True)
    write_json(folder / "config.json", {"name": "small", "seeds": 2})
    for seed, gain in enumerate((2.0, 2.0 + 1e-7)):
        content = {"task": "things", "seed": seed, "rows": [{"gain": gain}]}
        write_json(folder / "measured" / "things" / f"seed{seed}.json", content)
    return folder


def judged(folder, claim):
    return claims.make_ledger(folder, [claim])["claims"][0]


def test_a_claim_with_its_verdict(things):
    entry = judged(things, a_claim(gained))
    assert entry["verdict"] == "reproduced" and entry["reason"] == "The part holds."
    (part,) = entry["parts"]
    assert part["wanted"] == {"low": 1.0, "high": None} and part["verdict"] == "reproduced"
    assert part["value"] == 2.0  # to six digits
    assert entry["numbers"] == [{"name": "n", "what": "seeds", "value": 2, "low": 2, "high": 2}]
    assert entry["command"] == "lrtraj-reproduce --claims=B1"
    assert entry["records"] == ["measured/things/seed*.json"]


def test_equal_records_give_equal_bytes(things, tmp_path):
    study = claims.Study(things, [a_claim(gained)])
    first = claims.write_ledger(study).read_bytes()
    elsewhere = shutil.copytree(things, tmp_path / "another" / "place")
    (elsewhere / "run.json").write_text('{"status": "done", "seconds": 7}')
    path = elsewhere / "measured" / "things" / "seed1.json"
    path.write_text(path.read_text().replace("2.0000001", "2.00000010001"))
    assert claims.ledger_bytes(claims.make_ledger(elsewhere, [a_claim(gained)])) == first
    assert str(tmp_path) not in first.decode()
    assert json.loads(first) == json.loads(json.dumps(study.ledger()))


@pytest.mark.parametrize(
    ("raised", "verdict", "said"),
    [
        (
            claims.NotMeasured("The records have no lag."),
            "not measured",
            "The records have no lag.",
        ),
        (RecordError("x is damaged"), "inconclusive", "A record cannot be used: x is damaged"),
        (ValueError("2 and 3"), "inconclusive", "do not fit together: ValueError: 2 and 3"),
        (ZeroDivisionError("0"), "inconclusive", "do not fit together: ZeroDivisionError"),
        (KeyError("rate"), "inconclusive", "do not fit together: KeyError"),
    ],
)
def test_a_judge_that_cannot_judge(things, raised, verdict, said):
    def fails(records):
        raise raised

    entry = judged(things, a_claim(fails))
    assert entry["verdict"] == verdict and said in entry["reason"]
    assert entry["parts"] == entry["conditions"] == entry["numbers"] == []


@pytest.mark.parametrize(
    ("config", "verdict", "said"),
    [
        ({"seeds": 3}, "not measured", "measured/things/seed2.json missing."),
        ({"seeds": 4}, "not measured", "measured/things/seed2.json and 1 more missing."),
        ({"seeds": 1}, "not measured", "1 seed of things, where 2 or more are needed"),
        ({"seeds": 1, "judged": False}, "not judged", "A smoke test"),
        ({"judged": False}, "not judged", "A smoke test"),
        ({"claims": ["A1"]}, "not run at this scale", "The scale small does not measure"),
        ({"claims": ["A1", "B1"]}, "reproduced", "The part holds."),
    ],
)
def test_what_a_configuration_says(things, config, verdict, said):
    write_json(things / "config.json", {"name": "small", "seeds": 2, **config})
    entry = judged(things, a_claim(gained))
    assert entry["verdict"] == verdict and said in entry["reason"]
    if verdict == "not judged":
        assert [part["verdict"] for part in entry["parts"]] == ["not judged"]


def test_one_seed_is_enough_where_a_claim_says_so(things):
    write_json(things / "config.json", {"seeds": 1})
    assert judged(things, a_claim(gained, seeds=1))["verdict"] == "reproduced"


def test_a_damaged_configuration_is_an_error(things):
    (things / "config.json").write_text("{")
    with pytest.raises(RecordError, match=r"config\.json"):
        claims.make_ledger(things)


def test_the_table_on_a_terminal(things):
    some = [a_claim(gained), a_claim(lambda records: records.measured("none"), id="A1")]
    text = claims.ledger_text(claims.make_ledger(things, some), width=80)
    first, *rows, last = text.splitlines()
    assert first.startswith("claim ") and max(map(len, rows)) <= 80
    assert rows[0].split() == ["B1", "reproduced", "Something", "is", "gained"]
    assert rows[2].startswith("A1    not measured           ")
    assert last == "scale small: 1 reproduced, 1 not measured"


def test_numbers_are_rounded_and_finite_or_said_not_to_be(kept_records):
    for entry in claims.make_ledger(kept_records)["claims"]:
        for number in [*entry["parts"], *entry["conditions"], *entry["numbers"]]:
            found = [number[key] for key in ("low", "value", "high")]
            assert all(value == float(f"{value:.6g}") for value in found), (entry["id"], number)
            assert found == sorted(found), (entry["id"], number)


# The claims that there are --------------------------------------------------------------------


def test_the_page_is_in_step():
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == claims.claims_page()


def test_claims_stand_in_order_and_unknown_ones_are_named():
    place = {letter: i for i, letter in enumerate("BASO")}
    assert sorted(set(IDS), key=lambda name: (place[name[0]], int(name[1:]))) == IDS
    with pytest.raises(ValueError, match="Received: claims='B99'"):
        claims.chosen(["B99"])


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_tells_what_decides_it(claim):
    assert claim.sentence.endswith(".") and not claim.title.endswith(".")
    assert claim.source and claim.experiment and len(claim.argument) > 60
    names = [wanted.name for wanted in claim.wanted]
    assert names and len(set(names)) == len(names)
    for wanted in claim.wanted:  # a line of a table, without its value
        assert 5 < len(wanted.what) <= 150, wanted.what
