"""tools/tpu against a stand-in for gcloud whose TPU is a folder of this machine."""

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

TOOLS = pathlib.Path(__file__).parents[1] / "tools" / "tpu"

# What follows `gcloud`; a state file per thing, "gs://" is a folder, ssh is a local bash.
GCLOUD = '''#!{python}
import os, pathlib, re, shutil, signal, subprocess, sys
cloud = pathlib.Path({cloud!r})
words = [w for w in sys.argv[1:] if not w.startswith(("--zone", "--project"))]
with open(cloud / "calls.txt", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
local = lambda path: path.replace("gs://", str(cloud) + "/gs/")
node, vm = cloud / "node", cloud / "vm"

def lose(state):
    """The machine vanishes with everything on it."""
    pid = vm / "tf_lrtraj" / "pid"
    if pid.exists():
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
    shutil.rmtree(vm, ignore_errors=True)
    node.write_text(state)

def missing(what):
    sys.exit(f"ERROR: (gcloud) NOT_FOUND: {{what}} was not found")

if words[:2] == ["storage", "rsync"]:
    source, target = (local(w) for w in words[2:] if not w.startswith("--"))
    if not os.path.isdir(source): missing(source)
    if "--delete-unmatched-destination-objects" in words: shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*.tmp"))
elif words[:2] == ["storage", "cp"]:
    target = pathlib.Path(local(words[3])); target.parent.mkdir(parents=True, exist_ok=True)
    data = sys.stdin.buffer.read() if words[2] == "-" else pathlib.Path(words[2]).read_bytes()
    target.write_bytes(data)
elif words[0] == "storage":
    path = pathlib.Path(local(words[2]))
    if not path.exists(): missing(path)
    if words[1] == "cat": print(path.read_text())
    if words[1] == "rm": path.unlink()
elif words[1:4] == ["tpus", "queued-resources", "create"]:
    if node.exists(): sys.exit("ERROR: ALREADY_EXISTS")
    vm.mkdir(); node.write_text("READY")
elif words[1:4] == ["tpus", "queued-resources", "describe"]:
    if not node.exists(): missing("request")
    print("ACTIVE" if node.read_text() == "READY" else "SUSPENDED")
elif words[1:4] == ["tpus", "queued-resources", "delete"]:
    if not node.exists(): missing("request")
    lose(""); node.unlink()
elif words[1:4] == ["tpus", "tpu-vm", "describe"]:
    if not node.exists(): missing("node")
    print(node.read_text())
elif words[1:4] == ["tpus", "tpu-vm", "scp"]:
    for name in words[4:6]: shutil.copy(name, vm)
elif words[1:4] == ["tpus", "tpu-vm", "ssh"]:
    command = next(w for w in words if w.startswith("--command=")).removeprefix("--command=")
    if command.endswith("install"):
        program = vm / "tf_lrtraj" / "environment" / "bin" / "lrtraj-train"
        program.parent.mkdir(parents=True); program.write_text({train!r}); program.chmod(0o755)
    else:
        home = {{**os.environ, "HOME": str(vm)}}
        subprocess.run(["bash", "-c", command], cwd=vm, env=home, check=True)
else:
    sys.exit(f"unexpected: {{words}}")
'''

