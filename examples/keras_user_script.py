"""An ordinary Keras training that may be killed at any moment, with three weight averages.

Run it, kill it, run it again: it goes on where Keras' own BackupAndRestore goes on, and ends
with the same averages, to the bit, as if nothing had happened.

    python examples/keras_user_script.py FOLDER
"""

import pathlib
import sys

import keras

from tf_lrtraj import WeightAveraging, data, kernels


def build_model():
    """A small functional model with batch norm and dropout, compiled."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(x))
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(0.3, seed=1)(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def main(folder, more_callbacks=()):
    """Trains in `folder`; returns the callback that holds the averages."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    digits = data.load("digits")
    x_train, y_train = digits.arrays("train")
    test = digits.arrays("test")
    model = build_model()

    averaging = WeightAveraging(
        {
            "ema": kernels.Exponential(0.98),
            "swa": kernels.Uniform(start=40),
            "two_point": kernels.TwoPoint(gap=20),
        },
        batch_norm_data=x_train,
        validation_data=test,  # puts val_ema_accuracy and the like into the logs
        save_best={"ema": folder / "best_ema.keras"},
        monitor="accuracy",
        mode="max",
    )
    stop = keras.callbacks.EarlyStopping(
        monitor="val_ema_accuracy", mode="max", patience=5, restore_best_weights=True
    )
    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"))
    model.fit(
        x_train,
        y_train,
        batch_size=64,
        epochs=6,
        # Keras keeps no record of where it was in a shuffled order; the digits are mixed already.
        shuffle=False,
        validation_data=test,
        callbacks=[averaging, stop, *more_callbacks, backup],  # the averages first
        verbose=0,
    )
    averaging.save_state(folder / "averages.npz")
    for name, metrics in averaging.evaluate(test).items():
        print(f"{name:10s} test accuracy {metrics['accuracy']:.3f}")
    return averaging


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
