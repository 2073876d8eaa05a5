"""Images per second and core of the ImageNet pipeline, beside JPEG decoding alone.

    python benchmarks/imagenet_input.py --images=4096 --json=benchmarks/results/imagenet_input.json

Writes synthetic JPEGs of ImageNet's usual size (500×375, about 110 kB) as a dataset
of tensorflow-datasets into a temporary folder, and measures in turn, on the same bytes:

    decode        whole images, `tf.io.decode_jpeg`
    crop          the boxes of training alone, `tf.io.decode_and_crop_jpeg`
    resized       the same, resized to 224 pixels by `tf.image.resize`
    train         the training pipeline: reading, order, crops, resizing to 224, flips, batches
    centre        the boxes of evaluation alone, `tf.io.decode_and_crop_jpeg`
    eval          the evaluation pipeline

All of them hand out batches; those that do not resize, whose images differ in size, keep a pixel
of each.  A core's rate is images per second of processor time, all threads together, from full
buffers to buffers full again, so that other work on the machine matters little.

The cases take turns, a few batches a round.  The training pipeline reads a whole window of records
at a time, so most rounds read nothing: rates are sums of images over sums of time, over whole
windows of 2,048 images (whole epochs where these are not made of windows); rounds are added to
fill the last.  Then hundreds of batches are run for the memory they take.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import platform
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np

from tf_lrtraj.bin.common import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # as the programs do, before TensorFlow is imported

import tensorflow as tf
import tensorflow_datasets as tfds

from tf_lrtraj import data
from tf_lrtraj.data import augmentations, randomness

SIZE, SEED = (375, 500), 0


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of about 110 kB: smooth shapes and grain."""
    small = rng.uniform(0, 255, (12, 16, 3)).astype(np.float32)
    smooth = tf.image.resize(small, SIZE, "bicubic").numpy()
    image = np.clip(smooth + rng.normal(0, 15, (*SIZE, 1)), 0, 255).astype(np.uint8)
    return tf.io.encode_jpeg(image, quality=92).numpy()


def write(root: pathlib.Path, num_images: int, num_files: int) -> list[bytes]:
    """Writes the dataset; returns the different images that its records repeat."""
    rng = np.random.default_rng(SEED)
    distinct = [photograph(rng) for _ in range(min(num_images, 128))]
    images = [distinct[i % len(distinct)] for i in range(num_images)]
    folder = root / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
        }
    )
    infos = []
    for split in ("train", "validation"):
        template = tfds.core.ShardedFileTemplate(
            dataset_name="imagenet2012", data_dir=folder, split=split, filetype_suffix="tfrecord"
        )
        lengths = []
        for shard in range(num_files):
            chosen = images[shard::num_files]
            name = f"imagenet2012-{split}.tfrecord-{shard:05d}-of-{num_files:05d}"
            with tf.io.TFRecordWriter(str(folder / name)) as writer:
                for number, image in enumerate(chosen):
                    writer.write(_record(image, f"{shard}_{number}.JPEG", number % 1000))
            lengths.append(len(chosen))
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos)
    return distinct


