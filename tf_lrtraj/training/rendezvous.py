"""The rendezvous of the workers of a job before TensorFlow starts.

TensorFlow waits an hour for missing workers, ignores signals meanwhile, and does not name them.
The workers therefore connect here first: the first worker listens at its own address, and the
others connect and send their names.  They start when all have connected.  After the time limit the
first worker sends the names of the missing workers to all others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import socket
import time
from collections.abc import Iterable, Mapping, Sequence

GO = "go"
_HELLO = "lrtraj"
_RETRY, _GRACE = 0.2, 3.0  # seconds


class Missed(RuntimeError):
    """Not all workers connected, or they do not belong to one job."""


def meet(cluster: Mapping[str, Sequence[str]], job: str, index: int, seconds: float) -> None:
    """Returns when every worker of the cluster has called it.

    Args:
        cluster: job → addresses, as in TF_CONFIG.
        job, index: the job and the index of this worker.
        seconds: the time limit.

    Raises:
        Missed: if workers did not connect in time or have another cluster in TF_CONFIG; it names
            them.
        OSError: if this worker's own port is in use.
    """
    names = {
        f"{each} {i} ({address})": address
        for each in ("chief", "worker")
        for i, address in enumerate(cluster.get(each, []))
    }
    if len(names) == 1:
        return
    mine = f"{job} {index} ({cluster[job][index]})"
    text = json.dumps({each: list(cluster[each]) for each in sorted(cluster)})
    job_id = hashlib.sha256(text.encode()).hexdigest()[:16]
    deadline = time.monotonic() + seconds
    with _listen(names[mine]) as listener:
        if mine == next(iter(names)):
            _receive(listener, list(names)[1:], job_id, deadline, seconds)
            return
    _report(next(iter(names)), names, mine, job_id, deadline, seconds)


def _listen(address: str) -> socket.socket:
    port = int(address.rpartition(":")[2])
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
    return socket.create_server(("", port), backlog=1024)


def _receive(
    listener: socket.socket, awaited: list[str], job_id: str, deadline: float, seconds: float
) -> None:
    """The part of the first worker: waits for the others and sends them the outcome."""
    here: dict[str, socket.socket] = {}
    strangers: set[str] = set()
    pending: list[socket.socket] = []
    try:
        while len(here) < len(awaited):
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [name for name in awaited if name not in here]
                problem = f"{', '.join(missing)} did not connect within {seconds:g} s"
                if strangers:
                    problem += (
                        f"; with another cluster in TF_CONFIG: {', '.join(sorted(strangers))}"
                    )
                _send_to_all(here.values(), problem)
                raise Missed(problem)
            # Connected workers are watched too, because one may be stopped meanwhile.
            watched = [listener, *pending, *here.values()]
            for ready in select.select(watched, [], [], min(left, 1.0))[0]:
                if ready is listener:
                    pending.append(listener.accept()[0])
                    pending[-1].settimeout(2.0)
                    continue
                line = _read_line(ready)
                gone = [name for name, each in here.items() if each is ready]
                for name in gone:
                    del here[name]
                if ready in pending:
                    pending.remove(ready)
                hello, _, rest = line.partition(" ")
                their_job, _, name = rest.partition(" ")
                if hello == _HELLO and their_job == job_id and name in awaited:
                    here[name] = ready
                    continue
                if hello == _HELLO and name:
                    strangers.add(name)
                    _send_to_all([ready], "the first worker has another cluster in TF_CONFIG")
                ready.close()
        _send_to_all(here.values(), GO)
    finally:
        for connection in (*pending, *here.values()):
            connection.close()


def _report(
    first: str,
    names: Mapping[str, str],
    mine: str,
    job_id: str,
    deadline: float,
    seconds: float,
) -> None:
    """The part of the others: report to the first worker and wait for its answer."""
    host, _, port = names[first].rpartition(":")
    reason = "it was not reached"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), min(left, 10)) as there:
                there.sendall(f"{_HELLO} {job_id} {mine}\n".encode())
                # A little longer, so that the first worker can send the names of the missing
                # workers after its own time limit.
                there.settimeout(max(deadline - time.monotonic(), 0) + _GRACE)
                answer = _read_line(there)
        except OSError as error:
            reason = str(error) or type(error).__name__
            answer = ""
        if answer == GO:
            return
        if answer:
            raise Missed(answer)
        time.sleep(min(_RETRY, max(deadline - time.monotonic(), 0)))
    raise Missed(f"{first} did not answer within {seconds:g} s ({reason})")


def _send_to_all(connections: Iterable[socket.socket], text: str) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(text.encode() + b"\n")


def _read_line(connection: socket.socket, limit: int = 4096) -> str:
    """Reads one line; returns "" if the other side is gone, silent, or sends anything else."""
    data = b""
    while not data.endswith(b"\n") and len(data) < limit:
        try:
            part = connection.recv(1)
        except OSError:
            return ""
        if not part:
            return ""
        data += part
    return data.decode(errors="replace").strip()
