"""The order of streamed records against a slow twin, and how much of the files is read for it."""

from __future__ import annotations

import collections
import itertools
import math
import sys

import numpy as np
import pytest
from data_helpers import assert_parts, take

from tf_lrtraj import data
from tf_lrtraj.data import order, randomness

SIZES = [7, 3, 1, 12, 5, 9, 2, 8, 4, 6, 11, 3, 1]
TRAIN, VALIDATION = sum(SIZES), [9, 0, 5, 12]
WINDOW = 20


@pytest.fixture
def undecoded(monkeypatch):
    """Labels tell the order; decoding would be most of the work."""
    import tensorflow as tf

    from tf_lrtraj.data.streaming import StreamedDataset

    monkeypatch.setattr(StreamedDataset, "_decode", lambda *_: tf.zeros([4, 4, 3]))


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_tfds, photographs):
    folder = tmp_path_factory.mktemp("order")
    encoded = itertools.cycle(photographs(5, smallest=6, largest=12))
    labels = itertools.count()

    def files(sizes):
        return [[(next(encoded), next(labels)) for _ in range(size)] for size in sizes]

    splits = {"train": files(SIZES), "validation": files(VALIDATION)}
    write_tfds(folder, "imagenet2012", splits, (None, None, 3), class_names=next(labels))
    return folder


def opened(root, **options):
    arguments = {"image_size": 4, "shuffle_window": WINDOW, **options}
    return data.load("imagenet2012", data_dir=root, **arguments)


def labels_of(pipeline, count):
    return [labels.tolist() for _, labels in take(pipeline, count)]


def permutation(size, keys):
    return randomness.permute(np.arange(size), size, keys).numpy()


def reference(sizes, batch_size, seed, epochs, window=WINDOW):
    """Labels of the positions of the first epochs, one at a time."""
    streams = math.gcd(batch_size, 48)
    block, together, window = batch_size // streams, 32 // streams or 1, -(-window // streams)
    first_label = np.cumsum([0, *sizes])
    count = sum(sizes)
    shown = []
    for epoch in range(epochs):
        owner = [p % batch_size // block for p in range(epoch * count, (epoch + 1) * count)]
        files = permutation(len(sizes), randomness.words(seed, epoch, randomness.FILES)[0, :3])
        laid = [(f, first_label[f] + i) for f in files for i in range(sizes[f])]
        queues = []
        for stream in range(streams):
            part = [laid.pop(0) for _ in range(owner.count(stream))]
            by_file = [[r for _, r in g] for _, g in itertools.groupby(part, lambda r: r[0])]
            read = []
            for first in range(0, len(by_file), together):
                group = [collections.deque(f) for f in by_file[first : first + together]]
                while any(group):
                    read += [f.popleft() for f in group if f]
            queue = collections.deque()
            for number, first in enumerate(range(0, len(read), window)):
                records = read[first : first + window]
                address = number + stream * 2**32
                keys = randomness.words(seed, address, 2 + 256 * epoch)[0, :3]
                queue += [records[i] for i in permutation(len(records), keys)]
            queues.append(queue)
        shown += [queues[stream].popleft() for stream in owner]
        assert not laid and not any(queues)
    return np.array(shown)


# 2 and 24 streams, that is 16 files together and 1; at length 1, 3, 4, 8 and 16.
@pytest.mark.parametrize(
    "batch_size",
    [10, 24, *(pytest.param(size, marks=pytest.mark.long) for size in (5, 9, 20, 8, 16))],
)
def test_training_follows_the_slow_twin(root, batch_size, undecoded):
    epochs = 3
    expected = reference(SIZES, batch_size, 7, epochs)
    for epoch in expected.reshape(epochs, TRAIN):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(TRAIN))
    steps = epochs * TRAIN // batch_size
    dataset = opened(root)
    rows = expected[: steps * batch_size].reshape(steps, batch_size)
    np.testing.assert_array_equal(labels_of(dataset.train_batches(batch_size, 7), steps), rows)
    # Entered in the middle of a window of the second epoch, it goes on into the third.
    start = TRAIN // batch_size + 3
    resumed = labels_of(dataset.train_batches(batch_size, 7, start), steps - start)
    np.testing.assert_array_equal(resumed, rows[start:])


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [8, 9])
def test_every_step_can_be_entered(root, batch_size, undecoded):
    dataset, steps = opened(root), 2 * TRAIN // batch_size
    rows = reference(SIZES, batch_size, 1, 3)[: (steps + 1) * batch_size].reshape(-1, batch_size)
    for start in range(steps):
        np.testing.assert_array_equal(
            labels_of(dataset.train_batches(batch_size, 1, start), 1), rows[start : start + 1]
        )


