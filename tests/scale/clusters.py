"""Multi-worker jobs on loopback, each worker a process of its own, for tests."""

import json
import pathlib
import subprocess
import sys
import time

from helpers import environment, free_ports

TIME_LIMIT = 900  # seconds, on a machine with other work; most of it is TensorFlow's start


class Cluster:
    """Workers that run one command each; killed when the context ends.

    Args:
        folder: where what each worker says is written, as `worker0.txt` and so on.
        commands: worker index → command line, for those that are to start.
        count: of the cluster's workers.
    """

    def __init__(self, folder, commands, count=None):
        count = count or len(commands)
        folder.mkdir(parents=True, exist_ok=True)
        addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.outputs = {index: folder / f"worker{index}.txt" for index in commands}
        self.processes = {}
        for index, command in commands.items():
            task = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            told = {"TF_CONFIG": json.dumps(task), "CUDA_VISIBLE_DEVICES": "-1"}
            with open(self.outputs[index], "w") as output:
                self.processes[index] = subprocess.Popen(
                    command,
                    env=environment(**told),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def said(self, index):
        return self.outputs[index].read_text(errors="replace")

    def wait_until(self, condition, limit=TIME_LIMIT):
        """Waits for something that happens while all workers run."""
        deadline = time.monotonic() + limit
        while not condition():
            for index, process in self.processes.items():
                assert process.poll() is None, f"worker {index} ended: {self.said(index)[-4000:]}"
            assert time.monotonic() < deadline, self.all_said()
            time.sleep(0.01)

    def codes(self, limit=TIME_LIMIT, without=()):
        """Exit codes of the workers, all but those of `without`, in the order of their indices."""
        deadline = time.monotonic() + limit
        found = []
        for index, process in sorted(self.processes.items()):
            if index in without:
                continue
            try:
                found.append(process.wait(max(deadline - time.monotonic(), 0.01)))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"worker {index} goes on: {self.all_said()}") from None
        return found

    def all_said(self):
        return "\n".join(f"-- worker {i}:\n{self.said(i)[-4000:]}" for i in self.outputs)


def train_command(workdir, settings=(), *more):
    """`lrtraj-train` on the configuration of these tests, under several workers."""
    program = (
        "import sys; from tf_lrtraj.bin import train; sys.argv[0] = 'lrtraj-train'; train.run()"
    )
    return [
        sys.executable,
        "-c",
        program,
        f"--config={pathlib.Path(__file__).with_name('scale_config.py')}",
        f"--workdir={workdir}",
        "--strategy=multi_worker",
        *(f"--config.{key}={value}" for key, value in dict(settings).items()),
        *more,
    ]
