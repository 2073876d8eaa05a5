"""`tf.distribute` strategies by name, with early errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from typing import Any, NoReturn

from tf_lrtraj.training import rendezvous
from tf_lrtraj.values import integer, one_of

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")
JOIN_TIMEOUT = 600  # seconds


class StrategyError(ValueError):
    """The requested strategy cannot run on this machine."""


class Refused(StrategyError):
    """Another worker found an error before the run could start."""


class WorkersMissing(StrategyError):
    """Some workers of the job did not connect in time; restarting all of them may help."""


def make_strategy(
    name: str, num_devices: int = 0, tpu: str = "", join_timeout: int = JOIN_TIMEOUT
) -> Any:
    """Builds a strategy.

    Args:
        name: one of `STRATEGIES`.
        num_devices: for "mirrored": number of GPUs, 0 for all. Without a GPU the CPU is split into
            this many logical devices.
        tpu: for "tpu": name or address of the TPU, empty for a local one.
        join_timeout: for "multi_worker": seconds to wait for the other workers.

    Raises:
        StrategyError: if `name` is unknown, hardware or its configuration is missing, or some
        workers did not connect.
    """
    one_of(STRATEGIES).check("strategy", name, StrategyError)
    integer(0).check("num_devices", num_devices, StrategyError)
    integer(1).check("join_timeout", join_timeout, StrategyError)
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if name == "one_device":
        if num_devices > 1:
            raise StrategyError(
                f"strategy 'one_device' uses one device. Received: num_devices={num_devices}. "
                "Choose --strategy=mirrored for several."
            )
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    if name == "mirrored":
        return _mirrored(tf, gpus, num_devices)
    if num_devices:
        raise StrategyError(
            f"strategy {name!r} uses all devices; num_devices goes with 'mirrored'. "
            f"Received: num_devices={num_devices}"
        )
    if name == "multi_worker":
        return _multi_worker(tf, join_timeout)
    return _tpu(tf, tpu)


def _mirrored(tf: Any, gpus: list[Any], num_devices: int) -> Any:
    if gpus:
        if num_devices > len(gpus):
            raise StrategyError(
                f"strategy 'mirrored' needs {num_devices} GPUs, but this machine has {len(gpus)}."
            )
        chosen = [f"/gpu:{i}" for i in range(num_devices or len(gpus))]
        return tf.distribute.MirroredStrategy(chosen)
    if num_devices == 0:
        raise StrategyError(
            "strategy 'mirrored' found no GPU. Use --strategy=one_device, or give --num_devices=N "
            "to split the CPU into N logical devices (for trials; it is not faster)."
        )
    split_cpu(num_devices)
    # The default reduction on several CPUs uses collectives, which hang after a second strategy
    # was made in the same process.
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{i}" for i in range(num_devices)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def split_cpu(num_devices: int) -> None:
    """Makes at least `num_devices` logical CPUs; TensorFlow must not have started yet.

    Raises:
        StrategyError: if TensorFlow already runs with fewer.
    """
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        current = tf.config.get_logical_device_configuration(cpu) or []
        if len(current) < num_devices:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices
            )
    except RuntimeError:
        raise StrategyError(
            f"the CPU cannot be split into {num_devices} logical devices: TensorFlow has already "
            "started. Start a new process."
        ) from None


def read_tf_config(text: str) -> tuple[dict[str, list[str]], str, int]:
    """Returns the cluster, and this worker's type and index, from the text of TF_CONFIG.

    >>> read_tf_config('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", '
    ...                '"index": 1}}')
    ({'worker': ['a:1', 'b:1']}, 'worker', 1)

    Raises:
        StrategyError: if the text is not valid; it states the fault and the text received.
    """

    def refuse(why: str) -> NoReturn:
        raise StrategyError(
            "strategy 'multi_worker' needs the environment variable TF_CONFIG on every worker, "
            'such as {"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. {why}. Received: TF_CONFIG={text!r}'
        )

    if not text:
        refuse("It is not set")
    try:
        config = json.loads(text)
    except ValueError:
        refuse("It is not JSON")
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        refuse("It must hold the groups `cluster` and `task`")
    for job, hosts in cluster.items():
        if job not in ("chief", "worker"):
            refuse(f"The jobs of a cluster are 'chief' and 'worker', and not {job!r}")
        if not isinstance(hosts, list) or not all(map(_is_address, hosts)):
            refuse(f"`cluster.{job}` must be a list of 'host:port', with ports from 1 to 65535")
        if not hosts:
            refuse(f"`cluster.{job}` is empty: leave the job out")
    if len(cluster.get("chief", [])) > 1:
        refuse("There can be one chief only")
    addresses = [host for hosts in cluster.values() for host in hosts]
    if not addresses:
        refuse("The cluster is empty")
    twice = sorted({host for host in addresses if addresses.count(host) > 1})
    if twice:
        refuse(f"Every worker needs another address, and {twice} occur twice")
    job, index = task.get("type"), task.get("index")
    if not isinstance(job, str) or not cluster.get(job):
        refuse(f"`task.type` must be one of the cluster's jobs {sorted(cluster)}, not {job!r}")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(cluster[job]):
        refuse(f"`task.index` must be from 0 to {len(cluster[job]) - 1}, not {index!r}")
    return cluster, job, index


def _is_address(value: Any) -> bool:
    match = re.fullmatch(r"([^\s:]+|\[[^\s\]]+\]):(\d{1,5})", str(value))
    return isinstance(value, str) and match is not None and 0 < int(match[2]) < 65536


def _multi_worker(tf: Any, join_timeout: int) -> Any:
    cluster, job, index = read_tf_config(os.environ.get("TF_CONFIG", ""))
    try:
        rendezvous.meet(cluster, job, index, join_timeout)
    except rendezvous.Missed as error:
        raise WorkersMissing(
            f"strategy 'multi_worker': {job} {index} could not connect to all other workers: "
            f"{error}. Start "
            "every worker, each with its own TF_CONFIG; --join_timeout=SECONDS waits longer"
        ) from None
    except OSError as error:
        raise StrategyError(
            f"strategy 'multi_worker': {job} {index} cannot listen at {cluster[job][index]} "
            f"({error.strerror or error}). Choose a free port in TF_CONFIG."
        ) from None
    # TensorFlow sets its own handler of SIGTERM when it starts the workers' service, and the #
    # handler does nothing: the previous handlers are restored afterwards.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for number, handler in handlers.items():
        with contextlib.suppress(ValueError, TypeError):  # not in the main thread; set in C
            signal.signal(number, handler)
    return strategy


def _tpu(tf: Any, tpu: str) -> Any:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu or "local")
        if tpu:
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, KeyError, OSError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StrategyError(
            f"strategy 'tpu' found no TPU (tpu={tpu!r}: {reason[:200]}). Run on a TPU VM, or give "
            "--tpu=NAME; use --strategy=one_device or mirrored on other machines."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def is_chief(strategy: Any) -> bool:
    """Returns whether this process writes records and checkpoints."""
    resolver = strategy.cluster_resolver
    if resolver is None or not getattr(resolver, "task_type", None):
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().as_dict()
    )
