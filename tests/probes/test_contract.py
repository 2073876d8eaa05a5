"""What holds of every probe: of every case in `probe_cases.py`, of every kind of bad input."""

import re

import keras
import numpy as np
import pytest
from probe_cases import CASES, FIRST, OF_LOSSES, Steps, shifted

from tf_lrtraj import probes
from tf_lrtraj.records import ArrayRecord, RecordError
from tf_lrtraj.specs import PROBES


def assert_same(found, wanted):
    assert found.kind == wanted.kind and found.dims == wanted.dims and found.about == wanted.about
    for name, axis in wanted.coordinates.items():
        np.testing.assert_array_equal(found.coordinates[name], axis, err_msg=name)
    for name, values in wanted.values.items():
        np.testing.assert_array_equal(found.values[name], values, err_msg=name)


def test_every_kind_has_a_case_and_every_part_is_measured():
    for kind, spec in PROBES.items():
        cases = [case for case in CASES.values() if case.kind == kind]
        assert {part for case in cases for part in case.parts} == set(spec.optional), kind


def test_a_record_is_complete_and_as_its_spec_says(made):
    record, spec = made.record, PROBES[made.case.kind]
    assert record.kind == spec.kind and record.complete
    assert record.dims == spec.dims_with(*made.case.parts)
    assert list(record.values) == list(record.dims)
    assert set(record.coordinates) <= set(spec.coordinates)
    assert_same(ArrayRecord.read(made.path), record)


def test_the_model_stays_as_it_was(made):
    assert made.untouched


def test_the_cost_told_first_is_the_cost(made):
    if made.name == "line recalibrated":
        pytest.skip("statistics at the start may be recomputed for every batch")
    text = made.told[0]
    assert text.startswith(f"{made.case.kind}: ")
    told = sum(float(re.search(r"([\d,]+) forward", t)[1].replace(",", "")) for t in made.told)
    if made.name in OF_LOSSES:
        gradients_kept = 6 * (len(made.told) - 1)  # the last direction, when a line grows
        assert 0 <= told - made.passes <= gradients_kept
    else:
        assert told == len(made.record.coordinates["step"])


def test_interrupted_again_and_again_it_gives_the_same_bits(made, tmp_path):
    """Every attempt starts anew from what the store holds."""
    path, clock, interruptions = tmp_path / "parts.npz", made.surface.clock, 0
    while True:
        probe = made.probe()
        clock.left = made.case.ticks + interruptions
        try:
            found = probes.measure(probe, path, progress=False)
            break
        except KeyboardInterrupt:
            interruptions += 1
            assert not ArrayRecord.read(path).complete
            assert interruptions < 100
        finally:
            clock.left = float("inf")
    assert interruptions > 1 or made.name == "gradients in sketches"  # three gradients in all
    for record in (found, ArrayRecord.read(path)):
        assert_same(record, made.record)
    probe = made.probe()
    # All is there: nothing is measured any more.  A trajectory's ends are read for checksums.
    clock.left = 0 if made.name in OF_LOSSES else 2
    try:
        assert_same(probes.measure(probe, path, progress=False), made.record)
    finally:
        clock.left = float("inf")


def test_a_store_of_other_measurements_is_refused(made, tmp_path, network):
    told = {"distance": "'first_weights|'last_weights", "separation": "'first_weights_a'"}
    other = "'(weights|points|members|directions|point_u|first_weights|last_weights)' is"
    with pytest.raises(RecordError, match=told.get(made.case.kind, other)):
        points = shifted(network.model, seed=4)
        probes.measure(made.probe(points=points), made.path)
    if made.name in OF_LOSSES:
        with pytest.raises(RecordError, match="'batches' is"):
            probes.measure(made.probe(batches=made.batches[::-1]), made.path)
        mode = "frozen" if made.case.mode.get("batch_norm") != "frozen" else "batch"
        surface = probes.Surface(network.model, network.loss, batch_norm=mode)
        with pytest.raises(RecordError, match=r"'(batch_norm|dropout)' is"):
            probes.measure(made.probe(surface=surface), made.path)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(made.path.read_bytes()[:-50])
    with pytest.raises(RecordError, match="damaged"):
        probes.measure(made.probe(), damaged)


# Eigenvalues refuse recalibrated statistics.
@pytest.mark.parametrize("name", [name for name in FIRST if name != "eigenvalues"])
def test_no_mode_moves_anything_of_the_model(network, name):
    points, before = shifted(network.model), network.state()
    mode = {"batch_norm": "recalibrated", "dropout": "pinned", "moment_batches": network.held_out}
    surface = probes.Surface(network.model, network.loss, **mode)
    record = probes.measure(CASES[name].build(surface, network.batches[:3], points), progress=False)
    assert record.complete and record.about["batch_norm"] == "recalibrated"
    assert network.state() == before


# Bad input ------------------------------------------------------------------------------------

