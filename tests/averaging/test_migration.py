"""Averages here against those of other tools, on the same trajectory; docs/migration.md runs."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest
from helpers import python_blocks
from keras_helpers import arrays_of, trainable

from tf_lrtraj import AveragedOptimizer, WeightAveraging, kernels, rates

BLOCKS = python_blocks("docs/migration.md")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 5)).astype(np.float32)
Y = (X @ RNG.normal(size=(5, 1))).astype(np.float32)
# A trajectory that other tools can be led along: 25 iterates of a matrix and a vector.
STEPS = 24
PATH = [
    [matrix.astype(np.float32), vector.astype(np.float32)]
    for matrix, vector in zip(
        RNG.normal(size=(STEPS + 1, 5, 2)).cumsum(0),
        RNG.normal(size=(STEPS + 1, 2)).cumsum(0),
        strict=True,
    )
]


def assert_close(actual, expected, tolerance=2e-6):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def ours(kernel, path=PATH):
    """The average `WeightAveraging` keeps of a model that is led along `path`."""
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.set_weights(path[0])
    averaging = WeightAveraging({"it": kernel})
    averaging.set_model(model)
    averaging.get_average("it")
    for weights in path[1:]:
        model.set_weights(weights)
        averaging.update()
    return averaging.get_average("it")


# Keras --------------------------------------------------------------------------------------


def network(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4, activation="tanh")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9, **options), "mse")
    return model


def test_keras_use_ema_and_swap_ema_weights():
    model = network(use_ema=True, ema_momentum=0.9)
    averaging = WeightAveraging(
        {"ema": kernels.Exponential(0.9, start=1)}, "copy", validation_data=(X[:20], Y[:20])
    )
    history = model.fit(
        X,
        Y,
        batch_size=16,
        epochs=3,
        verbose=0,
        validation_data=(X[:20], Y[:20]),
        callbacks=[averaging, keras.callbacks.SwapEMAWeights()],
    ).history
    assert history["val_ema_loss"] == pytest.approx(history["val_loss"], rel=1e-5)
    # Keras leaves its average in the model.
    assert_close(averaging.get_average("ema"), trainable(model))


# TensorFlow Addons, by its published source ---------------------------------------------------
# (tensorflow/addons, tensorflow_addons/optimizers/moving_average.py and
# stochastic_weight_averaging.py; `iterations` is still T-1 while the update that makes θ_T runs).


def addons_moving_average(decay, start_step, dynamic):
    average = PATH[0]
    for step, weights in enumerate(PATH[1:]):
        now = min(decay, (1 + step - start_step) / (10 + step - start_step)) if dynamic else decay
        now = 0.0 if step < start_step else now
        average = [now * a + (1 - now) * w for a, w in zip(average, weights, strict=True)]
    return average


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("dynamic", [False, True])
def test_addons_moving_average(start, dynamic):
    kernel = kernels.Exponential(0.8, start=start, warmup=9 if dynamic else 0)
    assert_close(ours(kernel), addons_moving_average(0.8, start, dynamic))
    other = kernels.Exponential(0.8, start=start + 1, warmup=kernel.warmup)
    assert np.abs(ours(other)[0] - ours(kernel)[0]).max() > 1e-3  # one step apart shows


@pytest.mark.parametrize(("start", "period"), [(0, 1), (4, 3), (5, 10)])
def test_addons_swa(start, period):
    average = [np.zeros_like(value) for value in PATH[0]]
    for iterations, weights in enumerate(PATH[1:]):
        snapshots = max(0, (iterations - start) // period)
        if iterations >= start and start + snapshots * period == iterations:
            average = [
                (a * snapshots + w) / (snapshots + 1) for a, w in zip(average, weights, strict=True)
            ]
    assert_close(ours(kernels.Uniform(start=start + 1, every=period)), average)


# TensorFlow -----------------------------------------------------------------------------------


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="imports TensorFlow")
@pytest.mark.parametrize("dynamic", [False, True])
def test_tensorflow_exponential_moving_average(dynamic):
    import tensorflow as tf

    variables = [tf.Variable(array) for array in PATH[0]]
    step = tf.Variable(0)
    ema = tf.train.ExponentialMovingAverage(0.8, num_updates=step if dynamic else None)
    ema.apply(variables)  # the first one makes the averages
    for number, weights in enumerate(PATH[1:]):
        step.assign(number)
        for variable, array in zip(variables, weights, strict=True):
            variable.assign(array)
        ema.apply(variables)
    kernel = kernels.Exponential(0.8, warmup=9 if dynamic else 0)
    assert_close(ours(kernel), [ema.average(variable).numpy() for variable in variables])


# torch --------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def led_along(torch, make, update):
    """Leads a torch module along the path: `update(averaged, module, T)` after every step `T`.

    Args:
        torch: the module `torch`.
        make: makes what averages, from the module at `θ_0`.
        update: updates it.

    Returns:
        the average, as [matrix, vector].
    """
    module = torch.nn.Linear(5, 2, device="cpu")
    averaged = None
    for step, weights in enumerate(PATH):
        with torch.no_grad():
            module.weight.copy_(torch.tensor(weights[0].T))
            module.bias.copy_(torch.tensor(weights[1]))
        if step == 0:
            averaged = make(module)
        else:
            update(averaged, module, step)
    inner = getattr(averaged, "ema_model", None) or averaged.module
    return [inner.weight.detach().cpu().numpy().T, inner.bias.detach().cpu().numpy()]


@pytest.mark.parametrize(("start", "every"), [(1, 1), (6, 1), (4, 4), (3, 5)])
def test_torch_averaged_model(torch, start, every):
    from torch.optim import swa_utils

    def update(averaged, module, step):
        if step in range(start, STEPS + 1, every):
            averaged.update_parameters(module)

    for kernel, options in (
        (kernels.Uniform(start, every), {}),
        (
            kernels.Exponential(0.7, start=start, every=every),
            {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.7)},
        ),
    ):
        found = led_along(torch, lambda m, o=options: swa_utils.AveragedModel(m, **o), update)
        assert_close(ours(kernel), found)


def test_torch_update_bn(torch):
    from torch.optim import swa_utils

    norm = torch.nn.BatchNorm1d(5, device="cpu")
    batches = np.split(X * np.linspace(0.5, 2, 64, dtype=np.float32)[:, None], 4)
    swa_utils.update_bn([torch.tensor(batch) for batch in batches], norm)
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
    averaging = WeightAveraging({"it": kernels.Uniform()}, batch_norm_data=batches)
    averaging.set_model(model)
    with averaging.borrowed("it"):
        _, _, mean, variance = arrays_of(model.layers[1].weights)
    whole = np.concatenate(batches).astype(np.float64)
    assert_close([mean, variance], [whole.mean(0), whole.var(0)])
    assert_close([norm.running_mean.numpy()], [mean])  # batches of one size
    unbiased = np.mean([batch.var(0, ddof=1) for batch in batches], axis=0)
    assert_close([norm.running_var.numpy()], [unbiased])
    assert np.abs(unbiased / variance - 1).max() > 0.02


def test_torch_swalr(torch):
    names = {"keras": keras}
    block = next(block for block in BLOCKS if "swa_lr" in block)
    exec(block, names)
    parameter = torch.nn.Parameter(torch.zeros(1, device="cpu"))
    optimizer = torch.optim.SGD([parameter], lr=names["base"])
    scheduler = torch.optim.swa_utils.SWALR(
        optimizer, swa_lr=names["swa_lr"], anneal_epochs=names["epochs"], anneal_strategy="linear"
    )
    expected = []
    for epoch in range(20):
        expected += [optimizer.param_groups[0]["lr"]] * names["steps_per_epoch"]
        optimizer.step()
        if epoch >= names["first"] - 1:
            scheduler.step()
    table = rates.Piecewise(names["boundaries"], names["values"])(np.arange(len(expected)))
    np.testing.assert_allclose(table, expected, rtol=1e-12)
    schedule = names["optimizer"]._learning_rate
    assert float(schedule(50)) == pytest.approx(expected[50])


# timm, ema-pytorch --------------------------------------------------------------------------


def timm_model_ema():
    """timm's module of EMAs; the rest of timm needs torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None:
        pytest.skip("could not import 'timm'")
    path = pathlib.Path(found.origin).parent / "utils" / "model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("options", "with_step", "kernel"),
    [
        ({}, False, kernels.Exponential(0.8)),
        ({}, True, kernels.Exponential(0.8, start=1)),
        ({"update_after_step": 3}, True, kernels.Exponential(0.8, start=4)),
        (
            {"update_after_step": 3, "use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 1.0},
            True,
            kernels.Exponential(0.8, start=4, warmup=2),
        ),
    ],
)
def test_timm_model_ema_v3(torch, options, with_step, kernel):
    timm = timm_model_ema()
    found = led_along(
        torch,
        lambda module: timm.ModelEmaV3(module, decay=0.8, **options),
        lambda ema, module, step: ema.update(module, step=step if with_step else None),
    )
    assert_close(ours(kernel), found)


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        (
            {"update_after_step": 0, "update_every": 1, "inv_gamma": 2.0},
            kernels.Exponential(0.8, start=1, warmup=2),
        ),
        (
            {"update_after_step": 4, "update_every": 2, "inv_gamma": 1.0},
            kernels.Exponential(0.8, start=5, every=2, warmup=0.5),
        ),
    ],
)
def test_ema_pytorch(torch, options, kernel):
    ema_pytorch = pytest.importorskip("ema_pytorch")
    found = led_along(
        torch,
        lambda module: ema_pytorch.EMA(module, beta=0.8, power=1.0, **options),
        lambda ema, module, step: ema.update(),
    )
    assert_close(ours(kernel), found)


