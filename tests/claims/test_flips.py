"""Records edited to contradict a claim turn its verdict; every part of every claim is tried.

Each entry: claim, what is wrong, how the records are spoiled, and words of the reason.
"""

import numpy as np
import pytest

from tf_lrtraj import claims
from tf_lrtraj.records import ArrayRecord

NOT, OPEN = "not reproduced", "inconclusive"


def found(folder, key):
    return claims.make_ledger(folder, claims.chosen([key]))["claims"][0]


def put(name, index, change):
    """A change of a value of a probe record."""

    def apply(record: ArrayRecord):
        record.values[name][index] = change(record.values[name][index])

    return apply


def probe(pattern, *changes):
    def spoil(make, folder):
        for change in changes:
            make.edit_probe(folder, pattern, change)

    return spoil


def rows(task, field, factor, **wanted):
    def spoil(make, folder):
        make.edit(folder, task, lambda content: make.scale(content, field, factor, **wanted))

    return spoil


def content(task, change):
    def spoil(make, folder):
        make.edit(folder, task, change)

    return spoil


def grow(record):
    """Curves whose gain lasts three times as long as the stationary state allows."""
    rates = record.coordinates["rate"]
    u = rates / rates[10]
    start = record.values["others_each"][:1]
    record.values["others_each"][...] = start - 0.04 * (u - u**2 / 1.8)[:, None, None]


def narrow(record):
    """Curves that are best at nine tenths of the rate where their gain ends."""
    u = record.coordinates["rate"] / record.coordinates["rate"][10]
    start = record.values["others_each"][:1]
    shape = np.where(u < 0.9, -u, -0.9 + 9.0 * (u - 0.9))
    record.values["others_each"][...] = start + 0.04 * shape[:, None, None]


def barrier(kind, height):
    """A bump on the segments of one kind."""

    def change(record):
        t = record.coordinates["position"]
        bump = height * 4.0 * t * (1.0 - t)
        for i, name in enumerate(record.coordinates["second"].tolist()):
            first = record.coordinates["first"][i]
            is_end = name.startswith("trip") and first.startswith("trip")
            to_main = name.startswith("main") and first.startswith("trip")
            if kind == "ends" and is_end:
                record.values["loss"][i, 0] += bump[:, None]
            if kind == "main" and to_main:
                record.values["held_out_loss"][i, 0] += bump[:, None]

    return change


def fall(record):
    """Held-out loss lower at the ends of trips than at their starts."""
    t = record.coordinates["position"]
    for i, name in enumerate(record.coordinates["second"].tolist()):
        if name.startswith("main"):
            record.values["held_out_loss"][i, 0] += (2.0 * t - 1.0)[:, None]


def walk(recorded):
    recorded["mean_squared"] = [0.02 * lag for lag in recorded["lags"]]
    recorded["standard_error"] = [0.0002 * lag for lag in recorded["lags"]]


def late(recorded):
    """Displacement that is level at the last lags and took long to get there."""
    lags = recorded["lags"]
    recorded["mean_squared"] = [1.0 if lag < 80 else 4.0 for lag in lags]
    recorded["standard_error"] = [0.02 for _ in lags]


def linear(recorded):
    for entry in recorded["rows"]:
        entry["squared_distance"] = (40.0 * entry["learning_rate"]) ** 2 / 4.0


def cloud(recorded):
    recorded["squared_distance"] = [
        square * (1.0 + 0.5 * (-1) ** i) for i, square in enumerate(recorded["squared_distance"])
    ]
    recorded["about"]["predicted_cv"] = 0.5


def distances(batches, formula):
    def change(recorded):
        for entry in recorded["rows"]:
            if entry["batches"] == batches:
                entry["squared_distance"] = formula(entry["step"], entry["learning_rate"])

    return content("pairs", change)


def every_run(factor):
    """All equivalent runs off by a factor."""
    return rows("equivalent", "loss", factor, of="run", set="train")


