"""Named random streams, and the numbers that determine each of their generators.

A stream has a name, the numbers that select one of its generators (a seed, and a step, an epoch
or another counter), and a salt after them, which separates streams with the same numbers.
`STREAMS` holds every salt of the package.  Stored runs and records depend on the salts, so the
entry of a stream never changes.

>>> first = generator("augmentation", 0, 12).integers(1000, size=3)
>>> again = generator("augmentation", 0, 12).integers(1000, size=3)
>>> other = generator("order", 0, 12).integers(1000, size=3)
>>> first.tolist() == again.tolist(), first.tolist() == other.tolist()
(True, False)
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from tf_lrtraj import values

__all__ = ["PHILOX", "STREAMS", "Stream", "generator", "sequence", "word"]


class Stream(NamedTuple):
    """The numbers and the salt of a stream.

    Attributes:
        numbers: names of the numbers; `*` before the last stands for any count of it.
        salt: the number after `numbers`; None for no salt.
    """

    numbers: tuple[str, ...]
    salt: int | None = None


STREAMS: dict[str, Stream] = {
    # Training batches of arrays in memory.
    "order": Stream(("seed", "epoch"), 0x6F72),
    "augmentation": Stream(("seed", "step"), 0x6175),
    # Parts of data sets.
    "digits_test": Stream(("seed",)),
    "validation": Stream(("seed",)),
    "evaluation_part": Stream(("seed",)),
    "held_batches": Stream(("seed", "images"), 0x7072),
    # Batches that the study's tasks measure on.
    "line_batches": Stream(("seed",), 1),
    "one_step_batches": Stream(("seed", "step"), 0x6F6E),
    "one_step_others": Stream(("seed", "step"), 2),
    "gradient_batches": Stream(("seed",), 3),
    "side_trip_batches": Stream(("seed",), 4),
    "start_batches": Stream(("seed",), 4),  # the same draw as for side trips, without exclusions
    "reach_batches": Stream(("seed", "size"), 5),
    "convexity_batches": Stream(("seed",), 6),
    "curvature_batches": Stream(("seed",), 7),
    # Networks, probes and averages.
    "initial_weights": Stream(("seed", "layer")),
    "probe_batches": Stream(("seed",)),
    "direction": Stream(("*seed",)),
    "lanczos": Stream(("seed", "start", "vector"), 0x6C7A),
    "sketch": Stream(("*seed", "block")),
    "resampling": Stream(("seed",)),
    "decay_draws": Stream(("seed",), 0x6465),
    "displacement_places": Stream(("seed",)),
}

# Streams of TensorFlow's Philox generator in tf.data pipelines: the upper half of its counter.
# "window" is the first of many: the parts of an epoch's files follow it.
PHILOX = {"order": 0, "files": 1, "window": 2, "augmentation": 16, "mixing": 17}


def sequence(name: str, *numbers: int | str) -> np.random.SeedSequence:
    """Returns the seed sequence of a stream.

    Args:
        name: the name of the stream.
        numbers: the numbers that `STREAMS` names; a text is replaced by its CRC-32.

    Raises:
        ValueError: for an unknown stream, or other numbers than it has.
    """
    stream = STREAMS[values.one_of(list(STREAMS)).check("name", name)]
    last = len(stream.numbers)
    if len(numbers) != last and not (stream.numbers[0].startswith("*") and len(numbers) >= last):
        raise values.error("numbers", f"{list(stream.numbers)} of {name!r}", numbers)
    counts = [zlib.crc32(n.encode()) if isinstance(n, str) else n for n in numbers]
    counts = [values.integer(0).check("numbers", count) for count in counts]
    return np.random.SeedSequence(counts if stream.salt is None else [*counts, stream.salt])


def generator(name: str, *numbers: int | str) -> np.random.Generator:
    """Returns a random generator of a stream; see `sequence`."""
    return np.random.default_rng(sequence(name, *numbers))


def word(name: str, *numbers: int | str) -> int:
    """Returns a number of 31 bits, for libraries with signed 32-bit seeds; see `sequence`."""
    return int(sequence(name, *numbers).generate_state(1)[0] >> 1)
