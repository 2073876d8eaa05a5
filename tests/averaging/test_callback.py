"""`WeightAveraging` in `model.fit`."""

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj import WeightAveraging, kernels

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(96, 6, 6, 1)).astype(np.float32)
LABELS = (IMAGES.mean((1, 2, 3)) > 0).astype(np.int32)
AVERAGES = {
    "ema": kernels.Exponential(0.8, start=2),
    "swa": kernels.Uniform(start=4, every=2),
    "two_point": kernels.TwoPoint(3),
}


def network(batch_norm=True, **compile_options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(4, 3)(inputs)
    if batch_norm:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.1, seed=1)(keras.layers.ReLU()(x))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalMaxPooling2D()(x)))
    options = {
        "optimizer": keras.optimizers.SGD(0.1, momentum=0.9),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
        **compile_options,
    }
    model.compile(**options)
    return model


class Iterates(keras.callbacks.Callback):
    """Keeps the weights after every batch."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_begin(self, logs=None):
        if not self.values:
            self.values.append(trainable(self.model))

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(trainable(self.model))


def trainable(model):
    return [np.array(ops.convert_to_numpy(v.value)) for v in model.trainable_variables]


def everything(model):
    return [np.array(ops.convert_to_numpy(v.value)) for v in model.variables]


def fit(model, *callbacks, epochs=4, **options):
    options = {"batch_size": 24, "verbose": 0, "shuffle": False, **options}
    return model.fit(IMAGES, LABELS, epochs=epochs, callbacks=list(callbacks), **options)


def assert_matches_iterates(averaging, iterates, averages=AVERAGES):
    for name, kernel in averages.items():
        weights = kernel.weights(len(iterates) - 1)
        for index, actual in enumerate(averaging.get_average(name)):
            expected = sum(
                w * value[index].astype(np.float64)
                for w, value in zip(weights, iterates, strict=True)
            )
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    model = network()
    averaging, iterates = WeightAveraging(AVERAGES, batch_norm_data=IMAGES), Iterates()
    fit(model, averaging, iterates)
    return model, averaging, iterates


def test_averages_follow_their_kernels(trained):
    _, averaging, iterates = trained
    assert averaging.num_updates == 16
    assert_matches_iterates(averaging, iterates.values)


def test_training_is_not_disturbed(trained):
    model, _, _ = trained
    plain = network()
    fit(plain)
    for ours, theirs in zip(everything(model), everything(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_borrowing_restores_to_the_bit_also_when_an_exception_flies(trained):
    model, averaging, _ = trained
    before = everything(model)
    with averaging.borrowed("ema") as borrowed:
        for inside, average in zip(trainable(borrowed), averaging.get_average("ema"), strict=True):
            np.testing.assert_array_equal(inside, average)
        model.predict(IMAGES, verbose=0)
    with pytest.raises(KeyboardInterrupt), averaging.borrowed("swa"):
        raise KeyboardInterrupt
    for old, new in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_nested_borrowing_and_training_while_borrowed_are_refused(trained):
    _, averaging, _ = trained
    with averaging.borrowed("ema"):
        with (
            pytest.raises(RuntimeError, match="already holds the average 'ema'"),
            averaging.borrowed("swa"),
        ):
            pass
        with pytest.raises(RuntimeError, match="leave `borrowed`"):
            averaging.update()
    with averaging.borrowed("swa"):  # a refusal leaves nothing locked
        pass


def test_evaluate_gives_what_each_set_of_weights_gives_alone(trained):
    model, averaging, _ = trained
    results = averaging.evaluate((IMAGES, LABELS))
    assert list(results) == ["raw", "raw_running", *AVERAGES]
    for name in AVERAGES:
        with averaging.borrowed(name):
            alone = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
        assert results[name] == pytest.approx(alone, rel=1e-6)
    assert results["raw_running"] == pytest.approx(
        model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True), rel=1e-6
    )


def test_raw_weights_are_shown_with_statistics_as_fresh_as_those_of_averages(trained):
    model, averaging, _ = trained
    results = averaging.evaluate((IMAGES, LABELS))
    # The weights of now, as an average of one iterate, with recomputed statistics.
    now = WeightAveraging({"now": kernels.Window(1)}, batch_norm_data=IMAGES)
    now.set_model(model)
    with now.borrowed("now"):
        fresh = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert results["raw"] == pytest.approx(fresh, rel=1e-6)
    assert abs(results["raw"]["loss"] - results["raw_running"]["loss"]) > 1e-3
    copied = WeightAveraging({"now": kernels.Window(1)}, batch_norm="copy")
    copied.set_model(model)
    assert list(copied.evaluate((IMAGES, LABELS))) == ["raw", "now"]


def test_evaluating_in_mid_epoch_leaves_the_epochs_metrics_alone():
    class EvaluateEveryBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            averaging.evaluate((IMAGES[:24], LABELS[:24]))

    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)}, batch_norm_data=IMAGES)
    disturbed = fit(network(), averaging, EvaluateEveryBatch(), epochs=2).history
    plain = fit(network(), epochs=2).history
    assert disturbed["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert disturbed["accuracy"] == pytest.approx(plain["accuracy"], rel=1e-6)


def test_saved_model_predicts_what_the_borrowed_one_does(trained, tmp_path):
    model, averaging, _ = trained
    averaging.save("swa", tmp_path / "swa.keras")
    with averaging.borrowed("swa"):
        expected = model.predict(IMAGES, verbose=0)
    loaded = keras.saving.load_model(tmp_path / "swa.keras")
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), expected, rtol=1e-5, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["swa.keras"]
    with pytest.raises(ValueError, match=r"must end in '\.keras'.*swa\.h5"):
        averaging.save("swa", tmp_path / "swa.h5")


def test_a_second_fit_goes_on_where_the_first_ended():
    averaging, iterates = WeightAveraging(AVERAGES, batch_norm_data=IMAGES), Iterates()
    model = network()
    fit(model, averaging, iterates, epochs=2)
    fit(model, averaging, iterates, epochs=2)
    assert averaging.num_updates == 16
    assert_matches_iterates(averaging, iterates.values)


def test_state_saved_and_loaded_goes_on_to_the_bit(tmp_path):
    model = network()
    first = WeightAveraging(AVERAGES, batch_norm_data=IMAGES)
    fit(model, first, epochs=2)
    first.save_state(tmp_path / "state.npz")
    second = WeightAveraging(AVERAGES, batch_norm_data=IMAGES)
    second.set_model(model)
    second.load_state(tmp_path / "state.npz")
    fit(model, first, second, epochs=2)
    for name in AVERAGES:
        for a, b in zip(first.get_average(name), second.get_average(name), strict=True):
            np.testing.assert_array_equal(a, b)
    other = WeightAveraging({"w": kernels.Window(2)}, batch_norm_data=IMAGES)
    other.set_model(model)
    with pytest.raises(ValueError, match="must hold the state of the averages"):
        other.load_state(tmp_path / "state.npz")


def test_micro_steps_of_gradient_accumulation_are_not_counted():
    model = network(
        batch_norm=False, optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    )
    averaging, iterates = WeightAveraging(AVERAGES), Iterates()
    fit(model, averaging, iterates)
    assert averaging.num_updates == 8
    assert_matches_iterates(averaging, iterates.values[::2])


@pytest.mark.parametrize("policy", ["average", "copy"])
def test_statistics_averaged_or_copied(policy):
    model = network()
    averaging = WeightAveraging({"ema": kernels.Exponential(0.5)}, batch_norm=policy)
    norm = next(la for la in model.layers if isinstance(la, keras.layers.BatchNormalization))

    class Statistics(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.means = [np.array(ops.convert_to_numpy(norm.moving_mean.value))]

        def on_train_batch_end(self, batch, logs=None):
            self.model  # on JAX this brings the variables up to date
            self.means.append(np.array(ops.convert_to_numpy(norm.moving_mean.value)))

    seen = Statistics()
    fit(model, averaging, seen, epochs=2)
    with averaging.borrowed("ema"):
        inside = ops.convert_to_numpy(norm.moving_mean.value)
    weights = kernels.Exponential(0.5).weights(8)
    expected = seen.means[-1] if policy == "copy" else weights @ np.array(seen.means)
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-7)


def test_missing_batch_norm_data_is_told_before_training_and_refused_after():
    model = network()
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)})
    with pytest.warns(UserWarning, match="`batch_norm_data` is missing"):
        fit(model, averaging, epochs=1)
    assert len(averaging.get_average("ema")) == len(model.trainable_variables)
    with pytest.raises(ValueError, match="needs `batch_norm_data`"), averaging.borrowed("ema"):
        pass
    averaging.batch_norm_data = IMAGES
    with averaging.borrowed("ema"):
        pass


def test_skipping_steps_is_refused():
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)}, batch_norm_data=IMAGES)
    with pytest.raises(ValueError, match=r"steps_per_execution`? ?(=|must be )1"):
        fit(network(steps_per_execution=2), averaging)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"averages": {}}, "non-empty dict"),
        ({"averages": {"raw": kernels.Uniform()}}, "'raw'"),
        ({"averages": {"a/b": kernels.Uniform()}}, "'a/b'"),
        ({"averages": {"ema": 0.99}}, "must be a kernel .* Received: 0.99"),
        ({"averages": AVERAGES, "batch_norm": "refresh"}, "must be one of .*'refresh'"),
        ({"averages": AVERAGES, "batch_norm": {"ema": "copy"}}, "policy for each of"),
        ({"averages": AVERAGES, "batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightAveraging(**arguments)


def test_an_average_asked_for_without_a_model():
    with pytest.raises(RuntimeError, match="has no model yet"):
        WeightAveraging(AVERAGES).get_average("ema")