def points(n, factor):
    def spoil(make, folder):
        for gap in make.GAPS:
            rows("many_points", "loss", factor, points=n, gap=gap, set="train_part")(make, folder)

    return spoil


def raised(number, more):
    def change(recorded):
        for entry in recorded["rows"]:
            if entry.get("points") == number:
                entry["accuracy"] += more

    return content("many_points", change)


def predicted(factor, **wanted):
    def change(recorded):
        for entry in recorded["rows"]:
            fits = all(entry.get(key) == value for key, value in wanted.items())
            if fits and "predicted" in entry:
                for key in ("predicted", "low", "high"):
                    entry[key] *= factor

    return content("sweep", change)


def slim(recorded):
    for entry in recorded["rows"]:
        if "predicted" in entry:
            entry["low"], entry["high"] = 1.01 * entry["predicted"], 1.02 * entry["predicted"]


def simulate(name, factor):
    def change(recorded):
        recorded[name] = [factor * value for value in recorded[name]]

    return change


def shift(recorded):
    recorded["rates"] = [*recorded["rates"][1:], recorded["rates"][0]]


def early(recorded):
    recorded["collected"] = [step - 1 for step in recorded["collected"]]


def accuracy(method, more):
    def change(recorded):
        for entry in recorded["rows"]:
            if entry["method"] == method and entry["set"] == "test":
                entry["accuracy"] += more

    return content("budget", change)


