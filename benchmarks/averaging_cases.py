"""What `averaging.py` times: averages by this package and by others, on one Keras backend.

Three kinds of cases:

* a *step*: one update of ResNet-34's weights by SGD with momentum from given gradients, or one
  whole training step of ResNet-20.  What averages add to it is its time less that of the step
  of the same group without averages;
* an *update* of averages on its own, as a callback or a loop makes it after its step;
* *passes* over ResNet-34's weights, which the others are compared with.

On JAX a compiled step gives back, and takes over the memory of, its arguments in their order:
in another order XLA would copy them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tf_lrtraj import AveragedOptimizer, WeightAveraging, backend, kernels
from tf_lrtraj.averaging import borrow
from tf_lrtraj.models import resnet

DECAY = 0.999
COUNTS = (1, 8)  # of averages
BATCH = 4  # so small that what averages add to ResNet-20's step is not lost in its own scatter
TORCH_TOOLS = ("timm ModelEmaV3", "torch AveragedModel", "ema-pytorch")
LONG = "AveragedOptimizer, long"  # of updates only: each step of ResNet-20 takes long to compile
UPDATE, STEP = "update of ResNet-34's weights", "training step of ResNet-20"


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        name: no two of a backend are the same.
        call: does it once and waits for its end.
        network: `UPDATE` or `STEP`; "" for passes.
        group: steps of one group differ in their averages only; "" for what is no step.
        tool: whose averages; "" for none.
        averages: how many.
    """

    name: str
    call: Callable[[], Any] = dataclasses.field(repr=False)
    network: str = ""
    group: str = ""
    tool: str = ""
    averages: int = 0


def exponentials(count: int, decay: float = DECAY) -> dict[str, Any]:
    return {f"ema{n}": kernels.Exponential(decay - 0.001 * n) for n in range(count)}


def sgd(**options: Any) -> Any:
    return keras.optimizers.SGD(0.1, momentum=0.9, **options)


def optimizers() -> Iterator[tuple[str, int, Any]]:
    """(tool, number of averages, optimizer) of each step."""
    yield "", 0, sgd()
    for count in COUNTS:
        yield "AveragedOptimizer", count, AveragedOptimizer(sgd(), exponentials(count))
    # Over more than 2,000 updates: twice the memory.
    yield LONG, 1, AveragedOptimizer(sgd(), exponentials(1, 1 - 1e-5))
    yield "Keras use_ema", 1, sgd(use_ema=True, ema_momentum=DECAY)


def all_cases() -> list[Case]:
    """Every case on this backend.  The first two are passes that stream what one average must."""
    large = resnet(34, 1000, (224, 224, 3), stem="imagenet")
    name = backend.name()
    found = [Case("plain pass", plain_pass(large))]
    found += [Case("floor", floor(large))] if name == "torch" else []
    found += {"tensorflow": steps_tensorflow, "jax": steps_jax, "torch": steps_torch}[name](large)
    found += callback_updates(large)
    if name == "torch":
        found += [case(UPDATE, "", tool, 1, torch_average(tool, large)) for tool in TORCH_TOOLS]
    return found + borrowing(large)


def number_of_weights(model: Any) -> int:
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def case(network: str, group: str, tool: str, averages: int, call: Callable[[], Any]) -> Case:
    what = f"{averages} of {tool}" if tool else "alone"
    return Case(f"{network}, {group or 'on its own'}: {what}", call, network, group, tool, averages)


# Passes over the weights -------------------------------------------------------------------------


def floor(model: Any) -> Callable[[], Any]:
    """`b += c·a` over two flat vectors, by torch."""
    import torch

    size = number_of_weights(model)
    a, b = torch.randn(size), torch.zeros(size)
    return lambda: b.add_(a, alpha=1e-3)


def plain_pass(model: Any) -> Callable[[], Any]:
    """`b += c·(w - b)` for every weight, as a function of its own in place: a separate EMA."""
    weights = backend.values(list(model.trainable_variables))
    if backend.name() == "torch":
        import torch

        copies = [torch.zeros_like(weight) for weight in weights]
        sources = [weight.detach() for weight in weights]
        return lambda: torch._foreach_lerp_(copies, sources, 1e-3)
    if backend.name() == "jax":
        import jax

        held = [jax.numpy.zeros_like(weight) for weight in weights]
        compiled = jax.jit(
            lambda b, w: [one + 1e-3 * (x - one) for one, x in zip(b, w, strict=True)],
            donate_argnums=0,
        )

        def call() -> None:
            held[:] = compiled(held, weights)
            jax.block_until_ready(held)

        return call
    import tensorflow as tf

    buffers = [tf.Variable(tf.zeros_like(weight)) for weight in weights]
    variables = [v.value for v in model.trainable_variables]

    @tf.function(jit_compile=True)
    def compiled_pass() -> None:
        for buffer, variable in zip(buffers, variables, strict=True):
            buffer.assign_add(1e-3 * (variable - buffer))

    return lambda: (compiled_pass(), buffers[-1].numpy())