# diffusers and Composer, by their published source --------------------------------------------
# (huggingface/diffusers, src/diffusers/training_utils.py: the decay of step T is that of
# T - update_after_step - 1, and 0 where this is not above 0; mosaicml/composer,
# algorithms/ema/ema.py and algorithms/swa/swa.py: the average begins at the first end of a batch,
# or of an epoch, that is not before its start).


def recursive_average(decay_of_step, path=PATH):
    average = path[0]
    for step, weights in enumerate(path[1:], start=1):
        decay = decay_of_step(step)
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    return average


@pytest.mark.parametrize("after", [0, 3])
def test_diffusers_ema_model(after):
    def plain(step):
        count = step - after - 1
        return min(0.8, (1 + count) / (10 + count)) if count > 0 else 0.0

    def warm_up(step):
        count = step - after - 1
        return min(0.8, 1 - 1 / (1 + count / 2.0)) if count > 0 else 0.0

    exact = kernels.Exponential(0.8, start=after + 1, warmup=2)
    assert_close(ours(exact), recursive_average(warm_up))
    # Another share of the iterate at which it begins, forgotten soon.
    near = kernels.Exponential(0.8, start=after, warmup=9)
    weights = near.weights(after + 11)
    of_theirs = 1.0  # the weight of θ_{after+1}, which the tenth of θ_after is taken from
    for step in range(after + 2, after + 12):
        of_theirs *= plain(step)
    assert weights[after] == pytest.approx(0.1 * of_theirs)
    assert weights[after] < 1e-5
    assert_close(ours(near), recursive_average(plain), 1e-5)


