"""The whole training step compiled by XLA, as a TPU compiles it.

XLA refuses dynamic shapes and operations that run on the host only, so that a step that it
compiles here has none; and what it computes is compared with the step that runs without it.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lrtraj import backend, kernels, rates
from tf_lrtraj.averaging import AverageState
from tf_lrtraj.models import resnet
from tf_lrtraj.runs.assembly import Assembly, assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.run_config import default_config, validate
from tf_lrtraj.schedules import RateSchedule
from tf_lrtraj.training.evaluation import Evaluator, averaged_statistics
from tf_lrtraj.training.objective import classification
from tf_lrtraj.training.step import make_replica_step

BATCH, STEPS, CLASSES = 8, 3, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(STEPS, BATCH, 16, 16, 3)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, size=(STEPS, BATCH)).astype(np.int32)
AVERAGES = {  # every way in which an average is stored
    "stacked": kernels.Exponential(0.5),
    "stacked_too": kernels.Uniform(),
    "double": kernels.Exponential(0.99999),
    "ring": kernels.Window(3),
    "two_point": kernels.TwoPoint(2),
}
RATE = rates.from_config(
    {"rate": "Warmup", "steps": 2, "inner": {"rate": "Cosine", "start": 0.1, "steps": 10}}
)


def trained(dtype, names, compiled):
    """Model, averages and losses after a few steps of a small ResNet."""
    model = resnet(8, CLASSES, (16, 16, 3), stem="cifar", width=4, dtype=dtype, seed=1)
    optimizer = keras.optimizers.SGD(RateSchedule(RATE), momentum=0.9, nesterov=True)
    optimizer.build(model.trainable_variables)
    variables = [*model.trainable_variables, *averaged_statistics(model, {"ring": "average"})]
    averages = AverageState(variables, {name: AVERAGES[name] for name in names})
    step = tf.function(
        make_replica_step(
            model,
            optimizer,
            averages,
            batch_size=BATCH,
            weight_decay=1e-3,
            objective=classification(0.1),
        ),
        jit_compile=compiled,
    )
    losses = []
    for t in range(STEPS):
        number = tf.constant(t + 1, tf.int64)
        found, _ = step(tf.constant(IMAGES[t]), tf.constant(LABELS[t]), number)
        losses.append((float(found["loss"]), float(found["accuracy"])))
    return model, averages, np.array(losses)


@pytest.mark.parametrize(
    ("dtype", "names", "tolerance"),
    [("float32", tuple(AVERAGES), 1e-4), ("mixed_bfloat16", ("stacked",), 0.03)],
)
def test_a_step_with_averages_compiles_whole_and_computes_the_same(dtype, names, tolerance):
    model, averages, losses = trained(dtype, names, compiled=True)
    plain_model, plain_averages, plain_losses = trained(dtype, names, compiled=False)
    np.testing.assert_allclose(losses[:, 0], plain_losses[:, 0], rtol=tolerance)

    def assert_close(ours, theirs):
        for a, b in zip(ours, theirs, strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            np.testing.assert_allclose(a, b, atol=tolerance * (np.abs(b).max() + 0.1), rtol=0)

    assert_close(backend.values(model.variables), backend.values(plain_model.variables))
    for name in names:
        assert_close(averages.average(name, STEPS), plain_averages.average(name, STEPS))
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            backend.to_numpy(averages.average("stacked", STEPS)),
            backend.to_numpy(backend.values(model.trainable_variables)),
            strict=False,
        )
    ]
    assert max(moved) > 1e-3  # an average that stood for the weights would prove nothing


def test_evaluation_and_recomputed_moments_compile_whole():
    model = resnet(8, CLASSES, (16, 16, 3), stem="cifar", width=4, seed=1)
    evaluator = Evaluator(tf.distribute.get_strategy(), model)
    weights = [
        backend.values(v) for v in (model.trainable_variables, model.non_trainable_variables)
    ]
    batch = (
        tf.constant(IMAGES[0]),
        tf.constant(LABELS[0]),
        tf.constant(np.arange(BATCH) < 5, tf.float32),
    )

    def results(compiled):
        evaluate = tf.function(evaluator._evaluate_batch_on_replicas, jit_compile=compiled)
        moments = tf.function(evaluator._moments_on_replicas, jit_compile=compiled)
        return tf.nest.flatten([evaluate(weights, batch, False), moments(*weights, batch[0])])

    for ours, theirs in zip(results(True), results(False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-4)


def test_every_batch_has_a_static_shape():
    config = default_config()
    config.data.batch_size = 32
    config.data.augmentation = "crop"
    config.evaluate.batch_size = 300  # 500 images: the last batch is filled up
    plain = validate(config)
    assembly: Assembly = assemble(plain, load_dataset(plain), tf.distribute.get_strategy())
    for batches in (
        assembly.train_batches(3),
        assembly.eval_batches("test"),
        assembly.eval_batches("test", 7),
    ):
        for spec in tf.nest.flatten(batches.element_spec):
            assert spec.shape.is_fully_defined(), spec
