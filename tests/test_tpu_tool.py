"""tools/tpu against a stand-in for gcloud whose TPU is a folder of this machine."""

import importlib.util
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

TOOLS = pathlib.Path(__file__).parents[1] / "tools" / "tpu"

# What follows `gcloud`; a state file per thing, "gs://" is a folder, ssh is a local bash.
GCLOUD = """#!{python}
import os, pathlib, re, shutil, signal, subprocess, sys, time
cloud = pathlib.Path({cloud!r})
who = "vm" if "ON_VM" in os.environ else "here"
words = [w for w in sys.argv[1:] if not w.startswith(("--zone", "--project", "--quiet"))]
line = who + " " + " ".join(words)
with open(cloud / "calls.txt", "a") as calls:
    calls.write(line + "\\n")
silent = "--quiet" in sys.argv and os.path.samestat(os.fstat(0), os.stat("/dev/null"))
if who == "here" and words[0] != "lose" and not silent: (cloud / "prompts").touch()
gs, node, vm = cloud / "gs", cloud / "node", cloud / "vm"
local = lambda path: path.replace("gs://", str(gs) + "/").replace("slice:", str(vm) + "/")

def lose(state):
    "The machine vanishes with everything on it."
    pid = vm / "tf_lrtraj" / "pid"
    number = pid.read_text().strip() if pid.exists() else ""
    try:
        if "on_vm.sh" in pathlib.Path("/proc", number, "cmdline").read_text():
            os.killpg(int(number), signal.SIGKILL)
    except OSError:
        pass
    shutil.rmtree(vm, ignore_errors=True)
    node.write_text(state)

def missing(what):
    sys.exit("ERROR: (gcloud) NOT_FOUND: " + str(what) + " was not found")

# Failures that tests ask for: how often, of what, with which words.
for rule in (cloud / "fail").glob("*"):
    count, what, message = rule.read_text().split("\\n")
    if int(count) and re.search(what, line):
        rule.write_text("\\n".join([str(int(count) - 1), what, message]))
        if message == "hang": time.sleep(60)
        if message == "half":
            source, target = (local(w) for w in words[2:] if not w.startswith("--"))
            shutil.copy(sorted(pathlib.Path(source).iterdir())[0], target)
        sys.exit("ERROR: " + message)
for url in re.findall("gs://[^/ ]+", line if words[0] == "storage" else ""):
    if not os.path.isdir(local(url)): sys.exit("ERROR: " + url + " not found: 404.")

if words[0] == "lose":
    lose(words[1])
elif words[:2] == ["storage", "rsync"]:
    source, target = (local(w) for w in words[2:] if not w.startswith("--"))
    if not os.path.isdir(source): sys.exit("ERROR: Did not find existing container at: " + source)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*.tmp"))
    if "--delete-unmatched-destination-objects" in words:
        for name in set(os.listdir(target)) - set(os.listdir(source)):
            os.unlink(target + "/" + name)
    if not os.listdir(target): os.rmdir(target)  # a bucket has no empty folders
elif words[:2] == ["storage", "cp"]:
    target = pathlib.Path(local(words[3])); target.parent.mkdir(parents=True, exist_ok=True)
    data = sys.stdin.buffer.read() if words[2] == "-" else pathlib.Path(words[2]).read_bytes()
    target.write_bytes(data)
    if data == b"75\\n" and (cloud / "preempting").exists(): node.write_text("PREEMPTED")
elif words[0] == "storage":
    path = pathlib.Path(local(words[2]))
    if not path.exists(): sys.exit("ERROR: The following URLs matched no objects or files")
    if words[1] == "cat": print(path.read_text())
    if words[1] == "rm": path.unlink()
    if words[1] == "ls" and path.is_dir():
        for inner in path.iterdir(): print(words[2] + inner.name + "/" * inner.is_dir())
elif words[1:4] == ["tpus", "queued-resources", "create"]:
    if node.exists(): sys.exit("ERROR: ALREADY_EXISTS")
    vm.mkdir(); node.write_text("READY")
elif words[1:4] == ["tpus", "queued-resources", "describe"]:
    if not node.exists(): missing("request")
    print("SUSPENDED" if node.read_text() == "PREEMPTED" else "ACTIVE")
elif words[1:4] == ["tpus", "queued-resources", "delete"]:
    if not node.exists(): missing("request")
    lose(""); node.unlink()
elif words[1:4] == ["tpus", "tpu-vm", "describe"]:
    if not node.exists(): missing("node")
    print(node.read_text())
elif words[1:4] == ["tpus", "tpu-vm", "scp"]:
    *sources, target = (local(w) for w in words[4:] if not w.startswith("--"))
    for name in sources:
        if os.path.isdir(name): shutil.copytree(name, target + "/" + os.path.basename(name))
        else: shutil.copy(name, target)
elif words[1:4] == ["tpus", "tpu-vm", "ssh"]:
    if node.read_text() != "READY": sys.exit("ERROR: connection closed")
    command = next(w for w in words if w.startswith("--command=")).removeprefix("--command=")
    home = {{**os.environ, "HOME": str(vm), "ON_VM": "1"}}
    sys.exit(subprocess.run(["bash", "-c", command], cwd=vm, env=home).returncode)
else:
    sys.exit("unexpected: " + line)
"""

