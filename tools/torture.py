#!/usr/bin/env python
"""Kills a training run at random times, resumes it, and compares it with an undisturbed run.

Each trial starts `lrtraj-train` in an empty folder, kills it, and starts the same command again.
The process may be killed several times before it is allowed to end.  The result is then compared
bit for bit with an undisturbed run: rows, tensors of every checkpoint, snapshots, probe records,
weights of saved models, configuration, schedule, TensorBoard scalars.

Kinds of kills, each drawn from the seed:

  time    SIGKILL after a random share of the processor time of the undisturbed run
  write   the process kills itself by SIGKILL at its n-th operation on a file of the run: before
          opening a file, in the middle of a write, before or after a rename, or in a deletion
  inside  SIGKILL while TensorFlow writes a checkpoint, or Keras a model
  term    SIGTERM at a random time; the process must exit with code 75 (or 0, if it was about to
          end), and is sometimes killed by SIGKILL before it exits

Every trial has at least one SIGKILL.  Examples:

  tools/torture.py                          # 100 trials, about an hour; into results/torture
  tools/torture.py --trials=3 --out=/tmp/t  # a short run
  tools/torture.py --fresh --trials=5       # every start is a new process (slower)
  tools/torture.py --only=17 --out=/tmp/t   # repeats one trial and keeps its folder

The record is written after every trial, so the tool can be interrupted and started again.
By default one process imports TensorFlow without running anything, and every start of the program
is a fork of it, because the import would be most of the cost.  The undisturbed run is made in both
ways, and the record states whether they are bit-identical.  The report is drawn in every tenth
trial; the others write an empty page.  Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]

from torturing.comparing import differences  # noqa: E402
from torturing.page import page  # noqa: E402
from torturing.saboteur import COUNTERS, Saboteur  # noqa: E402

WITH_REPORT = 10  # every so many trials, the report is drawn in full at the end of the run
TIMEOUT = 900.0  # seconds of wall clock for one start of the program
SHARES = {"time": 0.35, "write": 0.40, "inside": 0.25}  # of the kills by SIGKILL


# --- The run that is tortured -------------------------------------------------------------


def get_config() -> Any:
    """Returns the configuration; the program gets this file as --config."""
    from tf_lrtraj.runs.run_config import default_config

    config = default_config()
    config.name = "a run to be killed"
    config.data.batch_size = 16
    config.data.augmentation = "crop"
    config.model.width = 2
    config.optimizer.momentum = 0.5
    config.total = "30 steps"
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.8, "batch_norm": "recompute"},
        "swa": {"kernel": "Uniform", "start": 8, "every": 2},
        "window": {"kernel": "Window", "length": 4, "every": 3},
    }
    config.batch_norm.policy = "average"
    config.batch_norm.batches = 2
    config.evaluate.every = "18 steps"
    config.evaluate.batch_size = 500
    config.checkpoint.every = "5 steps"
    config.snapshots.every = "2 steps"
    config.snapshots.limit = 6
    gradients = {"every": "13 steps", "batches": 3, "batch_size": 16}
    config.probes = {"gradients": gradients, "distance": {}}
    config.log_every = "4 steps"
    config.steps_per_call = 4
    config.threads = 1  # the bits of a run depend on it
    return config


def command(workdir: pathlib.Path) -> list[str]:
    return [f"--config={pathlib.Path(__file__).resolve()}", f"--workdir={workdir}"]


# --- Inside the process that is killed ----------------------------------------------------


def program(
    workdir: pathlib.Path, counters: pathlib.Path, at: int, half: bool, with_report: bool
) -> int:
    """Runs the training program as its console script does, with a `Saboteur`."""
    with open(counters, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    from tf_lrtraj import report
    from tf_lrtraj.bin import train

    if not with_report:
        report.write_report = empty_report
    Saboteur(workdir, shared, counters.with_suffix(".note"), at, half).install()
    sys.argv = ["lrtraj-train", *command(workdir)]
    try:
        train.run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def empty_report(workdir: pathlib.Path) -> pathlib.Path:
    """Replaces the report, a quarter of the cost of a run, in nine of ten trials."""
    from tf_lrtraj.records import write_atomically

    path = pathlib.Path(workdir) / "report.html"
    write_atomically(path, "<html>" + 10_000 * " " + "</html>")
    return path


# --- Starting and killing -----------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that all threads of a process have used."""
    return time.clock_gettime((~pid << 3) | 2)  # the clock of another process, as Linux names it


