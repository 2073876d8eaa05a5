"""The ledger as a whole: order, counts, bytes, texts."""

import json
import pathlib
import shutil

import pytest

from tf_lrtraj import claims
from tf_lrtraj.records import RecordError, read_json, write_json

ROOT = pathlib.Path(__file__).parents[2]
IDS = [f"B{i}" for i in range(1, 12)] + [f"A{i}" for i in range(1, 8)]
IDS += [f"S{i}" for i in range(1, 8)]


@pytest.fixture(scope="module")
def ledger(kept_records):
    return claims.make_ledger(kept_records)


def test_every_claim_stands_in_order(ledger):
    assert [claim.id for claim in claims.CLAIMS] == IDS
    assert [entry["id"] for entry in ledger["claims"]] == IDS


def test_good_records_reproduce_every_claim(ledger):
    verdicts = {entry["id"]: (entry["verdict"], entry["reason"]) for entry in ledger["claims"]}
    assert {key: text for key, text in verdicts.items() if text[0] != "reproduced"} == {}
    assert ledger["counts"]["reproduced"] == len(IDS)


def test_equal_records_give_equal_bytes(kept_records, tmp_path):
    elsewhere = shutil.copytree(kept_records, tmp_path / "another" / "place")
    first = claims.write_ledger(elsewhere).read_bytes()
    (elsewhere / "run.json").write_text('{"status": "done", "seconds": 7}')
    assert claims.write_ledger(elsewhere).read_bytes() == first
    assert first == claims.ledger_bytes(claims.make_ledger(kept_records))
    assert str(tmp_path) not in first.decode()
    assert json.loads(first) == json.loads(json.dumps(read_json(elsewhere / "ledger.json")))


def test_the_page_is_in_step():
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == claims.claims_page()


def test_the_table_tells_every_claim(ledger):
    text = claims.ledger_text(ledger)
    assert all(f"\n{key} " in text for key in IDS)
    assert "25 reproduced" in text.splitlines()[-1]


def test_unknown_claims_are_named():
    with pytest.raises(ValueError, match="Received: B12"):
        claims.chosen(["A1", "B12"])


def test_a_damaged_configuration_is_an_error(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(RecordError, match=r"config\.json"):
        claims.make_ledger(folder)


def test_one_seed_too_few_is_not_run(folder):
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "seeds": 4})
    found = claims.make_ledger(folder, claims.chosen(["A1"]))["claims"][0]
    assert found["verdict"] == "not run at this scale"
    assert "measured/equivalent/seed3.json" in found["reason"]


def test_the_table_tells_why_not(folder):
    (folder / "measured" / "cost" / "seed0.json").unlink()
    (folder / "measured" / "rates" / "seed1.json").write_text("{")
    text = claims.ledger_text(claims.make_ledger(folder), width=200)
    assert "S3    not run at this scale  Not run: measured/cost/seed0.json missing." in text
    assert "B8    inconclusive           A record cannot be used: measured/rates/seed1.json" in text


def test_every_claim_argues_its_threshold():
    for claim in claims.CLAIMS:
        assert len(claim.argument) > 60 and len(claim.threshold) > 30
        assert claim.sentence.endswith(".") and claim.source and claim.experiment


def test_numbers_are_rounded_and_finite_or_said_not_to_be(ledger):
    for entry in ledger["claims"]:
        for name, interval in entry["numbers"].items():
            assert set(interval) == {"value", "low", "high"}, name
            assert all(value == float(f"{value:.6g}") for value in interval.values())
            assert interval["low"] <= interval["value"] <= interval["high"], (entry["id"], name)