# `python3 -m venv … FOLDER` of the VM, whose uv installs the stand-in for training.
PYTHON3 = """#!/bin/bash
bin=${@: -1}/bin
rm -rf "$bin"
mkdir -p "$bin"
echo '#!/bin/sh' >"$bin/pip"
echo '#!/bin/sh
[ ! -e CLOUD/broken ] || exit 1
cp CLOUD/train "${0%/*}/lrtraj-train"' >"$bin/uv"
chmod +x "$bin/pip" "$bin/uv"
"""

# Counts to 8 in the workdir, from where it stands; waits once, at 4, to be lost or killed.
TRAIN = """#!{python}
import os, pathlib, signal, sys, time
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
assert flags["strategy"] == "tpu", sys.argv
cloud, workdir = pathlib.Path({cloud!r}), pathlib.Path(flags["workdir"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if "config.refused" in flags: sys.exit(2)
(workdir / "run.json").write_text("{{}}")
count = workdir / "count"
while True:
    n = int(count.read_text()) if count.exists() else 0
    with open(cloud / "log.txt", "a") as file: file.write(str(n) + " ")
    if n == 8: sys.exit(int(flags.get("config.code", 0)))
    count.write_text(str(n + 1))
    (workdir / ".half.1.tmp").write_text("half")
    if n < int(flags.get("config.preemptions", 0)):
        sys.exit(75)
    time.sleep(0.1)
    if n == 4 and "config.revoke" in flags:
        (cloud / "fail" / "revoked").write_text("99\\nvm storage (cp|rsync)\\n403")
    if n == 4 and not (cloud / "lost").exists():
        time.sleep(2.5)  # the workdir has been copied to the bucket meanwhile
        (cloud / "lost").touch()
        time.sleep(60)
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    folder = tmp_path / "cloud"
    (folder / "gs" / "bucket").mkdir(parents=True)
    (folder / "fail").mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    names = {"python": sys.executable, "cloud": str(folder)}
    (folder / "train").write_text(TRAIN.format(**names))
    (programs / "gcloud").write_text(GCLOUD.format(**names))
    (programs / "python3").write_text(PYTHON3.replace("CLOUD", str(folder)))
    for program in (folder / "train", *programs.iterdir()):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TF_LRTRAJ_PAUSE", "0")
    yield folder
    if (folder / "vm").exists():  # what a failed test has left running
        subprocess.run([programs / "gcloud", "lose", "READY"], check=True)
    assert not (folder / "prompts").exists()  # no command waits for an answer nobody can see


def call(*arguments, into, timeout=90):
    command = [sys.executable, str(TOOLS / "tpu.py"), *arguments[:1], "--name=slice", "--zone=z"]
    command += ["--bucket=gs://bucket/run", f"--into={into}", "--poll=0.2", "--sync=1"]
    return subprocess.Popen(
        [*command, *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that starts tests in the background has them, and so the tool, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ), timeout


def fail(cloud, what, message, count=99):
    """Makes gcloud fail where its line, `vm …` or `here …`, matches."""
    (cloud / "fail" / "asked").write_text(f"{count}\n{what}\n{message}")


def calls(cloud, part):
    return [line for line in (cloud / "calls.txt").read_text().splitlines() if part in line]


def wait_for(process, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, finished(process, 1)
        time.sleep(0.05)


def saved(cloud):
    """The workdir of an earlier run, in the bucket."""
    folder = cloud / "gs" / "bucket" / "run" / "workdir"
    folder.mkdir(parents=True)
    for name, text in (("checkpoint", "weights"), ("count", "6"), ("run.json", "{}")):
        (folder / name).write_text(text)
    (cloud / "lost").touch()
    return folder


def finished(process, timeout):
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, said


def test_a_preempted_run_goes_on_and_its_results_come_back(cloud, tmp_path):
    process, timeout = call("run", "--spot", "--", "--config=any", into=tmp_path / "results")
    wait_for(process, (cloud / "lost").exists)
    subprocess.run(["gcloud", "lose", "PREEMPTED"], check=True)
    code, said = finished(process, timeout)
    assert code == 0, said
    assert "the TPU is PREEMPTED" in said and "goes on from its last checkpoint" in said
    assert (tmp_path / "results" / "count").read_text() == "8"
    assert not list((tmp_path / "results").glob(".*"))  # half-written files are not copied
    steps = [int(n) for n in (cloud / "log.txt").read_text().split()]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # the second machine began at 5, not at 0
    asked = calls(cloud, "queued-resources create")
    assert len(asked) == 2 and all("--spot" in line for line in asked)
    assert not (cloud / "node").exists()  # given back


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


def test_where_the_bucket_cannot_be_looked_into_nothing_in_it_is_lost(cloud, tmp_path):
    folder = saved(cloud)
    fail(cloud, "vm storage ls", "503 for now")
    process, timeout = call("run", "--", "--config=any", into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert (folder / "checkpoint").read_text() == "weights"
    assert (folder / "count").read_text() == "6"
    assert code == 4 and "503 for now" in said and "cannot look into gs://bucket/run" in said
    assert not (cloud / "log.txt").exists()  # nothing was trained
    assert not (cloud / "node").exists()


def test_a_workdir_that_came_in_half_is_not_trained_on_nor_copied_back(cloud, tmp_path):
    folder = saved(cloud)
    fail(cloud, "vm storage rsync --recursive gs", "half", count=3)  # as often as it is tried
    arguments = ("run", "--keep", "--", "--config=any")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 4 and "cannot take over gs://bucket/run/workdir" in said
    assert sorted(f.name for f in folder.iterdir()) == ["checkpoint", "count", "run.json"]
    process, timeout = call(*arguments, into=tmp_path / "results")  # the same machine once more
    code, said = finished(process, timeout)
    assert code == 0, said
    assert (cloud / "log.txt").read_text().split() == ["6", "7", "8"]
    assert (folder / "checkpoint").read_text() == "weights"
    assert (folder / "count").read_text() == "8"


def test_a_bucket_the_machine_may_not_write_ends_the_run_at_once(cloud, tmp_path):
    fail(cloud, "vm storage cp", "403 forbidden")
    process, timeout = call("run", "--", "--config=any", into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 4 and "403 forbidden" in said
    assert "cannot write to gs://bucket/run" in said and not (cloud / "log.txt").exists()
    assert not (cloud / "node").exists()


def test_where_the_bucket_fails_later_the_results_come_from_the_machine(cloud, tmp_path):
    (cloud / "lost").touch()
    arguments = ("run", "--", "--config=any", "--config.revoke=yes")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 0 and "the workdir comes from the VM itself" in said, said
    assert (tmp_path / "results" / "workdir" / "count").read_text() == "8"
    assert not (cloud / "node").exists()


def test_results_that_are_on_the_machine_alone_do_not_go_with_it(cloud, tmp_path):
    (cloud / "lost").touch()
    fail(cloud, "here .*scp --recurse", "connection lost")
    arguments = ("run", "--", "--config=any", "--config.revoke=yes")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 4 and "is on the VM alone" in said and "slice in z may still be there" in said
    assert (cloud / "vm" / "tf_lrtraj" / "workdir" / "count").read_text() == "8"


@pytest.mark.parametrize("passing", [False, True])
def test_a_program_that_is_gone_without_an_exit_code_is_started_again(cloud, tmp_path, passing):
    process, timeout = call("run", "--", "--config=any", into=tmp_path / "results")
    wait_for(process, (cloud / "lost").exists)
    if passing:  # the machine is started anew, and its disk stays
        (cloud / "node").write_text("REPAIRING")
    os.killpg(int((cloud / "vm" / "tf_lrtraj" / "pid").read_text()), signal.SIGKILL)
    if passing:
        time.sleep(0.5)
        (cloud / "node").write_text("READY")
    code, said = finished(process, timeout)
    assert code == 0 and "the program is gone, without an exit code" in said, said
    assert (cloud / "log.txt").read_text().split() == [str(n) for n in range(9)]
    assert len(calls(cloud, "queued-resources create")) == 1


def test_a_machine_that_ends_after_its_program_is_created_again(cloud, tmp_path):
    process, timeout = call("run", "--", "--config=any", into=tmp_path / "results")
    wait_for(process, (cloud / "lost").exists)
    # It stops the program, is READY a while longer, and lets nobody in.
    fail(cloud, "here .*tpu-vm ssh", "connection refused")
    os.kill(int((cloud / "vm" / "tf_lrtraj" / "pid").read_text()), signal.SIGTERM)
    before = len(calls(cloud, "tpu-vm ssh"))
    wait_for(process, lambda: len(calls(cloud, "tpu-vm ssh")) > before + 1)
    subprocess.run(["gcloud", "lose", "PREEMPTED"], check=True)
    (cloud / "fail" / "asked").unlink()
    code, said = finished(process, timeout)
    assert code == 0 and "connection refused" in said, said
    assert (cloud / "log.txt").read_text().split() == [str(n) for n in range(9)]
    assert len(calls(cloud, "queued-resources create")) == 2 and not (cloud / "node").exists()


def test_preemptions_the_program_was_told_of_do_not_count_as_restarts(cloud, tmp_path):
    (cloud / "lost").touch()
    (cloud / "preempting").touch()
    arguments = ("run", "--spot", "--", "--config=any", "--config.preemptions=6")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 0 and "starting it again" not in said, said
    assert (cloud / "log.txt").read_text().split() == [str(n) for n in range(9)]
    assert len(calls(cloud, "queued-resources create")) == 7


def test_what_is_not_installed_whole_is_installed_again(cloud, tmp_path):
    (cloud / "lost").touch()
    (cloud / "broken").touch()
    arguments = ("run", "--keep", "--", "--config=any")
    process, timeout = call(*arguments, into=tmp_path / "results")
    wait_for(process, (cloud / "calls.txt").exists)
    wait_for(process, lambda: len(calls(cloud, "on_vm.sh install")) > 1)  # it is tried again
    process.send_signal(signal.SIGINT)
    code, said = finished(process, timeout)
    assert code == 130 and (cloud / "node").exists() and not (cloud / "log.txt").exists()
    (cloud / "broken").unlink()
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 0, said
    installs = len(calls(cloud, "on_vm.sh install"))
    process, timeout = call(*arguments, into=tmp_path / "results")  # the same commit: as it is
    assert finished(process, timeout)[0] == 0
    assert len(calls(cloud, "on_vm.sh install")) == installs
    (cloud / "vm" / "tf_lrtraj" / "commit").write_text("another")
    process, timeout = call(*arguments, into=tmp_path / "results")
    assert finished(process, timeout)[0] == 0
    assert len(calls(cloud, "on_vm.sh install")) == installs + 1


def test_a_refused_run_keeps_its_exit_code_and_gives_the_machine_back(cloud, tmp_path):
    arguments = ("run", "--", "--config=any", "--config.refused=yes")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 2 and "ended with exit code 2" in said, said
    assert not (cloud / "node").exists()


def test_a_machine_that_may_still_stand_is_named_with_its_remedy(cloud, tmp_path):
    (cloud / "lost").touch()
    fail(cloud, "here .*queued-resources delete", "503 for now")
    arguments = ("run", "--", "--config=any", "--config.code=3")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 3, said
    assert "slice in z may still be there, and cost. To give it back: gcloud" in said
    assert "queued-resources delete slice --force --zone=z --quiet" in said
    assert (tmp_path / "results" / "count").read_text() == "8"


def test_the_tool_can_be_stopped_and_called_again(cloud, tmp_path):
    process, timeout = call("run", "--", "--config=any", into=tmp_path / "results")
    wait_for(process, (cloud / "log.txt").exists)
    process.send_signal(signal.SIGINT)
    code, said = finished(process, timeout)
    assert code == 130 and "slice in z may still be there" in said and "Traceback" not in said
    process, timeout = call("run", "--", "--config=any", into=tmp_path / "results")
    wait_for(process, (cloud / "lost").exists)
    os.killpg(int((cloud / "vm" / "tf_lrtraj" / "pid").read_text()), signal.SIGKILL)
    code, said = finished(process, timeout)
    assert code == 0, said
    assert len(calls(cloud, "queued-resources create")) == 1  # it followed what it had started
    assert (cloud / "log.txt").read_text().split() == [str(n) for n in range(9)]


def test_the_run_of_another_bucket_is_left_alone(cloud, tmp_path):
    (cloud / "lost").touch()
    process, timeout = call("run", "--keep", "--", "--config=any", into=tmp_path / "results")
    assert finished(process, timeout)[0] == 0
    other = cloud / "gs" / "bucket" / "other" / "workdir"
    other.mkdir(parents=True)
    (other / "checkpoint").write_text("weights")
    arguments = ("run", "--bucket=gs://bucket/other", "--", "--config=any")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 4 and "holds the run of gs://bucket/run" in said and "gs://bucket/other" in said
    assert (cloud / "node").exists() and (other / "checkpoint").exists()


def test_a_folder_another_machine_copies_to_is_refused(cloud, tmp_path):
    folder = saved(cloud)
    word = folder.parent / "exit_code"
    word.write_text("running on other/z\n")
    arguments = ("run", "--", "--config=any")
    process, timeout = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 4 and "a run on the TPU other/z copies to gs://bucket/run" in said
    assert not calls(cloud, "queued-resources create")
    assert "gone: gcloud storage rm gs://bucket/run/exit_code." in said
    word.unlink()
    process, timeout = call(*arguments, into=tmp_path / "results")
    wait_for(process, lambda: (cloud / "log.txt").exists() or word.exists())
    assert word.read_text() == "running on slice/z\n"
    assert finished(process, timeout)[0] == 0 and word.read_text() == "0\n"


def test_a_copy_that_hangs_is_given_up_and_made_again(cloud, tmp_path, monkeypatch):
    (cloud / "lost").touch()
    monkeypatch.setenv("TF_LRTRAJ_LONGEST", "3")
    fail(cloud, "vm storage (cp|rsync).*workdir", "hang", count=1)
    process, timeout = call("run", "--", "--config=any", into=tmp_path / "results")
    code, said = finished(process, timeout)
    assert code == 0, said
    assert (cloud / "fail" / "asked").read_text().startswith("0\n")  # it did hang
    assert (tmp_path / "results" / "count").read_text() == "8"


@pytest.mark.parametrize(
    ("what", "message", "bucket"),
    [
        ("here .*tpu-vm describe", "INTERNAL: request 404404 failed", "gs://bucket/run"),
        ("never", "", "gs://mistyped/run"),
    ],
)
def test_only_what_is_said_not_to_exist_counts_as_missing(cloud, tmp_path, what, message, bucket):
    fail(cloud, what, message)
    arguments = ("run", f"--bucket={bucket}", "--", "--config=any")
    process, _ = call(*arguments, into=tmp_path / "results")
    code, said = finished(process, 20)
    assert code == 4 and "404" in said
    assert not calls(cloud, "queued-resources create")


def test_a_dry_run_prints_commands_and_runs_none(cloud, tmp_path):
    process, timeout = call(
        "run", "--dry_run", "--spot", "--", "--config=imagenet_resnet34_tpu", into=tmp_path / "r"
    )
    code, said = finished(process, timeout)
    assert code == 0 and not (cloud / "calls.txt").exists() and not (tmp_path / "r").exists()
    printed = [shlex.split(line) for line in said.splitlines() if line.startswith("gcloud ")]
    verbs = [" ".join(words) for words in printed]
    order = ["create slice", "scp", "install", "start", "exit_code", "delete slice", "rsync"]
    places, place = [], 0
    for part in order:
        place = next(i for i, verb in enumerate(verbs) if part in verb and i >= place)
        places.append(place)
    start = next(words for words in printed if any("on_vm.sh start" in w for w in words))
    assert any("--config=imagenet_resnet34_tpu" in word for word in start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--name=Slice", "--", "--config=a"], "--name must be lower-case"),
        (["run", "--bucket=here", "--", "--config=a"], "--bucket must be gs://.*'here'"),
        (["run"], "needs a configuration"),
        (["run", "--", "--config.data.dir=a"], "needs a configuration.*data.dir=a"),
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
