"""Flags of every program, and files of configuration, up to where long work would start.

A program runs in this process as its console script would, with its long work replaced by a stop.
"""

from __future__ import annotations

import contextlib
import functools
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
from fuzzing.generate import CANARY, SCALARS, TEXTS, damage, damaged, listed, mostly
from fuzzing.judge import Fault, Refused, Target
from fuzzing.values import spoilt_text
from tf_lrtraj.runs import run_config, synthetic_run
from tf_lrtraj.study import study_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODES = (1, 2)  # of refusals


class Reached(Exception):
    """Raised when the input is accepted and the long work would start."""


def reached(*_: Any, **__: Any) -> Any:
    raise Reached


@contextlib.contextmanager
def _fresh_flags() -> Iterator[None]:
    """Removes the flags that are defined in a block at its end."""
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


def _on_a_command_line(text: str) -> bool:
    return "\x00" not in text and not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


_WORD = st.one_of(TEXTS, SCALARS.map(str), st.text(max_size=8)).filter(_on_a_command_line)
_RATES = listed(
    """0.1|cosine|linear|one_minus_sqrt|constant|Cosine(start=0.4, steps=9)|rates.csv|rates.csv:rate
rates.csv:x|none.csv|Table([0.1, 0.2])|Linear(0.1, 5)|Warmup(0.1, 5)|Piecewise([5], [0.1, 0.2])
Sequence([0.1], [])|0|-1|1e400|file"""
)
_RATE = st.one_of(st.sampled_from(_RATES), spoilt_text(_RATES[5:8])).filter(_on_a_command_line)
_KERNELS = listed(
    """Exponential(decay=0.9)|Uniform(start=8)|TwoPoint(gap=5)|Window(4, every=2)|PowerFunction(1.0)
Custom([0.5, 0.5])|Exponential(0.9, warmup=1)|HalfLife(0.1)|BEMA()|bema:start=5
ema:0.5|swa:start=4|a=window:2|../x=swa:start=4|two_point:3|ema:2|x|swa:start=900000
{"kernel": "Uniform"}|{"kernel": 5}|{"""
)
_KERNEL = spoilt_text(_KERNELS).filter(_on_a_command_line)
_SCHEDULES = listed(
    """linear:5|cosine|linear:0|x:3|{"rate": "Cosine"}|{"rate": "Table"}|{|[]
{"rate": "Cosine", "start": 0.1, "steps": 9}"""
)
_COUNT = st.sampled_from(
    listed("1|2|3|5|7|10|18|20|60|0|-3|999|x|10000000000000|99999999999999999999999999|")
)
_NUMBER = st.sampled_from(listed("0|0|0.1|0.5|0.9|1|1e-3|7|30|-1|nan|inf|1e9|1e400|x"))
_PLACES = listed(
    """a|out|out.csv|o.bmp|rows.jsonl|page.html|none/out.csv|file|file/x|work|work/snapshots|data.npz
model.keras|rates.csv|/proc/out.csv|.||x|,|raw|ema|test|first,last|50%|../a"""
)
_PLACE = st.sampled_from([*_PLACES, CANARY, "a" * 300])
# Flags that take more than their type says.
_SOUND: dict[str, Any] = {
    "kernel": _KERNEL,
    "emulate": _RATE,
    "base": _RATE,
    "schedule": _SCHEDULES,
    "spectrum": listed("0.1:1:3|0:1:3|1:0.1:3|1e-3:1:99999999999|rates.csv:rate|:"),
    "points": ["first,last", "swa=Uniform(start=5)", "first", ""],
    "claims": ["A1", "A1,B3", "Z9", ",", "a1"],
    "workdir": mostly(st.just("work"), st.sampled_from([".", "none", "file", "", "../work"]), 6),
}


@functools.cache
def flags_of(program: str) -> dict[str, Any]:
    """Returns the flags of a program: name → strategy for the text after `=`, mostly valid."""
    module = importlib.import_module(f"tf_lrtraj.bin.{program}")
    with _fresh_flags(), mock.patch.object(module.common, "run_app"):
        before = set(flags.FLAGS)
        module.run()
        own = {name: flags.FLAGS[name] for name in sorted(set(flags.FLAGS) - before)}
        return {name: _values(name, flag) for name, flag in own.items()}


