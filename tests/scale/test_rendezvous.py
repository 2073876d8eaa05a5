"""Workers meet before TensorFlow starts, or all of them learn who is missing."""

import socket
import threading
import time

import pytest
from helpers import free_ports

from tf_lrtraj.training.rendezvous import Missed, meet


def cluster_of(count, chief=False):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return {"chief": addresses[:1], "worker": addresses[1:]} if chief else {"worker": addresses}


def call(workers, seconds=5.0):
    """(cluster, job, index, seconds before it comes) of each → what became of it."""
    outcomes = [None] * len(workers)

    def one(i, cluster, job, index, late):
        time.sleep(late)
        try:
            meet(cluster, job, index, seconds)
            outcomes[i] = "met"
        except (Missed, OSError) as error:
            outcomes[i] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=one, args=(i, *worker)) for i, worker in enumerate(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 10)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("chief", [False, True])
def test_all_meet_whoever_is_late(late, chief):
    cluster = cluster_of(3, chief)
    names = (
        [("chief", 0), ("worker", 0), ("worker", 1)] if chief else [("worker", i) for i in range(3)]
    )
    waits = [0.5 if i == late else 0.0 for i in range(3)]
    assert call([(cluster, *n, w) for n, w in zip(names, waits, strict=True)]) == ["met"] * 3
    # Ports are free again, as TensorFlow needs them.
    assert call([(cluster, *n, 0.0) for n in names]) == ["met"] * 3


def test_one_worker_meets_nobody():
    meet({"worker": ["127.0.0.1:1"]}, "worker", 0, 1)


def test_a_missing_worker_is_named_to_all():
    cluster = cluster_of(4)
    said = call([(cluster, "worker", i, 0.0) for i in (0, 1, 3)], seconds=1.5)
    address = cluster["worker"][2]
    assert said == [f"Missed: worker 2 ({address}) did not connect within 1.5 s"] * 3


def test_a_missing_first_worker_is_named():
    cluster = cluster_of(2)
    (said,) = call([(cluster, "worker", 1, 0.0)], seconds=0.5)
    assert said.startswith(f"Missed: worker 0 ({cluster['worker'][0]}) did not answer within 0.5 s")


def test_a_worker_told_of_another_cluster_is_named():
    cluster = cluster_of(2)
    other = {"worker": [*cluster["worker"], "127.0.0.1:9"]}
    said = call([(cluster, "worker", 0, 0.0), (other, "worker", 1, 0.0)], seconds=1.5)
    assert "with another cluster in TF_CONFIG: worker 1" in said[0]
    assert "has another cluster in TF_CONFIG" in said[1]


def test_a_taken_port_is_an_error_of_its_own():
    cluster = cluster_of(2)
    port = int(cluster["worker"][1].split(":")[1])
    with socket.create_server(("", port)):
        (said,) = call([(cluster, "worker", 1, 0.0)], seconds=0.5)
    assert "in use" in said and not said.startswith("Missed")


def test_strangers_and_workers_that_left_do_no_harm():
    cluster = cluster_of(3)
    host, port = cluster["worker"][0].split(":")
    done = []
    first = threading.Thread(target=lambda: done.append(meet(cluster, "worker", 0, 20)))
    first.start()
    deadline = time.monotonic() + 10
    while True:
        try:
            stranger = socket.create_connection((host, int(port)), 1)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    stranger.sendall(b"PRI * HTTP/2.0\r\n\r\n")
    with pytest.raises(Missed):  # comes, and leaves before the others are there
        meet(cluster, "worker", 1, 0.3)
    assert not done
    assert call([(cluster, "worker", 1, 0.0), (cluster, "worker", 2, 0.2)]) == ["met"] * 2
    first.join(10)
    stranger.close()
    assert done == [None]