def test_composer_ema_and_swa():
    half_life = 2 ** (-1 / 5)
    path = PATH[1:]  # it copies the weights at the end of the first batch
    kernel = kernels.Exponential(half_life, start=1)
    assert_close(ours(kernel), recursive_average(lambda step: half_life, path))
    steps, start = 4, 2
    ends_of_epochs = PATH[start * steps :: steps]
    mean = [np.mean(arrays, axis=0) for arrays in zip(*ends_of_epochs, strict=True)]
    assert_close(ours(kernels.Uniform(start=start * steps, every=steps)), mean)


# optax --------------------------------------------------------------------------------------


def test_optax():
    optax = pytest.importorskip("optax")
    debiased, old = optax.ema(0.8), PATH[0]
    state = debiased.init(PATH[0])
    for weights in PATH[1:]:
        average, state = debiased.update(weights, state)
        old = optax.incremental_update(weights, old, 0.2)
    assert_close(ours(kernels.Exponential(0.8, debias=True)), average)
    assert_close(ours(kernels.Exponential(0.8)), old)
    first, state = debiased.update(PATH[1], debiased.init(PATH[0]))
    assert_close(first, PATH[1])
    assert_close(state.ema, [0.2 * array for array in PATH[1]])  # what is kept begins at zero


# Lightning ----------------------------------------------------------------------------------