FLIPS = [
    ("B1", "misfit", probe("line-*", put("fit_error", (1, 3), lambda v: v + 0.2)), "misfit"),
    ("B2", "no deep minimum", probe("line-*", put("train", ..., lambda v: v + 0.5)), "lowest"),
    (
        "B3",
        "best rates alike",
        probe("line-*", put("mean_best_rate", 1, lambda v: 8 * v)),
        "best rate",
    ),
    ("B3", "gains alike", probe("line-*", put("mean_gain", 1, lambda v: 40 * v)), "gain"),
    (
        "B3",
        "held-out improves too",
        probe("line-*", put("held_out_each", slice(1, None), lambda v: v - 3.0)),
        "held-out loss at",
    ),
    ("B4", "gain lasts", probe("one_step-*", grow), "gone at"),
    ("B4", "best too late", probe("one_step-*", narrow), "best rate"),
    (
        "B5",
        "own loss stays",
        probe("side_trip-*", put("train_loss", (..., slice(1, None)), lambda v: v + 0.3)),
        "after 4 steps",
    ),
    (
        "B5",
        "unequal starts",
        probe("side_trip-*", put("held_out_loss", ..., lambda v: v + 0.5)),
        "at the start, less 1",
    ),
    (
        "B5",
        "held-out falls",
        probe("side_trip-*", put("held_out_loss", (..., slice(5, 10), slice(None)), lambda v: 0.1)),
        "trip's end",
    ),
    ("B6", "ends apart", probe("basin", barrier("ends", 1.0)), "own loss between"),
    ("B6", "away from the run", probe("basin", barrier("main", 2.0)), "held-out loss between"),
    ("B6", "held-out falls", probe("basin", fall), "less that at their starts"),
    ("B7", "random walk", content("displacement", walk), "to the power"),
    ("B7", "slow", content("displacement", late), "half of it"),
    ("B8", "linear", content("rates", linear), "rate to the power"),
    ("B9", "cloud", content("shell", cloud), "varies by"),
    (
        "B9",
        "prediction off",
        content("shell", lambda c: c["about"].update(predicted_cv=0.02)),
        "predicts",
    ),
    ("B9", "average on the shell", rows("shell", "squared_distance", 4.0, average="ema"), "ema:"),
    (
        "B9",
        "average as high",
        rows("averages", "loss", 1.5, average="swa", set="train"),
        "swa: training loss",
    ),
    ("B10", "shared part", distances("shared", lambda t, rate: 1.0 + 0.1 * t), "shared batches"),
    (
        "B10",
        "independent walk",
        distances("independent", lambda t, rate: 40 * rate * t),
        "grows as time",
    ),
    (
        "B10",
        "same at every rate",
        distances("independent", lambda t, rate: 0.4 / rate * (1 - np.exp(-t / 40))),
        "less that at",
    ),
    ("B11", "aligned", probe("gradients-*", put("share", ..., lambda v: v + 0.5)), "two batches"),
    ("A1", "runs off", every_run(1.05), "run less average"),
    ("A2", "no gain", points(2, 1.3), "below that of single"),
    ("A2", "accuracy lost", raised(2, -0.1), "accuracy"),
    ("A2", "like the whole rate", points(2, 1.2), "half-way up"),
    ("A2", "like a quarter", points(2, 0.9), "half-way down"),
    ("A3", "like half the rate", points(4, 1.14), "half-way up"),
    ("A3", "far lower", points(8, 0.9), "half-way down"),
    ("A4", "emulation off", rows("decays", "loss", 1.05, of="emulated", decay="linear"), "linear"),
    ("A5", "training off", predicted(1.02, set="train_part"), "training loss: median"),
    ("A5", "held-out off", predicted(0.98, set="test_part"), "held-out loss: median"),
    (
        "A5",
        "optimum missed",
        rows("sweep", "measured", 1.1, average="optimal", chosen_on="train_part", set="test_part"),
        "held-out loss: training's optimal",
    ),
    ("A5", "bands too narrow", content("sweep", slim), "band"),
    (
        "A6",
        "no faster",
        content("two_time_scales", lambda c: c.update(ema_steps_to_level=8500)),
        "steps to the level",
    ),
    (
        "A6",
        "never there",
        content("two_time_scales", lambda c: c.update(ema_steps_to_level=None)),
        "steps to the level",
    ),
    (
        "A6",
        "average as noisy",
        content("two_time_scales", simulate("ema_simulated", 100.0)),
        "large rate over",
    ),
    ("A6", "network: no lower", rows("speed", "loss", 2.0, of="average"), "raw iterate's"),
    (
        "A6",
        "network: slower",
        rows("speed", "loss", 0.2, of="raw", learning_rate=0.0125),
        "small rate at equal",
    ),
    (
        "A7",
        "simulation off",
        content("two_time_scales", simulate("ema_simulated", 1.2)),
        "misses between",
    ),
    (
        "A7",
        "imprecise",
        content("two_time_scales", lambda c: [simulate(f"{n}_stderr", 50.0)(c) for n in NAMES]),
        "relative error",
    ),
    (
        "A7",
        "single runs off",
        content("single_runs", simulate("displacement_measured", 1.5)),
        "single runs",
    ),
    ("S1", "constant no better", accuracy("swa_constant", -0.05), "constant rate"),
    ("S1", "cyclical no better", accuracy("swa_cyclical", -0.05), "cyclical rate"),
    ("S2", "shifted", content("budget", shift), "deviation"),
    ("S2", "collected early", content("budget", early), "not collected"),
    (
        "S3",
        "two copies",
        content("cost", lambda c: c["about"].update(extra_bytes=2 * c["about"]["weights_bytes"])),
        "copies",
    ),
    ("S3", "slow", content("cost", simulate("update_seconds", 20.0)), "in time"),
    ("S4", "narrower", probe("width", put("held_out_accuracy", 1, lambda v: 9 * v - 8)), "rays"),
    (
        "S4",
        "worse at SWA",
        probe("sgd_to_swa", put("held_out_accuracy", ..., lambda v: v[:, :, ::-1])),
        "at SWA",
    ),
    (
        "S5",
        "members",
        probe("ensemble", put("pair_difference_exponent", ..., lambda v: 2.0)),
        "members",
    ),
    (
        "S5",
        "ensemble",
        probe("ensemble", put("ensemble_difference_exponent", ..., lambda v: 1.0)),
        "ensemble and averaged",
    ),
    ("S6", "no better than members", accuracy("fge_member", 0.05), "mean member"),
    ("S6", "no better than a run", accuracy("conventional", 0.05), "conventional run"),
    (
        "S7",
        "copied as good",
        rows("averages", "accuracy", 1.3, average="swa", policy="copy"),
        "copied ones",
    ),
]
NAMES = ("large", "ema", "small")


