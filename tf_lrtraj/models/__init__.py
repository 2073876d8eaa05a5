"""Residual networks written on Keras 3 alone, so that they run on every backend."""

from __future__ import annotations

from tf_lrtraj.models.resnet import resnet
from tf_lrtraj.models.sizes import Size, resnet_size

__all__ = ["Size", "resnet", "resnet_size"]
