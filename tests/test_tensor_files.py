"""`.safetensors` files: values and types come back, other readers agree, damage is named."""

import json
import math
import os

import ml_dtypes
import numpy as np
import pytest
from helpers import cut_short, with_changed_byte

from tf_lrtraj.records import RecordError
from tf_lrtraj.records.tensor_files import TensorFile, write_tensors

TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}
SHAPES = [(), (3,), (2, 3), (0,), (2, 0, 3), (1, 1)]


def some(dtype, shape):
    numbers = np.random.default_rng(0).integers(0, 100, shape)
    return np.asarray(numbers).astype(dtype)


def every_kind(but=()):
    kinds = {code: dtype for code, dtype in TYPES.items() if code not in but}
    return {
        f"{code} {shape}": some(dtype, shape) for code, dtype in kinds.items() for shape in SHAPES
    }


# Types that NumPy's side of the library does not have.
NOT_IN_LIBRARY = ("F8_E4M3", "F8_E5M2")


def read_all(path):
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}, file.metadata


def by_hand(path):
    """A second, independent reader: the format's definition in a few lines."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__", {})
    found = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        array = np.frombuffer(values[low:high], TYPES[entry["dtype"]])
        found[name] = array.reshape(entry["shape"])
    return found, metadata


def by_library(path):
    library = pytest.importorskip("safetensors")
    from safetensors.numpy import load_file

    with library.safe_open(path, "np") as file:
        return load_file(path), file.metadata()


@pytest.mark.parametrize("read", [read_all, by_hand, by_library])
def test_every_type_and_shape_comes_back_to_the_bit(read, tmp_path):
    path = tmp_path / "a.safetensors"
    written = every_kind(NOT_IN_LIBRARY if read is by_library else ())
    write_tensors(path, written, {"step": "12", "text": 'a "b"\né'})
    metadata = {"writer": "tf_lrtraj", "step": "12", "text": 'a "b"\né'}
    found, texts = read(path)
    assert found.keys() == written.keys() and texts == metadata
    if read is not by_library:  # which sorts them
        assert list(found) == list(written)
    for name, array in written.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_files_of_the_library_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    path, written = tmp_path / "a.safetensors", every_kind(NOT_IN_LIBRARY)
    save_file(written, path, {"by": "another"})
    found, metadata = read_all(path)
    assert metadata == {"by": "another"} and found.keys() == written.keys()
    for name, array in written.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_arrays_are_aligned_and_read_one_at_a_time(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"odd": np.arange(3, dtype=np.int8), "wide": np.arange(1000.0), "f": np.float32(2)}
    write_tensors(path, arrays, {})
    with TensorFile(path) as file:
        for name, tensor in file.tensors.items():
            assert tensor.start % tensor.dtype.itemsize == 0, name
        pieces = list(file.pieces("wide", 300))
        assert [piece.size for piece in pieces] == [300, 300, 300, 100]
        np.testing.assert_array_equal(np.concatenate(pieces), arrays["wide"])
        assert file.read("odd").tolist() == [0, 1, 2]


def test_layouts_in_memory_do_not_matter(tmp_path):
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    written = {"t": square.T, "step": square[:, ::2], "big": square.astype(">f4")}
    write_tensors(tmp_path / "a.safetensors", written, {})
    found, _ = read_all(tmp_path / "a.safetensors")
    for name, array in written.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"__metadata__": np.zeros(1)}, "cannot have the name '__metadata__'"),
        ({"c": np.zeros(1, complex)}, "'c' must be of one of the types .* dtype=complex128"),
        ({"o": np.array([None])}, "'o' must be of one of the types .* dtype=object"),
    ],
)
def test_what_the_format_lacks_is_refused_and_nothing_is_written(tensors, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "a.safetensors", tensors, {})
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.zeros(3)}, {})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*a\.safetensors"):
        write_tensors(path, {"a": np.ones(3)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def entry(low, high, shape=None, dtype="I8"):
    shape = [high - low] if shape is None else shape
    return f'{{"dtype": "{dtype}", "shape": {json.dumps(shape)}, "data_offsets": [{low}, {high}]}}'


A, B = f'"a": {entry(0, 4)}', f'"b": {entry(4, 8)}'
HEADERS = {
    "stands twice": f'{{{A}, "a": {entry(4, 8)}}}',
    "'shape' stands twice": f'{{{A}, "b": {entry(4, 8)[:-1]}, "shape": [4]}}}}',
    "'b' overlaps another": f'{{{A}, "b": {entry(3, 7)}}}',
    "'c' overlaps another": f'{{"c": {entry(0, 8)}, {A}}}',
    "'b' follows a gap": f'{{{A}, "b": {entry(5, 8)}}}',
    "'a' follows a gap": f'{{"a": {entry(4, 8)}}}',
    "bytes instead of": f"{{{A}}}",
    "'b' has 4 bytes and the places": f'{{{A}, "b": {entry(4, 8, [1], "F32")[:-2]}, 9]}}}}',
    "has 5 bytes": f'{{{A}, "b": {entry(4, 8, [5])}}}',
    "has .* and the places \\[8, 4\\]": f'{{{A}, "b": {entry(8, 4, [4])}}}',
    "received: dtype='X3'": f'{{{A}, "b": {entry(4, 8, dtype="X3")}}}',
    "33 axes": f'{{{A}, "b": {entry(4, 8, [1] * 32 + [4])}}}',
    f"has {2**120} bytes": f'{{{A}, "b": {entry(4, 8, [2**60, 2**60])}}}',
    "shape.0.. must be": f'{{{A}, "b": {entry(4, 8, [-4])}}}',
    "must be a json object": "[1]",
    "cannot be read": "{" + A,
    "whole number of 30 digits": f'{{{A}, "b": {entry(4, 8, [10**29])}}}',
    "must be text": f'{{{A}, {B}, "__metadata__": {{"step": 1}}}}',
    "`b.dtype` is missing": f'{{{A}, "b": {{"shape": [4], "data_offsets": [4, 8]}}}}',
    "nested too deeply": "[" * 100_000,
}


@pytest.mark.parametrize("message", HEADERS)
def test_a_header_that_is_wrong_is_one_line_with_the_file(message, tmp_path):
    path, head = tmp_path / "a.safetensors", HEADERS[message].encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    with pytest.raises(RecordError, match=f"(?i){message}") as caught:
        TensorFile(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [2, 2**31, 2**63])
def test_a_length_that_lies_takes_no_memory(length, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(8))
    with pytest.raises(RecordError, match=r"a\.safetensors is damaged"):
        TensorFile(path)


def test_a_header_beyond_the_bound_is_refused(tmp_path):
    path, length = tmp_path / "a.safetensors", 100_000_001
    path.write_bytes(length.to_bytes(8, "little"))
    os.truncate(path, 8 + length)
    with pytest.raises(RecordError, match="header has 100,000,001 bytes"):
        TensorFile(path)


def test_no_cut_and_no_byte_of_the_header_breaks_a_reader(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.arange(3.0), "b": np.int8([1])}, {"step": "1"})
    whole = path.stat().st_size
    for length in cut_short(path):
        assert length < whole
        with pytest.raises(RecordError, match=r"a\.safetensors is damaged"):
            read_all(path)
    for _ in with_changed_byte(path):
        try:
            found, _ = read_all(path)
        except RecordError as error:
            assert str(path) in str(error)
        else:  # a name, a text or a value: all else is seen
            assert sorted(math.prod(array.shape) for array in found.values()) == [1, 3]


def test_files_that_cannot_be_read_are_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        TensorFile(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(OSError, match="a pipe, not a file"):
        TensorFile(tmp_path / "pipe.safetensors")
