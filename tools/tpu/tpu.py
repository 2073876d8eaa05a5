#!/usr/bin/env python3
r"""Trains on a Cloud TPU: creates it, installs, runs, resumes after preemption, fetches results.

    tools/tpu/tpu.py run --name=r34 --zone=us-west4-a --accelerator=v5litepod-8 --spot \
        --bucket=gs://BUCKET/runs/r34 -- --config=imagenet_resnet34_tpu \
        --config.data.dir=gs://BUCKET/tensorflow_datasets

runs all steps.  It can be interrupted and started again; Ctrl-C does not change the TPU.  The
commands are:

    create    request the TPU (a queued resource), wait for it, and install
    run       create and install what is missing, train, and follow the log; a preempted TPU is
              created again and the run resumes from its last checkpoint; fetch at the end
    status    print the state of the TPU and the last lines of the run's log
    fetch     copy records, report and models from the bucket to --into
    delete    delete the TPU (`run` does so at the end, also after a failure, unless --keep)

Arguments after `--` are passed to lrtraj-train, with --strategy=tpu and a workdir.
The workdir is on the VM, and is copied to the bucket every --sync seconds and at the end.
With --dry_run every command is printed and none is run.  The program needs gcloud, logged in,
with a project (docs/tpu.md).  Exit codes: 0 done, 2 invalid flags, 4 a command of gcloud
failed, 130 Ctrl-C, otherwise that of the training program.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

ROOT = pathlib.Path(__file__).parents[2]
ON_VM = pathlib.Path(__file__).with_name("on_vm.sh")
COMMANDS = ("create", "run", "status", "fetch", "delete")
USAGE, GCLOUD_FAILED, RESUMABLE, BY_SIGNAL, STOPPED_HERE = 2, 4, 75, 128, 130
# TPUs in these states become READY without a request; those in other states do not.
PASSING = ("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING")
SUSPENDED = ("SUSPENDING", "SUSPENDED")  # of a request: its TPU was taken away
MOST_RESTARTS_WITHOUT_PREEMPTION = 5
MOST_FAILED_TRIES = 10  # in a row: the connection to Google may be lost for a while
LOOKS_PER_VISIT = 5  # every so many looks at the bucket, the VM is asked over ssh
NONE = "none"  # what on_vm.sh says of what there is not
STATE_ON_VM = (
    f"if test -e on_vm.sh; then bash on_vm.sh state; else echo tf_lrtraj: {NONE} {NONE} {NONE}; fi"
)
_LACKING = re.compile(r"\bNOT_FOUND\b|\bwas not found\b|\bHTTPError 404\b", re.IGNORECASE)
# The message for a missing object; a missing bucket is an error.
_NO_OBJECT = re.compile(r"matched no objects|No such object|gs://[^/\s]+/\S+ not found", re.I)
_T = TypeVar("_T")


class GcloudError(RuntimeError):
    """A command of gcloud failed."""


class Refused(GcloudError):
    """An error for which further attempts are useless."""


class KeepTpu(Refused):
    """The TPU holds results that must not be deleted with it."""


# How the messages of on_vm.sh begin that say so.
REFUSALS = {"another run": KeepTpu, "only here": KeepTpu, "refused": Refused}


class Vm(NamedTuple):
    """The state that the VM reports; "none" for a missing entry."""

    program: str  # running, ended:CODE, or unsaved:CODE where the last copy to the bucket failed
    commit: str  # that is installed, on all hosts
    bucket: str  # of the run that it holds


class Gcloud:
    """Runs commands of gcloud, or prints them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.dry_run = options.dry_run
        self._where = [f"--zone={options.zone}"]
        if options.project:
            self._where.append(f"--project={options.project}")

    def command(self, *words: str, compute: bool = True) -> list[str]:
        return ["gcloud", *words, *(self._where if compute else ()), "--quiet"]

    def __call__(
        self, *words: str, compute: bool = True, may_lack: bool = False, expected: str = ""
    ) -> str | None:
        """Runs one command.

        Args:
            words: words of the command, without gcloud, project and zone.
            compute: whether the command takes a zone.
            may_lack: whether to return None if the object of the command does not exist.
            expected: the output that a dry run assumes.
        """
        command = self.command(*words, compute=compute)
        if self.dry_run:
            print(shlex.join(command))
            return expected
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise GcloudError(
                "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
            ) from None
        if done.returncode == 0:
            return done.stdout.strip()
        if may_lack and (_LACKING if compute else _NO_OBJECT).search(done.stderr):
            return None
        raise GcloudError(f"{shlex.join(command)}\n{(done.stderr or done.stdout).strip()[-2000:]}")


