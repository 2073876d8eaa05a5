#!/usr/bin/env python3
r"""Trains on a Cloud TPU: creates it, installs, runs, goes on after preemption, fetches results.

    tools/tpu/tpu.py run --name=r34 --zone=us-west4-a --accelerator=v5litepod-8 --spot \
        --bucket=gs://BUCKET/runs/r34 -- --config=imagenet_resnet34_tpu \
        --config.data.dir=gs://BUCKET/tensorflow_datasets

does it all, and may itself be stopped and started again.  The steps on their own:

    create    ask for the TPU (a queued resource), wait until it is there, install
    run       create what is missing, train, follow; a preempted TPU is created again and the
              run goes on from its last checkpoint; at its end fetch
    status    the state of the TPU, and the last lines of the run's log
    fetch     copy records, report and models from the bucket to --into
    delete    give the TPU back (`run` does so at the end, unless --keep)

What follows `--` goes to lrtraj-train, which adds --strategy=tpu and a workdir of its own.
The workdir lives on the VM and is copied to the bucket every --sync seconds and at the end.
With --dry_run every command is printed and none is run.  Needs gcloud, logged in, with a
project (docs/tpu.md).  Exit codes: 0 done, 2 a mistake in flags, 4 a command of gcloud
failed, else that of the training program.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[2]
ON_VM = pathlib.Path(__file__).with_name("on_vm.sh")
COMMANDS = ("create", "run", "status", "fetch", "delete")
USAGE, GCLOUD_FAILED, RESUMABLE = 2, 4, 75
# TPUs of these states come back by themselves; others that are not READY do not.
PASSING = ("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING")
MOST_RESTARTS_WITHOUT_PREEMPTION = 5
MOST_FAILED_LOOKS = 10  # in a row: the connection to Google may be lost for a while
_LACKING = re.compile(r"NOT_FOUND|not found|matched no objects|404", re.IGNORECASE)


class GcloudError(RuntimeError):
    """A command of gcloud failed."""


class Gcloud:
    """Runs commands of gcloud, or prints them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.dry_run = options.dry_run
        self._where = [f"--zone={options.zone}"]
        if options.project:
            self._where.append(f"--project={options.project}")

    def __call__(
        self, *words: str, compute: bool = True, may_lack: bool = False, expected: str = ""
    ) -> str | None:
        """Runs one command.

        Args:
            words: of the command, without gcloud and the place.
            compute: whether it takes a zone.
            may_lack: return None where what it speaks of does not exist.
            expected: what a dry run takes for its output.
        """
        command = ["gcloud", *words, *(self._where if compute else ())]
        if self.dry_run:
            print(shlex.join(command))
            return expected
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise GcloudError(
                "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
            ) from None
        if done.returncode == 0:
            return done.stdout.strip()
        if may_lack and _LACKING.search(done.stderr):
            return None
        raise GcloudError(f"{shlex.join(command)}\n{(done.stderr or done.stdout).strip()[-2000:]}")