# Counts to 8 in the workdir, from where it stands; loses its machine once, at 4.
TRAIN = """#!{python}
import os, pathlib, subprocess, sys, time
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
assert flags["strategy"] == "tpu", sys.argv
workdir = pathlib.Path(flags["workdir"])
(workdir / "run.json").write_text("{{}}")
count = workdir / "count"
log = pathlib.Path({cloud!r}) / "log.txt"
while True:
    n = int(count.read_text()) if count.exists() else 0
    with open(log, "a") as file: file.write(f"{{n}} ")
    if n == 8: sys.exit(int(flags.get("config.code", 0)))
    count.write_text(str(n + 1))
    (workdir / ".half.1.tmp").write_text("half")
    time.sleep(0.3)
    if n == 4 and not (pathlib.Path({cloud!r}) / "lost").exists():
        time.sleep(2.5)  # the workdir has been copied to the bucket meanwhile
        (pathlib.Path({cloud!r}) / "lost").touch()
        time.sleep(60)
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    folder = tmp_path / "cloud"
    folder.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    train = TRAIN.format(python=sys.executable, cloud=str(folder))
    gcloud = programs / "gcloud"
    gcloud.write_text(GCLOUD.format(python=sys.executable, cloud=str(folder), train=train))
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return folder


def call(*arguments, into, timeout=90):
    command = [sys.executable, str(TOOLS / "tpu.py"), *arguments[:1], "--name=slice", "--zone=z"]
    command += ["--bucket=gs://bucket/run", f"--into={into}", "--poll=0.2", "--sync=1"]
    return subprocess.Popen(
        [*command, *arguments[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ), timeout


def finished(process, timeout):
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, said


def test_a_preempted_run_goes_on_and_its_results_come_back(cloud, tmp_path):
    process, timeout = call("run", "--spot", "--", "--config=any", into=tmp_path / "results")
    deadline = time.monotonic() + timeout
    while not (cloud / "lost").exists():
        assert time.monotonic() < deadline and process.poll() is None, finished(process, 1)
        time.sleep(0.05)
    # What gcloud's machine does when it is preempted.
    subprocess.run(
        [sys.executable, "-c", preempt(cloud)], check=True, env={**os.environ, "PREEMPT": "1"}
    )
    code, said = finished(process, timeout)
    assert code == 0, said
    assert "the TPU is PREEMPTED" in said and "goes on from its last checkpoint" in said
    assert (tmp_path / "results" / "count").read_text() == "8"
    assert not list((tmp_path / "results").glob(".*"))  # half-written files are not copied
    steps = [int(n) for n in (cloud / "log.txt").read_text().split()]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # the second machine began at 5, not at 0
    calls = (cloud / "calls.txt").read_text().splitlines()
    assert sum("queued-resources create" in line for line in calls) == 2
    assert all("--spot" in line for line in calls if "queued-resources create" in line)
    assert not (cloud / "node").exists()  # given back


def preempt(cloud):
    """The stand-in's `lose`, run by itself."""
    source = GCLOUD.format(python=sys.executable, cloud=str(cloud), train="")
    return (
        source[: source.index("def missing")].replace("words = [", "words = [] and [")
        + '\nlose("PREEMPTED")\n'
    )


def test_a_failed_run_shows_its_log_and_keeps_its_exit_code(cloud, tmp_path):
    (cloud / "lost").touch()
    process, timeout = call(
        "run", "--keep", "--", "--config=any", "--config.code=3", into=tmp_path / "results"
    )
    code, said = finished(process, timeout)
    assert code == 3 and "ended with exit code 3" in said
    assert (cloud / "node").exists()
    # A second call finds the TPU and does not ask for another; status and delete work on it.
    process, timeout = call("status", into=tmp_path)
    assert "TPU: READY" in finished(process, timeout)[1]
    process, timeout = call("delete", into=tmp_path)
    assert finished(process, timeout)[0] == 0 and not (cloud / "node").exists()
    process, timeout = call("status", into=tmp_path)
    assert "TPU: none" in finished(process, timeout)[1]


def test_a_dry_run_prints_commands_and_runs_none(cloud, tmp_path):
    process, timeout = call(
        "run", "--dry_run", "--spot", "--", "--config=imagenet_resnet34_tpu", into=tmp_path / "r"
    )
    code, said = finished(process, timeout)
    assert code == 0 and not (cloud / "calls.txt").exists() and not (tmp_path / "r").exists()
    printed = [shlex.split(line) for line in said.splitlines() if line.startswith("gcloud ")]
    verbs = [" ".join(words) for words in printed]
    order = ["create slice", "scp", "ssh slice", "storage cat", "storage rsync", "delete slice"]
    places = [next(i for i, verb in enumerate(verbs) if part in verb) for part in order]
    assert places == sorted(places), verbs
    start = next(words for words in printed if any("on_vm.sh start" in w for w in words))
    assert "--config=imagenet_resnet34_tpu" in start[-2] + start[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--name=Slice", "--", "--config=a"], "--name must be lower-case"),
        (["run", "--bucket=here", "--", "--config=a"], "--bucket must be gs://.*'here'"),
        (["run"], "needs a configuration"),
        (["run", "--", "--config=a", "--workdir=b"], "set here.*--workdir=b"),
        (["fetch", "--", "--config=a"], "only `run` takes flags"),
        (["run", "--sync=0", "--", "--config=a"], "--sync must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked_for(arguments, message, capsys):
    spec = importlib.util.spec_from_file_location("tpu", TOOLS / "tpu.py")
    tpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tpu)
    command, *rest = arguments
    with pytest.raises(SystemExit) as error:
        tpu.parse([command, "--name=slice", "--zone=z", "--bucket=gs://bucket/run", *rest])
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
