"""Residual networks for every Keras backend."""

from __future__ import annotations

from tf_lrtraj.models.resnet import resnet
from tf_lrtraj.models.sizes import Size, resnet_size
from tf_lrtraj.models.weight_decay import decayed_variables

__all__ = ["Size", "decayed_variables", "resnet", "resnet_size"]