# Steps -------------------------------------------------------------------------------------------


def gradients_of(model: Any) -> list[Any]:
    """Small ones: thousands of steps move no weight far."""
    return [keras.ops.full(v.shape, 1e-6, v.dtype) for v in model.trainable_variables]


def batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    return images, random.integers(0, 10, BATCH)


def loss() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small_model() -> Any:
    return resnet(20, 10, (32, 32, 3), stem="cifar", width=16)


def keras_step(optimizer: Any, **options: Any) -> tuple[Any, Callable[[], Any]]:
    """(a model of its own, one step of it by Keras' `train_on_batch`)."""
    model, (images, labels) = small_model(), batch()
    model.compile(optimizer, loss(), **options)
    return model, lambda: model.train_on_batch(images, labels)


def steps_tensorflow(large: Any) -> list[Case]:
    import tensorflow as tf

    found = []
    variables, gradients = list(large.trainable_variables), gradients_of(large)
    for group, jit in (("graph", False), ("XLA", True)):
        for tool, count, optimizer in optimizers():
            optimizer.build(variables)
            update = tf.function(
                lambda optimizer=optimizer: optimizer.apply(gradients, variables), jit_compile=jit
            )

            def call(update: Any = update) -> None:
                update()
                variables[-1].numpy()

            found.append(case(UPDATE, group, tool, count, call))
        for tool, count, optimizer in optimizers():
            if tool == LONG:
                continue
            _, step = keras_step(optimizer, jit_compile=jit)
            found.append(case(STEP, group, tool, count, step))
        if not jit:
            found += callback_steps(group, jit_compile=False)
    return found


def steps_torch(large: Any) -> list[Case]:
    found = []
    variables, gradients = list(large.trainable_variables), gradients_of(large)
    for tool, count, optimizer in optimizers():
        optimizer.build(variables)

        def call(optimizer: Any = optimizer) -> None:
            optimizer.apply(gradients, variables)

        found.append(case(UPDATE, "eager", tool, count, call))
        if tool == LONG:
            continue
        _, step = keras_step(optimizer_like(optimizer))
        found.append(case(STEP, "eager", tool, count, step))
    found += callback_steps("eager")
    for tool in TORCH_TOOLS:
        model, step = keras_step(sgd())
        after = torch_average(tool, model)

        def both(step: Any = step, after: Any = after) -> None:
            step()
            after()

        found.append(case(STEP, "eager", tool, 1, both))
    return found


def optimizer_like(optimizer: Any) -> Any:
    """A fresh optimizer with the same settings."""
    return type(optimizer).from_config(optimizer.get_config())


def callback_steps(group: str, **options: Any) -> Iterator[Case]:
    """Steps of Keras, each followed by the callback's update."""
    for count in COUNTS:
        model, step = keras_step(sgd(), **options)
        averaging = WeightAveraging(exponentials(count), "copy")
        averaging.set_model(model)

        def call(step: Any = step, averaging: Any = averaging) -> None:
            step()
            averaging.update()

        yield case(STEP, group, "WeightAveraging alone", count, call)


def steps_jax(large: Any) -> list[Case]:
    import jax

    found = []

    def running(compiled: Any, state: list[Any], *constant: Any, after: Any = None) -> Any:
        def call() -> None:
            state[:] = compiled(*state, *constant)
            if after is not None:
                after(state)
            jax.block_until_ready(state)

        return call

    def copies(variables: Any) -> list[Any]:
        return [jax.numpy.array(v.value) for v in variables]

    gradients = gradients_of(large)
    images, labels = batch()
    for tool, count, optimizer in [*optimizers(), ("optax.ema", 1, sgd())]:
        ema = ema_by_optax() if tool == "optax.ema" else None
        optimizer.build(list(large.trainable_variables))
        state = [copies(large.trainable_variables), copies(optimizer.variables)]
        if ema is not None:
            state.append(ema.init(state[0]))

        def update(weights: Any, slots: Any, *rest: Any, optimizer=optimizer, ema=ema) -> Any:
            *held, gradients = rest
            weights, slots = optimizer.stateless_apply(slots, gradients, weights)
            return weights, slots, *[ema.update(weights, one)[1] for one in held]

        donated = tuple(range(len(state)))
        compiled = jax.jit(update, donate_argnums=donated)
        found.append(case(UPDATE, "XLA", tool, count, running(compiled, state, gradients)))

        if tool == LONG:
            continue
        model, optimizer = small_model(), optimizer_like(optimizer)
        compiled, state = jax_step(model, optimizer, ema)
        found.append(case(STEP, "XLA", tool, count, running(compiled, state, images, labels)))
    for count in COUNTS:
        model = small_model()
        compiled, state = jax_step(model, sgd(), None)
        averaging = WeightAveraging(exponentials(count), "copy")
        averaging.set_model(model)

        def after(state: list[Any], averaging: Any = averaging) -> None:
            averaging.update(weights=state[0])

        call = running(compiled, state, images, labels, after=after)
        found.append(case(STEP, "XLA", "WeightAveraging alone", count, call))
    return found