def test_a_far_step_is_entered_at_once(root, undecoded):
    step = 10**9
    dataset = opened(root)
    (far,) = labels_of(dataset.train_batches(8, 7, step), 1)
    assert len(set(far)) == 8
    assert labels_of(dataset.train_batches(8, 7, step - 1), 2)[1] == far


# Shards as wide as streams, wider, and finer; hosts with one, some and all of them.
@pytest.mark.parametrize(
    "batch_size, num_shards, hosts",
    [
        (8, 8, [(2, 5)]),
        (10, 5, [(1, 2)]),
        pytest.param(48, 3, [(0,), (1,), (2,)], marks=pytest.mark.long),
        pytest.param(20, 10, [(0,), (1, 2), (3, 4, 5, 6, 7, 8, 9)], marks=pytest.mark.long),
    ],
)
def test_hosts_make_up_the_global_batch(root, batch_size, num_shards, hosts):
    """Whatever the hosts: images, labels and augmentation to the bit, resumed over a seam."""
    dataset = opened(root, augmentation="random_resized_crop")
    start, steps, part = TRAIN // batch_size - 1, 3, batch_size // num_shards
    whole = take(dataset.train_batches(batch_size, 3, start), steps)
    for ids in hosts:
        pipeline = dataset.train_batches(batch_size, 3, start, num_shards, ids)
        assert_parts(take(pipeline, steps * len(ids)), whole, part, ids)


