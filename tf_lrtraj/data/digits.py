"""The handwritten digits of scikit-learn: 1,797 grey images of 8×8 pixels.

They are the test part of the "Optical Recognition of Handwritten Digits" set (Alpaydin and
Kaynak, UCI machine learning repository).  No download, no TensorFlow.
"""

from __future__ import annotations

import numpy as np

from tf_lrtraj import seeds

__all__ = ["MAX_VALUE", "TEST_PER_CLASS", "digits"]

MAX_VALUE = 16.0  # pixels are counts 0..16 of dark cells in a 4×4 block
TEST_PER_CLASS = 50
_SPLIT_SEED = 20230105


def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the splits "train" (1,297 images) and "test" (500, exactly 50 of each digit).

    The test images are drawn with a fixed seed; both splits are in random order.

    Returns:
        {split: (uint8 [n, 8, 8, 1] with values 0..16, int32 [n])}.

    Raises:
        ImportError: if scikit-learn is missing.

    >>> {split: images.shape for split, (images, labels) in digits().items()}
    {'train': (1297, 8, 8, 1), 'test': (500, 8, 8, 1)}
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The dataset 'digits' comes with scikit-learn, which is not installed: "
            "`pip install scikit-learn`."
        ) from error
    source = load_digits()
    images = source.images.astype(np.uint8)[..., None]
    labels = source.target.astype(np.int32)
    rng = seeds.generator("digits_test", _SPLIT_SEED)
    in_test = np.zeros(len(labels), bool)
    for digit in range(10):
        in_test[rng.permutation(np.flatnonzero(labels == digit))[:TEST_PER_CLASS]] = True
    order = rng.permutation(len(labels))
    train, test = order[~in_test[order]], order[in_test[order]]
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