class Starter:
    """Starts the program as a fork of this process, or as a new process with `fresh`."""

    def __init__(self, scratch: pathlib.Path, fresh: bool) -> None:
        self.scratch, self.fresh = scratch, fresh
        self.with_report = True
        self.counters = scratch / "counters"
        self.log = scratch / "log.txt"

    def start(self, workdir: pathlib.Path, at: int, half: bool) -> int:
        """The id of the started process."""
        self.counters.write_bytes(bytes(8 * len(COUNTERS)))
        self.counters.with_suffix(".note").unlink(missing_ok=True)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            if self.fresh:
                inside = [workdir, self.counters, at, int(half), int(self.with_report)]
                return subprocess.Popen(
                    [sys.executable, __file__, "--inside", *map(str, inside)],
                    stdout=log,
                    stderr=log,
                ).pid
            pid = os.fork()
            if pid:
                return pid
            code = 1
            try:
                os.dup2(log, 1)
                os.dup2(log, 2)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = program(workdir, self.counters, at, half, self.with_report)
            except BaseException as error:
                import traceback

                traceback.print_exception(error)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        finally:
            os.close(log)

    def count(self, counter: str) -> int:
        place = 8 * COUNTERS.index(counter)
        return int.from_bytes(self.counters.read_bytes()[place : place + 8], "little")

    def note(self) -> str:
        path = self.counters.with_suffix(".note")
        return path.read_text() if path.exists() else ""

    def attempt(self, workdir: pathlib.Path, kill: dict[str, Any], whole: Any) -> dict[str, Any]:
        """Starts the program once and returns the outcome."""
        at, half = (kill["at"], kill["half"]) if kill["kind"] == "write" else (0, False)
        before = newest_checkpoint(workdir)
        pid = self.start(workdir, at, half)
        sent, first_write, deadline = [], None, time.monotonic() + TIMEOUT
        first_stage = None
        used = 0.0
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                break
            used = cpu_seconds(pid)
            if first_write is None and self.count("operations"):
                first_write = used
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise SystemExit(f"a start took more than {TIMEOUT:.0f} s; see {self.log}")
            if kill["kind"] in ("time", "term") and first_write is not None and not sent:
                if used - first_write >= kill["share"] * whole["cpu_after_first_write"]:
                    number = signal.SIGKILL if kill["kind"] == "time" else signal.SIGTERM
                    os.kill(pid, number)
                    sent.append((signal.Signals(number).name, used))
            elif kill["kind"] == "term" and sent and kill.get("grace") is not None:
                if len(sent) == 1 and used - sent[0][1] >= kill["grace"]:
                    os.kill(pid, signal.SIGKILL)
                    sent.append(("SIGKILL", used))
            elif kill["kind"] == "inside" and not sent and self.count(kill["stage"]) >= kill["at"]:
                first_stage = time.monotonic() if first_stage is None else first_stage
                if time.monotonic() - first_stage >= kill["delay"]:
                    os.kill(pid, signal.SIGKILL)
                    sent.append(("SIGKILL", used))
            time.sleep(0.0005 if kill["kind"] == "inside" else 0.002)
        code = os.waitstatus_to_exitcode(status)
        ended = signal.Signals(-code).name if code < 0 else code
        return {
            "kill": kill,
            "started_from": before,
            "ended": ended,
            "sent": [name for name, _ in sent],
            "moment": self.moment(kill, ended, workdir),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
            "operations": self.count("operations"),
            "cpu_before_first_write": round(first_write or 0.0, 3),
        }

    def moment(self, kill: dict[str, Any], ended: Any, workdir: pathlib.Path) -> str:
        """Describes the state of the run when it was killed."""
        if ended == 0:
            return "had ended"
        rows = workdir / "metrics.jsonl"
        last = rows.read_bytes().rsplit(b"\n", 2)[-2:-1] if rows.exists() else []
        where = f"last row of step {json.loads(last[0])['step']}" if last else "no row yet"
        return f"{self.note() or kill['kind']}; {where}"


def newest_checkpoint(workdir: pathlib.Path) -> int:
    steps = [int(path.name[5:]) for path in (workdir / "checkpoints").glob("step_*")]
    return max(steps, default=0)


