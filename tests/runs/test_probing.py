"""Probes of a run: it goes on as if there were none, and records can be had afterwards too."""

import dataclasses
import shutil

import numpy as np
import pytest

from tf_lrtraj import records
from tf_lrtraj.averaging import Snapshots
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.probe_figures import gallery
from tf_lrtraj.runs import train_run
from tf_lrtraj.runs.assembly import assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.probing import probe_run
from tf_lrtraj.runs.probing.probe_batches import ProbeBatches
from tf_lrtraj.runs.probing.run_points import RunWeights
from tf_lrtraj.runs.run_config import ConfigError, default_config, read_config
from tf_lrtraj.specs import PROBES, requestable
from tf_lrtraj.training.checkpoints import Checkpointer
from tf_lrtraj.training.strategies import make_strategy

SMALL = {"batches": 2, "batch_size": 16, "held_out_batches": 1}
# Every kind of probe, of single points while training and of several points at the end.
ALL = {
    "line": {"every": "8 steps", "start": "4 steps", "num": 4, "direction": "momentum", **SMALL},
    "line_on_gradient": {"probe": "line", "every": "10 steps", "num": 4, **SMALL},
    "curvature": {"every": "12 steps", "batches": 2, "batch_size": 16},
    "eigenvalues": {"every": "12 steps", "batches": 2, "batch_size": 16, "iterations": 2},
    "side_trip": {"every": "6 steps", "num_steps": 2, **SMALL},
    "gradients": {"every": "12 steps", "batches": 4, "batch_size": 16},
    "rays": {"probe": "width", "every": "12 steps", "num": 3, "rays": 2, **SMALL},
    "rays_of_points": {"probe": "width", "points": ["4", "last"], "num": 3, "rays": 2, **SMALL},
    "basin": {"points": ["4", "trip:4:1", "swa=Uniform(start=4)"], "num": 3, **SMALL},
    "plane": {"points": ["first", "6", "last"], "num": 3, **SMALL},
    "ensemble": {"points": ["4", "8", "last"], **SMALL},
    "gradients_along": {"probe": "gradients", "along": True, "batches": 3, "batch_size": 16},
    "distance": {},
}


def config_of(probes):
    config = default_config()
    for key, value in {
        "data.batch_size": 32,
        "data.augmentation": "crop",
        "model.width": 4,
        "total": "12 steps",
        "evaluate.every": "6 steps",
        "evaluate.batch_size": 250,
        "checkpoint.every": "4 steps",
        "snapshots.every": "2 steps",
        "batch_norm.batches": 2,
        "save_models": False,
        "loggers": (),
        "threads": 1,
    }.items():
        config.update_from_flattened_dict({key: value})
    config.averages = {"ema": {"kernel": "Exponential", "decay": 0.8}}
    config.probes = probes
    return config