def _values(name: str, flag: Any) -> Any:
    sound: Any = _SOUND.get(name)
    if sound is None:
        by_type = {"int": _COUNT, "float": _NUMBER, "bool": ["true", "false", "x"]}
        sound = getattr(flag.parser, "enum_values", None) or by_type.get(flag.flag_type(), _PLACE)
    return st.sampled_from(sound) if isinstance(sound, list) else sound


def arguments(program: str, most: int = 5, **sound: list[str]) -> Any:
    """Lists of a program's flags, with values that they may take, and of others.

    Args:
        program: which.
        most: flags in a list.
        sound: values for some flags, instead of what their type says.
    """
    values = flags_of(program) | {name: st.sampled_from(texts) for name, texts in sound.items()}

    def flag(name: str) -> Any:
        bare = st.sampled_from([f"--{name}", f"--no{name}"])
        return mostly(mostly(values[name], _WORD).map(lambda text: f"--{name}={text}"), bare, 30)

    # absl's own flags start debuggers, print help or read files of flags.
    stray = st.one_of(
        _WORD.filter(lambda text: not text.startswith(("-", "@"))),
        st.sampled_from(["--", "-", "--x", "--workdr=a", "--config.x=1", "--=1", "---", "extra"]),
    )
    known = st.sampled_from(sorted(values)).flatmap(flag)
    return st.lists(mostly(known, stray, 20), max_size=most)


RATES_CSV = b"step,rate,loss\n" + b"".join(b"%d,%.3f,1.5\n" % (i, 0.1) for i in range(30))
_STARTS = [
    ["--kernel=Exponential(0.9)", "--num_steps=30"],
    ["--kernel=Uniform(start=8)", "--base=rates.csv:rate"],
    ["--emulate=cosine", "--num_steps=30"],
    ["--kernel=Exponential(0.9)", "--num_steps=20", "--spectrum=0.01:1:3"],
    [],
]
EQUIVALENCE = target(
    "equivalence",
    st.tuples(st.sampled_from(_STARTS), st.deferred(lambda: arguments("equivalence"))),
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
                *_STARTS[:3],
                ["--kernel=Uniform(start=3)", "--num_steps=10", "--csv=out.csv"],
                ["--kernel=Exponential(0.9)", "--num_steps=5", "--spectrum=rates.csv:loss"],
            ]
        ),
    ),
    _table,
    share=2,
    what="files of rates",
)

_CURVE = b"step,loss,average_20\n" + b"".join(
    b"%d,%.4f,%s\n" % (10 * i, 2 + i**-0.5, b"2.05" if i % 10 == 0 else b"") for i in range(1, 60)
)
_DECAYS = ["linear:90", "cosine:200:590", "one_minus_sqrt:60:700", "linear:500", "linear:0", "x:9"]


def _curve(given: Any, folder: pathlib.Path) -> list[str]:
    data, start, more = given
    (folder / "curve.csv").write_bytes(data)
    return [*start, *more]


WHATIF = target(
    "whatif",
    st.tuples(
        mostly(st.just(_CURVE), st.builds(damaged, st.just(_CURVE), damage(6)) | _TABLES, 3),
        mostly(
            st.just(["--curve=curve.csv", "--learning_rate=0.1"]),
            st.sampled_from([["--curve=curve.csv"], []]),
            6,
        ),
        st.deferred(
            lambda: arguments(
                "whatif",
                most=2,
                curve=["curve.csv", "missing.csv"],
                workdir=["missing"],
                decay=_DECAYS,
                cooldown=[f"{decay}:2.1" for decay in _DECAYS],
            )
        ),
    ),
    _curve,
    share=2,
    what="curves and flags",
)

# --- Configurations -------------------------------------------------------------------------