# --- Random draws -------------------------------------------------------------------------


def draw_kills(seed: int, trial: int, whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the kills of a trial, a function of the seed, the trial and the undisturbed run."""
    dice = random.Random(f"{seed} {trial}")

    def sigkill() -> dict[str, Any]:
        kind = dice.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "time":
            return {"kind": kind, "share": round(dice.random(), 4)}
        if kind == "write":
            return {
                "kind": kind,
                "at": dice.randint(1, whole["operations"]),
                "half": dice.random() < 0.5,
            }
        stage = dice.choice(["checkpoint", "checkpoint", "model"])
        return {
            "kind": kind,
            "stage": stage,
            "at": dice.randint(1, whole[stage]),
            "delay": round(dice.random() * {"checkpoint": 0.1, "model": 0.4}[stage], 4),
        }

    kills = [sigkill()]
    if dice.random() < 0.25:
        term = {"kind": "term", "share": round(dice.random(), 4)}
        if dice.random() < 0.3:
            term["grace"] = round(0.3 * dice.random(), 4)
        kills.insert(dice.randrange(2), term)
    while dice.random() < 0.25 and len(kills) < 4:
        kills.append(sigkill())
    return kills


# --- Trials -------------------------------------------------------------------------------

NO_KILL = {"kind": "none"}


def undisturbed(starter: Starter, workdir: pathlib.Path) -> dict[str, Any]:
    """Makes the undisturbed run, and measures the ranges from which kills are drawn."""
    shutil.rmtree(workdir, ignore_errors=True)
    starter.with_report = False  # so that kills are drawn over the rest
    began = starter.attempt(workdir, NO_KILL, {})
    if began["ended"] != 0:
        raise SystemExit(f"the undisturbed run ended with {began['ended']}; see {starter.log}")
    return {
        "cpu_seconds": began["cpu_seconds"],
        "cpu_after_first_write": round(began["cpu_seconds"] - began["cpu_before_first_write"], 2),
        **{counter: starter.count(counter) for counter in COUNTERS},
    }


def run_trial(
    starter: Starter, seed: int, trial: int, whole: dict[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
    """Runs one trial: kills, resumes and compares."""
    redrawn = 0
    starter.with_report = trial % WITH_REPORT == 0
    while True:
        shutil.rmtree(workdir, ignore_errors=True)
        attempts = []
        for kill in [*draw_kills(seed, trial + 1_000_000 * redrawn, whole), NO_KILL]:
            attempts.append(starter.attempt(workdir, kill, whole))
            if attempts[-1]["ended"] == 0:
                break
        while attempts[-1]["ended"] in ("SIGKILL", 75):  # a kill meant for later came now
            attempts.append(starter.attempt(workdir, NO_KILL, whole))
        if any(attempt["ended"] == "SIGKILL" for attempt in attempts) or redrawn == 20:
            break
        redrawn += 1  # it ended before the kill came: draw another moment
    problems = []
    for attempt in attempts:
        allowed = {0, 75} if "SIGTERM" in attempt["sent"] else {0}
        if attempt["ended"] not in (allowed | {"SIGKILL"}):
            problems.append(f"a start ended with {attempt['ended']}")
    if attempts[-1]["ended"] == 0:
        problems += differences(workdir, starter.scratch / "whole")
    return {
        "trial": trial,
        "attempts": attempts,
        "redrawn": redrawn,
        "kills": sum(attempt["ended"] == "SIGKILL" for attempt in attempts),
        "cpu_seconds": round(sum(attempt["cpu_seconds"] for attempt in attempts), 1),
        "identical": not problems,
        "problems": problems[:20],
    }


# --- The record ---------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Describes the machine of the run, without names."""
    from importlib import metadata

    import numpy

    cpu = ""
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if "model name" in line), cpu)
    versions = {name: metadata.version(name) for name in ("tensorflow", "keras")}
    return {
        "processor": cpu,
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        **versions,
    }


