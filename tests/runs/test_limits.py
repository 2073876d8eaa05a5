"""What a run takes is estimated before anything is built, and refused by the entry's name."""

import importlib
import pathlib

import numpy as np
import pytest
import run_helpers

from tf_lrtraj import kernels, memory
from tf_lrtraj.models import Size, resnet_size
from tf_lrtraj.runs import train_run
from tf_lrtraj.runs.assembly import assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.cost_estimates import check_counts, check_run, needs, size_of
from tf_lrtraj.runs.run_config import ConfigError, default_config, resolve, validate
from tf_lrtraj.training.strategies import make_strategy

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
GB = 10**9


def changed(**changes):
    config = default_config()
    config.averages = {"two_point": {"kernel": "TwoPoint", "gap": 20}}
    return validate(run_helpers.changed(config, **changes))


def check(config, shape=(8, 8, 1), classes=10, examples=1297, **options):
    averages = {n: kernels.from_config(entry) for n, entry in config["averages"].items()}
    check_counts(config, examples)
    check_run(config, averages, size_of(config, shape, classes), **options)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"model__width": 200_000}, (8, 8, 1), r"`config.model.width` .*about [\d,.]+ TB or more"),
        ({"model__depth": 8_000_000}, (8, 8, 1), r"`depth` must be at most 200.*8000000"),
        ({"averages__two_point__gap": 10**9}, (8, 8, 1), r"`config.averages.two_point` .* TB"),
        ({"batch_norm__batches": 10**7}, (8, 8, 1), r"`config.batch_norm.batches` must be at most"),
        ({"evaluate__batch_size": 2 * 10**9}, (8, 8, 1), r"`config.evaluate.batch_size` asks for"),
        ({"data__batch_size": 1297}, (3000, 3000, 3), r"`config.data.batch_size` asks for"),
        ({"evaluate__batch_size": 5000}, (3000, 3000, 3), r"`config.(data|evaluate).batch_size` a"),
        ({"data__batch_size": 1298}, (8, 8, 1), r"number of training images, 1297. .*=1298"),
    ],
)
@pytest.mark.parametrize("available", [8 * GB, 100 * GB])
def test_what_does_not_fit_is_refused_by_name(changes, shape, message, available):
    with pytest.raises(ConfigError, match=message) as error:
        check(changed(**changes), shape, available=available)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("available", "replicas", "fits"),
    [(97, 1, True), (95, 1, False), (102, 2, False), (105, 2, True), (None, 8, True)],
)
def test_the_bound_is_the_memory_of_all_replicas(available, replicas, fits):
    # ResNet-8 has 77,754 weights here, of which every replica has 3 copies, and 21 for the average:
    # 7.5 MB.  Convolutions give 3·16·32² + 3·32·16² + 3·64·8² numbers, kept twice for each of 128
    # images, and the images: 88.6 MB, which they share.
    options = {"replicas": replicas, "available": None if available is None else available * 10**6}
    if fits:
        check(changed(), (32, 32, 1), **options)
    else:
        with pytest.raises(ConfigError, match="the machine has"):
            check(changed(), (32, 32, 1), **options)


def test_where_memory_is_not_known_only_the_absurd_is_refused():
    check(changed(model__width=4000), available=None)
    with pytest.raises(ConfigError, match="no device has so much"):
        check(changed(model__width=400_000), available=None)


def test_estimates_are_what_is_held():
    config = validate(default_config())
    config["averages"] = {
        "ema": {"kernel": "Exponential", "decay": 0.9},
        "slow": {"kernel": "Exponential", "decay": 0.9999},  # float64
        "window": {"kernel": "Window", "length": 3, "every": 2},
    }
    assembly = assemble(config, load_dataset(config), make_strategy("one_device"))
    size = resnet_size(8, 10, (8, 8, 1), "cifar", 16)
    found = needs(size, assembly.plan.averages, batch_size=1, eval_batch_size=1)
    held = assembly.averages.memory_bytes()
    assert {name: found[f"averages.{name}"] for name in held} == held
    velocity = sum(
        int(np.prod(v.shape)) for v in assembly.optimizer.variables if "momentum" in v.path
    )
    weights = sum(int(np.prod(v.shape)) for v in assembly.model.variables)
    assert found["weights"] == 4 * (weights + velocity + size.trainable)


def test_of_training_and_evaluation_the_larger_counts():
    size = Size(trainable=10, activations=100, largest=40)
    small = needs(size, {}, batch_size=2, eval_batch_size=1, momentum=False)
    assert small == {"weights": 80, "batch_size": 800}
    assert needs(size, {}, batch_size=2, eval_batch_size=9)["eval_batch_size"] == 4 * 9 * 2 * 40
    half = needs(size, {}, batch_size=2, eval_batch_size=1, bytes_per_activation=2)
    assert half["batch_size"] == 400


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*_*.py")), ids=lambda path: path.stem)
def test_shipped_configurations_fit(path):
    config = importlib.import_module(f"configs.{path.stem}").get_config()
    if "schedule" not in config:
        pytest.skip("no single run")
    small = "cpu" in path.stem or "digits" in path.stem
    shape, classes = ((32, 32, 3), 10) if small else ((224, 224, 3), 1000)
    plain = validate(config)
    plan = resolve(plain, 1_281_167)
    size = size_of(plain, shape, classes)
    check_run(plain, plan.averages, size, available=4 * GB if small else None)


def test_the_program_compares_with_the_machine(monkeypatch, tmp_path):
    assert memory.total() > GB
    monkeypatch.setattr(memory, "total", lambda: 10**6)
    with pytest.raises(ConfigError, match=r"and the machine has 1.0 MB"):
        train_run.prepare(default_config(), tmp_path / "run", make_strategy("one_device"))
    assert not (tmp_path / "run").exists()
