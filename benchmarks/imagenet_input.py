"""Images per second and core of the ImageNet pipeline, beside JPEG decoding alone.

    python benchmarks/imagenet_input.py --rounds=9

Writes synthetic JPEGs of ImageNet's usual size (500×375, about 110 kB) as a dataset
of tensorflow-datasets into a temporary folder, and measures in turn, on the same bytes:

    decode        whole images, `tf.io.decode_jpeg`
    crop          the boxes of training alone, `tf.io.decode_and_crop_jpeg`
    resized       the same, resized to 224 pixels by `tf.image.resize`, in batches
    train         the training pipeline: reading, order, crops, resizing to 224, flips, batches
    centre        the boxes of evaluation alone, `tf.io.decode_and_crop_jpeg`
    eval          the evaluation pipeline

A core's rate is images per second of processor time, all threads together, from full buffers to
buffers full again, so that other work on the machine matters little.  Then hundreds
of batches are run for the memory they take.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import resource
import tempfile
import time
from collections.abc import Iterator

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
    images: list[bytes], boxes: np.ndarray | None, batch: int | None = None
) -> tf.data.Dataset:
    """Decoding alone, images in memory; of whole images, or of a box each; resized in batches."""

    def whole(image: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_jpeg(image, channels=3)

    def crop(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_and_crop_jpeg(image, box, channels=3)
        return pixels if batch is None else tf.image.resize(pixels, (224, 224))

    encoded = tf.data.Dataset.from_tensor_slices(images)
    if boxes is None:
        source, function = encoded, whole
    else:
        source = tf.data.Dataset.zip((encoded, tf.data.Dataset.from_tensor_slices(boxes)))
        function = crop
    decoded = source.repeat().map(function, num_parallel_calls=tf.data.AUTOTUNE)
    return decoded.prefetch(64) if batch is None else decoded.batch(batch).prefetch(2)


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


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
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
    print(
        f"{options.images} images of {kilobytes:.0f} kB, {cores} cores, batches of {options.batch}"
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
        "decode": decoding(images, None),
        "crop": decoding(images, boxes),
        "resized": decoding(images, boxes, options.batch),
        "train": dataset.train_batches(options.batch, SEED),
        "centre": decoding(images, np.tile(centre, (len(images), 1))),
        "eval": dataset.eval_batches("validation", options.batch).repeat(),
    }
    iterators = {name: iter(pipeline) for name, pipeline in endless.items()}
    per_element = {n: options.batch if n in ("train", "eval") else 1 for n in iterators}
    per_element["resized"] = options.batch
    rates: dict[str, list[float]] = {name: [] for name in iterators}
    for round_ in range(options.rounds + 1):  # the first is warm-up
        for name, iterator in iterators.items():
            count = options.per_round * options.batch
            busy = take(iterator, count // per_element[name])
            if round_:
                rates[name].append(count / busy)
    result: dict = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": cores},
        "tensorflow": tf.__version__,
        "options": vars(options) | {"json": None},
        "kilobytes": float(kilobytes),
        "images_per_core_second": {},
    }
    print(f"{'':8}{'images/s per core':>20}{'quartiles':>16}")
    for name, values in rates.items():
        low, middle, high = np.percentile(values, [25, 50, 75])
        result["images_per_core_second"][name] = [low, middle, high]
        print(f"{name:8}{middle:20.0f}{f'{low:.0f} to {high:.0f}':>16}")
    for one, other in (
        ("train", "resized"),
        ("train", "crop"),
        ("train", "decode"),
        ("eval", "centre"),
    ):
        ratio = np.median(np.array(rates[one]) / np.array(rates[other]))
        result[f"{one}/{other}"] = float(ratio)
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