@pytest.mark.parametrize(
    "batch_size, num_shards, limit",
    [(16, 4, 17), (10, 5, None), pytest.param(48, 3, None, marks=pytest.mark.long)],
)
def test_evaluation_in_order_and_in_shares(root, batch_size, num_shards, limit, undecoded):
    count, streams = limit or sum(VALIDATION), math.gcd(batch_size, 48)
    owner = [p % batch_size // (batch_size // streams) for p in range(count)]
    left = iter(range(TRAIN, TRAIN + count))
    parts = [[next(left) for _ in range(owner.count(s))] for s in range(streams)]
    expected = [parts[stream].pop(0) for stream in owner]

    dataset = opened(root)
    whole = list(dataset.eval_batches("validation", batch_size, limit=limit).as_numpy_iterator())
    _, labels, weights = (np.concatenate(x) for x in zip(*whole, strict=True))
    np.testing.assert_array_equal(labels[:count], expected)
    np.testing.assert_array_equal(weights, np.arange(len(labels)) < count)
    rows = batch_size // num_shards
    for ids in ((0, num_shards - 1), (1,)):
        pipeline = dataset.eval_batches("validation", batch_size, num_shards, ids, limit)
        assert_parts(list(pipeline.as_numpy_iterator()), whole, rows, ids)


@pytest.mark.parametrize("takes", [[5], [3, 1, 4, 1, 5], [2, 2, 2], [1, 7, 0, 3]])
def test_entering_files_read_in_turn(takes):
    """Rounds by count against popping record by record."""
    files = order.Files(np.arange(len(takes)), np.zeros(len(takes), np.int64), takes, takes)
    files = order.Files(*(np.asarray(column, np.int64) for column in files.columns()))
    turns = [(f, i) for i in range(max(takes)) for f in range(len(takes)) if i < takes[f]]
    for place in range(sum(takes)):
        left, dropped = order.enter(files, np.int64(place))
        columns = [column.numpy().tolist() for column in left.columns()]
        rest = [
            (f, skip + i)
            for i in range(max(columns[2]))
            for f, skip, take, _ in zip(*columns, strict=True)
            if i < take
        ]
        assert rest[int(dropped) :] == turns[place:] and min(columns[2]) > 0


def test_every_epoch_is_dealt_out_exactly():
    """Whole numbers of any size, against counting; no stream is ever without records."""
    for batch_size, count in [(10, 13), (48, 48), (96, 1000), (1024, 1281167)]:
        streams = order.Streams(batch_size)
        for epoch in (0, 1, 5, 10**9):
            first = np.int64(epoch * count)
            bounds = [streams.part(first, np.int64(count), np.int64(v)) for v in (0, 1)]
            last = streams.part(first, np.int64(count), np.int64(streams.count - 1))
            assert int(bounds[0][0]) == 0 and int(bounds[0][1]) == int(bounds[1][0])
            assert int(last[1]) == count and int(bounds[0][1]) >= streams.block
        place = np.arange(3 * count) % batch_size // streams.block
        for stream in range(0, streams.count, 5):
            assert streams.index(3 * count, stream) == (place == stream).sum()


# What is read ---------------------------------------------------------------------------------

FILES, PER_FILE, RECORD, BATCH = 64, 30, 8000, 16


@pytest.fixture(scope="module")
def large(tmp_path_factory, write_tfds, photographs):
    """1,920 records of 8 kB each: small pictures with bytes behind that no decoder reads."""
    folder = tmp_path_factory.mktemp("large")
    encoded = photographs(1, smallest=6, largest=7)[0]
    record = encoded + np.random.default_rng(0).bytes(RECORD - len(encoded))
    files = [[(record, i * PER_FILE + j) for j in range(PER_FILE)] for i in range(FILES)]
    splits = {"train": files, "validation": files[:8]}
    write_tfds(folder, "imagenet2012", splits, (None, None, 3), class_names=FILES * PER_FILE)
    return folder


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes in /proc")
def test_entering_an_epoch_reads_no_more_the_later_it_is(large, undecoded):
    dataset = opened(large, shuffle_window=64)
    epoch = FILES * PER_FILE // BATCH
    dataset.train_batches(BATCH, 0).take(1).get_single_element()
    read = []
    for start in (0, epoch - 30, 7 * epoch + epoch // 2):
        before = bytes_read()
        dataset.train_batches(BATCH, 0, start).take(1).get_single_element()
        read.append((bytes_read() - before) / RECORD)
    # 64 records of windows, and what 16 streams read ahead; 123 bytes for a record skipped.
    assert max(read) < 200, read


@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes in /proc")
def test_a_host_reads_its_own_share(large, undecoded):
    dataset = opened(large, shuffle_window=64)
    steps = FILES * PER_FILE // BATCH
    shares = []
    for host in (0, 3):
        before = bytes_read()
        for _ in dataset.train_batches(BATCH, 0, 0, 4, (host,)).take(steps):
            pass
        shares.append((bytes_read() - before) / RECORD / (FILES * PER_FILE))
    assert all(0.25 < share < 0.31 for share in shares), shares
    before = bytes_read()
    for _ in dataset.eval_batches("validation", BATCH, 4, (2,)):
        pass
    share = (bytes_read() - before) / RECORD / (8 * PER_FILE)
    assert 0.25 < share < 0.31, share


def test_files_read_before_are_not_needed_again(large, tmp_path, undecoded):
    """At the end of an epoch's parts all but the streams' last files may be gone."""
    import shutil

    folder = tmp_path / "imagenet2012"
    shutil.copytree(large / "imagenet2012", folder)
    dataset = opened(tmp_path, shuffle_window=64)
    files = permutation(FILES, randomness.words(0, 0, randomness.FILES)[0, :3])
    start, rest = FILES * PER_FILE // BATCH - 20, 5
    expected = labels_of(dataset.train_batches(BATCH, 0, start), rest)
    # 16 parts of 4 files each, read two by two: the first two of each are done with.
    done = set(files.reshape(16, 4)[:, :2].ravel())
    for path in (folder / "1.0.0").glob("*-train.*"):
        if int(path.name.split("tfrecord-")[1][:5]) in done:
            path.unlink()
    assert labels_of(dataset.train_batches(BATCH, 0, start), rest) == expected
    # Of the others a host reads only those of its streams: here the first eight.
    mine = set(files[:32])
    for path in (folder / "1.0.0").glob("*-train.*"):
        if int(path.name.split("tfrecord-")[1][:5]) not in mine:
            path.unlink()
    halves = labels_of(dataset.train_batches(BATCH, 0, start, 2, (0,)), rest)
    assert halves == [labels[:8] for labels in expected]


# Who makes which rows --------------------------------------------------------------------------


@pytest.mark.parametrize("hosts, replicas", [(1, 1), (1, 8), (4, 32), (3, 3), (16, 128)])
def test_input_pipelines_share_the_rows_out(hosts, replicas):
    """As `tf.distribute` describes itself to a pipeline, on TPU slices and on workers."""
    import tensorflow as tf

    from tf_lrtraj.runs.assembly import _shards

    batch_size = 48 * replicas
    part, streams = batch_size // replicas, order.Streams(batch_size)
    shards, touched = [], []
    for host in range(hosts):
        chosen = _shards(tf.distribute.InputContext(hosts, host, replicas))
        assert chosen["num_shards"] == replicas
        shards += chosen["shard_ids"]
        touched += streams.touched(part, chosen["shard_ids"])
    assert shards == list(range(replicas))
    assert touched == list(range(streams.count))  # no stream is read twice