class Tpu:
    """One TPU and the run on it."""

    def __init__(self, options: argparse.Namespace, flags: Sequence[str]) -> None:
        self.options, self.flags = options, list(flags)
        self.gcloud = Gcloud(options)
        self._unsaved = False  # the program ended, and its last copy to the bucket failed

    def say(self, text: str) -> None:
        print(f"==> {text}", flush=True)

    def wait(self) -> None:
        if not self.options.dry_run:
            time.sleep(self.options.poll)

    def _insist(self, act: Callable[[], _T]) -> _T:
        """Retries until it succeeds, because one failed query must not end a run of days."""
        failed = 0
        while True:
            try:
                return act()
            except Refused:
                raise
            except GcloudError as error:
                failed += 1
                if failed == MOST_FAILED_TRIES:
                    raise Refused(str(error)) from None
                reason = str(error).splitlines()[-1]
                self.say(f"failed, {failed} of {MOST_FAILED_TRIES} times: {reason}")
                self.wait()

    def state(self) -> str:
        """Of the TPU VM; "" where there is none."""
        found = self.gcloud(
            *("compute", "tpus", "tpu-vm", "describe", self.options.name),
            "--format=value(state)",
            may_lack=True,
            expected="READY",
        )
        return found or ""

    def request(self) -> None:
        options = self.options
        self.gcloud(
            *("compute", "tpus", "queued-resources", "create", options.name),
            f"--node-id={options.name}",
            f"--accelerator-type={options.accelerator}",
            f"--runtime-version={options.runtime}",
            *(["--spot"] if options.spot else []),
        )

    def create(self) -> None:
        """Requests the TPU, waits for it and installs; existing parts are kept."""
        if self.state() != "READY":  # this and a first request are not tried again: a mistake?
            self._ask()
        self._obtain()
        self._insist(self._prepare)

    def _ask(self) -> None:
        if not self._requested():
            self.say(f"asking for {self.options.accelerator} in {self.options.zone}")
            self.request()

    def _obtain(self) -> None:
        """Waits until the TPU is ready, and requests it again if it is preempted meanwhile."""
        if self.options.dry_run:
            self._ask()
            self._request_state()
            return
        while self._insist(self.state) != "READY":
            self._insist(self._ask)
            if not self._became_ready():
                self.say("it was taken away before it was ready")
                self._insist(self.delete)

    def _requested(self) -> bool:
        """Returns whether a request is queued; deletes a request that can no longer be granted."""
        if self.options.dry_run:
            return False
        while (state := self._request_state()) == "DELETING":
            self.wait()
        if state == "FAILED" or state in SUSPENDED:
            self.delete()
            return False
        return bool(state)

    def _request_state(self) -> str:
        found = self.gcloud(
            *("compute", "tpus", "queued-resources", "describe", self.options.name),
            "--format=value(state.state)",
            may_lack=True,
            expected="ACTIVE",
        )
        return found or ""

    def _became_ready(self) -> bool:
        """Waits for a requested TPU; returns False if it was preempted."""
        told = ""
        while True:
            request, state = self._insist(self._request_state), self._insist(self.state)
            if request == "ACTIVE" and state == "READY":
                return True
            if request in ("FAILED", ""):
                raise Refused(
                    f"the request for {self.options.name} came to {request or 'nothing'}. "
                    "Another zone or --accelerator may have room, and quota."
                )
            if request in SUSPENDED or (state and self._lost(state)):
                return False
            if request != told:
                self.say(f"waiting: {request}")
                told = request
            self.wait()

    @staticmethod
    def _lost(state: str) -> bool:
        return state != "READY" and state not in PASSING

    def _prepare(self) -> Vm:
        """Installs the package, unless this commit is installed or a program runs."""
        vm = self.look()
        if vm.program == "running":
            if vm.commit != self.commit:
                self.say(f"what runs there is of commit {vm.commit[:12]} and goes on as it is")
        elif vm.commit != self.commit:
            self._install()
        return vm

    def look(self, worker: str = "all") -> Vm:
        """Queries the state of the VM."""
        said = self._ssh(worker, STATE_ON_VM, f"tf_lrtraj: {NONE} {NONE} {NONE}")
        hosts = [Vm(*words) for words in re.findall(r"tf_lrtraj: (\S+) (\S+) (\S+)", said)]
        if not hosts:
            raise GcloudError(f"the VM does not say what runs on it. Received: {said[-200:]!r}")
        first = next((vm for vm in hosts if vm.bucket != NONE), hosts[0])  # others do not train
        commits = {vm.commit for vm in hosts}
        return first._replace(commit=commits.pop() if len(commits) == 1 else NONE)

    @functools.cached_property
    def commit(self) -> str:
        """Of this checkout; the same throughout a run, whatever is committed meanwhile."""
        return "COMMIT" if self.options.dry_run else self._git("rev-parse", "HEAD")

    def _install(self) -> None:
        self.say(f"installing commit {self.commit[:12]}")
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "tf_lrtraj.tar.gz")
            if not self.options.dry_run:
                self._pack(source)
            self.gcloud(
                *("compute", "tpus", "tpu-vm", "scp", str(source), str(ON_VM)),
                f"{self.options.name}:",
                "--worker=all",
            )
        self.on_vm("all", "install", self.commit)

    def _pack(self, path: pathlib.Path) -> None:
        """Makes a source distribution of the committed state of this checkout for pip."""
        self._git(
            *("archive", "--format=tar.gz", "--prefix=tf_lrtraj/"),
            *(f"--output={path}", self.commit),
        )

    def _git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Refused(f"git {words[0]} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def _ssh(self, worker: str, command: str, expected: str = "") -> str:
        try:
            said = self.gcloud(
                *("compute", "tpus", "tpu-vm", "ssh", self.options.name, f"--worker={worker}"),
                f"--command={command}",
                expected=expected,
            )
        except GcloudError as error:
            for mark, kind in REFUSALS.items():
                if f"on_vm.sh: {mark}: " in str(error):
                    raise kind(str(error)) from None
            raise
        return said or ""

    def on_vm(self, worker: str, *words: str) -> None:
        self._ssh(worker, shlex.join(["bash", "on_vm.sh", *words]))

    def start(self) -> None:
        """Starts training on the first host, independent of the connection, unless it runs."""
        options = self.options
        tpu = f"--tpu={options.name}" if options.several_hosts else "--tpu="
        self.say(f"training; its log is {options.bucket}/train.log")
        self.on_vm("0", "start", self._place, options.bucket, str(options.sync), tpu, *self.flags)

    def begin(self) -> None:
        """Makes the TPU train, from any state."""

        def attempt() -> None:
            self._obtain()
            vm = self._prepare()
            if vm.bucket not in (NONE, self.options.bucket):
                raise KeepTpu(
                    f"{self.options.name} holds the run of {vm.bucket}: delete it first, or take "
                    f"another --name. Received: --bucket={self.options.bucket}"
                )
            if vm.program == "running":
                self.say("it trains already")
            else:
                self.start()

        self._unsaved = False
        self._insist(attempt)

    @property
    def _place(self) -> str:
        return f"{self.options.name}/{self.options.zone}"

    def _last_word(self) -> str:
        """Returns the last report of on_vm.sh: the exit code, or the TPU on which the run is."""
        text = self.gcloud(
            *("storage", "cat", f"{self.options.bucket}/exit_code"),
            compute=False,
            may_lack=True,
            expected="0",
        )
        return text or ""

    def exit_code(self) -> int | None:
        """Of the training program, once it has ended."""
        text = self._last_word()
        return int(text) if re.fullmatch(r"\d+", text) else None

    def _refuse_run_elsewhere(self) -> None:
        """Checks that no other TPU copies its workdir to the same bucket."""
        found = re.fullmatch(r"running on (\S+)", self._last_word())
        if found and found[1] != self._place:
            bucket = self.options.bucket
            raise Refused(
                f"a run on the TPU {found[1]} copies to {bucket}: take another --bucket; or, where "
                f"that TPU is gone: gcloud storage rm {bucket}/exit_code. Received: {self._place}"
            )

    def follow(self) -> int | None:
        """Waits for the end of training.

        Returns:
            The exit code; RESUMABLE if training ended without one; None if the TPU was lost.
        """
        looks = 0
        while True:
            code, state = self._insist(lambda: (self.exit_code(), self.state()))
            if code is not None:
                return code
            if self._lost(state):
                self.say(f"the TPU is {state or 'gone'}")
                return None
            looks += 1
            if state != "READY":
                looks = -1  # the program may be gone with what passes: ask as soon as it is back
            elif looks % LOOKS_PER_VISIT == 0:
                code = self._visit()
                if code is not None:
                    return code
            self.wait()

    def _visit(self) -> int | None:
        """Asks the VM whether training is running, if the bucket has no exit code.

        Returns:
            None if it is running, or if the VM is lost.
        """

        def ask() -> Vm | None:
            return self.look("0") if self.state() == "READY" else None

        vm = self._insist(ask)
        if vm is None or vm.program == "running":
            return None
        code = self._insist(self.exit_code)  # it may have come between the two looks
        if code is not None:
            return code
        how, _, number = vm.program.partition(":")
        if not number:
            self.say("the program is gone, without an exit code")
            return RESUMABLE
        self._unsaved = how == "unsaved"
        return int(number)

    def run(self) -> int:
        state = self.state()  # a first failure here is rather a mistake: not tried again
        try:
            self._refuse_run_elsewhere()
        except GcloudError:
            if state:
                self.tell_standing()
            raise
        leave, given_back = self.options.keep, False
        try:
            if state != "READY":
                self._ask()
            code = self._train()
            if self._unsaved:
                self._fetch_from_vm()
        except (KeyboardInterrupt, KeepTpu):
            leave = True
            raise
        finally:
            given_back = self._give_back(leave)
        self.say(f"ended with exit code {code}")
        failed = not (leave or given_back)
        try:
            if code:
                self.show_log()
            if not self._unsaved:
                self.fetch()
        except GcloudError as error:
            _complain(error)
            failed = True
        return code or (GCLOUD_FAILED if failed else 0)

    def _train(self) -> int:
        """Trains to the end, also if the TPU is lost and created again."""
        restarts = 0
        while True:
            self.begin()
            code = self.follow()
            if code is not None and (code == RESUMABLE or code > BY_SIGNAL):
                # A preempted TPU stops the program first, and remains READY for a while.
                self.wait()
                state = self._insist(self.state)
                if state in PASSING:
                    continue
                if self._lost(state) or self._insist(self._request_state) in SUSPENDED:
                    self.say(f"the TPU is {state or 'gone'}")
                    code = None
            if code is None:
                self.say("creating it again; the run goes on from its last checkpoint")
                self._insist(self.delete)
                continue
            if code == RESUMABLE and restarts < MOST_RESTARTS_WITHOUT_PREEMPTION:
                restarts += 1
                self.say("the program was stopped before its end: starting it again")
                continue
            return code

    def _give_back(self, leave: bool) -> bool:
        """Deletes the TPU unless --keep is given; prints how to delete it if it may remain."""
        done = False
        try:
            if not leave:
                self.delete()
                done = True
        except GcloudError as error:
            _complain(error)
        finally:
            if not done:
                self.tell_standing()
        return done

    def status(self) -> None:
        self.say(f"request: {self._request_state() or 'none'}; TPU: {self.state() or 'none'}")
        self.show_log()

    def show_log(self) -> None:
        log = self.gcloud(
            *("storage", "cat", f"{self.options.bucket}/train.log"), compute=False, may_lack=True
        )
        print("\n".join((log or "no log in the bucket yet").splitlines()[-20:]))

    def _into(self) -> pathlib.Path:
        into = pathlib.Path(self.options.into or f"runs/{self.options.name}")
        self.say(f"fetching into {into}")
        if not self.options.dry_run:
            into.mkdir(parents=True, exist_ok=True)
        return into

    def fetch(self) -> None:
        self.gcloud(
            *("storage", "rsync", "--recursive", f"{self.options.bucket}/workdir"),
            str(self._into()),
            compute=False,
        )

    def _fetch_from_vm(self) -> None:
        self.say("the last copy to the bucket failed: the workdir comes from the VM itself")
        try:
            self.gcloud(
                *("compute", "tpus", "tpu-vm", "scp", "--recurse", "--worker=0"),
                *(f"{self.options.name}:tf_lrtraj/workdir", str(self._into())),
            )
        except GcloudError as error:
            raise KeepTpu(f"the end of the run is on the VM alone: {error}") from None

    def _delete_words(self) -> list[str]:
        return ["compute", "tpus", "queued-resources", "delete", self.options.name, "--force"]

    def delete(self) -> None:
        """Deletes the request and its TPU; an error states that they may still exist."""
        found = self.gcloud(*self._delete_words(), may_lack=True)
        if found is None and self.state():
            raise GcloudError(
                f"{self.options.name} is there without a request of its own: delete it with "
                "gcloud compute tpus tpu-vm delete"
            )
        self.say(f"{self.options.name} is given back" if found is not None else "nothing to delete")

    def tell_standing(self) -> None:
        options, command = self.options, self.gcloud.command(*self._delete_words())
        self.say(
            f"{options.name} in {options.zone} may still be there, and cost. To give it back: "
            f"{shlex.join(command)}"
        )


def _complain(error: Exception) -> None:
    print(f"tpu.py: error: {error}", file=sys.stderr)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    ours = list(argv)
    flags: list[str] = []
    if "--" in ours:
        place = ours.index("--")
        ours, flags = ours[:place], ours[place + 1 :]
    parser = argparse.ArgumentParser(
        prog="tpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--name", required=True, help="of the TPU; letters, digits, hyphens")
    parser.add_argument("--zone", required=True, help="such as us-west4-a")
    parser.add_argument("--project", default="", help="default: gcloud's")
    parser.add_argument("--accelerator", default="v5litepod-8", help="type and size of the TPU")
    parser.add_argument(
        "--runtime", default="v2-alpha-tpuv5-lite", help="image of the VM; docs/tpu.md has a table"
    )
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    parser.add_argument("--bucket", default="", help="gs://… folder of this run (create, run, …)")
    parser.add_argument("--into", default="", help="where `fetch` copies to: default runs/NAME")
    parser.add_argument("--several_hosts", action="store_true", help="the slice has several hosts")
    parser.add_argument(
        "--sync", type=int, default=120, help="seconds between copies to the bucket"
    )
    parser.add_argument("--poll", type=float, default=60, help="seconds between looks at the TPU")
    parser.add_argument("--keep", action="store_true", help="do not give the TPU back at the end")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    options = parser.parse_args(ours)
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,60}[a-z0-9])?", options.name):
        parser.error(
            "--name must be lower-case letters, digits and hyphens, beginning with a letter. "
            f"Received: {options.name!r}"
        )
    if options.command in ("run", "status", "fetch") and not re.fullmatch(
        r"gs://[^/\s]+(/[^\s]*)?", options.bucket
    ):
        parser.error(f"--bucket must be gs://BUCKET/FOLDER. Received: {options.bucket!r}")
    options.bucket = options.bucket.rstrip("/")
    if options.sync < 1 or options.poll < 0:
        parser.error(
            "--sync must be at least 1 and --poll at least 0. "
            f"Received: {options.sync}, {options.poll}"
        )
    ours_too = [f for f in flags if re.match(r"--?(workdir|strategy|tpu)\b", f)]
    if ours_too:
        parser.error(f"these flags of lrtraj-train are set here. Received: {ours_too}")
    if options.command == "run" and not any(re.match(r"--?config(=|$)", flag) for flag in flags):
        parser.error(f"`run` needs a configuration: … -- --config=NAME. Received: {flags}")
    if options.command != "run" and flags:
        parser.error(f"only `run` takes flags after --. Received: {flags}")
    return options, flags


def main(argv: Sequence[str]) -> int:
    options, flags = parse(argv)
    tpu = Tpu(options, flags)
    try:
        if options.command == "run":
            return tpu.run()
        getattr(tpu, options.command)()
    except GcloudError as error:
        _complain(error)
        code = GCLOUD_FAILED
    except KeyboardInterrupt:
        code = STOPPED_HERE
    else:
        return 0
    if options.command in ("create", "delete"):  # `run` has told
        tpu.tell_standing()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
