"""Strategies for inputs: unusual values, and valid inputs damaged in structure, text or bytes.

Hypothesis draws all inputs, so a failing input is shrunk and can be reproduced from its seed.
"""

from __future__ import annotations

import copy
import io
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

CANARY = '<script>alert("x")</script>&\'"--><b>'
LONG = "x" * 3000


def listed(text: str) -> list[str]:
    """Splits a text at bars and ends of lines."""
    return text.replace("\n", "|").split("|")


_NUMBERS = [0, 1, -1, 2, 3, 10, 0.5, 0.1, -0.5, 1.5, -0.0, 1e-300, 5e-324, 1e300, -1e300, 1e17]
_NUMBERS += [math.nan, math.inf, -math.inf, 2**31, 2**63, True]
_NUMBERS += [10**power for power in (6, 9, 18, 30, 400)]
NUMBERS = st.one_of(st.sampled_from(_NUMBERS), st.integers(-3, 40), st.floats(-2, 2), st.floats())
_TEXTS = listed(
    """| |0|-1|1e9|nan|inf|NaN|Infinity|null|None|True|raw|never|_|ü|last|first|50%|0%|digits|test
train|5 epochs|3 steps|0 steps|-1 steps|10 percent|101%|1e3 steps|0.5 steps|1 examples|5epochs5
١ steps|²|../../outside|/etc/passwd|a/b|..|.|~|CON|\x1b[2J|�|%s%n|{0}|${HOME}|{{7*7}}|$\\frac{
\u202e|ema:0.9|swa=Uniform(start=2)"""
)
TEXTS = st.one_of(
    st.sampled_from([*_TEXTS, "a\x00b", "a\nb", f"{'9' * 400} epochs", CANARY, LONG]),
    st.text(max_size=12),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
# What JSON can hold.
_SHALLOW = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def nested(depth: int, key: str | None = None) -> Any:
    """Draws nested lists or dicts."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if key is None else {key: value}
    return value


def mostly(sound: Any, odd: Any, every: int = 10) -> Any:
    """Draws from the first strategy, and once in `every` times from the second."""
    # `one_of` would draw evenly from the parts of both.
    return st.integers(1, every).flatmap(lambda place: odd if place == every else sound)


PLAIN = mostly(
    _SHALLOW,
    st.builds(nested, st.sampled_from([30, 99, 101, 300]), st.sampled_from([None, "a"])),
    25,
)
# What Python can hold besides; made anew each time.
_ODD: list[Callable[[], Any]] = [
    *(object, lambda: b"bytes", lambda: 1j, lambda: (1, 2), lambda: {1, 2}, lambda: len),
    *(lambda: np.float32(0.5), lambda: np.int64(3), lambda: np.bool_(True), lambda: range(3)),
    *(lambda: np.array(0.5), lambda: np.array([0.5, 0.5]), lambda: np.array([[1.0, 2.0]])),
    *(lambda: np.array(["a"]), lambda: np.array([object()]), lambda: np.zeros(0)),
    *(lambda: np.full(3, np.nan), lambda: pathlib.PurePosixPath("a"), lambda: [[1], [1, 2]]),
    *(lambda: {"kernel": "Uniform"}, lambda: {"rate": "Constant", "constant": 0.1}),
    lambda: nested(50),
]
ODD = st.one_of(PLAIN, st.sampled_from(_ODD).map(lambda make: make()))


# --- Structures -----------------------------------------------------------------------------

_PLACE = st.integers(0, 10**6)
_OPS = ("replace", "replace", "replace", "delete", "insert", "rename", "tweak", "copy", "repeat")


def paths(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the positions of all values in a tree of dicts and lists, without the root."""
    found = []
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    else:
        items = enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found.append((*here, key))
        found += paths(value, (*here, key))
    return found


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _tweaked(value: Any, how: int) -> Any:
    ways: list[Callable[[Any], Any]] = [
        *(lambda v: -v, lambda v: v * 1000, lambda v: v + 1, lambda v: v * 0.5, str, float),
        *(lambda v: [v], lambda v: v[: len(v) // 2], lambda v: v * 3, lambda v: v.upper()),
        *(list, lambda v: not v, lambda v: {"a": v}),
    ]
    try:
        result = ways[how % len(ways)](value)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return [value]
    return value if isinstance(result, (str, list)) and len(result) > 10**5 else result


def edits(value: st.SearchStrategy[Any] = PLAIN, most: int = 4) -> st.SearchStrategy[Any]:
    """Draws a few edits of a tree, for `edited`."""
    one = st.tuples(st.sampled_from(_OPS), _PLACE, _PLACE, value, st.text(max_size=6))
    return st.lists(one, min_size=1, max_size=most)


def edited(tree: Any, changes: Any) -> Any:
    """Returns a copy of the tree with the edits that apply."""
    tree = copy.deepcopy(tree)
    for op, where, other, value, text in changes:
        places = paths(tree)
        if op == "replace" and where % 50 == 49:
            tree = value
            continue
        if not places:
            continue
        path = places[where % len(places)]
        parent, key = at(tree, path[:-1]), path[-1]
        if op == "replace":
            parent[key] = copy.deepcopy(value)
        elif op == "delete":
            del parent[key]
        elif op == "tweak":
            parent[key] = _tweaked(parent[key], other)
        elif op == "copy":
            parent[key] = copy.deepcopy(at(tree, places[other % len(places)]))
        elif isinstance(parent, list):
            if op == "repeat":
                parent += copy.deepcopy(parent[: 50 if len(parent) < 200 else 1])
            else:
                parent.insert(key, copy.deepcopy(value))
        elif op in ("insert", "repeat"):
            parent[text] = copy.deepcopy(value)
        else:  # rename
            spelt = f"{key}{text[:1]}" if other % 2 else str(key)[1:]
            parent[spelt] = parent.pop(key)
    return tree


# --- Bytes and text -------------------------------------------------------------------------

_TOKENS = [
    b"\x00",
    b"\xff" * 4,
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b'"',
    b"{",
    b"[" * 200,
    b",",
    b"\n",
]
_TOKENS += [b"\r\n", b"../", b"PK\x03\x04", b"\xef\xbb\xbf", b"9" * 30, b"7" * 5000, b"\\u001b[2J"]
_TOKENS += [b"\x1b]0;x\x07", b"\xe2\x80\xae", b"\xed\xa0\x80", b"step", b"0"]
_BYTE_OPS = ("flip", "flip", "write", "cut", "cut_end", "insert", "double", "zero")


def damage(most: int = 4) -> st.SearchStrategy[Any]:
    """Draws a few changes of bytes, for `damaged`."""
    one = st.tuples(
        st.sampled_from(_BYTE_OPS),
        st.integers(0, 2**20),
        st.integers(0, 64),
        st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=8)),
    )
    return st.lists(one, min_size=1, max_size=most)


def damaged(data: bytes, changes: Any) -> bytes:
    """Returns a changed copy of the bytes."""
    content = bytearray(data)
    for op, where, count, token in changes:
        place = where % (len(content) + 1)
        if op == "flip" and content:
            content[place % len(content)] ^= 1 << count % 8
        elif op == "write":
            content[place : place + len(token)] = token
        elif op == "cut":
            del content[place : place + count]
        elif op == "cut_end":
            del content[place:]
        elif op == "insert":
            content[place:place] = token
        elif op == "double":
            content[place:place] = content[place : place + count]
        elif op == "zero":
            content[place : place + count] = bytes(min(count, len(content) - place))
    return bytes(content)


# --- Archives of arrays ---------------------------------------------------------------------


class Unpickled:
    """Creates a file if it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


_ARRAYS = [
    *(np.zeros(0), np.zeros((0, 3)), np.zeros((2, 0)), np.array(1.0), np.array([1.0, 2.0])),
    *(np.array([np.nan, np.inf]), np.array([1e300, -1e300]), np.arange(6).reshape(2, 3)),
    *(np.array(["a", CANARY]), np.array([b"a"]), np.array([True, False]), np.array([1 + 2j])),
    *(np.array(["2020-01-01"], "datetime64[D]"), np.zeros(2, [("a", "f4"), ("b", "i4")])),
    *(np.zeros((1,) * 20), np.array([2**63 - 1]), np.float16([1, 2]), "pickle", "huge", "bomb"),
]
ARRAYS = st.one_of(st.sampled_from(_ARRAYS), st.lists(st.floats(), max_size=4).map(np.array))
ARRAY_EDITS = st.lists(
    st.tuples(
        st.sampled_from(("replace", "delete", "rename", "insert", "cut", "nan", "type", "axis")),
        _PLACE,
        ARRAYS,
        st.sampled_from(["float32", "int8", "bool", "U3", "complex64", "uint64"]),
    ),
    min_size=1,
    max_size=3,
)


def edited_arrays(arrays: Mapping[str, Any], changes: Any) -> dict[str, Any]:
    """Returns an edited copy of named arrays."""
    found = dict(arrays)
    for op, where, array, kind in changes:
        if op == "insert" or not found:
            found[f"coordinate/{kind}" if where % 2 else kind] = array
            continue
        name = list(found)[where % len(found)]
        now = found[name]
        if op == "delete":
            del found[name]
        elif op == "rename":
            found[f"{name}x" if where % 3 else f"../{name}"] = found.pop(name)
        elif op == "replace" or not isinstance(now, np.ndarray):
            found[name] = array
        elif op == "cut":
            found[name] = now[: len(now) // 2] if now.ndim else now[None]
        elif op == "nan" and now.dtype.kind == "f" and now.size:
            found[name] = now.copy()
            found[name].flat[where % now.size] = [np.nan, np.inf, -np.inf, 1e308][where % 4]
        elif op == "axis":
            found[name] = now[None] if where % 2 else now.T
        elif op == "type":
            try:
                found[name] = now.astype(kind)
            except (ValueError, TypeError):
                found[name] = np.array(["?"])
    return found


def archive(arrays: Mapping[str, Any], canary: str) -> bytes:
    """Returns the bytes of an .npz file of arrays, with attacks: pickles, huge headers, bombs."""
    import zipfile

    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            if isinstance(array, str) and array == "pickle":
                objects = np.array([Unpickled(canary)], object)
                np.lib.format.write_array(content, objects, allow_pickle=True)
            elif isinstance(array, str):
                shape = (10**7, 10**5) if array == "huge" else (10**8,)
                header = {"descr": "<f8", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(content, header)
                content.write(_zeros() if array == "bomb" else bytes(64))
            else:
                np.lib.format.write_array(content, np.asarray(array), allow_pickle=True)
            if isinstance(array, str) and array == "bomb":
                file.writestr(f"{name}.npy", content.getvalue(), compresslevel=1)
            else:
                file.writestr(f"{name}.npy", content.getvalue())
    return held.getvalue()


def _zeros() -> bytes:
    return bytes(8 * 10**6)  # of the 800 MB that the header promises
