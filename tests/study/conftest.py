"""One tiny study, made once for all tests of this folder."""

import dataclasses

import keras
import pytest
import study_helpers
from study_helpers import few, make, opened, tiny

from tf_lrtraj import probes
from tf_lrtraj.backend import batch_norm
from tf_lrtraj.study import task_plan
from tf_lrtraj.study.study_config import validate


class Count:
    """Counts images that go forward through networks."""

    def __init__(self, patch):
        self.images = 0.0
        surface, evaluate, along, gradient, predict = (
            probes.Surface,
            *(getattr(probes.Surface, n) for n in ("evaluate", "along", "gradient", "predict")),
        )
        recompute = batch_norm.Recompute.__call__

        def counted(function, images):
            def call(*args):
                self.images += images(*args)
                return function(*args)

            return call

        def recomputed(this, trainable, non_trainable, data, **options):
            if isinstance(data, list):  # of batches, as surfaces have them
                self.images += sum(len(keras.tree.flatten(batch)[0]) for batch in data)
            return recompute(this, trainable, non_trainable, data, **options)

        patch.setattr(surface, "seconds_per_pass", lambda *_: 1.0)
        patch.setattr(
            surface, "evaluate", counted(evaluate, lambda s, p, b: sum(len(y) for _, y in b))
        )
        patch.setattr(surface, "along", counted(along, lambda s, o, d, k, b: len(k) * len(b[1])))
        patch.setattr(surface, "gradient", counted(gradient, lambda s, p, b: 3 * len(b[1])))
        patch.setattr(surface, "predict", counted(predict, lambda s, p, x: len(x)))
        patch.setattr(batch_norm.Recompute, "__call__", recomputed)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a study made in one go, page and all."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        count = Count(patch)

        def counted(task):
            def run(session, seed):
                count.images = 0.0
                task.run(session, seed)
                study_helpers.IMAGES[task.name] = count.images

            return dataclasses.replace(task, run=run)

        patch.setattr(task_plan, "TASKS", tuple(counted(task) for task in task_plan.TASKS))
        make(folder, page=True)
    return folder


@pytest.fixture(scope="session")
def session(whole):
    """The session that the tests read and measure with."""
    return opened(validate(tiny()), whole)