def lightning_run(callback, epochs=4):
    """A run of Lightning: (the weights it ends with, every iterate as [matrix, vector])."""
    torch = pytest.importorskip("torch")
    pl = pytest.importorskip("lightning.pytorch")
    iterates = []

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 2)
            self.keep()

        def keep(self):
            with torch.no_grad():
                iterates.append(
                    [self.layer.weight.numpy().T.copy(), self.layer.bias.numpy().copy()]
                )

        def training_step(self, batch, index):
            return (self.layer(batch[0]) ** 2).mean() + self.layer.bias.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            self.keep()

    torch.manual_seed(0)
    module = Module()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(X)), batch_size=16
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    final = [module.layer.weight.detach().numpy().T, module.layer.bias.detach().numpy()]
    assert len(iterates) == epochs * 4 + 1
    return final, iterates


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "start", "every"),
    [
        ({}, 1, 1),
        ({"update_every_n_steps": 3}, 1, 3),
        ({"update_every_n_steps": 3, "update_starting_at_step": 5}, 7, 3),
    ],
)
def test_lightning_ema(options, start, every):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    final, iterates = lightning_run(callbacks.EMAWeightAveraging(decay=0.8, **options))
    kernel = kernels.Exponential(0.8, start=start, every=every)
    assert_close(ours(kernel, iterates), final)


@pytest.mark.filterwarnings("ignore")
def test_lightning_weight_averaging():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    final, iterates = lightning_run(callbacks.WeightAveraging())
    assert_close(ours(kernels.Uniform(start=1), iterates), final)


@pytest.mark.filterwarnings("ignore")
def test_lightning_stochastic_weight_averaging():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    swa = callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    final, iterates = lightning_run(swa, epochs=5)
    steps = 4
    kernel = kernels.Uniform(start=(2 - 1) * steps, every=steps)
    assert_close(ours(kernel, iterates[: (5 - 1) * steps + 1]), final)
    assert np.abs(ours(kernel, iterates)[0] - final[0]).max() > 1e-4


# The page -----------------------------------------------------------------------------------


def test_the_page_runs_and_its_two_keras_versions_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 8
    names = {"keras": keras, "x_train": X, "y_train": Y, "x_test": X[:20], "y_test": Y[:20]}
    averaged = 0
    for index, block in enumerate(BLOCKS):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5,))
        norm = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs))
        model = names["model"] = keras.Model(inputs, keras.layers.Dense(1)(norm))
        initial = trainable(model)
        exec(block, names)
        if index == 1:
            before = names["history_before"].history["val_loss"]
            assert names["history"].history["val_ema_loss"] == pytest.approx(before, rel=1e-5)
        optimizer = getattr(model, "optimizer", None)
        if isinstance(optimizer, AveragedOptimizer):
            averaged += 1
            assert optimizer.num_updates in (4, 6, 12)
            for name in optimizer.averages:
                assert np.abs(optimizer.get_average(name)[0] - initial[0]).max() > 1e-4
    assert averaged == 6
    assert (tmp_path / "ema.keras").exists()
