"""The components of a run that a configuration names: data, model, optimizer, loss and metrics.

The defaults are an image set of `tf_lrtraj.data`, a ResNet, SGD with momentum, and cross-entropy
with accuracy.  Each may be replaced by a user's own or by one of Keras.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend, data
from tf_lrtraj.models import Size, decayed_variables, resnet
from tf_lrtraj.runs import backbones, user_code
from tf_lrtraj.runs.config_checks import ConfigError, refusal
from tf_lrtraj.runs.cost_estimates import size_of
from tf_lrtraj.training.objective import KerasMetric, Objective, classification, of_keras
from tf_lrtraj.training.progress import stage
from tf_lrtraj.values import closest

__all__ = [
    "build_model",
    "check_optimizer",
    "check_together",
    "load_dataset",
    "make_objective",
    "make_optimizer",
    "model_size",
    "weight_decay_of",
]

# Options that a run's own loop, schedule and averages replace or do not serve.
_NOT_OPTIONS = {
    "learning_rate": "config.schedule gives it",
    "name": "the run names it",
    "gradient_accumulation_steps": "a larger config.data.batch_size is the same",
    "loss_scale_factor": "losses are computed in float32",
    "use_ema": "config.averages keeps averages",
    "ema_momentum": "config.averages keeps averages",
    "ema_overwrite_frequency": "config.averages keeps averages",
}


# --- Data and model -----------------------------------------------------------------------


def load_dataset(config: Mapping[str, Any]) -> Any:
    """Loads the data set of a configuration.

    Raises:
        ConfigError: if its name, augmentation or split does not exist, it is not prepared, or the
            user's function is missing or returns something else.
    """
    options = config["data"]
    try:
        dataset = _named(options) if options["load"] is None else _loaded(options)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"config.data: {error}") from None
    if (options["eval_split"] or dataset.eval_split) not in dataset.num_examples:
        allowed = f"one of the splits {sorted(dataset.num_examples)}"
        raise refusal("data.eval_split", allowed, options["eval_split"])
    return dataset


def _named(options: Mapping[str, Any]) -> Any:
    stage(f"loading the data {options['name']!r}")
    return data.load(
        options["name"],
        data_dir=options["dir"],
        augmentation=options["augmentation"],
        image_size=options["image_size"],
        download=options["download"],
    )


def _loaded(options: Mapping[str, Any]) -> Any:
    key, text = "data.load", options["load"]
    stage(f"loading the data {text!r}")
    function = user_code.find_function(key, text)
    given = {"data_dir": options["dir"]}
    found = user_code.call(key, text, function, options["options"], given, optional=True)
    try:
        return data.from_splits_of(text, found, options["augmentation"])
    except ValueError as error:
        raise ConfigError(f"`config.{key}`={text!r}: {error}") from None


def build_model(config: Mapping[str, Any], dataset: Any) -> Any:
    """Builds the model of a configuration for a data set's inputs and classes.

    Raises:
        ConfigError: if there is no such model, or it does not fit the data.
    """
    options = config["model"]
    if options["build"] is None:
        return _resnet(config, dataset)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(options["dtype"])
    try:
        model = _built(options, dataset)
    finally:
        keras.config.set_dtype_policy(policy)
    return _checked_model(options["build"], model, dataset)


def _images(dataset: Any) -> tuple[tuple[int, int, int], int]:
    """Returns the shape of the images and the number of classes, which a ResNet needs."""
    shape, classes = dataset.input_shape, dataset.num_classes
    if classes is None or isinstance(shape, dict) or len(shape) != 3:
        allowed = (
            "a function, 'package.module:function', for data that are not images with class labels"
        )
        raise refusal("model.build", allowed, None)
    return shape, classes


def _resnet(config: Mapping[str, Any], dataset: Any) -> Any:
    options = config["model"]
    shape, classes = _images(dataset)
    try:
        return resnet(
            options["depth"],
            classes,
            shape,
            stem=options["stem"],
            width=options["width"],
            batch_norm_momentum=options["batch_norm"]["momentum"],
            batch_norm_epsilon=options["batch_norm"]["epsilon"],
            batch_norm_synchronized=options["batch_norm"]["synchronized"],
            dtype=options["dtype"],
            seed=config["seed"],
        )
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from None


def _built(options: Mapping[str, Any], dataset: Any) -> Any:
    key, text = "model.build", options["build"]
    if text.endswith(".keras"):
        return _from_file(text, options["options"])
    if text.partition(":")[0] in backbones.PACKAGES:
        return backbones.build(text, dataset.num_classes, dataset.input_shape, options["options"])
    function = user_code.find_function(key, text)
    given = {"num_classes": dataset.num_classes, "input_shape": dataset.input_shape}
    return user_code.call(key, text, function, options["options"], given, optional=True)


def _from_file(path: str, options: Mapping[str, Any]) -> Any:
    from tf_lrtraj.averaging import model_files

    if options:
        raise refusal("model.options", "empty for a .keras file", dict(options))
    try:
        return model_files.load_model(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`config.model.build`={path!r}: {error}. A model with layers of your own is built by "
            "a function, 'package.module:function'."
        ) from None


def _checked_model(text: str, model: Any, dataset: Any) -> Any:
    key = "model.build"
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise refusal(key, "a function that returns a keras.Model", f"{text}, which returns {kind}")
    try:
        if not model.built:
            model.build(keras.tree.map_structure(lambda n: n, _with_batch(dataset.input_shape)))
    except Exception as error:  # layers raise many types
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"`config.{key}`={text!r}: the model cannot be built: {line}") from None
    if not model.trainable_variables:
        raise refusal(key, "a model with trainable weights", text)
    return model


def _with_batch(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _with_batch(one) for key, one in shape.items()}
    if isinstance(shape, tuple) and any(isinstance(one, (tuple, dict)) for one in shape):
        return tuple(_with_batch(one) for one in shape)
    return (None, *shape)


def model_size(config: Mapping[str, Any], dataset: Any, model: Any) -> Size:
    """Returns the size of a run's model; activations of a user's model are not known, so 0."""
    if config["model"]["build"] is None:
        return size_of(config, *_images(dataset))
    count = [
        sum(int(np.prod(v.shape)) for v in group)
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    return Size(trainable=count[0], statistics=count[1])


# --- Loss and metrics ---------------------------------------------------------------------


def make_objective(config: Mapping[str, Any], dataset: Any, model: Any) -> Objective:
    """Returns the loss and the metrics of a configuration.

    Args:
        config: a validated configuration.
        dataset, model: the data and the model, from whose shapes some metrics build their state.

    Raises:
        ConfigError: for a loss, a metric or an option that Keras does not have.
    """
    metrics = {}
    if config["metrics"]:
        inputs, targets = dataset.zeros(2)
        sample = targets, model(inputs, training=False)
        metrics = {n: _metric(n, entry, sample) for n, entry in sorted(config["metrics"].items())}
    loss = config["loss"]
    if loss["name"] is None:
        return classification(config["optimizer"]["label_smoothing"], metrics)
    cls = _class_of("loss.name", keras.losses, keras.losses.Loss, loss["name"])
    return of_keras(_constructed("loss.options", cls, loss["options"]), metrics)


def _metric(name: str, entry: Mapping[str, Any], sample: tuple[Any, Any]) -> KerasMetric:
    key = f"metrics.{name}"
    options = {key: value for key, value in entry.items() if key != "metric"}
    cls = _class_of(f"{key}.metric", keras.metrics, keras.metrics.Metric, entry.get("metric"))
    metric = _constructed(key, cls, options)
    try:
        metric.update_state(*sample)
        if len(metric.result().shape):
            raise ValueError("its value must be one number")
        metric.reset_state()
        return KerasMetric(metric)
    except Exception as error:  # metrics raise many types for targets they cannot take
        raise ConfigError(f"`config.{key}`: {_line(error)}") from None


def check_together(config: Mapping[str, Any], dataset: Any, model: Any, replicas: int = 1) -> None:
    """Tries data, model, loss and metrics on a few training examples.

    Raises:
        ConfigError: if shapes do not fit together, or a part cannot be computed.
    """
    if not _has_own_parts(config):
        return
    stage("trying the model on a training batch")
    inputs, targets = _few_examples(config, dataset, replicas)
    key = f"`config.model.build`={config['model']['build']!r}"
    try:
        outputs = model(inputs, training=False)
    except Exception as error:  # layers raise many types
        raise ConfigError(f"{key} does not take the inputs: {_line(error)}") from None
    if keras.tree.is_nested(outputs):
        raise ConfigError(f"{key} must have one output. Received: {type(outputs).__name__}")
    if config["metrics"] and dataset.mixes:
        allowed = "one that does not mix, as targets of config.metrics must be those of evaluations"
        raise refusal("data.augmentation", allowed, dataset.augmentation)
    objective = make_objective(config, dataset, model)
    shape, wanted = list(outputs.shape), list(targets.shape)
    integral = "int" in keras.backend.standardize_dtype(targets.dtype)
    if config["loss"]["name"] is None:
        _check_classes(config, dataset, targets, integral, shape, key)
    elif not _comparable(shape, wanted, config["loss"]["name"] in _CLASS_LOSSES):
        raise ConfigError(
            f"`config.loss.name`={config['loss']['name']!r} compares outputs of shape {shape} with "
            f"targets of shape {wanted}: they must be equal, but for an axis of 1"
        )
    try:
        losses = backend.to_numpy([objective.loss(targets, outputs)])[0]
    except Exception as error:
        raise ConfigError(f"`config.loss.name`: {_line(error)}") from None
    if losses.shape != (len(losses),) or len(losses) != shape[0]:
        allowed = "a loss with a value for each example"
        raise refusal("loss.name", allowed, config["loss"]["name"])


def _has_own_parts(config: Mapping[str, Any]) -> bool:
    own = config["data"]["load"], config["model"]["build"], config["loss"]["name"]
    return any(one is not None for one in own) or bool(config["metrics"])


def _few_examples(config: Mapping[str, Any], dataset: Any, replicas: int) -> tuple[Any, Any]:
    try:
        with dataset.named_faults():
            batches = dataset.train_batches(
                config["data"]["batch_size"], config["seed"], 0, replicas, (0,)
            )
            batch = next(iter(batches))
    except data.DataError as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from None
    inputs, targets = keras.tree.map_structure(lambda array: array[:2], tuple(batch))
    return inputs, targets


def _check_classes(
    config: Mapping[str, Any],
    dataset: Any,
    targets: Any,
    integral: bool,
    shape: list[int],
    key: str,
) -> None:
    """Checks outputs and targets for the default loss, cross-entropy of logits."""
    numbers = backend.to_numpy([targets])[0]
    if not integral:
        sums = numbers.sum(-1) if numbers.ndim > 1 and numbers.shape[-1] > 1 else np.zeros(1)
        if np.abs(sums - 1.0).max() > 1e-3:
            allowed = "a loss of Keras, such as 'MeanSquaredError', for targets that are no classes"
            raise refusal("loss.name", allowed, None)
    classes = dataset.num_classes
    if integral and classes is None:
        raise ConfigError(
            f'`config.data.load`={config["data"]["load"]!r} must return "num_classes" beside its '
            "splits, as the largest label is known for arrays only"
        )
    expected = list(numbers.shape) + ([classes] if integral else [])
    if shape != expected:
        raise ConfigError(
            f"{key} must return logits of shape {['batch', *expected[1:]]}, one for each of "
            f"{expected[-1]} classes. Received: outputs of shape {['batch', *shape[1:]]}"
        )


# Losses whose outputs have one axis more than their targets.
_CLASS_LOSSES = (
    *("SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy", "Circle", "CTC"),
)


def _comparable(outputs: list[int], targets: list[int], classes: bool) -> bool:
    """Returns whether a loss of Keras compares each output with its target, not broadcasting."""
    same = [outputs, outputs[:-1] if outputs[-1] == 1 else outputs]
    trailing = targets[:-1] if targets[-1] == 1 and len(targets) > 1 else targets
    return targets in same or trailing in same or (classes and outputs[:-1] in (targets, trailing))


# --- Optimizer ----------------------------------------------------------------------------


def make_optimizer(config: Mapping[str, Any], rate: Any, model: Any = None) -> Any:
    """Returns the optimizer of a configuration.

    SGD follows Keras' convention, `v ← βv - λg`, `θ ← θ + v`.

    Args:
        config: a validated configuration.
        rate: the learning rate or its schedule.
        model: the model, whose weights are excluded from weight decay as configured; None to
            check the configuration only.

    Raises:
        ConfigError: for an optimizer or an option that Keras does not have.
    """
    settings = config["optimizer"]
    cls = _class_of(
        "optimizer.name", keras.optimizers, keras.optimizers.Optimizer, settings["name"]
    )
    options = dict(settings["options"])
    for name, reason in _NOT_OPTIONS.items():
        if name in options:
            raise refusal("optimizer.options", f"without {name!r}: {reason}", settings["options"])
    own = {key: settings[key] for key in ("momentum", "nesterov") if settings["name"] == "SGD"}
    for name in own:
        if name in options:
            allowed = f"without {name!r}: config.optimizer.{name} gives it"
            raise refusal("optimizer.options", allowed, settings["options"])
    optimizer = _constructed("optimizer.options", cls, {**own, **options}, learning_rate=rate)
    if model is not None and optimizer.weight_decay:
        decayed = decayed_variables(model, settings["weight_decay_on"])
        pairs = zip(model.trainable_variables, decayed, strict=True)
        excluded = [variable for variable, on in pairs if not on]
        if excluded:
            optimizer.exclude_from_weight_decay(var_list=excluded)
    return optimizer


def check_optimizer(config: Mapping[str, Any], replicas: int = 1) -> None:
    """Checks the optimizer of a configuration.

    Raises:
        ConfigError: for an optimizer or an option that Keras does not have, or clipping on several
            replicas, which Keras applies to each replica's part of the gradient.
    """
    optimizer = make_optimizer(config, 0.1)
    clipping = [
        name for name in ("clipnorm", "clipvalue", "global_clipnorm") if getattr(optimizer, name)
    ]
    if clipping and replicas > 1:
        allowed = (
            f"without {clipping[0]!r} on {replicas} replicas: Keras clips each replica's part of "
            "the gradient, so the run would depend on their number"
        )
        raise refusal("optimizer.options", allowed, config["optimizer"]["options"])


def weight_decay_of(config: Mapping[str, Any], optimizer: Any) -> str:
    """Returns a sentence for the record: what weight decay does to which weights."""
    settings = config["optimizer"]
    on = "kernels" if settings["weight_decay_on"] == "kernels" else "all trainable weights"
    if settings["weight_decay"]:
        return f"L2: {settings['weight_decay']:g} times the weight is added to the gradient, {on}"
    if optimizer.weight_decay:
        return (
            f"decoupled: {float(optimizer.weight_decay):g} times the rate times the weight is "
            f"subtracted at each step, {on}"
        )
    return "none"


# --- Names of Keras -----------------------------------------------------------------------


def _class_of(key: str, module: Any, base: type, name: Any) -> type:
    """Returns a class of Keras by its name.

    Raises:
        ConfigError: if there is none; names the nearest.
    """
    found = {
        known: cls
        for known, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, base) and cls is not base
    }
    if base is keras.optimizers.Optimizer:  # not those that wrap another one
        found = {
            known: cls
            for known, cls in found.items()
            if "learning_rate" in inspect.signature(cls).parameters
        }
    if isinstance(name, str) and name in found:
        return found[name]
    lower = {known.lower(): known for known in found}
    near = str(name).lower().replace("_", "")
    hint = f" Did you mean {lower[near]!r}?" if near in lower else closest(name, found)
    raise ConfigError(
        f"`config.{key}` must be a class of {module.__name__}.{hint} Received: "
        f"config.{key}={name!r}. Known: {sorted(found)}"
    )


def _constructed(key: str, cls: type, options: Mapping[str, Any], **given: Any) -> Any:
    """Returns an object of Keras with options from a configuration."""
    known = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in _NOT_OPTIONS
    ]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"`config.{key}` has {name!r}, which is no argument of {cls.__name__}."
                f"{closest(name, known)} Known: {known}"
            )
    try:
        return cls(**given, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`config.{key}`: {_line(error)}") from None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
