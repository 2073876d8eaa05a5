"""Speed of the training loop beside `model.fit` and the bare compiled step, in one run.

    python benchmarks/throughput.py                     # writes benchmarks/results/throughput.json
    python benchmarks/throughput.py --quick             # one round of ResNet-8, writes nothing
    python benchmarks/throughput.py --networks resnet8  # only one network, writes nothing

Networks: ResNet-8 of width 16 and ResNet-34 of width 64 (CIFAR stem), 32x32 images, batches of
64.  A round times every case once, for a second or a few, in an order drawn anew; ratios are taken
round by round, medians and quartiles over rounds, with the interval in which the median lies at
95 % (by order statistics).  Wall clock counts; processor time, which other programs on
the machine disturb less, stands beside it.

bare N     the compiled step of one update with N averages, called on one batch that is already
           on the device: forward, backward, decay, momentum, N averages; nothing else
loop N     what `lrtraj-train` runs: this package's data pipeline on images in memory, without
           augmentation, steps in compiled calls, rows of metrics and TensorBoard events
           written, the check for losses that are not finite
loop 0, augmented   the same with the pipeline's `crop_flip`, which takes part of the same
           processor where there is no accelerator
fit        Keras' `model.fit` of the same network, optimizer and pipeline, without averages,
           decay and TensorBoard, with the accuracy as a metric

Not in it: evaluations and checkpoints.  The bars: loop 0 at most 1.03 times bare 0, and bare 4 at
most 1.02 times bare 0 with ResNet-34.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

RESULT = pathlib.Path(__file__).parent / "results" / "throughput.json"
BATCH = 64
AVERAGES = (0, 1, 4)
# depth, width, steps of one timing, rounds
NETWORKS = {"resnet8": (8, 16, 10, 30), "resnet34": (34, 64, 1, 8)}
MOMENTUM, DECAY, RATE = 0.9, 5e-4, 0.01


Times = np.ndarray  # [2] seconds: by the clock on the wall, and of the processors


def now() -> Times:
    return np.array([time.perf_counter(), time.process_time()])


def synthetic(augmentation: str = "none") -> Any:
    """Random images in memory."""
    from tf_lrtraj.data import from_arrays

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2048, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 2048)
    return from_arrays("random", images, labels, num_classes=10, augmentation=augmentation)


def averages_of(count: int, variables: Any) -> Any:
    from tf_lrtraj import kernels
    from tf_lrtraj.averaging import AverageState

    rules = {f"ema{i}": kernels.Exponential(1 - 10.0 ** -(1 + i / 2)) for i in range(count)}
    return AverageState(variables, rules) if count else None


def new_model(depth: int, width: int) -> tuple[Any, Any]:
    import keras

    from tf_lrtraj import rates
    from tf_lrtraj.models import resnet
    from tf_lrtraj.schedules import RateSchedule

    model = resnet(depth, 10, (32, 32, 3), stem="cifar", width=width, seed=0)
    optimizer = keras.optimizers.SGD(RateSchedule(rates.as_rate(RATE)), momentum=MOMENTUM)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def bare(depth: int, width: int, steps: int, count: int, data: Any) -> Callable[[], Times]:
    """The compiled step called again and again on one batch."""
    import tensorflow as tf

    from tf_lrtraj.training.step import make_replica_step

    model, optimizer = new_model(depth, width)
    averages = averages_of(count, model.trainable_variables)
    step = tf.function(
        make_replica_step(model, optimizer, averages, batch_size=BATCH, weight_decay=DECAY)
    )
    images, labels = next(iter(data.train_batches(BATCH, 0)))
    number = tf.constant(5, tf.int64)
    compiled = step.get_concrete_function(images, labels, number)

    def timed() -> Times:
        began = now()
        for _ in range(steps):
            means, _ = compiled(images, labels, number)
        means["loss"].numpy()
        return (now() - began) / steps

    return timed


def loop(
    depth: int, width: int, steps: int, count: int, data: Any, folder: pathlib.Path
) -> Callable[[], Times]:
    """`training.loop.Loop` over as many steps, with its records."""
    from tf_lrtraj.training import host_memory
    from tf_lrtraj.training import loop as outer
    from tf_lrtraj.training.checkpoints import Checkpointer
    from tf_lrtraj.training.log import RunLog
    from tf_lrtraj.training.loggers import LoggedRun, RunLoggers
    from tf_lrtraj.training.step import make_train_steps
    from tf_lrtraj.training.strategies import make_strategy

    model, optimizer = new_model(depth, width)
    averages = averages_of(count, model.trainable_variables)
    strategy = make_strategy("one_device")
    compiled = make_train_steps(
        strategy, model, optimizer, averages, batch_size=BATCH, weight_decay=DECAY
    )
    iterator = iter(strategy.experimental_distribute_dataset(data.train_batches(BATCH, 0)))
    host_memory.keep_freed_memory_again()  # as after any such iterator of a run

    train_steps = functools.partial(compiled, iterator)
    folder.mkdir()
    checkpointer = Checkpointer(folder / "checkpoints", {})
    cadence = outer.Cadence(log=10, evaluate=0, checkpoint=0, steps_per_call=10)
    done = itertools.count(0, steps)
    loggers = RunLoggers([{"logger": "tensorboard"}], LoggedRun(folder, {}, {}))
    log = RunLog(folder, 0, 32.0, lambda step: RATE, BATCH, loggers)

    def timed() -> Times:
        start = next(done)
        began = now()
        seconds = []

        # Called when the last step is done, before the checkpoint, which is no step's cost.
        def at_the_end(step: int) -> None:
            seconds.append(now() - began)

        made = outer.Loop(train_steps, at_the_end, checkpointer, log, cadence, start + steps)
        made.run(start, outer.Window())
        return seconds[0] / steps

    return timed


def fit(depth: int, width: int, steps: int, data: Any) -> Callable[[], Times]:
    import keras

    model, optimizer = new_model(depth, width)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # jit_compile slows convolutions down on CPUs; Keras' "auto" leaves it off there.
    model.compile(optimizer, loss, metrics=["accuracy"])
    batches = data.train_batches(BATCH, 0)

    class Clock(keras.callbacks.Callback):
        began = ended = np.zeros(2)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = now()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ended = now()

    clock = Clock()

    def timed() -> Times:
        model.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=[clock])
        return (clock.ended - clock.began) / steps

    return timed


def summary(values: Any) -> dict[str, float]:
    """Median, quartiles, and the 95 % interval of the median."""
    from tf_lrtraj.statistics import Median

    low, high = np.percentile(values, [25, 75])
    middle = Median(values).interval()
    return {
        "median": middle.value,
        "low": float(low),
        "high": float(high),
        "median_from": middle.low,
        "median_to": middle.high,
    }


def measure(network: str, quick: bool) -> dict[str, Any]:
    depth, width, steps, rounds = NETWORKS[network]
    rounds = 1 if quick else rounds
    data = synthetic()
    dice = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, Callable[[], Times]] = {}
        for count in AVERAGES:
            cases[f"bare {count}"] = bare(depth, width, steps, count, data)
            cases[f"loop {count}"] = loop(
                depth, width, steps, count, data, pathlib.Path(folder) / str(count)
            )
        cases["loop 0, augmented"] = loop(
            depth, width, steps, 0, synthetic("crop_flip"), pathlib.Path(folder) / "augmented"
        )
        cases["fit"] = fit(depth, width, steps, data)
        for name, case in cases.items():  # traces, and warms up
            print(
                f"{network}: {name} {case()[0]:.4f} s per step (first call, not kept)", flush=True
            )
        times: dict[str, list[Times]] = {name: [] for name in cases}
        names = list(cases)
        for number in range(rounds):
            for name in dice.permutation(names).tolist():
                times[name].append(cases[name]())
            print(f"{network}: round {number + 1} of {rounds}", flush=True)

    pairs = [(f"loop {n}", f"bare {n}") for n in AVERAGES]
    pairs += [(f"bare {n}", "bare 0") for n in AVERAGES[1:]]
    pairs += [("loop 0, augmented", "bare 0"), ("fit", "bare 0"), ("loop 0", "fit")]
    ratios, processor = {}, {}
    for of, to in pairs:
        wall, used = (np.array(times[of]) / np.array(times[to])).T
        ratios[f"{of} over {to}"] = summary(wall)
        processor[f"{of} over {to}"] = summary(used)
    return {
        "steps": steps,
        "rounds": rounds,
        "seconds_per_step": {name: summary([t[0] for t in times[name]]) for name in times},
        "images_per_second": {
            name: BATCH / float(np.median([t[0] for t in times[name]])) for name in times
        },
        "ratios": ratios,
        "ratios_of_processor_time": processor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="one round of ResNet-8, no record")
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tf_lrtraj.bin.common import keep_freed_memory

    keep_freed_memory()  # as the programs do
    import keras
    import tensorflow as tf

    networks = ["resnet8"] if options.quick else options.networks
    result: dict[str, Any] = {
        "command": "python benchmarks/throughput.py",
        "batch_size": BATCH,
        "cores": len(os.sched_getaffinity(0)),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
    for network in networks:
        result[network] = measure(network, options.quick)
        for name, value in result[network]["ratios"].items():
            other = result[network]["ratios_of_processor_time"][name]["median"]
            print(
                f"{network}: {name}: {value['median']:.3f} "
                f"[{value['median_from']:.3f}, {value['median_to']:.3f}]; processor {other:.3f}"
            )
    if set(networks) == set(NETWORKS):
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