def commit() -> str:
    """Returns the commit of the code, with "-changed" if files differ; "unknown" without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "tf_lrtraj", "tools")
        last = git("log", "-1", "--format=%h", "--abbrev=12", "--", "tf_lrtraj", "tools")
        return last + "-changed" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_record(out: pathlib.Path, record: dict[str, Any]) -> None:
    from tf_lrtraj.records import write_atomically, write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "record.json", record)
    write_atomically(out / "README.md", page(record))


def main() -> int:
    if "--inside" in sys.argv[1:2]:
        workdir, counters, at, half, with_report = sys.argv[2:7]
        return program(
            pathlib.Path(workdir), pathlib.Path(counters), int(at), half == "1", with_report == "1"
        )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100, help="how many (100)")
    parser.add_argument("--seed", type=int, default=0, help="decides every kill (0)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "torture")
    parser.add_argument(
        "--scratch", type=pathlib.Path, help="folder for the runs; a temporary one by default"
    )
    parser.add_argument("--fresh", action="store_true", help="start real processes, not forks")
    parser.add_argument("--only", type=int, help="make this trial alone, and keep its folder")
    parser.add_argument("--page", action="store_true", help="only draw README.md from the record")
    given = parser.parse_args()
    record_path = given.out / "record.json"
    if given.page:
        write_record(given.out, json.loads(record_path.read_text()))
        return 0
    # These settings affect results or time, and must be set before TensorFlow is imported.
    os.environ.update(OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    from tf_lrtraj.bin import common

    common.keep_freed_memory()
    print("importing TensorFlow", file=sys.stderr)

    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:  # a fork would carry over their locks, and not them
        raise SystemExit(f"the import started threads ({threads}): use --fresh")

    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        scratch = (given.scratch or pathlib.Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        starter = Starter(scratch, given.fresh)
        record: dict[str, Any] = {}
        if record_path.exists():
            record = json.loads(record_path.read_text())
            kept = {"seed": given.seed, "way": way(given.fresh), "commit": commit()}
            for key, value in kept.items():
                if record.get(key) != value:
                    raise SystemExit(
                        f"{record_path} is of {key} {record.get(key)!r}, and this is {value!r}: "
                        "choose another --out"
                    )
        print("the undisturbed run", file=sys.stderr)
        whole = undisturbed(starter, scratch / "whole")
        if not record:
            other = Starter(scratch, not given.fresh)
            undisturbed(other, scratch / "other")
            found = differences(scratch / "other", scratch / "whole")
            record = {
                "command": "tools/torture.py"
                + f" --trials={given.trials} --seed={given.seed}"
                + " --fresh" * given.fresh,
                "seed": given.seed,
                "wanted": given.trials,
                "way": way(given.fresh),
                "commit": commit(),
                "machine": machine(),
                "undisturbed": whole,
                "fork_equals_fresh": "identical" if not found else f"differs in {found[:5]}",
                "trials": [],
            }
        record["wanted"] = given.trials
        whole = record["undisturbed"]  # kills are drawn from it, so they stay the same
        if given.only is not None:
            folder = scratch / f"trial{given.only}"
            result = run_trial(starter, given.seed, given.only, whole, folder)
            print(json.dumps(result, indent=2))
            return keep(folder, given.out, result)
        done = {trial["trial"] for trial in record["trials"]}
        bar = tqdm(range(given.trials), desc="trials", unit="trial")
        for trial in bar:
            if trial not in done:
                result = run_trial(starter, given.seed, trial, whole, scratch / "trial")
                if not result["identical"]:
                    keep(scratch / "trial", given.out, result)
                record["trials"] = sorted([*record["trials"], result], key=lambda t: t["trial"])
                write_record(given.out, record)
            bad = sum(not trial["identical"] for trial in record["trials"])
            bar.set_postfix(different=bad)
    bad = sum(not trial["identical"] for trial in record["trials"])
    print(f"{len(record['trials']) - bad} of {len(record['trials'])} ended identical")
    print(given.out / "README.md")
    return 1 if bad else 0


def keep(folder: pathlib.Path, out: pathlib.Path, result: dict[str, Any]) -> int:
    """Keeps a copy of a trial's folder and the program's output; returns an exit code."""
    kept = out / f"trial{result['trial']}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept / "run")
    shutil.copy(folder.parent / "log.txt", kept)
    print(f"kept: {kept}", file=sys.stderr)
    return 0 if result["identical"] else 1


def way(fresh: bool) -> str:
    return "processes of their own" if fresh else "forks of one process that imported TensorFlow"


if __name__ == "__main__":
    sys.exit(main())