W = np.zeros((5, 1))
OTHER = [np.zeros((4, 1))]
NAMED = {
    "one": np.ones(5), "same": np.ones(5), "two": np.full(5, 2.0), "again": np.full(5, 2.0),
    "four": np.full(5, 4.0), "off": np.arange(5.0), "short": np.ones(4),
}  # fmt: skip


def named(*names):
    return {name: [NAMED[name].reshape(-1, 1)] for name in names}


def run(steps, seed=0, shape=(5, 1)):
    rng = np.random.default_rng(seed)
    return {step: [rng.normal(size=shape)] for step in steps}


CALLS = {
    "line": (probes.Line, {"weights": None, "rates": [0.1, 0.2]}),
    "curvature": (probes.Curvature, {"weights": None}),
    "side_trip": (probes.SideTrip, {"weights": None, "num_steps": 2, "learning_rate": 0.1}),
    "width": (probes.Width, {"points": named("one"), "distances": [1.0]}),
    "basin": (probes.Basin, {"points": named("one", "off")}),
    "plane": (probes.Plane, {"points": named("one", "two", "off")}),
    "gradients": (probes.Gradients, {"weights": None}),
    "lagged_gradients": (probes.LaggedGradients, {"trajectory": run(range(0, 100, 10))}),
    "ensemble": (probes.Ensemble, {"members": named("one", "off"), "logits": False}),
    "distance": (probes.Distance, {"trajectory": run(range(0, 100, 10))}),
    "separation": (
        probes.Separation,
        {"trajectory_a": run(range(0, 50, 10)), "trajectory_b": run(range(0, 50, 10), 1)},
    ),
}
ASCENDING = "`distances` must be increasing numbers of at least 0, one of them positive"
BAD = [
    *((kind, {"batches": []}, "`batches` must hold at least 1 batch. Received: 0")
      for kind in ("line", "curvature", "width", "basin", "plane", "ensemble")),
    *((kind, {"held_out": []}, "`held_out` must hold at least 1 batch. Received: 0")
      for kind in ("line", "side_trip", "width", "basin", "plane")),
    *((kind, {"weights": OTHER}, "weights must be 1 arrays of the model's shapes")
      for kind in ("line", "curvature", "side_trip", "gradients")),
    *((kind, {"surface": keras.Sequential()}, "`surface` must be a probes.Surface")
      for kind in CALLS if kind not in ("distance", "separation")),
    ("line", {"rates": [0.0, 0.2, 0.1]}, "strictly increasing.*Received: rates=.0.0, 0.2, 0.1"),
    ("line", {"rates": [0.0, np.inf]}, "finite numbers of at least 0.*Received: rates="),
    ("line", {"bracket": "all"}, "`bracket` must be one of .* Received: bracket='all'"),
    ("line", {"extensions": -1}, "`extensions` must be .* at least 0. Received: extensions=-1"),
    ("line", {"direction": "newton"}, "`direction` must be one of .*direction='newton'"),
    ("line", {"direction": "momentum"}, "`velocity` must be given where .*Received: velocity=None"),
    ("line", {"direction": "momentum", "velocity": [W]}, "`learning_rate` must be a number ab"),
    ("line", {"direction": [np.zeros((2, 1))]}, r"`direction` must .* 1 arrays; .* \(2, 1\)"),
    ("side_trip", {"learning_rate": None}, "`learning_rate` or `optimizer` must be given"),
    ("side_trip", {"batches": []}, "`batches` must hold a batch for each"),
    ("side_trip", {"num_steps": 0}, "`num_steps` must be an integer of at least 1. .*num_steps=0"),
    ("side_trip", {"learning_rate": -1.0}, "`learning_rate` must be a positive number"),
    ("side_trip", {"learning_rate": [0.1]}, "one for each of the 2 steps"),
    ("side_trip", {"momentum": 1.0}, "`momentum` must be a number of at least 0 and below 1"),
    ("side_trip", {"weight_decay": -0.1}, "`weight_decay` must be a number of at least 0"),
    ("side_trip", {"velocity": [W]}, "`velocity` has no meaning without momentum"),
    ("side_trip", {"velocity": [np.zeros(3)], "momentum": 0.5}, r"`velocity` must be .* \(3,\)"),
    ("width", {"distances": [1.0, 1.0]}, ASCENDING),
    ("width", {"distances": [2.0, 1.0]}, r"Received: distances=\[2.0, 1.0\]"),
    ("width", {"distances": [-1.0, 1.0]}, ASCENDING),
    ("width", {"distances": [0.0]}, ASCENDING),
    ("width", {"distances": []}, ASCENDING),
    ("width", {"num_rays": 0}, "`num_rays` must be an integer of at least 1. Received: num_rays=0"),
    ("width", {"ray_kind": "layer"}, "`ray_kind` must be one of"),
    ("width", {"rise": 0.0}, "`rise` must be a number above 0. Received: rise=0.0"),
    ("width", {"points": {}}, "`points` must hold at least 1 points. Received: 0"),
    ("width", {"points": {"a": OTHER}}, "point 'a': weights must be 1 arrays"),
    ("basin", {"points": named("one")}, "`points` must hold at least 2 points. Received: 1"),
    ("basin", {"points": [W]}, "`points` must be a mapping of names to weights"),
    ("basin", {"level": 0.0}, "`level` must be a number above 0, or None. Received: level=0.0"),
    ("basin", {"pairs": [("one", "z")]}, "`pairs` must be pairs of different points"),
    ("basin", {"points": named("one", "short")}, "point 'short': weights must be 1 arrays"),
    ("basin", {"num": 2}, "`num` must be an integer of at least 3"),
    ("basin", {"extend": -0.1}, "`extend` must be two numbers of at least 0"),
    ("plane", {"points": named("one", "two")}, r"at least 3 points. Received: 2, \['one', 'two'"),
    ("plane", {"points": named("one", "two", "off", "four")}, "`points` must be three, for a"),
    ("plane", {"points": named("one", "two", "four")}, "'one', 'two' and 'four' lie on one line"),
    ("plane", {"points": named("one", "two", "again")}, "'one', 'two' and 'again' lie on one line"),
    ("plane", {"points": named("one", "same", "off")}, "'one', 'same' and 'off' of a plane must"),
    ("plane", {"points": named("one", "two", "short")}, "point 'short': weights must be 1 arrays"),
    ("plane", {"num": 1}, "`num` must be two integers of at least 2"),
    ("plane", {"num": (3, 3, 3)}, "`num` must be two integers"),
    ("plane", {"margin": -1.0}, "`margin` must be a number of at least 0"),
    ("plane", {"trajectory": [1]}, "`trajectory` must have `steps` and"),
    ("plane", {"trajectory": Steps(None, {0: [np.zeros((2, 1))]})},
     "step 0 of the trajectory: weights must be 1 arrays"),
    ("gradients", {"batches": 2}, "`batches` must hold at least 3 batches. Received: 2"),
    ("gradients", {"directions": {"d": OTHER}}, r"direction 'd'.* 1 arrays; .* number 0 of shape"),
    ("lagged_gradients", {"lags": [20, 10]}, r"`lags` must be ascending .*lags=\[20, 10\]"),
    ("lagged_gradients", {"lags": [10, 120]}, "at most 90.*Received: lags=120"),
    ("lagged_gradients", {"lags": [15]}, "Received: 15"),
    ("lagged_gradients", {"batches": 1}, "`batches` must hold at least 2 batches. Received: 1"),
    ("lagged_gradients", {"mean": "median"}, "`mean` must be one of .*Received: mean='median'"),
    ("lagged_gradients", {"lags": [10, 30], "memory_limit": 50},
     "of 4 steps must be held.*sketch_size.*lags up to 30"),
    ("lagged_gradients", {"trajectory": {0: [W], 4: OTHER, 8: [W]}},
     "step 4 of the trajectory: weights must be 1 arrays"),
    ("ensemble", {"members": named("one")}, r"at least 2 points. Received: 1, \['one'\]"),
    ("ensemble", {"members": named("one", "short")}, "point 'short': weights must be 1 arrays"),
    *(("ensemble", {"scales": scales}, "`scales` must be positive and descend from 1.*: scales=")
      for scales in ((0.5, 0.25), (1.0, 1.0), (1.0, 0.0), ())),
    ("distance", {"lags": [20, 10]}, r"`lags` must be ascending .*Received: lags=\[20, 10\]"),
    ("distance", {"lags": [10, 100]}, "at most 90.*Received: lags=100"),
    ("distance", {"trajectory": [1, 2]}, r"`.steps` and `.read\(step\)`.*Received: list"),
    ("distance", {"trajectory": {0: [W]}}, "at least 2 ascending step numbers"),
    ("distance", {"trajectory": {0: [np.zeros(2)], 1: [np.zeros(3)]}},
     r"step 1 with 1 arrays; .* number 0 of shape \(3,\)"),
    ("distance", {"reference": [np.zeros(7)]}, r"`reference` must be .* number 0 of shape \(7,\)"),
    ("distance", {"exact": False, "sketch_size": 0}, "`k` must be an integer.*Received: k=0"),
    ("distance", {"filters": True, "filter_axes": []}, "`filter_axes` must be axes for each of 1"),
    ("separation", {"trajectory_b": run(range(0, 50, 10), shape=(4, 2))}, "of one architecture"),
    ("separation", {"trajectory_b": run(range(5, 50, 10))}, "must have steps in common"),
    ("separation", {"trajectory_b": None}, "`trajectory_b` must have"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "message"), BAD)
def test_bad_input_is_named(least_squares, kind, changes, message):
    cls, given = CALLS[kind]
    given = {**given, **changes}
    if kind not in ("distance", "separation"):
        given.setdefault("surface", least_squares.surface)
        given.setdefault("batches", least_squares.batches[:3])
        if isinstance(given["batches"], int):
            given["batches"] = least_squares.batches[: given["batches"]]
    with pytest.raises(ValueError, match=message):
        probe = cls(**given)
        probes.measure(probe, progress=False)  # some weights are read as they are needed
