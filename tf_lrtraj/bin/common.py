"""Shared code of the command-line programs: checks of flags and one-line errors.

A program is one file with its text for --help, `main`, and `run`, which defines the flags and
calls `run_app`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from tf_lrtraj.bin import configuration, outputs, terminal
from tf_lrtraj.records import RecordError
from tf_lrtraj.runs.config_checks import ConfigError, Schema
from tf_lrtraj.training.host_memory import keep_freed_memory
from tf_lrtraj.training.progress import program_name, stage
from tf_lrtraj.training.stopping import Diverged, Interrupted, Lost
from tf_lrtraj.training.strategies import StrategyError, WorkersMissing, make_strategy

OK, FAILED, USAGE, DIVERGED, RESUMABLE = 0, 1, 2, 3, 75  # 75 is EX_TEMPFAIL: run it again
_BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def fail(message: str, code: int = USAGE) -> NoReturn:
    """Prints an error in one line and exits."""
    print(f"{program_name()}: error: {message}", file=sys.stderr)
    sys.exit(code)


def quiet_tensorflow() -> None:
    """Prints that the import begins, and hides TensorFlow's informational log messages.

    Call it right before importing TensorFlow or another backend of Keras.  Warnings and errors are
    still shown; `--verbosity=0` shows everything.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    stage(f"importing {_BACKENDS.get(backend, backend)}")


def need_tensorflow() -> None:
    """Ends the program if Keras is set to another backend than TensorFlow."""
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        fail(
            "runs are trained and evaluated on Keras' TensorFlow backend. Received: "
            f"KERAS_BACKEND={backend!r}. Unset it, or set it to 'tensorflow'."
        )


def run_app(
    main: Callable[[list[str]], Any],
    *,
    needs: Sequence[str] = (),
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
    folders: Sequence[str] = (),
    arguments: bool = False,
    schema: Schema | None = None,
) -> None:
    """Runs an absl program; the user's errors give one line and an exit code, not a traceback.

    Args:
        main: called with the arguments after the flags are checked; may return the exit code.
        needs: flags that are required.
        reads, writes: flags that name files to read and files to write.
        folders: flags that name folders to write to.
        arguments: whether arguments other than flags are allowed.
        schema: schema of the configuration, which --help explains.
    """
    for stream in (sys.stdout, sys.stderr):  # no error if a terminal lacks "θ"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def checked(argv: list[str]) -> Any:
        if argv[1:] and not arguments:
            fail(f"unexpected arguments {argv[1:]}. Try --help.")
        for name in needs:
            if not getattr(flags.FLAGS, name):
                fail(f"--{name} is required. Try --help.")
        for names, check in (
            (reads, outputs.check_file),
            (writes, outputs.check_place),
            (folders, outputs.check_folder),
        ):
            for name in names:
                if flags.FLAGS[name].present and getattr(flags.FLAGS, name) is not None:
                    check(f"--{name}", getattr(flags.FLAGS, name))
        return main(argv)

    _extend_help(main, schema)
    keep_freed_memory()
    with terminal.escaped_output(), clean_errors():
        _check_environment(sys.argv[1:])
        argv = [sys.argv[0], *configuration.with_paths(sys.argv[1:])]
        app.run(checked, argv=argv, flags_parser=configuration.parse)


def _check_environment(args: Sequence[str]) -> None:
    """Finds errors that would otherwise occur when records and figures are written.

    Raises:
        ConfigError: if arguments are not UTF-8, or Matplotlib refuses `MPLBACKEND`.
    """
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "arguments and names of files must be UTF-8, as records hold them. "
                f"Received: {os.fsencode(arg)!r}"
            ) from None
    if os.environ.get("MPLBACKEND"):
        try:
            import matplotlib  # noqa: F401
        except ValueError:
            raise ConfigError(
                "the environment variable MPLBACKEND must name a backend of Matplotlib, such as "
                f"'agg'; unset it, as figures go to files. Received: {os.environ['MPLBACKEND']!r}"
            ) from None


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Inside, the user's errors end the program with one line instead of a traceback."""
    try:
        yield
    except (ConfigError, RecordError) as error:
        fail(str(error))
    except StrategyError as error:
        fail(str(error), RESUMABLE if isinstance(error, WorkersMissing) else USAGE)
    except Diverged as error:
        fail(f"{error} Status 'diverged'; what was saved before is kept.", DIVERGED)
    except Interrupted as error:
        fail(f"{error}. Run the same command again to resume.", RESUMABLE)
    except Lost as error:
        fail(str(error), RESUMABLE)
    except BrokenPipeError:  # the reader of the output has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        fail(_system_error(error), FAILED)
    except MemoryError as error:
        fail(f"not enough memory: {error or 'reduce the sizes'}", FAILED)
    except Exception as error:
        from tf_lrtraj import data

        reason = data.explain(error)  # a damaged file found during the work
        if reason is None:
            raise
        fail(f"{reason} Then run the same command again.", FAILED)


def _system_error(error: OSError) -> str:
    """Returns one line for an error of the system: the path, the fault and the remedy."""
    cause: BaseException | None = error
    while cause is not None:  # on a full disk clean-up fails too; report the first failure
        if isinstance(cause, OSError) and cause.filename is not None:
            error = cause
            # `naming` raises it in place of another: it names the file, not the temporary one.
            if cause.__cause__ is not None:
                break
        cause = cause.__context__
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    text = f"{where}{error.strerror or configuration.first_line(error)}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text} Free some space and run the same command again: a run resumes."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{text} Choose another folder, or change its permissions."
    return text


def _extend_help(main: Callable[[list[str]], Any], schema: Schema | None) -> None:
    """Makes --help show the program's own text and flags, and the entries of its configuration.

    absl reads them from `__main__`, which is not the program's module under a console script.
    """
    module, started = sys.modules[main.__module__], sys.modules["__main__"]
    entries = "" if schema is None else f"\nEntries of the configuration:\n\n{schema.help()}\n"
    started.__doc__ = f"{module.__doc__}{entries}"
    if module is not started:
        for flag in flags.FLAGS.get_flags_for_module(main.__module__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def make_strategy_or_fail(name: str, num_devices: int, tpu: str, **more: Any) -> Any:
    """Calls `training.strategies.make_strategy`; its errors name the flag."""
    try:
        return make_strategy(name, num_devices, tpu, **more)
    except StrategyError as error:
        raise type(error)(f"--strategy: {error}") from None


def configure_threads(threads: int, deterministic: bool) -> None:
    """Sets the threads and the determinism of a run; call it before TensorFlow starts."""
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def one_device(config: Mapping[str, Any]) -> Any:
    """Starts TensorFlow with a run's settings and returns the strategy of one device."""
    quiet_tensorflow()
    configure_threads(config["threads"], config["deterministic"])
    return make_strategy_or_fail("one_device", 0, "")
