"""Kernels, by name or not, from text as people write it."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from typing import Any

from tf_lrtraj import kernels
from tf_lrtraj.records import check_average_name

_SHORT = {
    "ema": "Exponential",
    "swa": "Uniform",
    "window": "Window",
    "two_point": "TwoPoint",
    "power": "PowerFunction",
}
_NAMED = re.compile(r"([A-Za-z0-9_.+-]+)=(?=[A-Za-z_]+[:(]|\{)(.*)", re.DOTALL)


def parse_average(text: str) -> tuple[str, Any]:
    """(name, kernel) of one --kernel.

    >>> parse_average("ema:0.99")
    ('ema-0.99', Exponential(decay=0.99, start=0))
    >>> parse_average("late=swa:start=500")
    ('late', Uniform(start=500, every=1))
    """
    match = _NAMED.fullmatch(text)
    name, text = match.groups() if match else (None, text)
    short, colon, arguments = text.partition(":")
    if text.lstrip().startswith("{"):
        try:
            config = json.loads(text)
        except ValueError as error:
            raise ValueError(f"--kernel: {text!r} is not JSON ({error})") from None
        kernel = kernels.from_config(config)
    elif colon and "(" not in short:
        known = {k: v for k, v in _SHORT.items() if v in kernels.KERNELS}
        if short not in known:
            raise ValueError(
                f"--kernel: a short name must be one of {sorted(known)}. Received: {text!r}"
            )
        kernel = parse_kernel(f"{known[short]}({arguments})")
    elif "(" in text:
        kernel = parse_kernel(text)
    else:
        raise ValueError(
            "--kernel must look like ema:0.99, Uniform(start=500) or "
            f'{{"kernel": "TwoPoint", "gap": 100}}. Received: {text!r}'
        )
    if name is None:
        plain = re.sub(r"[^A-Za-z0-9._+=-]+", "-", re.sub(r"[\"'{} ]", "", text)).strip("-.")
        name = plain[:60]
    return check_average_name(name), kernel


def parse_kernel(text: str) -> kernels.Kernel:
    """A kernel from text such as "Uniform(start=800)".

    >>> parse_kernel("TwoPoint(gap=3)")
    TwoPoint(gap=3)
    """
    name, positional, named = call(text, "--kernel")
    if positional and name == "Custom":
        named["weights"] = positional.pop(0)
    if positional and name in kernels.KERNELS:
        named.update(by_order(kernels.KERNELS[name], positional, text))
    return kernels.from_config({"kernel": name, **named})


def call(text: str, what: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name and literal arguments of "Name(1, key=2)"."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError
        positional = [ast.literal_eval(argument) for argument in node.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(
            f"{what}: {text!r} is not a name with plain arguments, such as "
            f"{'Exponential(decay=0.99)' if 'kernel' in what else 'Linear(start=0.4, steps=90)'}"
        ) from None
    return node.func.id, positional, named


def by_order(cls: Any, positional: list[Any], text: str) -> dict[str, Any]:
    """Arguments given without their names."""
    names = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
    if len(positional) > len(names):
        raise ValueError(f"{text!r} has too many arguments: {cls.__name__} takes {names}")
    return dict(zip(names, positional, strict=False))
