"""A fault at every single operation on a file: nothing is lost that a checkpoint held.

By default a sample of the operations; `-m long` tries all of them.
"""

import os
import re
import shutil
import signal

import pytest
import toy

OLD_CHECKPOINT = re.compile(r"before replace .*/checkpoints/(step_\d+)$")
KINDS = ("cut", "full", "full once", "term")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(contents of an undisturbed run, number of operations on its files)."""
    folder = tmp_path_factory.mktemp("whole")
    with toy.Fault(folder / "run", 0, False, "cut", folder) as fault:
        assert toy.run(folder / "run")[0] == 0
    contents = toy.contents(folder / "run")
    assert len(contents) > 60 and len(contents["metrics.jsonl"].splitlines()) == 6 + 2 * 3
    assert fault.count > 150
    return contents, fault.count


def strike(folder, at, half, kind):
    """A run with a fault: (exit code or None, standard error, what was struck)."""
    what = (lambda: os.kill(os.getpid(), signal.SIGTERM)) if kind == "term" else kind
    folder.mkdir()
    with toy.Fault(folder / "run", at, half, what, folder) as fault:
        try:
            code, errors = toy.run(folder / "run")
        except toy.PowerCut:
            code, errors = None, ""
    return code, errors, fault.struck


def check(folder, at, half, kind, whole):
    code, errors, struck = strike(folder, at, half, kind)
    where = f"{kind} at {at}: {struck}; exit code {code}: {errors}"
    # An operation that fails anyway (deleting what is not there) strikes nothing.
    if not struck or (kind.startswith("full") and struck.startswith("after")):
        assert code in (0, 1), where
    elif kind == "cut":
        assert code is None, where
    elif kind == "term":
        assert code == 75 and "stopped by SIGTERM" in errors, where
    else:  # clean-up may fail and the run still end
        assert code in (0, 1) if kind == "full once" else code == 1, where
    if code == 1:
        assert errors.count("\n") == 1 and "No space left on device. Free some space" in errors, (
            where
        )
        assert str(folder / "run") in errors and ".tmp" not in errors, where
    assert toy.run(folder / "run")[0] == 0, where
    left = toy.differences(toy.contents(folder / "run"), whole)
    if kind == "full once" and (old := OLD_CHECKPOINT.match(struck)):
        # One that could not be deleted does no harm; the next checkpoint would have taken it along.
        left = [name for name in left if f"{old[1]}/" not in name]
    assert not left, where
    assert not [path for path in (folder / "run").rglob("*") if ".tmp" in path.name], where
    return struck


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_some_operations(kind, whole, tmp_path):
    contents, count = whole
    stride = 83
    struck = [
        check(tmp_path / str(at), at, bool(at // stride % 2), kind, contents)
        for at in range(2 + 7 * KINDS.index(kind), count, stride)
    ]
    assert sum(map(bool, struck)) >= 1


@pytest.mark.long
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_every_operation(kind, half, whole, tmp_path):
    contents, count = whole
    wrong = []
    for at in range(1, count + 1):
        try:
            check(tmp_path / str(at), at, half, kind, contents)
        except AssertionError as error:
            wrong.append(str(error))
        shutil.rmtree(tmp_path / str(at))
    assert not wrong, "\n\n".join(wrong)
