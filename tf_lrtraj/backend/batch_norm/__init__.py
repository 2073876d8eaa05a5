"""Batch-norm statistics for averaged weights.

The running mean and variance that training keeps belong to the raw weights.
An average of weights produces other activations, so it needs statistics of its
own (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).  Three policies:

* `recompute`: run some training batches through the network with the averaged
  weights and pool the moments of each layer's inputs;
* `average`: average the running statistics with the same kernel;
* `copy`: use the raw weights' statistics, for comparison (claim S7 shows that it is wrong).

Recomputed statistics are the mean and variance of *all* inputs of a layer, with every element
counted once: batches may differ in size, masked elements do not count, and a layer that a model
calls several times gets the pooled moments of all its calls.  They are measured at each layer's
input in float32 or wider, so they do not depend on the layer's momentum or the dtype of its
variables.  A frozen layer (`trainable=False`) keeps its statistics.

The measured pass is the one that training runs: data pass through the model's own `evaluate` or
`predict` and its own `train_step` if it overrides them, or through a function of the user.
"""

from tf_lrtraj.backend.batch_norm.layers import (
    POLICIES,
    Statistics,
    averaged_variables,
    check_model,
    check_policy,
    find_statistics,
    join_weights,
    pairs,
    put_averaged,
    replace,
    split_weights,
    statistics_variables,
    weights_and_statistics,
)
from tf_lrtraj.backend.batch_norm.pooling import PooledMoments, moments, over_replicas
from tf_lrtraj.backend.batch_norm.reader import check_data
from tf_lrtraj.backend.batch_norm.recompute import Recompute, recompute
from tf_lrtraj.backend.batch_norm.training_pass import batch_moments, call_on_inputs

__all__ = [
    "POLICIES",
    "PooledMoments",
    "Recompute",
    "Statistics",
    "averaged_variables",
    "batch_moments",
    "call_on_inputs",
    "check_data",
    "check_model",
    "check_policy",
    "find_statistics",
    "join_weights",
    "moments",
    "over_replicas",
    "pairs",
    "put_averaged",
    "recompute",
    "replace",
    "split_weights",
    "statistics_variables",
    "weights_and_statistics",
]
