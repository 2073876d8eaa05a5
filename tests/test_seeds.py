"""Random streams: stored runs and records depend on every number here."""

import zlib

import numpy as np
import pytest

from tf_lrtraj import seeds

# Stream → an address, what NumPy was seeded with there, and its first two numbers below 10**6.
NUMBERS = {
    "order": ((1, 2), [1, 2, 0x6F72], [476482, 259789]),
    "augmentation": ((1, 2), [1, 2, 0x6175], [534785, 407348]),
    "digits_test": ((20230105,), 20230105, [785323, 241859]),
    "validation": ((1,), 1, [473188, 511821]),
    "evaluation_part": ((1,), 1, [473188, 511821]),
    "held_batches": ((1, 2), [1, 2, 0x7072], [107347, 228540]),
    "line_batches": ((1,), [1, 1], [518788, 331872]),
    "one_step_batches": ((1, 2), [1, 2, 0x6F6E], [926393, 567799]),
    "one_step_others": ((1, 2), [1, 2, 2], [754289, 868958]),
    "gradient_batches": ((1,), [1, 3], [446307, 14068]),
    "side_trip_batches": ((1,), [1, 4], [603470, 394825]),
    "start_batches": ((1,), [1, 4], [603470, 394825]),
    "reach_batches": ((1, 2), [1, 2, 5], [196105, 492824]),
    "convexity_batches": ((1,), [1, 6], [724160, 144125]),
    "curvature_batches": ((1,), [1, 7], [777838, 359676]),
    "initial_weights": ((1, "stem_conv"), [1, zlib.crc32(b"stem_conv")], [672833, 413386]),
    "probe_batches": ((1,), 1, [473188, 511821]),
    "direction": ((1, 2), [1, 2], [643260, 448415]),
    "lanczos": ((1, 2, 3), [1, 2, 3, 0x6C7A], [341251, 225446]),
    "sketch": ((1, 2, 3), [1, 2, 3], [964015, 670472]),
    "resampling": ((1,), 1, [473188, 511821]),
    "displacement_places": ((1,), 1, [473188, 511821]),
    "decay_draws": ((1,), [1, 0x6465], [756458, 642566]),
}


def test_every_stream_is_checked():
    assert set(NUMBERS) == set(seeds.STREAMS)
    salts = {"order": 0, "files": 1, "window": 2, "augmentation": 16, "mixing": 17}
    assert salts == seeds.PHILOX


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_of_a_stream(name):
    address, entropy, first = NUMBERS[name]
    assert seeds.generator(name, *address).integers(10**6, size=2).tolist() == first
    same = np.random.SeedSequence(entropy).generate_state(4)
    np.testing.assert_array_equal(seeds.sequence(name, *address).generate_state(4), same)


def test_a_word_for_other_libraries():
    (word,) = np.random.SeedSequence([3, zlib.crc32(b"head")]).generate_state(1)
    assert seeds.word("initial_weights", 3, "head") == word // 2 < 2**31


def test_large_numbers_and_several():
    for address in [(2**63,), (4, 2**40, 7)]:
        found = seeds.generator("direction", *np.array(address, np.uint64)).normal(size=3)
        np.testing.assert_array_equal(found, np.random.default_rng(address).normal(size=3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("odrer", 0, 0), "`name` must be one of .* Did you mean 'order'"),
        (("order", 0), r"`numbers` must be \['seed', 'epoch'\] of 'order'. Received: numbers=\(0,"),
        (("validation", 0, 1), "must be"),
        (("sketch",), "must be"),
        (("order", 0, -1), "`numbers` must be an integer of at least 0. Received: numbers=-1"),
    ],
)
def test_addresses_that_a_stream_does_not_have(given, message):
    with pytest.raises(ValueError, match=message):
        seeds.generator(*given)
