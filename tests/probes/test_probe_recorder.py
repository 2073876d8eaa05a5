"""A Keras model probed in the middle of `fit` ends as it would have without."""

import keras
import numpy as np
import pytest

from tf_lrtraj import backend, probes
from tf_lrtraj.records import ArrayRecord

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int32)


def built():
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3, seed=5),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


def fitted(callbacks):
    model = built()
    history = model.fit(X, Y, batch_size=16, epochs=2, shuffle=True, verbose=0, callbacks=callbacks)
    variables = [*model.variables, *model.optimizer.variables]
    return history.history, [a.tobytes() for a in backend.to_numpy(backend.values(variables))]


def actions():
    batches = probes.take_batches(X, Y, 8, 4)

    def line(surface):
        return probes.Line(
            surface, None, batches[:2], held_out=batches[2:], rates=[0.0, 0.1, 1.0], bracket="none"
        )

    def trip(surface):
        return probes.SideTrip(
            surface, None, batches[:1], held_out=batches[2:], learning_rate=0.1, num_steps=2
        )

    def gradients(surface):
        return probes.Gradients(surface, None, batches)

    return {"line": line, "trip": trip, "gradients": gradients}


@pytest.mark.parametrize("mode", ["batch", "frozen", "recalibrated"])
def test_the_run_is_the_same_to_the_bit(mode, tmp_path):
    recorder = probes.ProbeRecorder(
        tmp_path,
        actions(),
        every=3,
        start=1,
        batch_norm=mode,
        dropout="pinned",
        moment_batches=probes.take_batches(X, Y, 32, 2),
    )
    assert fitted([recorder]) == fitted([])
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [
        f"{name}-{step:09d}.npz" for name in ("gradients", "line", "trip") for step in (1, 4, 7)
    ]
    for path in tmp_path.iterdir():
        record = ArrayRecord.read(path)
        assert record.complete and record.about["batch_norm"] == mode


def test_measured_at_the_weights_of_its_step(tmp_path):
    """The record of a step is what a model stopped at that step gives."""
    recorder = probes.ProbeRecorder(tmp_path, actions(), every=4)
    model = built()
    model.fit(X, Y, batch_size=16, epochs=1, shuffle=False, verbose=0, callbacks=[recorder])
    surface = probes.Surface(model)
    expected = probes.measure(actions()["line"](surface))
    found = ArrayRecord.read(tmp_path / "line-000000004.npz")
    np.testing.assert_array_equal(found.values["train"], expected.values["train"])
    first = ArrayRecord.read(tmp_path / "line-000000000.npz")
    assert not np.array_equal(first.values["train"], expected.values["train"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 1, "start": -1}, "start=-1"),
        ({"every": True}, "every=True"),
    ],
)
def test_cadences_that_make_no_sense(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        probes.ProbeRecorder(tmp_path, {}, **arguments)


def test_names_that_cannot_name_files(tmp_path):
    with pytest.raises(ValueError, match=r"a probe's name .*'\.\./line'"):
        probes.ProbeRecorder(tmp_path, {"../line": lambda surface: None}, every=1)


@pytest.mark.skipif(backend.name() == "torch", reason="Keras itself refuses it on torch")
def test_several_steps_at_once_are_refused(tmp_path):
    model = built()
    model.compile("sgd", model.loss, steps_per_execution=2)
    with pytest.raises(ValueError, match="ProbeRecorder must see every step"):
        model.fit(
            X, Y, batch_size=16, verbose=0, callbacks=[probes.ProbeRecorder(tmp_path, {}, every=1)]
        )
