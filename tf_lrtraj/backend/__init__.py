"""All code that depends on the Keras backend.

Keras hides the backend for layers and operations.  This package adds compiled functions of lists
of arrays, reading and writing many variables at once, and the forward pass of a model with *given*
weights.  Separate modules handle batch-norm statistics (`batch_norm`), calls of single layers
(`layer_calls`) and the steps of a training (`weight_updates`).
"""

from tf_lrtraj.backend.compiled_updates import compiled_update, fused_update
from tf_lrtraj.backend.derivatives import hessian_vector_product, value_and_gradient
from tf_lrtraj.backend.devices import (
    compiled_on_replicas,
    free_memory,
    has_float64,
    is_distributed,
    strategy_of,
    strategy_scope,
    sum_over_replicas,
)
from tf_lrtraj.backend.forward_pass import forward, given_weights
from tf_lrtraj.backend.random_streams import random_streams_kept
from tf_lrtraj.backend.tensors import (
    all_finite,
    compiled,
    fingerprints,
    is_complex,
    is_one,
    is_tracing,
    name,
    outside_of_graphs,
    scalars,
    stored,
    to_numpy,
    unconverted,
    weighted_sum,
)
from tf_lrtraj.backend.variables import (
    assign,
    assign_row,
    backup,
    copy_to_host,
    hold_values,
    holds,
    mix,
    mix_rows,
    steps_of,
    synchronized,
    values,
    versions,
)

__all__ = [
    "all_finite",
    "assign",
    "assign_row",
    "backup",
    "compiled",
    "compiled_on_replicas",
    "compiled_update",
    "copy_to_host",
    "fingerprints",
    "forward",
    "free_memory",
    "fused_update",
    "given_weights",
    "has_float64",
    "hessian_vector_product",
    "hold_values",
    "holds",
    "is_complex",
    "is_distributed",
    "is_one",
    "is_tracing",
    "mix",
    "mix_rows",
    "name",
    "outside_of_graphs",
    "random_streams_kept",
    "scalars",
    "steps_of",
    "stored",
    "strategy_of",
    "strategy_scope",
    "sum_over_replicas",
    "synchronized",
    "to_numpy",
    "unconverted",
    "value_and_gradient",
    "values",
    "versions",
    "weighted_sum",
]
