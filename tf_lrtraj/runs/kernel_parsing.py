"""Parses an average on the command line: a kernel with an optional name."""

from __future__ import annotations

import json
import re
from typing import Any

from tf_lrtraj import kernels
from tf_lrtraj.records import check_average_name
from tf_lrtraj.values import error, one_of

_SHORT = {
    "ema": "Exponential",
    "swa": "Uniform",
    "window": "Window",
    "two_point": "TwoPoint",
    "power": "PowerFunction",
    "half_life": "HalfLife",
    "bema": "BEMA",
}
_NAMED = re.compile(r"([A-Za-z0-9_.+-]+)=(?=[A-Za-z_]+[:(]|\{)(.*)", re.DOTALL)


def parse_average(text: str) -> tuple[str, Any]:
    """Returns (name, kernel) of one --kernel.

    >>> parse_average("ema:0.99")
    ('ema-0.99', Exponential(decay=0.99, start=0))
    >>> parse_average("late=swa:start=500")
    ('late', Uniform(start=500, every=1))
    >>> parse_average("half_life:0.05,longest=1000")[0]
    'half_life-0.05-longest=1000'
    """
    match = _NAMED.fullmatch(text)
    name, text = match.groups() if match else (None, text)
    short, colon, arguments = text.partition(":")
    if text.lstrip().startswith("{"):
        try:
            config = json.loads(text)
        except ValueError as problem:
            raise ValueError(f"--kernel: {text!r} is not JSON ({problem})") from None
        kernel = kernels.from_config(config)
    elif colon and "(" not in short:
        one_of(sorted(_SHORT)).check("--kernel", short)
        kernel = kernels.KERNELS.from_text(f"{_SHORT[short]}({arguments})")
    elif "(" in text:
        kernel = kernels.KERNELS.from_text(text)
    else:
        looks = 'like ema:0.99, Uniform(start=500) or {"kernel": "TwoPoint", "gap": 100}'
        raise error("--kernel", looks, text)
    if name is None:
        plain = re.sub(r"[^A-Za-z0-9._+=-]+", "-", re.sub(r"[\"'{} ]", "", text)).strip("-.")
        name = plain[:60]
    return check_average_name(name), kernel
