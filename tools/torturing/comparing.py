"""Reads the results of a run, and compares those of two runs."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import zipfile
from typing import Any


def contents(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads all results that seed and configuration determine: name → bytes or value."""
    import h5py
    import numpy as np
    import tensorflow as tf

    found: dict[str, Any] = {}
    for path in sorted(workdir.rglob("*")):
        name, top = str(path.relative_to(workdir)), path.relative_to(workdir).parts[0]
        if path.is_dir() or top == "tensorboard" or name == "timing.jsonl":
            continue
        if name == "report.html":
            found[name] = path.stat().st_size > 10_000 and "</html>" in path.read_text()
        elif name == "run.json":
            run = json.loads(path.read_text())
            # These depend on restarts, the clock or the way of starting.
            for key in ("created", "resumed_at", "command"):
                run.pop(key)
            found[name] = run
        elif name.endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
                    weights.visititems(
                        lambda key, value, name=name: (
                            found.update({f"{name}/{key}": _array(value[()])})
                            if isinstance(value, h5py.Dataset)
                            else None
                        )
                    )
                # Keras puts addresses of objects there.
                text = archive.read("config.json").decode()
                found[f"{name}/config.json"] = re.sub(r'"shared_object_id": \d+', "", text)
        elif name.startswith("checkpoints/"):
            if path.name == "variables.index":
                reader = tf.train.load_checkpoint(str(path.with_suffix("")))
                for key in reader.get_variable_to_shape_map():
                    if "OBJECT_GRAPH" not in key:
                        found[f"{path.parent.name}/{key}"] = _array(reader.get_tensor(key))
            elif path.name == "progress.json":
                found[name] = json.loads(path.read_text())
            elif path.name == "manifest.json" or path.name.startswith("variables.data"):
                found[name] = True  # that it is there
            else:
                found[name] = path.read_bytes()
        elif name.startswith("probes/") and name.endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                for key in arrays.files:
                    found[f"{name}/{key}"] = _array(arrays[key])
        else:
            found[name] = path.read_bytes()
    found["timing.jsonl steps"] = [
        json.loads(line)["step"] for line in (workdir / "timing.jsonl").read_bytes().splitlines()
    ]
    found |= scalars(workdir / "tensorboard")
    return found


def _array(value: Any) -> Any:
    import numpy as np

    value = np.asarray(value)
    return (str(value.dtype), value.shape, value.tobytes())


def scalars(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the last value of every TensorBoard scalar at every step, without wall times."""
    import numpy as np
    import tensorflow as tf

    found = {}
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        try:
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    if value.tag != "images_per_second":
                        array = np.asarray(tf.make_ndarray(value.tensor))
                        found[f"tensorboard/{value.tag}/{event.step}"] = _array(array)
        except tf.errors.DataLossError:  # the last event of a killed process is half-written
            pass
    return found


def differences(workdir: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """Returns the names of results that differ; compares in a fork, to keep this process clean."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ours, theirs = contents(workdir), contents(whole)
            answer = [
                f"{name}: "
                + (
                    "missing"
                    if name not in ours
                    else "unexpected"
                    if name not in theirs
                    else "other"
                )
                for name in sorted({*ours, *theirs})
                if name not in ours or name not in theirs or ours[name] != theirs[name]
            ]
            answer = answer or [] if len(theirs) > 300 else ["the undisturbed run left too little"]
        except BaseException as error:
            answer = [f"cannot be compared: {type(error).__name__}: {error}"]
        with os.fdopen(into, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    return answer
