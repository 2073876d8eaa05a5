r"""Residual networks (He et al. 2015, arXiv:1512.03385) for ImageNet- and CIFAR-sized images.

Two families share one builder:

* depth 18, 34 (basic blocks) and 50 (bottleneck blocks): four stages of width
  `w, 2w, 4w, 8w`, with either stem;
* every other depth `6n + 2` (8, 14, 20, 26, 32, 38, 44, 56, 110, …): the three-stage
  networks He et al. use on CIFAR-10, widths `w, 2w, 4w` (theirs have `width=16`).

Where descriptions of the architecture differ, this module makes these choices:

* convolutions that halve the resolution pad both sides alike, as the original
  does, and not the bottom and right alone, as `padding="same"` would.  The two
  agree on odd sizes; on even sizes only the former stays centred on the
  pixels that the shortcut samples;
* a bottleneck block strides in its 3×3 convolution ("v1.5"), not in the first
  1×1; parameter counts are the same;
* no layer but the last has a bias; batch norm follows every convolution;
* data format is channels last, on every backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from tf_lrtraj import seeds
from tf_lrtraj.models.sizes import EXPANSION, stages
from tf_lrtraj.values import error, integer, number, one_of, sequence_of

__all__ = ["resnet"]

_STEMS = ("imagenet", "cifar")
_SHORTCUTS = ("projection", "identity")
_SHAPE = "(height, width, channels), positive integers of which height and width may be None"


def resnet(
    depth: int,
    num_classes: int,
    input_shape: Sequence[int | None],
    stem: str = "imagenet",
    width: int = 64,
    *,
    shortcut: str = "projection",
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_synchronized: bool = False,
    zero_init_residual: bool = False,
    dtype: Any = None,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a residual network as a functional `keras.Model`.

    Convolutions start He-normal (arXiv:1502.01852, fan in), the classifier with
    variance 1/fan_in, biases at 0 and batch norms as the identity.

    Args:
        depth: 18, 34, 50, or `6n + 2` for the three-stage networks (`stem="cifar"` only).
            50 is always the bottleneck network.
        num_classes: number of logits.
        input_shape: (height, width, channels); height and width may be None.
        stem: "imagenet" (7×7 convolution of stride 2, then a 3×3 max pool of stride 2)
            or "cifar" (one 3×3 convolution of stride 1).
        width: channels of the first stage.  64 for the reference networks of depth
            18, 34 and 50, 16 for those of depth 6n + 2.
        shortcut: the shortcut between different shapes: "projection" (a 1×1 convolution with batch
            norm; He's option B) or "identity" (every second pixel, padded with zero channels;
            option A, no parameters).
        batch_norm_momentum: decay of the moving mean and variance, in [0, 1).
        batch_norm_epsilon: added to variances, positive.
        batch_norm_synchronized: whether moments are taken over all replicas' batches.
            Only on the TensorFlow backend.  Without it replicas normalise by their own
            part of the batch and their moving statistics drift apart.
        zero_init_residual: start the last batch norm of every block at scale 0, so
            that every block begins as its shortcut (arXiv:1706.02677).
        dtype: a Keras dtype policy or its name ("mixed_bfloat16"); None takes the
            global one.
        seed: determines the initial weights together with each layer's name; models built before
            and the strategy have no effect. None draws from Keras' global generator.
        name: name of the model, by default "resnet{depth}".

    Returns:
        A model from images [batch, height, width, channels] to logits [batch, num_classes].  Logits
        are float32 for policies of lower precision, and float64 under a float64 policy.

    Raises:
        ValueError: if an argument is out of range, or synchronised batch norm is asked
            for on a backend other than TensorFlow.

    >>> model = resnet(8, 10, (32, 32, 3), stem="cifar", width=16, seed=0)
    >>> model.output_shape, model.count_params()
    ((None, 10), 78714)
    """
    depth = integer(1).check("depth", depth)
    num_classes = integer(1).check("num_classes", num_classes)
    width = integer(1).check("width", width)
    one_of(_STEMS).check("stem", stem)
    one_of(_SHORTCUTS).check("shortcut", shortcut)
    blocks_per_stage, bottleneck = stages(depth, stem)
    shape = sequence_of(integer(1).or_none(), _SHAPE, 3, 3).check("input_shape", input_shape)
    if shape[2] is None:
        raise error("input_shape", _SHAPE, input_shape)
    seed = integer(0).or_none().check("seed", seed)
    momentum = number(0, below=1).check("batch_norm_momentum", batch_norm_momentum)
    epsilon = number(above=0).check("batch_norm_epsilon", batch_norm_epsilon)
    if batch_norm_synchronized and keras.backend.backend() != "tensorflow":
        backend = keras.backend.backend()
        allowed = f"False on the Keras backend {backend!r}: only TensorFlow synchronises batch norm"
        raise error("batch_norm_synchronized", allowed, True)

    policy = keras.dtype_policies.get(dtype)
    layers = _Layers(
        policy=policy,
        seed=seed,
        shortcut=shortcut,
        zero_init_residual=zero_init_residual,
        norm_options={
            "momentum": momentum,
            "epsilon": epsilon,
            "synchronized": bool(batch_norm_synchronized),
        },
    )

    inputs = keras.Input(shape, name="images", dtype=policy.compute_dtype)
    if stem == "imagenet":
        x = layers.conv_norm(inputs, width, 7, 2, "stem", relu=True)
        # The pool follows a ReLU, so padding with zeros cannot win a maximum.
        x = layers.pad(x, 1, "stem_pool_pad")
        x = keras.layers.MaxPooling2D(
            3, 2, data_format="channels_last", name="stem_pool", dtype=policy
        )(x)
    else:
        x = layers.conv_norm(inputs, width, 3, 1, "stem", relu=True)
    block = layers.bottleneck_block if bottleneck else layers.basic_block
    for stage, num_blocks in enumerate(blocks_per_stage):
        for index in range(num_blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            x = block(x, width * 2**stage, stride, f"stage{stage + 1}_block{index + 1}")
    x = keras.layers.GlobalAveragePooling2D(
        data_format="channels_last", name="head_pool", dtype=policy
    )(x)
    # Half-precision logits would lower the accuracy of the loss and save little time.
    narrow = policy.compute_dtype in ("float16", "bfloat16")
    logits = keras.layers.Dense(
        num_classes,
        kernel_initializer=keras.initializers.VarianceScaling(
            1.0, "fan_in", "truncated_normal", seed=layers.seed_of("head_logits")
        ),
        name="head_logits",
        dtype="float32" if narrow else policy,
    )(x)
    return keras.Model(inputs, logits, name=name or f"resnet{depth}")


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Makes the layers of one network under one set of policies."""

    policy: Any
    seed: int | None
    shortcut: str
    zero_init_residual: bool
    norm_options: dict[str, Any]

    def seed_of(self, layer: str) -> int | None:
        """Returns the seed of a layer's initialiser, a function of the network's seed and the
        name."""
        if self.seed is None:
            return None
        return seeds.word("initial_weights", self.seed, layer)

    def pad(self, x: Any, margin: int, name: str) -> Any:
        return keras.layers.ZeroPadding2D(
            margin, data_format="channels_last", name=name, dtype=self.policy
        )(x)

    def conv_norm(
        self,
        x: Any,
        filters: int,
        kernel: int,
        stride: int,
        name: str,
        relu: bool,
        last: bool = False,
    ) -> Any:
        """Convolution and batch norm, then ReLU if asked; `last` marks a block's last norm."""
        padding = "same"
        if stride > 1:
            padding = "valid"
            if kernel > 1:
                x = self.pad(x, kernel // 2, f"{name}_pad")
        x = keras.layers.Conv2D(
            filters,
            kernel,
            stride,
            padding,
            data_format="channels_last",
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(seed=self.seed_of(f"{name}_conv")),
            name=f"{name}_conv",
            dtype=self.policy,
        )(x)
        x = keras.layers.BatchNormalization(
            axis=-1,
            gamma_initializer="zeros" if last and self.zero_init_residual else "ones",
            name=f"{name}_norm",
            dtype=self.policy,
            **self.norm_options,
        )(x)
        return self.relu(x, f"{name}_relu") if relu else x

    def relu(self, x: Any, name: str) -> Any:
        return keras.layers.Activation("relu", name=name, dtype=self.policy)(x)

    def join(self, x: Any, residual: Any, stride: int, name: str) -> Any:
        """Adds a block's residual to its shortcut."""
        filters, channels = residual.shape[-1], x.shape[-1]
        if stride > 1 or channels != filters:
            if self.shortcut == "projection":
                x = self.conv_norm(x, filters, 1, stride, f"{name}_shortcut", relu=False)
            else:
                if stride > 1:
                    x = keras.layers.MaxPooling2D(
                        1,
                        stride,
                        data_format="channels_last",
                        name=f"{name}_shortcut_sample",
                        dtype=self.policy,
                    )(x)
                x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, filters - channels)))
        x = keras.layers.Add(name=f"{name}_add", dtype=self.policy)([x, residual])
        return self.relu(x, f"{name}_relu")

    def basic_block(self, x: Any, width: int, stride: int, name: str) -> Any:
        y = self.conv_norm(x, width, 3, stride, f"{name}_1", relu=True)
        y = self.conv_norm(y, width, 3, 1, f"{name}_2", relu=False, last=True)
        return self.join(x, y, stride, name)

    def bottleneck_block(self, x: Any, width: int, stride: int, name: str) -> Any:
        y = self.conv_norm(x, width, 1, 1, f"{name}_1", relu=True)
        y = self.conv_norm(y, width, 3, stride, f"{name}_2", relu=True)
        y = self.conv_norm(y, EXPANSION * width, 1, 1, f"{name}_3", relu=False, last=True)
        return self.join(x, y, stride, name)
