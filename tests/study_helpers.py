"""What the tests of the study share."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest

from tf_lrtraj import records
from tf_lrtraj.study import problem, run_study
from tf_lrtraj.study.session import Session

TINY = pathlib.Path(__file__).parent / "study/tiny_study.py"
IMAGES = {}  # task → images that went forward through networks when the tiny study was made


def tiny():
    spec = importlib.util.spec_from_file_location("tiny_study", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def some(whole):
    """200 training images, so that an epoch is 12 updates and scores are quick."""
    kept = (whole.x_train[:200], whole.y_train[:200], whole.x_test[:200], whole.y_test[:200])
    return problem.Problem(*kept, 10)


def few(patch):
    """Every session has these images only."""
    load = problem.load_problem
    patch.setattr("tf_lrtraj.study.session.load_problem", lambda config: some(load(config)))


def opened(config, folder):
    """A session on these images."""
    session = Session(config, folder, str, progress=False)
    session.problem = some(session.problem)
    return session


def beside(session, folder, config=None, *links):
    """A session in another folder, which shares the network and links parts of the first's."""
    other = Session(config or session.config, folder, str, progress=False)
    for name in links:
        (folder / name).symlink_to(session.folder / name)
    for name in ("problem", "model", "surface", "trainer", "scorer"):
        setattr(other, name, getattr(session, name))
    return other


def make(folder, needed=None, page=False):
    """All of it; drawing the page takes longer than the work, so it is drawn where it counts."""
    config = run_study.prepare(tiny(), folder)
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr("tf_lrtraj.report.study.study_page.write_page", lambda study: None)
        return run_study.run(config, folder, needed, tell=str, progress=False)


def rows(session, task, **wanted):
    found = records.read_json(session.record_path(task, 0))["rows"]
    return [row for row in found if all(row.get(k) == v for k, v in wanted.items())]


def vector(session, arrays):
    count = len(session.model.trainable_variables)
    return np.concatenate([np.float64(a).ravel() for a in arrays[:count]])


def walk(session, run="base", which="window"):
    """Step → weights of the iterates that were kept, each in one vector."""
    snapshots = session.snapshots(0, run, which)
    return {step: vector(session, snapshots.read(step)) for step in snapshots.steps.tolist()}


def loss_at(session, weights, batch, training=True):
    """The loss by Keras' own forward pass of a copy of the model."""
    model = keras.models.clone_model(session.model)
    trainable = weights[: len(model.trainable_variables)]
    for variable, array in zip(model.trainable_variables, trainable, strict=True):
        variable.assign(array)
    return float(session.loss(batch[1], model(batch[0], training=training)))


def keras_iterates(session, rates, weights=None, order=0, first=0):
    """Step → trainable weights of a plain loop over `train_on_batch` with Keras' own optimizer."""
    model = problem.build_model(session.config, session.problem, seed=0)
    momentum = session.config["momentum"]
    model.compile(keras.optimizers.SGD(rates[0], momentum=momentum), session.loss)
    if weights is not None:
        for variable, array in zip(model.trainable_variables, weights, strict=True):
            variable.assign(array)
    batches = problem.Batches(session.problem, 16, order, first, len(rates))
    found = {}
    for index, rate in enumerate(rates):
        model.optimizer.learning_rate = rate
        model.train_on_batch(*batches[index])
        arrays = [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
        found[first + index + 1] = arrays
    return found
