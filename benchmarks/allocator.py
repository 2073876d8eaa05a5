"""Speed of the compiled training step under one allocator setting; see allocator.sh."""

import resource
import sys
import time

import numpy as np

from tf_lrtraj.training import host_memory

if sys.argv[1] in ("once", "kept"):
    host_memory.keep_freed_memory()

import tensorflow as tf  # after the allocator is set

from tf_lrtraj import data, kernels
from tf_lrtraj.averaging import AverageState
from tf_lrtraj.models import resnet
from tf_lrtraj.training.step import make_train_steps

BATCH, STEPS = 128, 20
AVERAGES = {
    "ema": kernels.Exponential(0.998),
    "swa": kernels.Uniform(0),
    "two_point": kernels.TwoPoint(100),
}

tf.config.experimental.enable_op_determinism()
strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
with strategy.scope():
    model = resnet(8, 10, (32, 32, 3), stem="cifar", width=16, seed=0)
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    averages = AverageState(model.trainable_variables, AVERAGES)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (10_000, 32, 32, 3)).astype(np.uint8)
labels = rng.integers(0, 10, 10_000)
dataset = data.from_arrays("random", images, labels, augmentation="crop_flip")
iterator = iter(
    strategy.distribute_datasets_from_function(lambda _: dataset.train_batches(BATCH, 0))
)
if sys.argv[1] == "kept":
    host_memory.keep_freed_memory_again()  # as runs do after each iterator
run = make_train_steps(strategy, model, optimizer, averages, batch_size=BATCH)
for first in range(0, 21, 10):
    run(iterator, first, 10)
start, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
for first in range(30, 30 + STEPS, 10):
    run(iterator, first, 10)
seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
system = now.ru_stime - usage.ru_stime
share = system / (system + now.ru_utime - usage.ru_utime)
print(
    f"{sys.argv[1]:8}{BATCH * STEPS / seconds:8.0f} images/s, "
    f"{100 * share:3.0f} % of processor time in the system",
    flush=True,
)
