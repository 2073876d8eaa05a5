"""Who may import whom, read from the source: the rules of the package's design.

The floors, from the top, each importing only what lies below it:

    bin → study → runs → training → averaging, probes, schedules → theory → ground

and beside them `report` → `claims` → `records`.  Imports inside functions count
too: a lazy import is still an arrow.
"""

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

import tf_lrtraj

PACKAGE = "tf_lrtraj"
ROOT = pathlib.Path(tf_lrtraj.__file__).parent

# One style of checks, of statistics and of random streams, for all rooms.
BASE = {"values", "statistics", "seeds"}
GROUND = BASE | {
    *("configurable", "kernels", "rates", "durations", "records", "memory", "specs"),
    *("backend", "models", "data"),
}
RECORDS_SIDE = {"report", "claims"}
# room -> rooms it may import.  A room not named here must be given its place first.
ALLOWED = {room: set() for room in BASE} | {room: BASE for room in GROUND - BASE}
ALLOWED["kernels"] = ALLOWED["rates"] = BASE | {"configurable"}
ALLOWED["durations"] = BASE | {"configurable", "kernels", "rates"}
ALLOWED["seeds"] = {"values"}
ALLOWED["statistics"] = {"seeds", "values"}
ALLOWED["backend"] = BASE | {"memory", "records"}
ALLOWED["theory"] = BASE | {"kernels", "rates"}
ALLOWED["schedules"] = GROUND | {"theory"}
ALLOWED["averaging"] = GROUND | {"theory"}
# A record of a probe draws itself, with the figure that a run's report shows.
ALLOWED["probes"] = GROUND | {"theory", "report"}
ALLOWED["training"] = ALLOWED["averaging"] | {"schedules", "averaging", "probes"}
ALLOWED["runs"] = ALLOWED["training"] | {"training"} | RECORDS_SIDE
ALLOWED["study"] = ALLOWED["runs"] | {"runs"}
ALLOWED["bin"] = ALLOWED["study"] | {"study"}
ALLOWED["claims"] = BASE | {"records", "specs"}
# Kernels and rates are plain NumPy: a figure may draw a schedule from its config.
ALLOWED["report"] = BASE | {"records", "claims", "kernels", "rates", "specs"}
# The package itself holds the version and loads every other name on first use.
ALLOWED["registration"] = set()
ALLOWED["__init__"] = {"registration"}

# Rooms that never import TensorFlow or Keras, not even inside a function.
PLAIN = {
    "__init__",
    "registration",
    *BASE,
    "specs",
    "configurable",
    "kernels",
    "rates",
    "durations",
    "records",
    "theory",
    "claims",
    "report",
}
FRAMEWORKS = {"tensorflow", "keras", "keras_cv", "tensorflow_datasets", "jax", "torch"}


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if room_of(path) != "configs")


