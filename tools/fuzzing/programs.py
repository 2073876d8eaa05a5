"""Flags of every program, and files of configuration, up to where long work would start.

A program runs in this process as its console script would, with its long work replaced by a stop.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from absl import app, flags
from hypothesis import strategies as st

from fuzzing import judge
from fuzzing.generate import SCALARS, TEXTS, damage, damaged, mostly
from fuzzing.judge import Fault, Refused, Target
from fuzzing.values import spoilt_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODES = (1, 2)  # of refusals


class Reached(Exception):
    """The input was good enough for the long work to start."""


def reached(*_: Any, **__: Any) -> Any:
    raise Reached


@contextlib.contextmanager
def _fresh_flags() -> Iterator[None]:
    """A block after which the flags that were defined in it are gone."""
    values = flags.FLAGS
    before = set(values)
    kept = values._flags()["verbosity"].value if "verbosity" in before else None
    try:
        yield
    finally:
        for name in set(values) - before:
            with contextlib.suppress(AttributeError, KeyError):
                delattr(values, name)
        for name in set(values):
            values[name].unparse()
        if kept is not None:
            values._flags()["verbosity"].value = kept


def run_program(name: str, arguments: list[str], folder: pathlib.Path) -> None:
    """Runs a program; raises `Refused` where it refuses its input as it should.

    Raises:
        Fault: if it ends in any other way, or leaves files behind after a refusal.
    """
    module = importlib.import_module(f"tf_lrtraj.bin.{name}")
    out, err = io.StringIO(), io.StringIO()
    before, home = judge.content(folder), os.getcwd()
    argv = [f"lrtraj-{name}", *arguments]
    code: Any = 0
    os.chdir(folder)
    try:
        with (
            _fresh_flags(),
            mock.patch.object(sys, "argv", argv),
            mock.patch.object(sys.modules["__main__"], "__doc__", None),
            mock.patch.object(module.common, "keep_freed_memory"),
            mock.patch.object(app._run_init, "done", True, create=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            module.run()
    except Reached:
        return
    except SystemExit as stop:
        code = stop.code
    finally:
        os.chdir(home)
    after = judge.content(folder)
    judge.leftovers(after)
    text = err.getvalue()
    odd = {c for c in out.getvalue() + text if not (c.isprintable() or c in "\n\t\xa0")}
    if odd:
        raise Fault(f"characters that steer a terminal are printed: {sorted(odd)!r}")
    if code in (0, None):
        return
    if code not in CODES:
        raise Fault(f"exit code {code!r}: {text[-500:]}")
    said = [line for line in text.splitlines() if line.startswith(f"lrtraj-{name}: error: ")]
    if len(said) != 1 or len(said[0]) < len(f"lrtraj-{name}: error: ") + 8:
        raise Fault(f"exit code {code} with this on stderr: {text[-1000:]!r}")
    if "Traceback" in text:
        raise Fault(text[-1000:])
    judge.unchanged(before, after)
    raise Refused(f"exit {code}", said[0])


def target(
    name: str,
    inputs: Any,
    prepare: Callable[[Any, pathlib.Path], list[str]],
    patches: Callable[[], list[Any]] = list,
    share: float = 1.0,
    keras: bool = False,
    what: str = "flags",
) -> Target:
    """A program as a target; `prepare` fills the folder and says the arguments."""

    def run(given: Any, folder: pathlib.Path) -> None:
        arguments = prepare(given, folder)
        with contextlib.ExitStack() as stack:
            for patch in patches():
                stack.enter_context(patch)
            run_program(name, arguments, folder)

    return Target(f"lrtraj-{name}, {what}", inputs, run, (), share, keras)


# --- Arguments ------------------------------------------------------------------------------

# absl's own flags, which start debuggers, print help or read files of flags.
_WORD = st.one_of(TEXTS, SCALARS.map(str), st.text(max_size=8)).filter(
    lambda text: "\x00" not in text and not _surrogate(text)  # no command line holds these
)


def _surrogate(text: str) -> bool:
    return any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def arguments(sound: dict[str, Any], most: int = 5) -> Any:
    """Lists of flags: names that the program has with values that it may take, and others."""
    names = sorted(sound)

    def flag(name: str) -> Any:
        values = sound[name]
        values = st.sampled_from(values) if isinstance(values, list) else values
        value = mostly(values, _WORD)
        bare = st.sampled_from([f"--{name}", f"--no{name}"])
        return mostly(value.map(lambda text: f"--{name}={text}"), bare, 30)

    known = st.sampled_from(names).flatmap(flag)
    stray = st.one_of(
        _WORD.filter(lambda t: not t.startswith(("-", "@"))),
        st.sampled_from(["--", "-", "--x", "--workdr=a", "--config.x=1", "--=1", "---", "extra"]),
    )
    return st.lists(mostly(known, stray, 20), max_size=most)


_RATE = st.one_of(
    st.sampled_from(
        [
            "0.1",
            "cosine",
            "linear",
            "one_minus_sqrt",
            "constant",
            "Cosine(start=0.4, steps=9)",
            "rates.csv",
            "rates.csv:rate",
            "rates.csv:x",
            "none.csv",
            "Table([0.1, 0.2])",
            "Linear(0.1, 5)",
            "Warmup(0.1, 5)",
            "Piecewise([5], [0.1, 0.2])",
            "Sequence([0.1], [])",
            "0",
            "-1",
            "1e400",
        ]
    ),
    spoilt_text(["Cosine(start=0.4, steps=900)", "rates.csv:rate", "0.1", "linear"]),
).filter(lambda text: "\x00" not in text and not _surrogate(text))
_KERNEL = spoilt_text(
    [
        "Exponential(decay=0.9)",
        "Uniform(start=8)",
        "TwoPoint(gap=5)",
        "Window(4, every=2)",
        "Custom([0.5, 0.5])",
        "PowerFunction(1.0)",
        "Exponential(0.9, warmup=1)",
    ]
).filter(lambda text: "\x00" not in text and not _surrogate(text))
_NUMBER = st.sampled_from(
    ["0", "0", "0.1", "0.5", "0.9", "1", "1e-3", "7", "30", "-1", "nan", "inf", "1e400", "x"]
)
_COUNT = st.sampled_from(
    ["1", "2", "3", "5", "7", "10", "20", "60", "0", "-3", "999", "10000000000000", "9" * 30, ""]
)
_OUT = st.sampled_from(
    ["out.csv", "b.csv", "c.csv", "none/out.csv", "", ".", "/proc/out.csv", "rates.csv", "a" * 300]
)
RATES_CSV = b"step,rate,loss\n" + b"".join(b"%d,%.3f,1.5\n" % (i, 0.1) for i in range(30))

EQUIVALENCE = target(
    "equivalence",
    st.tuples(
        st.one_of(
            st.sampled_from(
                [
                    ["--kernel=Exponential(0.9)", "--num_steps=30"],
                    ["--kernel=Uniform(start=8)", "--base=rates.csv:rate"],
                    ["--emulate=cosine", "--num_steps=30"],
                    ["--kernel=Exponential(0.9)", "--num_steps=20", "--spectrum=0.01:1:3"],
                    [],
                ]
            )
        ),
        arguments(
            {
                "kernel": _KERNEL,
                "emulate": _RATE,
                "base": _RATE,
                "num_steps": _COUNT,
                "peak": _NUMBER,
                "decay_steps": _COUNT,
                "every": _COUNT,
                "curvature": _NUMBER,
                "momentum": _NUMBER,
                "convention": ["keras", "pytorch", "both"],
                "spectrum": [
                    "0.1:1:3",
                    "0:1:3",
                    "1:0.1:3",
                    "1e-3:1:99999999999",
                    "rates.csv:rate",
                    ":",
                ],
                "initial": _NUMBER,
                "noise": _NUMBER,
                "fit": ["free", "monotone", "linear", "exponential", "best"],
                "rows": _COUNT,
                "csv": _OUT,
                "figure": ["o.bmp", "o", "none/o.png", "", "o.svg.x"],
            }
        ),
    ),
    lambda given, folder: (folder / "rates.csv").write_bytes(RATES_CSV) and [*given[0], *given[1]],
    share=2,
)

# --- A table of rates -----------------------------------------------------------------------

_CELL = st.one_of(st.integers(0, 40).map(str), st.floats(0, 1).map(str), TEXTS, SCALARS.map(str))
_TABLES = st.one_of(
    st.builds(damaged, st.just(RATES_CSV), damage(6)),
    st.lists(st.lists(_CELL, max_size=4).map(",".join), max_size=8).map(
        lambda lines: "\n".join(lines).encode("utf-8", "replace")
    ),
    st.tuples(
        st.sampled_from(["rate", "step,rate", "step, rate", "a,b", '"rate"']), st.integers(1, 30)
    ).map(lambda t: (t[0] + "\n" + "".join(f"{i},0.1\n" for i in range(t[1]))).encode()),
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b"\n", b"\xef\xbb\xbfrate\n0.1\n", b"rate\n" + b"0.1\n" * 30, b'"', b"\x00"]
    )
    | st.just(b"step,rate\n0,0.1\n99999999999999,0.1\n"),
)


def _table(given: Any, folder: pathlib.Path) -> list[str]:
    data, column, more = given
    (folder / "rates.csv").write_bytes(data)
    return [f"--base=rates.csv{column}", *more]


CSV = target(
    "equivalence",
    st.tuples(
        _TABLES,
        st.sampled_from(["", ":rate", ":step", ":0", ":1", ":x", ":"]),
        st.sampled_from(
            [
                ["--kernel=Exponential(0.9)"],
                ["--kernel=Uniform(start=3)", "--num_steps=10", "--csv=out.csv"],
                ["--emulate=linear", "--every=2"],
                ["--kernel=Exponential(0.9)", "--num_steps=5", "--spectrum=rates.csv:loss"],
            ]
        ),
    ),
    _table,
    share=2,
    what="files of rates",
)

# --- Configurations -------------------------------------------------------------------------

_OVERRIDES = [
    "--config.total=2 epochs",
    "--config.total=x",
    "--config.seed=3",
    "--config.seed=-1",
    "--config.seed=x",
    "--config.data.batch_size=64",
    "--config.data.batch_size=0",
    "--config.data.batch_sze=64",
    "--config.data=3",
    "--config.averages.ema.decay=2",
    "--config.averages.ema.decay=0.5",
    "--config.schedule.constant=0.2",
    "--config.schedule.steps=3",
    "--config.model.depth=9",
    "--config.model.depth=7.5",
    "--config.name=",
    "--config=",
    "--config.threads=1",
    "--config.snapshots.every=1 steps",
    "--config.schedule.rate=Cosine",
    "--config.optimizer.momentum=nan",
    "--config.matched.averages=('x',)",
    "--config.x.y=1",
    "--config.data.name=unknown_set",
    "--config.data.image_size=2",
    "--config.data.eval_split=x",
    "--config.seeds=2",
    "--config.burn_in=3",
    "--config.evaluate.part=100000",
    "--config.rates=(1,)",
    "--config.two_time_scales.num_runs=0",
    "--config.single_runs.rate=1e9",
    "--config.total=1e15 steps",
    "--config.total=99999999999 steps",
    "--config.name=<b>",
    "--config.steps_per_call=100000000",
]
_WORKDIR = ["run", "run/deeper", "file", "", ".", "locked/run", "\u202e", "used", "x" * 300]
_STRATEGY = ["one_device", "mirrored", "multi_worker", "tpu", "x"]


def _config_flags(known: list[str], **more: Any) -> Any:
    return st.tuples(
        st.lists(st.sampled_from([f"--config={name}" for name in known]), min_size=1, max_size=1),
        st.sampled_from([["--workdir=run"], ["--workdir=run"], ["--workdir=run"], []]),
        st.lists(st.sampled_from(_OVERRIDES), max_size=2),
        arguments({"workdir": _WORKDIR, "config": known, **more}, 2),
    ).map(lambda parts: [text for part in parts for text in part])


def _around(given: list[str], folder: pathlib.Path) -> list[str]:
    """A folder with a file, a workdir of something else, and one that cannot be written."""
    (folder / "file").write_text("text")
    (folder / "used").mkdir()
    (folder / "used" / "config.json").write_text('{"name": "another"}')
    (folder / "none.py").write_text("x = 1\n")
    return given


def _train_patches() -> list[Any]:
    from tf_lrtraj.bin import common
    from tf_lrtraj.runs import train_run
    from tf_lrtraj.training import strategies

    real = strategies.make_strategy

    def make(name: str, num_devices: int = 0, tpu: str = "", **more: Any) -> Any:
        if name == "tpu" or (name == "mirrored" and num_devices > 1):
            raise strategies.StrategyError(f"no {name} here. Received: {num_devices}, {tpu!r}")
        return real(name, num_devices, tpu, **more)

    return [
        mock.patch.object(train_run, "run", reached),
        mock.patch.object(train_run, "build_model"),
        mock.patch.object(common, "configure_threads"),
        mock.patch.object(strategies, "make_strategy", make),
    ]


TRAIN = target(
    "train",
    _config_flags(
        [
            "digits_demo",
            str(ROOT / "configs/digits_demo.py"),
            "digits_dmo",
            "none.py",
            "file",
            "synthetic",
        ],
        strategy=_STRATEGY,
        num_devices=_COUNT,
        tpu=["", "name"],
    ),
    _around,
    _train_patches,
    keras=True,
    share=2,
)


def _reproduce_patches() -> list[Any]:
    from tf_lrtraj.study import run_study, session

    return [
        mock.patch.object(run_study, "run", reached),
        mock.patch.object(session, "Session", reached),
    ]


REPRODUCE = target(
    "reproduce",
    _config_flags(
        [
            "reproduce_digits",
            str(ROOT / "configs/reproduce_digits.py"),
            "reproduce_imagenet_resnet34",
            "none.py",
            "digits_demo",
        ],
        claims=["A1", "A1,B3", "Z9", ",", "a1"],
        dry_run=["true", "false", "x"],
        report_only=["true", "false"],
        page=["page.md", "none/page.md", ""],
        force=["true"],
    ),
    _around,
    _reproduce_patches,
    keras=True,
    share=1.5,
)


def _synthetic_patches() -> list[Any]:
    from tf_lrtraj.runs import synthetic_run

    return [mock.patch.object(synthetic_run, "EXPERIMENTS", {"two_time_scales": reached})]


SYNTHETIC = target(
    "synthetic",
    _config_flags(["synthetic", "digits_demo", "none.py", "file"]),
    _around,
    _synthetic_patches,
)

# --- Files of configuration -----------------------------------------------------------------

_FILES = [
    ROOT / "configs/digits_demo.py",
    ROOT / "configs/synthetic.py",
    ROOT / "configs/reproduce_digits.py",
]
_BODIES = [
    "return 5",
    "return None",
    "return {}",
    "return {'name': 'x'}",
    "raise ValueError('no')",
    "raise ValueError",
    "raise KeyError('k')",
    "import no_such_module",
    "return 1 / 0",
    "assert False",
    "return ml_collections.ConfigDict()",
    "return ml_collections.ConfigDict({'a': 1})",
    "return ml_collections.ConfigDict({'total': object()})",
    "raise SystemExit(3)",
    "return config",
    "return ml_collections.ConfigDict({'total': lambda: 1})",
    "raise OSError(2, 'No such file', 'x')",
    "c = default_config(); c.total = 7; return c",
    "c = default_config(); c.seed = 'x'; return c",
    "c = default_config(); c.nothing = 7; return c",
    "c = default_config(); c.lock(); return c",
    "c = default_config(); c.averages = {1: 2}; return c",
    "raise AttributeError('a\\nb')",
    "c = default_config(); c.averages = {'e': {'kernel': 'X'}}; return c",
    "raise RuntimeError('r')",
    "c = default_config(); c.probes = {'p': {}}; return c",
    "raise NotImplementedError",
    "return ml_collections.FrozenConfigDict({'name': 'x'})",
    "return get_config()",
    "from ml_collections import config_dict as d\n"
    "    return d.ConfigDict({'name': d.required_placeholder(str)})",
]
_HEAD = (
    "import ml_collections\nfrom tf_lrtraj.runs.run_config import default_config\n\n\n"
    "def get_config({}):\n    {}\n"
)
_PYTHON = st.one_of(
    st.builds(damaged, st.sampled_from([p.read_bytes() for p in _FILES]), damage(3)),
    st.builds(
        lambda parameter, body: _HEAD.format(parameter, body).encode(),
        st.sampled_from(["", "", "", "x", "x=1", "*a"]),
        st.sampled_from(_BODIES),
    ),
    st.sampled_from([b"", b"\x00", b"get_config = 5", b"def get_config(", b"\xff\xfe", b"x = 1"]),
)
_PROGRAMS = {
    "train": _train_patches,
    "synthetic": _synthetic_patches,
    "reproduce": _reproduce_patches,
}


def _config_file(given: Any, folder: pathlib.Path) -> None:
    program, data, name, more = given
    (folder / "config.py").write_bytes(data)
    (folder / "folder.py").mkdir()
    for module in [m for m in sys.modules if m.startswith(("config", "get_config_"))]:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(folder)):
            del sys.modules[module]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "dont_write_bytecode", True))
        for patch in _PROGRAMS[program]():
            stack.enter_context(patch)
        run_program(program, [f"--config={name}", "--workdir=run", *more], folder)


CONFIG_FILES = Target(
    "files of configuration",
    st.tuples(
        st.sampled_from(sorted(_PROGRAMS)),
        _PYTHON,
        st.sampled_from(
            ["config.py", "config.py", "config.py", "./config.py", "folder.py", "config.py:x"]
        ),
        st.sampled_from([[], [], ["--config.name=x"], ["--config.seed=1", "--config.none=2"]]),
    ),
    _config_file,
    (),
    keras=True,
    share=2,
)

TARGETS = [EQUIVALENCE, CSV, TRAIN, REPRODUCE, SYNTHETIC, CONFIG_FILES]
