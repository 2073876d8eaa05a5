"""Arrays with coordinates on disk: what is missing, what is damaged, what is something else."""

import json
import math
import zipfile

import numpy as np
import pytest
from helpers import cut_short, with_changed_byte

from tf_lrtraj.records import ArrayRecord, RecordError


def empty(**changes):
    given = {
        "kind": "line",
        "coordinates": {"rate": [0.0, 0.1], "batch": [0, 1, 2], "curve": ["train", "held"]},
        "dims": {"loss": ("rate", "batch"), "best": ("curve",), "total": ()},
        "about": {"seed": 3, "mode": {"batch_norm": "batch"}, "inf": math.inf, "sizes": (8, 8)},
    }
    return ArrayRecord.empty(**{**given, **changes})


@pytest.fixture
def stored(tmp_path):
    record = empty()
    record.put("loss", (slice(None), 1), [2.5, 2.25])
    path = tmp_path / "line.npz"
    record.write(path)
    return path, record


def assert_equal(first, second):
    assert (first.kind, first.dims, first.about) == (second.kind, second.dims, second.about)
    for here, there in ((first.coordinates, second.coordinates), (first.values, second.values)):
        assert here.keys() == there.keys()
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])
            assert here[name].dtype == there[name].dtype


def test_nothing_is_measured_at_first():
    record = empty()
    assert {name: value.shape for name, value in record.values.items()} == {
        "loss": (2, 3),
        "best": (2,),
        "total": (),
    }
    assert all(record.missing(name).all() for name in record.values)
    assert not record.complete


def test_what_came_out_as_nan_counts_as_measured():
    record = empty()
    record.put("loss", ..., [[1.0, np.nan, 3.0], [np.inf, -np.inf, np.nan]])
    assert not record.missing("loss").any()
    assert record.values["loss"].tolist() == [[1.0, np.inf, 3.0], [np.inf, -np.inf, np.inf]]
    record.put("best", ..., 0.0)
    assert not record.complete
    record.put("total", (), 1.0)
    assert record.complete


def test_written_and_read(stored):
    path, record = stored
    assert_equal(ArrayRecord.read(path), record)
    assert [p.name for p in path.parent.iterdir()] == ["line.npz"]  # no temporary file left


def test_the_file_is_plain_arrays_and_json(stored):
    path, _ = stored
    with np.load(path, allow_pickle=False) as arrays:
        names = {f"coordinate/{n}" for n in ("rate", "batch", "curve")}
        assert set(arrays.files) == names | {
            "about.json", "value/loss", "value/best", "value/total",
        }  # fmt: skip
        about = json.loads(arrays["about.json"].tobytes())
    assert (about["format"], about["kind"], about["about"]["inf"]) == (1, "line", "Infinity")


def test_resuming_takes_up_what_is_there(stored):
    path, record = stored
    assert_equal(ArrayRecord.resume(path, empty()), record)
    fresh = empty()
    assert ArrayRecord.resume(path.with_name("none.npz"), fresh) is fresh


def test_a_coordinate_that_grew(stored):
    path, record = stored
    longer = record.extended("rate", [0.2])
    assert longer.coordinates["rate"].tolist() == [0.0, 0.1, 0.2]
    assert longer.missing("loss").tolist() == [[True, False, True]] * 2 + [[True] * 3]
    assert record.values["loss"].shape == (2, 3)
    longer.write(path)
    assert_equal(ArrayRecord.resume(path, empty(), growing="rate"), longer)
    with pytest.raises(RecordError, match="coordinate 'rate' is"):
        ArrayRecord.resume(path, empty())
    other = empty(coordinates={**empty().coordinates, "rate": [0.0, 0.15]})
    with pytest.raises(RecordError, match="coordinate 'rate' is"):
        ArrayRecord.resume(path, other, growing="rate")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "plane"}, "a record of 'line', not of 'plane'"),
        ({"dims": {"loss": ("rate", "batch")}}, r"its values are .*, not \['loss'\]"),
        ({"about": {"seed": 4}}, "'inf' is inf there and '\\(absent\\)' now"),
        (
            {"coordinates": {"rate": [0.0, 0.1], "batch": [0, 1, 2], "curve": ["train", "x"]}},
            "coordinate 'curve' is",
        ),
    ],
)
def test_a_file_of_something_else(stored, changes, message):
    path, _ = stored
    with pytest.raises(RecordError, match=message) as caught:
        ArrayRecord.resume(path, empty(**changes))
    assert str(path) in str(caught.value)


def test_one_changed_setting_is_named(stored):
    path, record = stored
    with pytest.raises(RecordError, match="'seed' is 3 there and 4 now"):
        ArrayRecord.resume(path, empty(about={**record.about, "seed": 4}))


def test_a_file_cut_short_at_any_place(stored):
    path, _ = stored
    for _ in cut_short(path, 97):
        with pytest.raises(RecordError, match="damaged"):
            ArrayRecord.resume(path, empty())


def test_a_file_with_a_changed_byte_is_refused_or_read_as_it_was(stored):
    path, record = stored
    refused = 0
    for _ in with_changed_byte(path, 53):
        try:
            found = ArrayRecord.read(path)
        except RecordError:
            refused += 1
        else:  # a byte that says nothing, such as a time in the archive
            assert_equal(found, record)
    assert refused > 10


def test_other_things_under_that_name(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(RecordError):
        ArrayRecord.read(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(RecordError, match="not a record of measured arrays"):
        ArrayRecord.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.json", "{}")
    with pytest.raises(RecordError, match="damaged"):
        ArrayRecord.read(path)


def test_a_format_of_the_future(stored):
    path, _ = stored
    with np.load(path, allow_pickle=False) as arrays:
        content = dict(arrays)
    text = content["about.json"].tobytes().replace(b'"format": 1', b'"format": 9')
    np.savez(path, **{**content, "about.json": np.frombuffer(text, np.uint8)})
    with pytest.raises(RecordError):
        ArrayRecord.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": {"loss": ("rate", "time")}}, r"Received: loss=\('rate', 'time'\)"),
        ({"dims": {"rate": ("rate",)}}, r"Received: rate="),
        ({"coordinates": {"rate": [[0.0]]}, "dims": {}}, r"shape=\(1, 1\)"),
        ({"coordinates": {"rate": [None]}, "dims": {}}, r"dtype=object"),
    ],
)
def test_bad_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        empty(**changes)