class Tpu:
    """One TPU and the run on it."""

    def __init__(self, options: argparse.Namespace, flags: Sequence[str]) -> None:
        self.options, self.flags = options, list(flags)
        self.gcloud = Gcloud(options)

    def say(self, text: str) -> None:
        print(f"==> {text}", flush=True)

    def wait(self) -> None:
        if not self.options.dry_run:
            time.sleep(self.options.poll)

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
        """Asks for the TPU, waits, installs; what is there already stays."""
        if self.options.dry_run or self.state() != "READY":
            if not self._requested():
                self.say(f"asking for {self.options.accelerator} in {self.options.zone}")
                self.request()
            self._wait_until_ready()
        self.say("installing")
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "tf_lrtraj.tar.gz")
            if not self.options.dry_run:
                self._pack(source)
            name = self.options.name
            self.gcloud(
                *("compute", "tpus", "tpu-vm", "scp", str(source), str(ON_VM)),
                f"{name}:",
                "--worker=all",
            )
        self.on_vm("all", "install")

    def _requested(self) -> bool:
        """Whether a request is queued; one that can no longer be granted is removed."""
        if self.options.dry_run:
            return False
        state = self._request_state()
        if state in ("FAILED", "SUSPENDED", "SUSPENDING"):
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

    def _wait_until_ready(self) -> None:
        told = ""
        while True:
            state = self._request_state()
            if state == "ACTIVE" and self.state() == "READY":
                return
            if state in ("FAILED", "SUSPENDED", "SUSPENDING", ""):
                raise GcloudError(
                    f"the request for {self.options.name} came to {state or 'nothing'}. "
                    "Another zone or --accelerator may have room, and quota."
                )
            if state != told:
                self.say(f"waiting: {state}")
                told = state
            self.wait()

    def _pack(self, path: pathlib.Path) -> None:
        """The committed state of this checkout, as a source distribution pip can install."""
        command = ["git", "-C", str(ROOT), "archive", "--format=tar.gz", "--prefix=tf_lrtraj/"]
        done = subprocess.run(
            [*command, f"--output={path}", "HEAD"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise GcloudError(f"git archive failed: {done.stderr.strip()}")

    def on_vm(self, worker: str, *words: str) -> None:
        self.gcloud(
            *("compute", "tpus", "tpu-vm", "ssh", self.options.name, f"--worker={worker}"),
            f"--command={shlex.join(['bash', 'on_vm.sh', *words])}",
        )

    def start(self) -> None:
        """Starts training on the first host, apart from the connection; if it runs, leaves it."""
        options = self.options
        tpu = f"--tpu={options.name}" if options.several_hosts else "--tpu="
        self.say(f"training; its log is {options.bucket}/train.log")
        self.on_vm("0", "start", options.bucket, str(options.sync), tpu, *self.flags)

    def exit_code(self) -> int | None:
        """Of the training program, once it has ended."""
        text = self.gcloud(
            *("storage", "cat", f"{self.options.bucket}/exit_code"),
            compute=False,
            may_lack=True,
            expected="0",
        )
        return int(text) if text and re.fullmatch(r"\d+", text) else None

    def follow(self) -> int | None:
        """Waits for the end of training.

        Returns:
            Its exit code; None where the TPU was lost.
        """
        failed = 0
        while True:
            try:
                code, state = self.exit_code(), self.state()
                failed = 0
            except GcloudError as error:
                failed += 1
                if failed == MOST_FAILED_LOOKS:
                    raise
                self.say(f"cannot look at it now: {str(error).splitlines()[-1]}")
                self.wait()
                continue
            if code is not None:
                return code
            if state != "READY" and state not in PASSING:
                self.say(f"the TPU is {state or 'gone'}")
                return None
            self.wait()

    def run(self) -> int:
        restarts = 0
        while True:
            if self.options.dry_run or self.state() != "READY":
                self.create()
            self.start()
            code = self.follow()
            if code is None:
                self.say("creating it again; the run goes on from its last checkpoint")
                self.delete()
                continue
            if code == RESUMABLE and restarts < MOST_RESTARTS_WITHOUT_PREEMPTION:
                restarts += 1
                self.say("the program was asked to stop and saved its state: starting it again")
                continue
            break
        self.say(f"ended with exit code {code}")
        if code:
            self.show_log()
        self.fetch()
        if not self.options.keep:
            self.delete()
        return code

    def status(self) -> None:
        self.say(f"request: {self._request_state() or 'none'}; TPU: {self.state() or 'none'}")
        self.show_log()

    def show_log(self) -> None:
        log = self.gcloud(
            *("storage", "cat", f"{self.options.bucket}/train.log"), compute=False, may_lack=True
        )
        print("\n".join((log or "no log in the bucket yet").splitlines()[-20:]))

    def fetch(self) -> None:
        into = self.options.into or f"runs/{self.options.name}"
        self.say(f"fetching into {into}")
        if not self.options.dry_run:
            pathlib.Path(into).mkdir(parents=True, exist_ok=True)
        self.gcloud(
            *("storage", "rsync", "--recursive", f"{self.options.bucket}/workdir", into),
            compute=False,
        )

    def delete(self) -> None:
        """Removes the request and its TPU; an error says that they may still be there."""
        self.gcloud(
            *("compute", "tpus", "queued-resources", "delete", self.options.name),
            *("--force", "--quiet"),
            may_lack=True,
        )
        self.say(f"{self.options.name} is given back")


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
    if options.command == "run" and not any(re.match(r"--?config\b", flag) for flag in flags):
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
        print(f"tpu.py: error: {error}", file=sys.stderr)
        return GCLOUD_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
