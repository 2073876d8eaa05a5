"""Time of updating and borrowing averages of ResNet-34's weights, beside other tools, in one run.

    pip install torch timm ema-pytorch jax      # the peers; timm's and ema-pytorch's code only
    python benchmarks/averaging.py              # writes benchmarks/results/averaging.json
    python benchmarks/averaging.py --quick      # two rounds, writes nothing

One worker process per Keras backend holds the weights (21.8 million, float32) and does
what it is told, one case at a time, in turn with the others, so that all share the
machine's moods.  A round measures every case once, each right after the yardstick: a pause,
since threads of an earlier case (torch's, by OpenMP) keep a core busy for milliseconds after
their work, one call to fill the caches, and the median of three calls.  Over rounds: medians of
the ratios, the intervals in which they lie at 95 %, and quartiles.

Yardstick ("floor"): one in-place pass `b += c·a` over two flat vectors of as many numbers,
which streams the same 12 bytes per weight as an average's update must.
Cases that move other amounts are also divided by their own floor: 8 + 4 bytes for each further
float32 average (`floor_bytes`), 20 bytes for one in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from tf_lrtraj.statistics import Interval

RESULT = pathlib.Path(__file__).parent / "results" / "averaging.json"
BACKENDS = ("tensorflow", "torch", "jax")
DECAY = 0.999
PAUSE, CALLS = 0.03, 3  # seconds before a case; timed calls of it in a round

Cases = dict[str, Callable[[], Any]]


# In a worker -----------------------------------------------------------------------------------


def our_cases(model: Any) -> Cases:
    """Updates and borrowing by this package, on whatever backend runs."""
    import numpy as np

    from tf_lrtraj import backend, kernels
    from tf_lrtraj.averaging import AverageState, borrow

    variables = list(model.trainable_variables)
    cases: Cases = {}
    states = {}
    for label, count, decay in (
        ("1", 1, DECAY),
        ("3", 3, DECAY),
        ("8", 8, DECAY),
        ("1 long", 1, 1 - 1e-5),
    ):
        state = AverageState(
            variables, {f"ema{i}": kernels.Exponential(decay) for i in range(count)}
        )
        states[label] = state
        update = backend.compiled_update(
            state.update, model, writes=state.variables, reads=variables
        )
        step = backend.scalars(np.asarray(1))

        def call(update: Any = update, step: Any = step, state: Any = state) -> None:
            update(step)
            if backend.name() == "jax":
                state.variables[-1].value.block_until_ready()

        cases[f"ours, {label}"] = call

    def borrowing() -> None:
        average = states["1"].read("ema0", None)
        fixed = backend.values(model.non_trainable_variables)
        with borrow(model, average, fixed):
            pass
        if backend.name() == "jax":
            variables[-1].value.block_until_ready()

    cases["ours, borrow and return"] = borrowing
    return cases


def keras_cases(model: Any) -> Cases:
    import keras
    import tensorflow as tf

    cases: Cases = {}
    for label, compile_it in (("in a graph", True), ("eager", False)):
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=DECAY)
        optimizer.build(model.trainable_variables)
        function = optimizer._update_model_variables_moving_average
        run = tf.function(function) if compile_it else function
        variables = list(model.trainable_variables)
        cases[f"Keras use_ema, {label}"] = lambda run=run, variables=variables: run(variables)
    optimizer.iterations.assign(1)
    model.compile(optimizer)
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)

    def there_and_back() -> None:
        swap._swap_variables()
        swap._swap_variables()

    cases["Keras SwapEMAWeights, swap and back"] = there_and_back

    # What borrowing cannot do without: the weights copied out, and copied back.
    variables = list(model.trainable_variables)

    def copy_twice() -> None:
        kept = [tf.raw_ops.DeepCopy(x=v.value) for v in variables]
        for variable, value in zip(variables, kept, strict=True):
            variable.value.assign(tf.raw_ops.DeepCopy(x=value))

    cases["weights copied twice"] = copy_twice
    return cases


def torch_cases(model: Any) -> Cases:
    import importlib.util

    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterList(
                [nn.Parameter(v.value.detach().clone()) for v in model.trainable_variables]
            )

    weights = Weights()
    size = sum(p.numel() for p in weights.parameters())
    a, b = torch.randn(size), torch.zeros(size)
    cases: Cases = {"floor": lambda: b.add_(a, alpha=1e-3)}
    averaged = AveragedModel(weights, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    averaged.update_parameters(weights)
    cases["torch AveragedModel, multi-tensor EMA"] = lambda: averaged.update_parameters(weights)

    # Only these modules: timm itself needs torchvision.
    found = importlib.util.find_spec("timm")
    assert found is not None and found.origin is not None
    path = pathlib.Path(found.origin).parent / "utils" / "model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)
    assert spec is not None and spec.loader is not None
    timm_ema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(timm_ema)
    timm = timm_ema.ModelEmaV3(weights, decay=DECAY)
    cases["timm ModelEmaV3"] = lambda: timm.update(weights)

    from ema_pytorch import EMA

    ema = EMA(weights, beta=DECAY, update_after_step=0, update_every=1)
    for _ in range(3):
        ema.update()
    cases["ema-pytorch"] = ema.update
    return cases


def worker() -> None:
    """Reads names of cases from standard input, runs each, and writes its seconds."""
    from tf_lrtraj.bin.common import keep_freed_memory

    keep_freed_memory()
    import keras

    from tf_lrtraj.models import resnet

    backend = keras.backend.backend()
    model = resnet(34, 1000, (224, 224, 3), stem="imagenet")
    cases = our_cases(model)
    if backend == "tensorflow":
        cases.update(keras_cases(model))
    elif backend == "torch":
        cases.update(torch_cases(model))
    for call in cases.values():
        for _ in range(2):
            call()
    size = sum(math.prod(v.shape) for v in model.trainable_variables)
    print(json.dumps({"cases": list(cases), "weights": size}), flush=True)
    for line in sys.stdin:
        call = cases[line.strip()]
        began = time.perf_counter()
        call()
        print(time.perf_counter() - began, flush=True)


# In the parent ---------------------------------------------------------------------------------


class Worker:
    def __init__(self, backend: str) -> None:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        started = json.loads(self._out.readline())
        self.cases, self.weights = started["cases"], started["weights"]

    def measure(self, case: str) -> float:
        time.sleep(PAUSE)
        self._call(case)
        return statistics.median(self._call(case) for _ in range(CALLS))

    def _call(self, case: str) -> float:
        self._in.write(case + "\n")
        self._in.flush()
        return float(self._out.readline())

    def stop(self) -> None:
        self._in.close()
        self._process.wait()


def _in_words(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


# Bytes each case must move per weight, where that is not one average's 12.
FLOOR_BYTES = {"ours, 3": 28, "ours, 8": 68, "ours, 1 long": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    import numpy as np

    from tf_lrtraj import records
    from tf_lrtraj.statistics import Median

    rounds = 2 if options.quick else options.rounds
    workers = {backend: Worker(backend) for backend in BACKENDS}
    yardstick = workers["torch"]
    seconds: dict[str, list[float]] = {}
    floors: dict[str, list[float]] = {}
    for _ in tqdm(range(rounds), desc="rounds"):
        for backend, process in workers.items():
            for case in process.cases:
                label = f"{backend}: {case}" if case.startswith("ours") else case
                floors.setdefault(label, []).append(yardstick.measure("floor"))
                seconds.setdefault(label, []).append(process.measure(case))
    ratios = {label: np.array(times) / floors[label] for label, times in seconds.items()}
    rows = []
    for label, ratio in ratios.items():
        bytes_needed = FLOOR_BYTES.get(label.split(": ")[-1], 12)
        low, high = np.quantile(ratio, [0.25, 0.75])
        middle = Median(ratio).interval()
        rows.append(
            {
                "case": label,
                "milliseconds": 1e3 * statistics.median(seconds[label]),
                "over_floor": middle.value,
                "median_from": middle.low,
                "median_to": middle.high,
                "quartiles": [float(low), float(high)],
                "over_own_floor": middle.value * 12 / bytes_needed,
            }
        )
        print(
            f"{label:<42}{rows[-1]['milliseconds']:9.2f} ms  {middle.value:6.2f} x floor "
            f"[{middle.low:.2f}, {middle.high:.2f}], quartiles [{low:.2f}, {high:.2f}]"
            f"   {rows[-1]['over_own_floor']:6.2f} x own floor"
        )
    eight = {
        backend: Median(
            ratios[f"{backend}: ours, 8"] / (8 * ratios[f"{backend}: ours, 1"])
        ).interval()
        for backend in BACKENDS
    }
    borrowing = Median(
        ratios["tensorflow: ours, borrow and return"] / ratios["weights copied twice"]
    ).interval()
    fastest = Median(ratios["torch: ours, 1"] / ratios["timm ModelEmaV3"]).interval()
    for backend, one in eight.items():
        print(f"8 averages / 8 single ones, {backend}: {_in_words(one)}")
    print(f"borrow and return / weights copied twice, tensorflow: {_in_words(borrowing)}")
    print(f"torch, 1 / timm: {_in_words(fastest)}")
    if not options.quick:
        records.write_json(
            RESULT,
            {
                "weights": yardstick.weights,
                "rounds": rounds,
                "rows": rows,
                "eight_over_eight_single": {b: one._asdict() for b, one in eight.items()},
                "borrow_over_copying_twice": borrowing._asdict(),
                "one_over_timm_on_torch": fastest._asdict(),
            },
        )
    for process in workers.values():
        process.stop()


if __name__ == "__main__":
    main()