def run(config, workdir):
    plain, dataset = train_run.prepare(config, workdir)
    strategy = make_strategy("one_device")
    train_run.run(plain, dataset, workdir, strategy, "one_device", tell=lambda text: None)
    return workdir


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    return run(config_of(ALL), tmp_path_factory.mktemp("probed"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return run(config_of({}), tmp_path_factory.mktemp("bare"))


def test_every_kind_of_probe_is_tried_here():
    kinds = {entry.get("probe", name) for name, entry in ALL.items()}
    assert kinds == set(requestable())


def test_a_run_with_all_probes_ends_as_one_without_to_the_bit(probed, bare):
    assert (probed / records.METRICS).read_bytes() == (bare / records.METRICS).read_bytes()
    found, expected = Snapshots(probed / "snapshots"), Snapshots(bare / "snapshots")
    assert found.steps.tolist() == expected.steps.tolist() == list(range(0, 13, 2))
    for step in found.steps.tolist():  # weights and batch-norm statistics on the way
        for one, other in zip(found.read(step), expected.read(step), strict=True):
            assert one.tobytes() == other.tobytes()
    # Optimizer, averages, and every variable of the model, seed generators included.
    ends = []
    for workdir in (probed, bare):
        config = read_config(workdir)
        assembly = assemble(config, load_dataset(config), make_strategy("one_device"))
        step, progress = Checkpointer(
            workdir / "checkpoints", assembly.checkpointed, writer=False
        ).restore()
        variables = [v for group in assembly.checkpointed.values() for v in group]
        ends.append((step, progress, [np.array(v.value).tobytes() for v in variables]))
    assert ends[0] == ends[1] and ends[0][0] == 12 and len(ends[0][2]) > 60


def test_every_probe_left_complete_records_and_a_figure(probed):
    groups = {group.name: group for group in gallery.groups(probed)}
    assert set(groups) == set(ALL)
    for name, group in groups.items():
        assert not group.problem, group.problem
        assert group.figure is not None, name
        assert all(record.complete for record in group.records), name
    steps = {name: [r.about.get("step") for r in g.records] for name, g in groups.items()}
    assert steps["line"] == [4, 12] and steps["side_trip"] == [0, 6, 12]
    lines = gallery.findings(probed)
    told = {
        "line",
        "line_on_gradient",
        "curvature",
        "side_trip",
        "gradients",
        "basin",
        "plane",
        "eigenvalues",
    }
    assert {line.removeprefix("probe ") for line in lines if line[0] != " "} >= told
    page = (probed / "report.html").read_text()
    assert all(group.title in page for group in groups.values())


def test_a_probe_of_a_snapshot_afterwards_measures_the_same(probed):
    config = read_config(probed)
    options = PROBES["line"].check({"num": 4, **SMALL})
    written = probe_run.probe_run(
        config,
        probed,
        "line",
        options,
        make_strategy("one_device"),
        steps=["10"],
        name="again",
        tell=lambda text: None,
    )
    during = ArrayRecord.read(probed / "probes" / "line_on_gradient-000000010.npz")
    after = ArrayRecord.read(written[0])
    assert after.about == during.about
    for name, values in during.values.items():
        np.testing.assert_array_equal(after.values[name], values)
    for path in written[:-1]:  # the last is the report
        path.unlink()


def test_two_runs_on_the_same_batches_are_nowhere_apart(probed, bare):
    options = PROBES["distance"].check({"other": str(bare)})
    strategy = make_strategy("one_device")
    path, *drawn = probe_run.probe_run(
        read_config(probed), probed, "distance", options, strategy, name="apart"
    )
    record = ArrayRecord.read(path)
    assert record.kind == "separation" and record.complete
    assert not record.values["distance"].any() and record.values["norm_a"].all()
    for written in [path, *drawn[:-1]]:
        written.unlink()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"lime": {"every": "1 epochs"}}, "Did you mean 'line'"),
        ({"line": {"num": 8}}, "needs `every`"),
        ({"line": {"every": "1 epochs", "rays": 3}}, "not an option of the probe 'line'"),
        ({"line": {"every": "1 epochs", "num": 2}}, "`config.probes.line.num`.*at least 3.*num=2"),
        ({"line": {"every": "1 epochs", "low": 2.0}}, "line.low` must be below `high`"),
        ({"line": {"every": "90 parsecs"}}, "90 parsecs"),
        ({"basin": {"points": ["last"]}}, "at least 2 points"),
        ({"basin": {"points": ["first", "last"], "every": "1 epochs"}}, "Leave out `every`"),
        ({"line": 3}, "config.probes.line"),
        ({"line": {"every": "1 epochs", "held_out": "tset"}}, r"config.probes.line.*\['test'\]"),
        (
            {"line": {"every": "1 epochs", "held_out_batches": 16}},
            "at most 15, of 500 images",
        ),
        # 40 batches of 32 there are; a line takes steps on 38 and looks at 4 others
        ({"line": {"every": "1 epochs", "batches": 38}}, "42 training batches of 32"),
        ({"basin": {"points": ["first", "lost"]}}, "config.probes.basin.*lost"),
        ({"basin": {"points": ["first", "7"]}}, "0, 2, 4, 6, 8, 10, 12. Received: step='7'"),
        ({"basin": {"points": ["trip:6:8", "last"]}}, "8 training batches, from 0.*trip:6:8"),
        ({"width": {"points": ["w=TwoPoint(gap=0)"]}}, "the point 'w=TwoPoint"),
        ({"distance": {"first": "10"}}, "at least 3 equally spaced snapshots"),
        ({"distance": {"other": "no/such/run"}}, "`other` must be the workdir.*no/such/run"),
    ],
)
def test_mistakes_are_told_before_anything_runs(entry, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_run.prepare(config_of(entry), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_step_along_the_velocity_needs_momentum(tmp_path):
    config = config_of({"line": {"every": "1 epochs", "direction": "momentum"}})
    config.optimizer.momentum = 0.0
    with pytest.raises(ConfigError, match=r"config\.probes\.line`: the run has no momentum"):
        train_run.prepare(config, tmp_path / "run")


def test_points_that_are_not_there(probed):
    config = read_config(probed)
    assembly = assemble(config, load_dataset(config), make_strategy("one_device"))
    run_weights = RunWeights(assembly, probed)
    assert run_weights.nearest("50%") == 6 and run_weights.nearest("first") == 0
    with pytest.raises(ConfigError, match="'7'"):
        run_weights.nearest("7")
    with pytest.raises(ConfigError, match="two points are named 'last'"):
        run_weights.named(["last=4", "last=6"])
    with pytest.raises(ConfigError, match="needs a checkpoint"):
        run_weights.velocity(6)
    with pytest.raises(records.RecordError, match="neither snapshots nor checkpoints"):
        RunWeights(assembly, probed / "probes")


def test_snapshots_of_another_architecture(probed, tmp_path):
    config = read_config(probed)
    config["model"]["width"] = 8
    assembly = assemble(config, load_dataset(config), make_strategy("one_device"))
    with pytest.raises(ConfigError, match="of another model"):
        RunWeights(assembly, probed)


def test_batches_larger_than_the_data():
    config = train_run.validate(config_of({}))
    dataset = load_dataset(config)
    assembly = dataclasses.make_dataclass("Parts", ["config", "dataset"])(config, dataset)
    count = dataset.num_examples["train"]
    with pytest.raises(ConfigError, match=f"`batch_size` must be .* at most {count}"):
        ProbeBatches(assembly, batch_size=count + 1)
    batches = ProbeBatches(assembly, batch_size=100)
    with pytest.raises(ConfigError, match="without repeating an image"):
        batches.training(count // 100 + 1)
    with pytest.raises(ConfigError, match="at most 5, of 500 images of 'test'"):
        batches.held_out("test", 10)
    with pytest.raises(ConfigError, match=r"one of \['test'\]"):
        batches.held_out("validation", 1)


def test_a_run_begun_before_there_were_probes_goes_on(probed, tmp_path):
    config = records.read_json(probed / records.CONFIG)
    del config["probes"]
    records.write_json(tmp_path / records.CONFIG, config)
    train_run.prepare(config_of({}), tmp_path)
    with pytest.raises(records.RecordError, match=r"probes\.line\.every: there \(absent\)"):
        train_run.prepare(config_of({"line": {"every": "4 steps"}}), tmp_path)


def test_a_matched_run_is_probed_under_its_own_rates(probed, tmp_path, monkeypatch):
    matched = shutil.copytree(probed, tmp_path / "run")
    rates = np.linspace(0.5, 0.1, 12)
    records.write_schedule(matched / records.SCHEDULE, rates)
    given = []

    def stop(config, dataset, strategy, learning_rates=None):
        given.append(learning_rates)
        raise ConfigError("far enough")

    monkeypatch.setattr(probe_run, "assemble", stop)
    with pytest.raises(ConfigError, match="far enough"):
        probe_run.probe_run(
            read_config(matched), matched, "side_trip", {}, make_strategy("one_device")
        )
    np.testing.assert_array_equal(given[0], rates)