def test_every_claim_is_contradicted():
    assert {entry[0] for entry in FLIPS} == {claim.id for claim in claims.CLAIMS}


@pytest.mark.parametrize(
    ("key", "spoil", "words"),
    [pytest.param(key, spoil, words, id=f"{key}-{name}") for key, name, spoil, words in FLIPS],
)
def test_contradicting_records_turn_the_verdict(claim_records, folder, key, spoil, words):
    spoil(claim_records, folder)
    judged = found(folder, key)
    assert judged["verdict"] == NOT, judged["reason"]
    assert words in judged["reason"]
    assert judged["statistic"] and judged["numbers"]


@pytest.mark.parametrize("key", ["A1", "A4"])
def test_nothing_to_match_decides_nothing(claim_records, folder, key):
    """An average that does not differ from the raw iterate is no evidence for equivalence."""
    same = {"ema": 0.41, "swa": 0.39, "two_point": 0.40}

    def change(recorded):
        for entry in recorded["rows"]:
            if entry.get("average") in same:
                entry["loss"] *= 0.5 / same[entry["average"]]
            if entry.get("decay") in claim_records.DECAYS:
                entry["loss"] *= 0.5 / claim_records.DECAYS[entry["decay"]]

    claim_records.edit(folder, "equivalent" if key == "A1" else "decays", change)
    judged = found(folder, key)
    assert judged["verdict"] == OPEN
    assert "not surely more" in judged["reason"]
    assert "within -1 to 1" in judged["statistic"]


def test_the_best_equivalence_judges(claim_records, folder):
    """Two of three equivalences that fail are told and do not decide."""
    for kind in ("curvature_free", "curvature"):
        rows("equivalent", "loss", 1.05, of="run", share=1.0, equivalence=kind)(
            claim_records, folder
        )
    judged = found(folder, "A1")
    assert judged["verdict"] == "reproduced"
    assert judged["numbers"]["gap_ema_curvature_free"]["value"] > 5.0
    assert judged["numbers"]["gap_ema_spectrum"]["value"] < 1.0


def test_one_average_that_fails_is_named(claim_records, folder):
    rows("equivalent", "loss", 1.05, of="run", set="train", average="two_point")(
        claim_records, folder
    )
    judged = found(folder, "A1")
    assert judged["verdict"] == NOT
    assert "two_point" in judged["reason"] and "ema" not in judged["reason"]


def test_seeds_that_disagree_decide_nothing(claim_records, folder):
    """A mean within the threshold, an interval that reaches across it."""

    def change(recorded):
        for entry in claim_records.rows(recorded, of="run", set="train", average="swa"):
            entry["loss"] *= 1.0 + 0.01 * (recorded["seed"] - 1)

    claim_records.edit(folder, "equivalent", change)
    judged = found(folder, "A1")
    assert judged["verdict"] == OPEN
    assert "swa" in judged["reason"] and "ema" not in judged["reason"]


def test_one_seed_never_passes_what_needs_several(claim_records, tmp_path):
    folder = claim_records.build(tmp_path / "one", seeds=1)
    ledger = claims.make_ledger(folder)
    verdicts = {entry["id"]: entry["verdict"] for entry in ledger["claims"]}
    assert {verdicts[key] for key in ("A1", "A4", "S1", "S6", "S7")} == {OPEN}


def test_seeds_of_everything(claim_records, tmp_path):
    folder = claim_records.build(tmp_path / "three", seeds=3, single=3)
    ledger = claims.make_ledger(folder)
    assert ledger["counts"]["reproduced"] == len(claims.CLAIMS)
