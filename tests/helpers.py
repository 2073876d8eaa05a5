"""What several folders of tests share and that needs no Keras.

`keras_helpers` has tiny models, trainings and weights.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
# PYTHONPATH of a program that imports from this checkout and from tests of averages.
TEST_PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "averaging")))


# Programs -------------------------------------------------------------------------------------


def environment(**variables):
    """The environment for a process that imports this checkout, with variables added."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        **variables,
    }


def start_python(*arguments, env=None, **options):
    """Starts Python; standard output and error are pipes of text unless `options` say otherwise."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(**(env or {})), **{**pipes, **options})


def run_python(*arguments, check=True, timeout=300, env=None, **options):
    """Runs Python to its end and returns the completed process, with its output as text.

    Args:
        arguments: as on the command line: `"-c", code` or `"-m", "tf_lrtraj.bin.train", …`.
        check: an exit code other than 0 fails the test, which then shows the output.
        timeout: seconds.
        env: variables added to the environment.
        options: of `subprocess.run`.
    """
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(
        command, timeout=timeout, env=environment(**(env or {})), **{**pipes, **options}
    )
    assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def load_script(path):
    """Imports a script of the repository by its path from the root."""
    path = ROOT / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def free_ports(count):
    """Ports that no process listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


# Pages and figures ----------------------------------------------------------------------------


def python_blocks(page):
    """The Python examples of a page of documentation: a path from the root, or its text."""
    if "\n" not in str(page):
        page = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def named_tests(text):
    """The tests that a page names, as `` `tests/a.py::test_b` `` or by file; all of them exist."""
    named = sorted(set(re.findall(r"`(tests/[^`]*)`", text)))
    for name in named:
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not function or function in functions_of(path), name
    return named


def functions_of(path):
    """The names of the functions of a module, by its path from the root."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def figure_texts(figure):
    """Every visible text of a Matplotlib figure, in the order in which it is drawn."""
    import matplotlib.text

    figure.draw_without_rendering()
    found = figure.findobj(matplotlib.text.Text)
    return [text.get_text() for text in found if text.get_visible() and text.get_text()]


# Arrays and files -----------------------------------------------------------------------------


def assert_same_bits(actual, expected):
    """Lists or dicts of arrays are equal in dtype, shape and every bit."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        pairs = {key: (actual[key], expected[key]) for key in expected}
    else:
        assert len(actual) == len(expected)
        pairs = dict(enumerate(zip(actual, expected, strict=True)))
    for key, (one, other) in pairs.items():
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape), key
        if one.tobytes() != other.tobytes():
            np.testing.assert_array_equal(one, other, err_msg=str(key))
            raise AssertionError(f"{key}: equal numbers, other bits")


def average_of(kernel, iterates):
    """The definition of an average: `kernel.weights` applied to every iterate, in float64.

    Args:
        kernel: of `tf_lrtraj.kernels`.
        iterates: lists of arrays, the initial weights first.
    """
    weights = kernel.weights(len(iterates) - 1)
    wide = [np.result_type(array, np.float64) for array in iterates[0]]
    return [
        sum(w * value[i].astype(dtype) for w, value in zip(weights, iterates, strict=True))
        for i, dtype in enumerate(wide)
    ]


def flip_bit(path, position, bit=0):
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def write_snapshots(folder, steps, iterates, encoding="exact"):
    """Writes snapshots of one trainable vector; returns the `Snapshots`.

    Args:
        folder: of the snapshots.
        steps: of the snapshots.
        iterates: step → vector: an array [steps, n], or a dict.
        encoding: of the snapshots.
    """
    from tf_lrtraj.averaging.snapshots import Snapshots, SnapshotWriter, Timetable, VariableSpec

    first = np.asarray(iterates[int(steps[0])])
    spec = VariableSpec("w", first.shape, str(first.dtype), "trainable")
    writer = SnapshotWriter(folder, [spec], Timetable(1), encoding)
    for step in steps:
        writer.write(int(step), [np.asarray(iterates[int(step)])])
    return Snapshots(folder)


def write_old_snapshots(folder, variables, snapshots, encoding="exact"):
    """Writes a folder of snapshots of format 1, as releases before `.safetensors` files did.

    Args:
        folder: is made.
        variables: (name, shape, dtype, role) of each.
        snapshots: step → an array for each variable.
        encoding: of the snapshots.
    """
    folder.mkdir(parents=True)
    fields = ("name", "shape", "dtype", "role")
    index = {
        "format": 1,
        "encoding": encoding,
        "every": 1,
        "start": 0,
        "limit": None,
        "when_full": "thin",
        "variables": [dict(zip(fields, variable, strict=True)) for variable in variables],
    }
    (folder / "index.json").write_text(json.dumps(index))
    for step, arrays in snapshots.items():
        scales, data = [], b""
        for (*_, role), array in zip(variables, arrays, strict=True):
            scale = None
            if encoding != "exact" and role == "trainable":
                kind = {"int16": np.int16, "int8": np.int8}[encoding]
                scale = float(np.max(np.abs(array), initial=0.0)) / np.iinfo(kind).max or 1.0
                array = np.rint(np.asarray(array, np.float64) / scale).astype(kind)
            scales.append(scale)
            data += array.tobytes()
        header = json.dumps({"step": step, "crc32": zlib.crc32(data), "scales": scales}).encode()
        content = b"LRTSNAP1" + struct.pack("<I", len(header)) + header + data
        (folder / f"step_{step:09d}.snap").write_bytes(content)


def cut_short(path, step=1):
    """Cuts a file at each `step`-th byte in turn; it is whole again at the end."""
    whole = path.read_bytes()
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        yield length
    path.write_bytes(whole)


def with_changed_byte(path, step=1):
    """Changes each `step`-th byte of a file in turn; it is whole again at the end."""
    whole = path.read_bytes()
    for place in range(0, len(whole), step):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        yield place
    path.write_bytes(whole)


# Many invocations in one process: starting Python costs more than these programs do.
_DRIVER = textwrap.dedent("""
    import contextlib, importlib, io, json, sys
    from absl import flags
    name, commands = json.loads(sys.stdin.read())
    program = importlib.import_module(f"tf_lrtraj.bin.{name}")
    results = []
    for arguments in commands:
        sys.argv = [f"lrtraj-{name}", *arguments]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                program.run()
            except SystemExit as end:
                code = end.code or 0
        for flag in flags.FLAGS.get_flags_for_module(program.__name__):
            delattr(flags.FLAGS, flag.name)
        results.append([code, out.getvalue(), err.getvalue()])
    heavy = ("tensorflow", "keras", "torch", "jax", "matplotlib")
    print(json.dumps([results, [module for module in heavy if module in sys.modules]]))
""")


def run_without_keras(name, *commands):
    """Runs a program with each list of arguments in one new process.

    Returns:
        A list of [exit code, standard output, standard error], and the names of heavy libraries
        that the process has imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        input=json.dumps([name, commands]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