def imports(source, package):
    """Every module that `source` imports, in full dotted names, with its line.

    `from a import b` gives `a.b`: whether `b` is a module or a name makes no
    difference to the rules.  `package` is what relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno


def imports_of(path):
    relative = path.relative_to(ROOT.parent)
    return list(imports(path.read_text(encoding="utf-8"), ".".join(relative.parts[:-1])))


def offences(path, room):
    """Sentences, one for each import of the file at `path` that breaks a rule."""
    for name, line in imports_of(path):
        where = f"{path.relative_to(ROOT.parent)}:{line} imports {name}"
        parts = name.split(".")
        if parts[0] == PACKAGE and len(parts) > 1 and parts[1] != room:
            # `from tf_lrtraj import __version__` is the package itself, no room.
            if parts[1] == "__version__":
                continue
            if parts[1] not in ALLOWED[room]:
                yield f"{where}: `{room}` may import {sorted(ALLOWED[room])} only"
        elif parts[0] in FRAMEWORKS and room in PLAIN:
            yield f"{where}: `{room}` is plain NumPy"
        elif parts[0] == "absl" and room != "bin" and parts[1:2] != ["logging"]:
            yield f"{where}: flags live in `bin` only (`absl.logging` is free)"
        elif parts[0] == "ml_collections" and "config_flags" in parts and room != "bin":
            yield f"{where}: flags live in `bin` only"
        elif parts[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve"}:
            yield f"{where}: nothing is pickled"


def test_every_room_has_its_place():
    rooms = {room_of(path) for path in modules()}
    assert {"kernels", "rates", "theory"} <= rooms
    assert rooms <= set(ALLOWED), f"give {sorted(rooms - set(ALLOWED))} a place in ALLOWED"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_the_rules(path):
    assert list(offences(path, room_of(path))) == []


def test_every_module_has_a_name_of_its_own():
    """So that a name says where something is."""
    names = [path.name for path in modules() if path.name != "__init__.py"]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def test_no_arrow_runs_back_up():
    """The table above is itself a set of floors: it has an order without cycles."""
    seen = set()
    while len(seen) < len(ALLOWED):
        ready = {room for room, below in ALLOWED.items() if room not in seen and below <= seen}
        assert ready, f"a cycle among {sorted(set(ALLOWED) - seen)}"
        seen |= ready


@pytest.mark.parametrize(
    ("room", "source", "offence"),
    [
        ("theory", "from tf_lrtraj.schedules import RateSchedule", "kernels.*only"),
        ("theory", "from tf_lrtraj import schedules", "kernels.*only"),
        ("theory", "from .. import records", "kernels.*only"),
        ("theory", "def f():\n    import tf_lrtraj.probes.line", "kernels.*only"),
        ("theory", "import tensorflow as tf", "plain NumPy"),
        ("report", "from keras import ops", "plain NumPy"),
        ("report", "import tf_lrtraj.training", "only"),
        ("training", "from tf_lrtraj import report", "only"),
        ("training", "from absl import flags", "flags live"),
        ("training", "from absl import logging, app", "flags live"),
        ("training", "import pickle", "pickled"),
        ("models", "from tf_lrtraj import kernels", "only"),
        ("values", "from tf_lrtraj import kernels", "only"),
        ("runs", "from ml_collections import config_flags", "flags live"),
        ("theory", "from tf_lrtraj import kernels, rates", None),
        ("theory", "from .equivalence import schedule_from_weights", None),
        ("theory", "from . import equivalence\nimport numpy", None),
        ("training", "from absl import logging", None),
        ("training", "from tf_lrtraj import __version__, averaging, models", None),
        ("bin", "from absl import app, flags\nfrom tf_lrtraj import report", None),
    ],
)
def test_the_reader_sees_what_it_should(room, source, offence, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path / PACKAGE)
    path = tmp_path / PACKAGE / room / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    found = " ".join(offences(path, room_of(path)))
    if offence is None:
        assert found == ""
    else:
        assert re.search(offence, found)


def defined(path):
    """The names that a module's file defines or imports, read from its source."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def importers():
    folders = ("tf_lrtraj", "tests", "benchmarks", "tools", "configs", "examples")
    return sorted(path for folder in folders for path in (ROOT.parent / folder).rglob("*.py"))


def test_every_name_imported_from_the_package_is_there():
    """Also in what no test runs, such as benchmarks; lazy names are looked up by `__getattr__`."""
    names = {}
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        names[module.removesuffix(".__init__")] = defined(path)
    missing = []
    for path in importers():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            if node.module.split(".")[0] != PACKAGE or node.module == f"{PACKAGE}.configs":
                continue
            known = names.get(node.module, set())
            missing += [
                f"{path.relative_to(ROOT.parent)}:{node.lineno} {node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in known
                and f"{node.module}.{alias.name}" not in names
                and "__getattr__" not in known
            ]
    assert missing == []


@pytest.mark.parametrize(
    "statement",
    [
        "import tf_lrtraj, tf_lrtraj.theory",
        "import tf_lrtraj; tf_lrtraj.kernels; tf_lrtraj.rates; tf_lrtraj.records; dir(tf_lrtraj)",
        "import tf_lrtraj; tf_lrtraj.report",
    ],
)
def test_plain_rooms_leave_the_frameworks_unloaded(statement):
    """In a fresh interpreter, so that what other modules import counts as well."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert PACKAGE in loaded
    assert loaded & FRAMEWORKS == set()