def ema_by_optax() -> Any:
    import optax

    return optax.ema(DECAY, debias=False)


def jax_step(model: Any, optimizer: Any, ema: Any) -> tuple[Any, list[Any]]:
    """A compiled training step, state in and state out in the same order; and its first state."""
    import jax

    compute_loss = loss()
    optimizer.build(list(model.trainable_variables))

    def value(weights: Any, others: Any, images: Any, labels: Any) -> Any:
        outputs, others = model.stateless_call(weights, others, images, training=True)
        return compute_loss(labels, outputs), others

    def step(weights: Any, others: Any, slots: Any, *rest: Any) -> Any:
        *held, images, labels = rest
        gradients, others = jax.grad(value, has_aux=True)(weights, others, images, labels)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return weights, others, slots, *[ema.update(weights, one)[1] for one in held]

    kinds = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state: list[Any] = [[jax.numpy.array(v.value) for v in kind] for kind in kinds]
    if ema is not None:
        state.append(ema.init(state[0]))
    return jax.jit(step, donate_argnums=tuple(range(len(state)))), state


# Updates on their own ----------------------------------------------------------------------------


def callback_updates(model: Any) -> Iterator[Case]:
    """`WeightAveraging.update` of a model whose optimizer keeps no averages."""
    for label, count, decay in (("", 1, DECAY), ("", 8, DECAY), (", long", 1, 1 - 1e-5)):
        averaging = WeightAveraging(exponentials(count, decay), "copy")
        averaging.set_model(model)
        given = None
        if backend.name() == "jax":
            given = [v.value for v in model.trainable_variables]

        def call(averaging: Any = averaging, given: Any = given) -> None:
            averaging.update(weights=given)
            if given is not None:
                averaging.state.variables[-1].value.block_until_ready()

        yield case(UPDATE, "", f"WeightAveraging alone{label}", count, call)


def torch_average(tool: str, model: Any) -> Callable[[], Any]:
    """The update of an EMA of a model's trainable weights (its parameters are the same memory)."""
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterList(
                [nn.Parameter(v.value.detach()) for v in model.trainable_variables]
            )

    weights = Weights()
    if tool == "torch AveragedModel":
        averaged = AveragedModel(weights, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        averaged.update_parameters(weights)  # the first one copies
        return lambda: averaged.update_parameters(weights)
    if tool == "timm ModelEmaV3":
        ema = timm_module().ModelEmaV3(weights, decay=DECAY)
        return lambda: ema.update(weights)
    from ema_pytorch import EMA

    kept = EMA(weights, beta=DECAY, update_after_step=0, update_every=1, use_foreach=True)
    for _ in range(3):  # the first ones copy
        kept.update()
    assert torch.equal(kept.ema_model.parts[0], weights.parts[0])
    return kept.update


def timm_module() -> Any:
    """`timm.utils.model_ema` without the rest of timm, which needs torchvision."""
    found = importlib.util.find_spec("timm")
    assert found is not None and found.origin is not None
    path = pathlib.Path(found.origin).parent / "utils" / "model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Lending -----------------------------------------------------------------------------------------


def borrowing(model: Any) -> list[Case]:
    """An average put into the model and the raw weights back; on TensorFlow also by others."""
    variables = list(model.trainable_variables)
    averaging = WeightAveraging(exponentials(1), "copy")
    averaging.set_model(model)

    def lend() -> None:
        average = averaging.state.read("ema0", None)
        with borrow(model, average, backend.values(model.non_trainable_variables)):
            pass
        if backend.name() == "jax":
            variables[-1].value.block_until_ready()

    cases = [Case("borrow and return", lend)]
    if backend.name() != "tensorflow":
        return cases
    import tensorflow as tf

    optimizer = sgd(use_ema=True, ema_momentum=DECAY)
    optimizer.build(variables)
    optimizer.iterations.assign(1)
    model.compile(optimizer)
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)

    def there_and_back() -> None:
        swap._swap_variables()
        swap._swap_variables()

    # What borrowing cannot do without: the weights copied out, and copied back.
    def copy_twice() -> None:
        kept = [tf.raw_ops.DeepCopy(x=v.value) for v in variables]
        for variable, value in zip(variables, kept, strict=True):
            variable.value.assign(tf.raw_ops.DeepCopy(x=value))

    return [
        *cases,
        Case("Keras SwapEMAWeights, swap and back", there_and_back),
        Case("weights copied twice", copy_twice),
    ]