# Each behind `--config`: what no rule of an entry says.
_OVERRIDES = listed(
    """.total=2 epochs|.total=x|.seed=x|.data.batch_sze=64|.data=3|.averages.ema.decay=2
.averages.ema.decay=0.5|.schedule.constant=0.2|.schedule.steps=3|.model.depth=7.5|.name=|=
.snapshots.every=1 steps|.schedule.rate=Cosine|.optimizer.momentum=nan|.matched.averages=('x',)
.x.y=1|.data.name=unknown_set|.data.eval_split=x|.burn_in=3|.evaluate.part=100000|.rates=(1,)
.two_time_scales.num_runs=0|.single_runs.rate=1e9|.total=1e15 steps|.total=99999999999 steps
.name=<b>|.steps_per_call=100000000"""
)
_SCHEMAS = {
    "train": run_config.SCHEMA,
    "reproduce": study_config.SCHEMA,
    "synthetic": synthetic_run.SCHEMA,
}


def _overrides(program: str) -> Any:
    """Draws entries at the limits of their rules, and others."""
    entries = _SCHEMAS[program].entries.items()
    ruled = [f".{key}={example}" for key, entry in entries for example in entry.rule.examples]
    either = st.sampled_from(_OVERRIDES) | st.sampled_from(ruled)
    return either.map(lambda text: f"--config{text}")


_WORKDIR = ["run", "run/deeper", "file", "", ".", "locked/run", "\u202e", "used", "x" * 300]


def _config_flags(program: str, *known: str) -> Any:
    """--config and --workdir, overrides of entries, and other flags of the program."""

    def lists() -> Any:
        more = arguments(program, 2, workdir=_WORKDIR, config=list(known))
        sound = st.sampled_from(known).map(lambda name: [f"--config={name}"])
        workdir = st.sampled_from([["--workdir=run"], ["--workdir=run"], ["--workdir=run"], []])
        parts = st.tuples(sound, workdir, st.lists(_overrides(program), max_size=2), more)
        return parts.map(lambda given: [text for part in given for text in part])

    return st.deferred(lists)


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


_CONFIGS = ("digits_demo", str(ROOT / "configs/digits_demo.py"), "digits_dmo", "none.py", "file")
TRAIN = target(
    "train",
    _config_flags("train", *_CONFIGS, "synthetic"),
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


_SCALES = ("reproduce_digits", "reproduce_imagenet_resnet34", "none.py", "digits_demo")
REPRODUCE = target(
    "reproduce",
    _config_flags("reproduce", *_SCALES),
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
    _config_flags("synthetic", "synthetic", "digits_demo", "none.py", "file"),
    _around,
    _synthetic_patches,
)

# --- Files of configuration -----------------------------------------------------------------

_FILES = [
    ROOT / "configs/digits_demo.py",
    ROOT / "configs/synthetic.py",
    ROOT / "configs/reproduce_digits.py",
]
# Bodies of `get_config`, a line each.
_BODIES = """return 5
return None
return {}
return {'name': 'x'}
raise ValueError('no')
raise ValueError
raise KeyError('k')
import no_such_module
return 1 / 0
assert False
return ml_collections.ConfigDict()
return ml_collections.ConfigDict({'a': 1})
return ml_collections.ConfigDict({'total': object()})
return ml_collections.ConfigDict({'total': lambda: 1})
return ml_collections.FrozenConfigDict({'name': 'x'})
return ml_collections.ConfigDict({'name': ml_collections.config_dict.required_placeholder(str)})
raise SystemExit(3)
return config
return get_config()
raise OSError(2, 'No such file', 'x')
raise AttributeError('a\\nb')
raise RuntimeError('r')
raise NotImplementedError
c = default_config(); c.total = 7; return c
c = default_config(); c.seed = 'x'; return c
c = default_config(); c.nothing = 7; return c
c = default_config(); c.lock(); return c
c = default_config(); c.averages = {1: 2}; return c
c = default_config(); c.averages = {'e': {'kernel': 'X'}}; return c
c = default_config(); c.probes = {'p': {}}; return c""".splitlines()
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

TARGETS = [EQUIVALENCE, CSV, WHATIF, TRAIN, REPRODUCE, SYNTHETIC, CONFIG_FILES]
