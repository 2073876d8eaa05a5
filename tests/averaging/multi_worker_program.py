"""One worker of `test_multi_worker_averages_equal_those_of_one_process`; run as a program.

Trains a tiny network with synchronised batch norm in a custom loop, on its
half of every batch where TF_CONFIG names two workers and on all of it
otherwise, and writes the averages and their recomputed statistics.
"""

import os
import sys

import keras
import numpy as np
import tensorflow as tf

from tf_lrtraj import WeightAveraging, backend, kernels

GLOBAL_BATCH, STEPS = 16, 5
AVERAGES = {"ema": kernels.Exponential(0.7), "two_point": kernels.TwoPoint(2)}


def main(path):
    several = "TF_CONFIG" in os.environ
    # Before anything else: collectives must be set up before TensorFlow starts.
    strategy = (
        tf.distribute.MultiWorkerMirroredStrategy() if several else tf.distribute.get_strategy()
    )
    random = np.random.default_rng(0)
    inputs = (random.normal(size=(GLOBAL_BATCH * STEPS, 4)) * 2 + 1).astype(np.float32)
    labels = inputs[:, :1] - inputs[:, 1:2]
    keras.utils.set_random_seed(5)
    with strategy.scope():
        inner = [
            keras.layers.Dense(5),
            keras.layers.BatchNormalization(momentum=0.8, synchronized=True),
            keras.layers.Dense(1),
        ]
        model = keras.Sequential([keras.Input((4,)), *inner])
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
        model.optimizer.build(model.trainable_variables)

    def batches():
        data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(GLOBAL_BATCH)
        options = tf.data.Options()
        policy = tf.data.experimental.AutoShardPolicy.DATA
        options.experimental_distribute.auto_shard_policy = policy
        data = data.with_options(options)
        return strategy.experimental_distribute_dataset(data) if several else data

    averaging = WeightAveraging(AVERAGES, batch_norm_data=batches())
    averaging.set_model(model)
    averaging.get_average("ema")  # the averages begin at the initial weights

    @tf.function
    def step(x, y):
        def on_replica(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / GLOBAL_BATCH
            variables = model.trainable_variables
            model.optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

        strategy.run(on_replica, args=(x, y))

    for x, y in batches():
        step(x, y)
        averaging.update()

    found = {}
    for name in AVERAGES:
        with averaging.borrowed(name):
            values = backend.to_numpy(backend.values(model.weights))
        found |= {f"{name} {i}": value for i, value in enumerate(values)}
    raw = backend.to_numpy(backend.values(model.weights))
    found |= {f"raw {i}": value for i, value in enumerate(raw)}
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
