"""What the command-line programs share: configuration flags, clean errors, quiet start."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, NoReturn

from absl import app, flags, logging

from tf_lrtraj.training.host_memory import keep_freed_memory

OK, FAILED, USAGE, DIVERGED, RESUMABLE = 0, 1, 2, 3, 75  # 75 is EX_TEMPFAIL: run it again


_TRACED = "Error whilst parsing config file:"


def fail(message: str, code: int = USAGE) -> NoReturn:
    """Prints one clean error and exits."""
    program = pathlib.Path(sys.argv[0]).name
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(code)


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's own chatter off the terminal; call it before the import.

    Warnings and errors still show, and `--verbosity=0` brings everything back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


def need_tensorflow() -> None:
    """Ends a program that trains or evaluates runs if Keras would run on another backend."""
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        fail(
            "runs are made and evaluated on Keras' TensorFlow backend. Received: "
            f"KERAS_BACKEND={backend!r}. Unset it, or set it to 'tensorflow'."
        )


def run_app(main: Callable[[list[str]], Any]) -> None:
    """Runs an absl program; a mistake in flags or configuration is one line, not a traceback."""
    _teach_help(main)
    keep_freed_memory()
    argv = [sys.argv[0], *_named_configs(sys.argv[1:])]
    with clean_errors():
        app.run(main, argv=argv, flags_parser=_parse_flags)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Inside, what a user can mend ends the program with one line, not a traceback."""
    from tf_lrtraj.experiments.settings import ConfigError

    try:
        yield
    except ConfigError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        fail(_system_error(error), FAILED)
    except MemoryError as error:
        fail(f"not enough memory: {error or 'ask for less at a time'}", FAILED)
    except Exception as error:
        from tf_lrtraj import data

        reason = data.explain(error)  # a damaged file, met while training or measuring
        if reason is None:
            raise
        fail(f"{reason} Then run the same command again.", FAILED)


def _system_error(error: OSError) -> str:
    """One line for an error of the system: the path, what is wrong, and what to do."""
    cause: BaseException | None = error
    while cause is not None:  # a full disk fails clean-up too; the first failure is the one to tell
        if isinstance(cause, OSError) and cause.filename is not None:
            error = cause
            # In place of another, as `naming` raises: it tells the file, not the temporary one.
            if cause.__cause__ is not None:
                break
        cause = cause.__context__
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    text = f"{where}{error.strerror or _first_line(error)}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text} Make room, and run the same command again: a run goes on where it was."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{text} Choose another folder, or change its permissions."
    return text


def _teach_help(main: Callable[[list[str]], Any]) -> None:
    """Makes --help show the program's own text and flags when a console script starts it.

    absl takes both from `__main__`, which is then the script's few lines.
    """
    if main.__module__ == "__main__":
        return
    module = sys.modules[main.__module__]
    sys.modules["__main__"].__doc__ = module.__doc__
    for flag in flags.FLAGS.get_flags_for_module(main.__module__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        rest: list[str] = flags.FLAGS(argv)
        # A file that could not be read shows when something of it is asked for.
        hasattr(flags.FLAGS["config"].value if "config" in flags.FLAGS else None, "lock")
        return rest
    except flags.Error as error:
        fail(f"{_first_line(error)}\nTry --help.")
    except (Exception, SystemExit) as error:
        place = _place_in_config(argv, error)
        if place:  # the file is the user's own code, and may raise anything
            fail(f"the configuration {place}: {type(error).__name__}: {_first_line(error)}")
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, (OSError, ImportError, SyntaxError)):
            fail(f"the configuration file cannot be read: {_first_line(error)}")
        # ml_collections raises these for an override that does not fit the configuration.
        overrides = [arg for arg in argv[1:] if arg.startswith(("--config.", "-config."))]
        fail(f"{_first_line(error)} (overrides given: {overrides or 'none'})")


def _place_in_config(argv: list[str], error: BaseException) -> str:
    """`FILE, line N` where an exception came out of the configuration's own code, or empty."""
    values = re.findall(r"^--?config[= ](.*)$", "\n".join([*argv, " ".join(argv)]), re.MULTILINE)
    files = {os.path.abspath(value.partition(":")[0]) for value in values}
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    frames += re.findall(r'File "(.*?)", line (\d+)', str(error))
    places = [f"{name}, line {line}" for name, line in frames if os.path.abspath(name) in files]
    return places[-1] if places else ""


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    # ml_collections hands on errors of a configuration file with their whole traceback.
    return lines[-1] if _TRACED in text else lines[0]


def known_configs() -> dict[str, pathlib.Path]:
    """The configurations that come with the package: name → file."""
    found: dict[str, pathlib.Path] = {}
    folders: list[Any] = [pathlib.Path(__file__).parents[2] / "configs"]
    with contextlib.suppress(ModuleNotFoundError, TypeError):
        folders.append(resources.files("tf_lrtraj.configs"))
    for folder in folders:
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name.endswith(".py") and not path.name.startswith("_"):
                    found.setdefault(path.name[:-3], pathlib.Path(str(path)))
    return found


def _named_configs(args: list[str]) -> Iterator[str]:
    """Replaces `--config=NAME` by the path of the configuration of that name."""
    previous = ""
    for arg in args:
        match = re.fullmatch(r"--?config=(.*)", arg)
        value = match.group(1) if match else arg if previous in ("--config", "-config") else None
        previous = arg
        if value is None:
            yield arg
            continue
        path, _, argument = value.partition(":")
        if not pathlib.Path(path).is_file():
            known = known_configs()
            name = pathlib.Path(path).name.removesuffix(".py")
            if name not in known or ("/" in path and not path.startswith("configs/")):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                fail(
                    f"--config: there is no file {path!r}, and no configuration of that name."
                    f"{hint} Known: {sorted(known)}"
                )
            value = str(known[name]) + (f":{argument}" if argument else "")
        yield f"--config={value}" if match else value


def make_strategy_or_fail(name: str, num_devices: int, tpu: str, **more: Any) -> Any:
    """`training.strategies.make_strategy`, with a clean error."""
    from tf_lrtraj.training.strategies import StrategyError, WorkersMissing, make_strategy

    try:
        return make_strategy(name, num_devices, tpu, **more)
    except WorkersMissing as error:
        fail(f"--strategy: {error}", RESUMABLE)
    except StrategyError as error:
        fail(f"--strategy: {error}")


def configure_threads(threads: int, deterministic: bool) -> None:
    """Fixes what the bits of a run depend on; call it before TensorFlow starts."""
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
