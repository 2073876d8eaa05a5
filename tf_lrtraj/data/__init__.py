"""Images by name, and your own data; a training batch is a function of (seed, step).

>>> from tf_lrtraj import data
>>> digits = data.load("digits")
>>> digits.num_examples, digits.num_classes
({'train': 1297, 'test': 500}, 10)
>>> images, labels = digits.arrays("test")
>>> images.shape, labels.dtype
((500, 8, 8, 1), dtype('int32'))

Importing this package, loading the embedded digits and `arrays` do not import TensorFlow;
pipelines do.
"""

from __future__ import annotations

from tf_lrtraj.data.dataset import DataError, Dataset, ImageDataset, explain
from tf_lrtraj.data.in_memory import InMemoryDataset, from_arrays
from tf_lrtraj.data.own_data import OwnDataset, from_splits_of
from tf_lrtraj.data.sources import DatasetNotPreparedError, load, names, prepare

__all__ = [
    "DataError",
    "Dataset",
    "DatasetNotPreparedError",
    "ImageDataset",
    "InMemoryDataset",
    "OwnDataset",
    "explain",
    "from_arrays",
    "from_splits_of",
    "load",
    "names",
    "prepare",
]
