"""Backbones of keras-cv and of keras-hub, its successor, with a head for classes.

Both packages are optional and are imported only where a configuration names them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tf_lrtraj.runs.config_checks import ConfigError, refusal
from tf_lrtraj.values import closest

__all__ = ["PACKAGES", "build"]

# Package → the argument of its backbones that holds the shape of the images.
PACKAGES = {"keras_cv": "input_shape", "keras_hub": "image_shape"}
_KEY = "model.build"


def build(
    text: str, num_classes: int | None, input_shape: Sequence[int], options: Mapping[str, Any]
) -> keras.Model:
    """Builds a backbone with global average pooling and a dense layer of logits.

    Args:
        text: "keras_cv:CLASS" or "keras_hub:CLASS", a backbone for images.
        num_classes: number of logits.
        input_shape: (height, width, channels) of the images.
        options: further arguments of the class, such as `{"stackwise_filters": [16, 32], …}`.

    Raises:
        ConfigError: if the package is not installed, it has no such backbone, the arguments do not
            fit, or its output is no map of features.
    """
    package, _, name = text.partition(":")
    cls = _backbone(package, name, text)
    if num_classes is None or len(input_shape) != 3:
        raise refusal(_KEY, "another model for data that are not images with classes", text)
    shape = PACKAGES[package]
    if shape in options:
        allowed = f"without {shape!r}, which the data give"
        raise refusal("model.options", allowed, dict(options))
    known = [
        key for key, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD
    ]
    for key in options:
        if key not in known:
            raise ConfigError(
                f"`config.model.options` has {key!r}, which is no argument of {text}."
                f"{closest(key, known)} Known: {known}"
            )
    try:
        backbone = cls(**{shape: tuple(input_shape)}, **options)
    except Exception as error:  # the packages raise many types
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"`config.model.options` do not build {text}: {line}") from None
    inputs = backbone.input
    features = backbone.output
    if keras.tree.is_nested(features) or len(features.shape) != 4:
        raise refusal(_KEY, "a backbone that returns features [batch, rows, columns, n]", text)
    pooled = keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
    # Half-precision logits would lower the accuracy of the loss.
    logits = keras.layers.Dense(num_classes, name="head_logits", dtype="float32")(pooled)
    return keras.Model(inputs, logits, name=name)


def _backbone(package: str, name: str, text: str) -> Any:
    try:
        models = importlib.import_module(f"{package}.models")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing != package:
            raise ConfigError(
                f"`config.{_KEY}`={text!r}: {package} cannot be imported: {error}"
            ) from None
        raise ConfigError(
            f"`config.{_KEY}`={text!r} needs {package.replace('_', '-')}, which is not installed: "
            f"pip install 'tf_lrtraj[{package}]'"
        ) from None
    known = {
        key: cls
        for key, cls in vars(models).items()
        if inspect.isclass(cls) and issubclass(cls, keras.Model) and key.endswith("Backbone")
    }
    if name not in known:
        raise ConfigError(
            f"`config.{_KEY}` must be a backbone of {package}.{closest(name, known)} Received: "
            f"config.{_KEY}={text!r}"
        )
    return known[name]