def _record(image: bytes, name: str, label: int) -> bytes:
    def of_bytes(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    feature = {
        "file_name": of_bytes(name.encode()),
        "image": of_bytes(image),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def decoding(
    images: list[bytes], boxes: np.ndarray | None, batch: int, resized: bool = False
) -> tf.data.Dataset:
    """Batches of images in memory, decoded and no more: whole, or a box of each.

    Those not resized come as their first pixel: boxes of many sizes make no batch, and
    copying would cost time that is none of the decoder's.
    """

    def whole(image: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_jpeg(image, channels=3)[0, 0]

    def crop(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_and_crop_jpeg(image, box, channels=3)
        return tf.image.resize(pixels, (224, 224)) if resized else pixels[0, 0]

    encoded = tf.data.Dataset.from_tensor_slices(images)
    if boxes is None:
        source, function = encoded, whole
    else:
        source = tf.data.Dataset.zip((encoded, tf.data.Dataset.from_tensor_slices(boxes)))
        function = crop
    decoded = source.repeat().map(function, num_parallel_calls=tf.data.AUTOTUNE)
    return decoded.batch(batch).prefetch(2)


def training_boxes(count: int) -> np.ndarray:
    draws = randomness.uniforms(
        SEED, tf.constant(0, tf.int64), count, augmentations.RESIZED_CROP_STREAMS
    )
    sizes = tf.fill([count], SIZE[0]), tf.fill([count], SIZE[1])
    return tf.stack(augmentations.random_boxes(draws[:, 4:], *sizes), axis=1).numpy()


def settle() -> float:
    """Waits until every buffer is full and all threads rest; the processor time used so far."""
    busy, quiet = time.process_time(), 0
    while quiet < 5:  # on a busy machine threads that want to run may have to wait
        time.sleep(0.1)
        last, busy = busy, time.process_time()
        quiet = quiet + 1 if busy - last < 0.005 else 0
    return busy


def take(iterator: Iterator, count: int) -> float:
    """Processor seconds for `count` elements."""
    start = settle()
    for _ in range(count):
        next(iterator)
    return settle() - start


def rounds_of_window(options: argparse.Namespace) -> int:
    """The fewest rounds that show whole windows, or whole epochs if those are not windows."""
    even = options.images % options.window == 0
    images = options.window if even else options.images
    return images // math.gcd(images, options.per_round * options.batch)


def summed(seconds: Sequence[float], per_round: int, window: int) -> dict:
    """Images per second over all rounds, and over those of each window.

    Args:
        seconds: of each round.
        per_round: images in a round.
        window: rounds in a window, which divides their number.

    >>> summed([1.0, 3.0, 6.0, 10.0], 8, 2)
    {'rate': 1.6, 'windows': [4.0, 1.0]}
    """
    of_windows = np.reshape(seconds, (-1, window)).sum(1)
    return {
        "rate": float(len(seconds) * per_round / sum(seconds)),
        "windows": (window * per_round / of_windows).tolist(),
    }


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16, help="at least so many")
    parser.add_argument("--images", type=int, default=1024, help="images in the dataset")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--per_round", type=int, default=8, help="batches in a round")
    parser.add_argument("--memory_batches", type=int, default=300)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(pathlib.Path(folder), options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


def measure(root: pathlib.Path, options: argparse.Namespace) -> dict:
    images = write(root, options.images, 32)
    kilobytes = np.mean([len(image) for image in images]) / 1e3
    cores = len(os.sched_getaffinity(0))
    window = rounds_of_window(options)
    rounds = -(-options.rounds // window) * window
    print(
        f"{options.images} images of {kilobytes:.0f} kB, {cores} cores, batches of "
        f"{options.batch}; {rounds} rounds of {options.per_round} batches"
    )
    dataset = data.load(
        "imagenet2012",
        data_dir=root,
        augmentation="random_resized_crop",
        shuffle_window=options.window,
    )
    side = round(0.875 * min(SIZE))
    centre = np.array([(SIZE[0] - side) // 2, (SIZE[1] - side) // 2, side, side], np.int32)
    boxes = training_boxes(len(images))
    endless = {
        "decode": decoding(images, None, options.batch),
        "crop": decoding(images, boxes, options.batch),
        "resized": decoding(images, boxes, options.batch, resized=True),
        "train": dataset.train_batches(options.batch, SEED),
        "centre": decoding(images, np.tile(centre, (len(images), 1)), options.batch),
        "eval": dataset.eval_batches("validation", options.batch).repeat(),
    }
    iterators = {name: iter(pipeline) for name, pipeline in endless.items()}
    seconds: dict[str, list[float]] = {name: [] for name in iterators}
    for round_ in range(window + rounds):  # the first window is warm-up
        for name, iterator in iterators.items():
            busy = take(iterator, options.per_round)
            if round_ >= window:
                seconds[name].append(busy)
    per_round = options.per_round * options.batch
    rates = {name: summed(values, per_round, window) for name, values in seconds.items()}
    result: dict = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": cores},
        "tensorflow": tf.__version__,
        "options": vars(options) | {"json": None},
        "kilobytes": float(kilobytes),
        "images_measured": len(seconds["train"]) * per_round,
        "images_per_core_second": rates,
    }
    print(f"{'':8}{'images/s per core':>20}{'of each window':>24}")
    for name, found in rates.items():
        windows = ", ".join(f"{rate:.0f}" for rate in found["windows"])
        print(f"{name:8}{found['rate']:20.0f}{windows:>24}")
    for one, other in (
        ("train", "resized"),
        ("train", "crop"),
        ("train", "decode"),
        ("eval", "centre"),
    ):
        ratio = rates[one]["rate"] / rates[other]["rate"]
        result[f"{one}/{other}"] = ratio
        print(f"{one} over {other}: {ratio:.2f}")
    iterators.clear()
    result["memory"] = memory(dataset, options)
    return result


def memory(dataset: data.ImageDataset, options: argparse.Namespace) -> list[float]:
    """Resident MB while batches go by, of a pipeline of its own."""
    iterator = iter(dataset.train_batches(options.batch, SEED + 1))
    before, seen = resident(), []
    for _ in range(6):
        take(iterator, options.memory_batches // 6)
        seen.append(resident())
    print(
        f"resident before {before:.0f} MB; after each sixth of {options.memory_batches} batches "
        + ", ".join(f"{value:.0f}" for value in seen)
    )
    return [before, *seen]


if __name__ == "__main__":
    main()
