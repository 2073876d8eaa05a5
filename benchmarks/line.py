"""Time of the loss along a line, beside the bare forward passes and beside other ways, in one run.

    pip install torch                    # the peer
    python benchmarks/line.py            # writes benchmarks/results/line.json
    python benchmarks/line.py --quick    # one round of 2 batches, writes nothing

ResNet-8 of width 16, batches of 128 random images of CIFAR's shape.  One task is the loss of a
batch and of a held-out batch at 32 rates along the batch's gradient: 64 forward passes.  There
are 8 batches, so 8 tasks in a round; every case does a task before the next one starts.

bare              64 calls of a compiled stateless forward pass and mean loss, weights fixed
ours              a `Line` measured whole: checks, record, fits; the gradient is timed apart
evaluate          model.set_weights and model.evaluate at every rate (evaluation mode)
test_on_batch     model.set_weights and model.test_on_batch at every rate (evaluation mode)
clone             clone_model, set_weights, compile and evaluate at every rate; 1 rate is timed
torch bare        the same network in torch, batch statistics: 64 forward passes
torch in place    the same, parameters assigned in place at every rate

Both processes use the same number of threads.  Ratios are taken task by task; medians and
quartiles are over tasks and rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

RESULT = pathlib.Path(__file__).parent / "results" / "line.json"
BATCHES, BATCH_SIZE, RATES = 8, 128, 32
CLONED = 1  # rates of a task that the slowest case does

Cases = dict[str, Callable[[int], float]]  # a task's number → its seconds


def data() -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches, and one held-out batch after them."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(BATCH_SIZE, 32, 32, 3)).astype(np.float32),
            rng.integers(0, 10, BATCH_SIZE),
        )
        for _ in range(BATCHES + 1)
    ]


def rates() -> np.ndarray:
    return np.linspace(0.0, 0.5, RATES)


# In the TensorFlow worker ----------------------------------------------------------------------


def keras_cases(folder: pathlib.Path) -> Cases:
    import keras
    import tensorflow as tf

    from tf_lrtraj import probes
    from tf_lrtraj.models import resnet

    model = resnet(8, 10, (32, 32, 3), stem="cifar", width=16, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss)
    batches = data()
    held_out = batches[-1]
    surface = probes.Surface(model, loss)
    point = surface.point()
    spent = [0.0]

    class Timed(probes.Surface):
        def gradient(self, *args: Any) -> Any:
            began = time.perf_counter()
            found = super().gradient(*args)
            spent[0] += time.perf_counter() - began
            return found

    timed = Timed(model, loss)

    @tf.function
    def passed(trainable: Any, non_trainable: Any, x: Any, y: Any) -> Any:
        outputs, _ = model.stateless_call(trainable, non_trainable, x, training=True)
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, outputs, True))

    tensors = [(tf.constant(x), tf.constant(y)) for x, y in batches]

    def bare(task: int) -> float:
        began = time.perf_counter()
        for batch in (tensors[task], tensors[-1]):
            found = [passed(*point, *batch) for _ in range(RATES)]
            [float(number) for number in found]
        return time.perf_counter() - began

    def ours(task: int) -> float:
        began = time.perf_counter()
        spent[0] = 0.0
        probe = probes.Line(
            timed, None, [batches[task]], held_out=[held_out], rates=rates(), bracket="none"
        )
        record = probes.measure(probe, progress=False)
        seconds = time.perf_counter() - began - spent[0]
        np.save(folder / f"losses{task}.npy", record.values["train"][:, 0])
        return seconds

    def gradient(task: int) -> float:
        began = time.perf_counter()
        surface.gradient(point, batches[task])
        return time.perf_counter() - began

    start = model.get_weights()
    trained = [any(v is t for t in model.trainable_variables) for v in model.weights]

    def weights_at(task: int) -> Any:
        _, found = surface.gradient(point, batches[task])
        parts = iter([np.asarray(part) for part in found])
        direction = [next(parts) if is_trained else None for is_trained in trained]
        for rate in rates():
            yield [
                w if d is None else w - np.float32(rate) * d
                for w, d in zip(start, direction, strict=True)
            ]

    def assigned(call: Callable[[Any, Any, Any], Any], clone: bool = False) -> Any:
        def case(task: int) -> float:
            points = weights_at(task)
            at = next(points)  # takes the gradient, which is not timed
            began = time.perf_counter()
            for number in range(CLONED if clone else RATES):
                used = model
                if clone:
                    used = keras.models.clone_model(model)
                    used.compile(loss=loss)
                used.set_weights(at)
                for x, y in (batches[task], held_out):
                    call(used, x, y)
                at = next(points) if number < RATES - 1 else at
            seconds = time.perf_counter() - began
            model.set_weights(start)
            return seconds * (RATES / CLONED if clone else 1.0)

        return case

    def evaluate(used: Any, x: Any, y: Any) -> Any:
        return used.evaluate(x, y, batch_size=BATCH_SIZE, verbose=0)

    # What the peer needs: the weights by name, and the gradients.
    arrays = {v.path: v.numpy() for v in model.weights}
    for task in range(BATCHES):
        _, found = surface.gradient(point, batches[task])
        for variable, part in zip(model.trainable_variables, found, strict=True):
            arrays[f"gradient{task}/{variable.path}"] = np.asarray(part)
    np.savez(folder / "network.npz", **arrays)
    return {
        "bare": bare,
        "ours": ours,
        "gradient": gradient,
        "evaluate": assigned(evaluate),
        "test_on_batch": assigned(lambda used, x, y: used.test_on_batch(x, y)),
        "clone": assigned(evaluate, clone=True),
    }


# In the torch worker ---------------------------------------------------------------------------


def torch_cases(folder: pathlib.Path) -> Cases:
    import torch
    from torch import nn
    from torch.nn import functional

    class ConvNorm(nn.Module):
        def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            self.norm = nn.BatchNorm2d(outputs, momentum=0.0)  # statistics stay as they are

        def forward(self, x: Any) -> Any:
            return self.norm(self.conv(x))

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first = ConvNorm(inputs, outputs, 3, stride)
            self.second = ConvNorm(outputs, outputs, 3, 1)
            self.shortcut = None if stride == 1 else ConvNorm(inputs, outputs, 1, stride)

        def forward(self, x: Any) -> Any:
            y = self.second(functional.relu(self.first(x)))
            return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    class ResNet8(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = ConvNorm(3, 16, 3, 1)
            self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
            self.head = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = self.blocks(functional.relu(self.stem(x)))
            return self.head(x.mean((2, 3)))

    arrays = np.load(folder / "network.npz")
    model = ResNet8().train()

    def parts(module: ConvNorm, name: str) -> list[tuple[Any, str]]:
        norm = module.norm
        return [
            (module.conv.weight, f"{name}_conv/kernel"),
            (norm.weight, f"{name}_norm/gamma"),
            (norm.bias, f"{name}_norm/beta"),
        ]

    pairs = parts(model.stem, "stem")
    for number, block in enumerate(model.blocks):
        name = f"stage{number + 1}_block1"
        pairs += parts(block.first, f"{name}_1") + parts(block.second, f"{name}_2")
        pairs += [] if block.shortcut is None else parts(block.shortcut, f"{name}_shortcut")
    pairs += [(model.head.weight, "head_logits/kernel"), (model.head.bias, "head_logits/bias")]
    assert {id(p) for p, _ in pairs} == {id(p) for p in model.parameters()}

    def tensor(array: np.ndarray) -> Any:  # Keras' layout to torch's
        turned = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
        return torch.tensor(array.transpose(turned) if turned else array).contiguous()

    parameters = [parameter for parameter, _ in pairs]
    start = [tensor(arrays[name]) for _, name in pairs]
    batches = [
        (torch.tensor(x.transpose(0, 3, 1, 2)).contiguous(), torch.tensor(y)) for x, y in data()
    ]

    def put(values: Any) -> None:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)

    def case(assigning: bool) -> Callable[[int], float]:
        @torch.no_grad()
        def run(task: int) -> float:
            gradient = [tensor(arrays[f"gradient{task}/{name}"]) for _, name in pairs]
            put(start)
            began = time.perf_counter()
            found = []
            for rate in rates():
                if assigning:
                    for p, value, d in zip(parameters, start, gradient, strict=True):
                        torch.add(value, d, alpha=-float(rate), out=p)
                for x, y in (batches[task], batches[-1]):
                    found.append(functional.cross_entropy(model(x), y))
            losses = [float(number) for number in found]
            seconds = time.perf_counter() - began
            if assigning:
                ours = np.load(folder / f"losses{task}.npy")
                np.testing.assert_allclose(losses[::2], ours, rtol=1e-3)
            return seconds

        return run

    return {"torch bare": case(False), "torch in place": case(True)}


def worker(kind: str, folder: pathlib.Path) -> None:
    """Reads "case task" from standard input, runs it, and writes its seconds."""
    if kind == "tensorflow":
        from tf_lrtraj.bin.common import keep_freed_memory

        keep_freed_memory()
        import tensorflow as tf

        threads = os.cpu_count() or 1
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        cases = keras_cases(folder)
    else:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        cases = torch_cases(folder)
    for case in cases.values():
        case(0)  # compiles, and fills the caches
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        name, _, task = line.strip().rpartition(" ")
        print(cases[name](int(task)), flush=True)


# In the parent ---------------------------------------------------------------------------------


class Worker:
    def __init__(self, kind: str, folder: str) -> None:
        environment = {**os.environ, "KERAS_BACKEND": kind, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", kind, "--folder", folder],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.cases: list[str] = json.loads(self._out.readline())

    def time(self, case: str, task: int) -> float:
        self._in.write(f"{case} {task}\n")
        self._in.flush()
        return float(self._out.readline())

    def stop(self) -> None:
        self._in.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, pathlib.Path(options.folder))
        return
    from tf_lrtraj import records

    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        # The second reads what the first wrote.
        workers = [Worker(kind, folder) for kind in ("tensorflow", "torch")]
        seconds: dict[str, list[float]] = {}
        tasks = [0, 1] if options.quick else list(range(BATCHES)) * options.rounds
        for task in tasks:
            for process in workers:
                for case in process.cases:
                    seconds.setdefault(case, []).append(process.time(case, task))
        for process in workers:
            process.stop()
    bare = np.array(seconds["bare"])
    rows = []
    for case, times in seconds.items():
        low, middle, high = np.quantile(np.array(times) / bare, [0.25, 0.5, 0.75])
        rows.append(
            {
                "case": case,
                "seconds": float(np.median(times)),
                "over_bare": float(middle),
                "quartiles": [float(low), float(high)],
            }
        )
        print(
            f"{case:<16}{rows[-1]['seconds']:9.3f} s  {middle:6.2f} x bare [{low:.2f}, {high:.2f}]"
        )
    own = np.array(seconds["torch in place"]) / np.array(seconds["torch bare"])
    print(f"torch in place / torch bare: {np.median(own):.3f}")
    if not options.quick:
        records.write_json(
            RESULT,
            {
                "network": "ResNet-8, width 16",
                "batch_size": BATCH_SIZE,
                "batches": BATCHES,
                "rates": RATES,
                "rounds": options.rounds,
                "threads": os.cpu_count(),
                # One busy process per thread is the benchmark's own; more is other work.
                "load_average_before": load_before,
                "load_average_after": os.getloadavg()[0],
                "rows": rows,
                "torch_in_place_over_torch_bare": float(np.median(own)),
            },
        )


if __name__ == "__main__":
    main()
