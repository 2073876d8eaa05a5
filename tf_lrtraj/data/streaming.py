"""Datasets read from TFRecord files, such as ImageNet, in the order of `order`.

A pipeline reads the files of the streams that its shards touch, and no others.  Memory holds one
window of encoded records for all streams, as many raw records read ahead, at most two global
batches, and `PREFETCHED_STEPS` steps of decoded images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.data import augmentations, order, randomness, tfrecord_files
from tf_lrtraj.data.dataset import ImageDataset, Shards, deterministic, opened, plain
from tf_lrtraj.data.order import Streams

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["StreamedDataset"]

# Share of the shorter side that evaluation keeps: 224 of 256 pixels.
EVAL_SHARE = 0.875
PREFETCHED_STEPS = 2
_AUGMENTATIONS = ("none", "random_resized_crop")


class StreamedDataset(ImageDataset):
    """An `ImageDataset` that is read from disk; made by `load`.

    Training with "random_resized_crop" decodes only the box it needs.  Evaluation, and training
    without augmentation, take the central square of 87.5 % of the shorter side, resized
    bilinearly: the usual "shorter side to 256, central 224" with one interpolation.
    """

    def __init__(
        self,
        name: str,
        info: Any,
        *,
        image_key: str,
        label_key: str,
        split_specs: Mapping[str, str],
        image_size: int,
        shuffle_window: int,
        **fields: Any,
    ) -> None:
        if info.file_format is not None and info.file_format.value != "tfrecord":
            raise ValueError(
                f"`name` must be a dataset stored as 'tfrecord' to be streamed. {name!r} is stored "
                f"as {info.file_format.value!r}."
            )
        splits = {split: info.splits[spec] for split, spec in split_specs.items()}
        super().__init__(
            name,
            image_shape=(image_size, image_size, int(info.features[image_key].shape[-1])),
            num_examples={split: int(part.num_examples) for split, part in splits.items()},
            **fields,
        )
        if self._each not in _AUGMENTATIONS:
            raise values.error(
                "augmentation",
                f"one of {list(_AUGMENTATIONS)} for {name!r}, which is streamed: its images vary "
                f"in size, or take too much memory at {image_size} pixels",
                self.augmentation,
            )
        self._files = {split: order.table(part.file_instructions) for split, part in splits.items()}
        for split, files in self._files.items():
            tfrecord_files.check_files(files, f"split {split!r} of {name!r}")
        self._image_key, self._label_key = image_key, label_key
        self._window = shuffle_window
        opened.add(self)

    def _train(self, shards: Shards, seed: int, start_step: int) -> tf.data.Dataset:
        import tensorflow as tf

        batch_size, count = shards.batch_size, self.num_examples["train"]
        streams = Streams(batch_size)
        touched = streams.touched(shards.part, shards.ids)
        window = -(-self._window // streams.count)
        entries = []
        for stream in touched:
            first = start_step * batch_size + stream * streams.block
            epoch = first // count
            index = streams.index(first, stream) - streams.index(epoch * count, stream)
            entries.append((stream, epoch, *divmod(index, window)))

        def read(stream: Any, entered: Any, first_window: Any, rest: Any) -> tf.data.Dataset:
            def one_epoch(epoch: Any) -> tf.data.Dataset:
                # Only the first epoch may begin in the middle.
                window_of = tf.where(epoch == entered, first_window, 0)
                return self._epoch(seed, epoch, streams, stream, window, window_of)

            epochs = tf.data.Dataset.counter(entered, dtype=tf.int64)
            return epochs.flat_map(plain(one_epoch)).skip(rest)

        records = _merged(entries, read, streams)

        position = streams.positions(touched, start_step)

        def example(index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            encoded, label = self._parse(record)
            return self._decode(encoded, position(index), seed), label

        mine = _numbered(records, position, _chosen(streams, touched, shards))
        return _batched(_decoded(mine, example), shards)

    def _eval(self, shards: Shards, split: str, limit: int | None) -> tf.data.Dataset:
        import tensorflow as tf

        count = limit or self.num_examples[split]
        streams = Streams(shards.batch_size)
        touched = streams.touched(shards.part, shards.ids)
        files = self._files[split].map(tf.constant)

        def read(stream: tf.Tensor) -> tf.data.Dataset:
            first = tf.constant(0, tf.int64)
            pieces = order.cut(files, *streams.part(first, count, stream))
            return tf.data.Dataset.from_tensor_slices(pieces.columns()).flat_map(
                plain(tfrecord_files.read_file)
            )

        def example(_: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            encoded, label = self._parse(record)
            return self._decode(encoded), label, tf.constant(1.0)

        # Streams end in the last batch, each where the positions do, so that all numbers fit.
        records = _merged([(stream,) for stream in touched], read, streams)
        position = streams.positions(touched, 0)
        mine = _numbered(records, position, _chosen(streams, touched, shards))
        filled = -(-count // shards.batch_size) * shards.part * len(shards.ids)
        real = sum(_images_of(count, shards, shard) for shard in shards.ids)
        nothing = tf.zeros(self.image_shape), tf.constant(0), tf.constant(0.0)
        padding = tf.data.Dataset.from_tensors(nothing).repeat(filled - real)
        return _batched(_decoded(mine, example).concatenate(padding), shards)

    def arrays(self, split: str, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
        self._count(split)
        raise ValueError(
            f"{self.name!r} is streamed from disk and has no `arrays`: use `eval_batches`. "
            f"Received: split={split!r}"
        )

    def explain(self, error: BaseException) -> str | None:
        names = [name for files in self._files.values() for name in files.name.tolist()]
        return tfrecord_files.explain(error, dict.fromkeys(names))

    def _epoch(
        self,
        seed: int,
        epoch: Any,
        streams: Streams,
        stream: Any,
        window: int,
        first_window: Any,
    ) -> tf.data.Dataset:
        """The encoded records of a stream's part of an epoch, from a window on."""
        import tensorflow as tf

        files = self._files["train"]
        count = self.num_examples["train"]
        ordered = order.file_order(seed, epoch, len(files.take))
        mine = order.cut(
            files.map(lambda column: tf.gather(tf.constant(column), ordered)),
            *streams.part(epoch * count, count, stream),
        )
        together = streams.files_at_once
        num_groups, first_group, place = order.groups(mine, together, first_window * window)

        def group(index: tf.Tensor) -> tf.data.Dataset:
            members = mine.map(lambda column: column[index * together : (index + 1) * together])
            left, dropped = order.enter(members, tf.where(index == first_group, place, 0))
            return tfrecord_files.read_in_turn(left, together).skip(dropped)

        def shuffled(index: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            size = tf.shape(records, tf.int64)[0]
            return tf.gather(records, order.window_order(seed, epoch, stream, index, size))

        return (
            tf.data.Dataset.range(first_group, num_groups)
            .flat_map(plain(group))
            .batch(window)
            .enumerate(first_window)
            .map(plain(shuffled))
            .unbatch()
        )

    def _parse(self, record: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Encoded image and label of a record."""
        import tensorflow as tf

        # The format of tensorflow-datasets for these two features; the others are ignored.
        kinds = {
            self._image_key: tf.io.FixedLenFeature((), tf.string),
            self._label_key: tf.io.FixedLenFeature((), tf.int64),
        }
        example = tf.io.parse_single_example(record, kinds)
        return example[self._image_key], tf.cast(example[self._label_key], tf.int32)

    def _decode(self, encoded: Any, position: Any = None, seed: int = 0) -> tf.Tensor:
        """A normalised image, cropped at random if a training position is given."""
        import tensorflow as tf

        size, _, channels = self.image_shape
        augmented = position is not None and self._each == "random_resized_crop"
        draws = None
        if augmented:
            draws = randomness.uniforms(seed, position, 1, augmentations.RESIZED_CROP_STREAMS)

        def box(shape: tf.Tensor) -> list[tf.Tensor]:
            height, width = shape[0], shape[1]
            if draws is not None:
                boxes = augmentations.random_boxes(draws[:, 4:], height[None], width[None])
                return [number[0] for number in boxes]
            shorter = tf.cast(tf.minimum(height, width), tf.float32)
            side = tf.maximum(tf.cast(tf.round(EVAL_SHARE * shorter), tf.int32), 1)
            return [(height - side) // 2, (width - side) // 2, side, side]

        def jpeg() -> tf.Tensor:
            corner_and_size = tf.stack(box(tf.io.extract_jpeg_shape(encoded)))
            return tf.io.decode_and_crop_jpeg(encoded, corner_and_size, channels=channels)

        def other() -> tf.Tensor:
            image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
            top, left, rows, columns = box(tf.shape(image))
            return image[top : top + rows, left : left + columns]

        image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
        image = tf.ensure_shape(image, (None, None, channels))
        if draws is not None:
            # Mirrored before the conversion to float32, which takes four times the memory.
            mirrored = tf.cast(draws[0, 0] < 0.5, tf.int32)
            image = tf.reverse(image, tf.range(1, 1 + mirrored))
        return self._normalized(tf.image.resize(image, (size, size)))


def _merged(
    entries: Sequence[tuple[int, ...]], read: Callable[..., Any], streams: Streams
) -> tf.data.Dataset:
    """The records of some streams in the order of the places they fill."""
    import tensorflow as tf

    columns = tuple(np.array(column, np.int64) for column in zip(*entries, strict=True))
    return tf.data.Dataset.from_tensor_slices(columns).interleave(
        plain(read),
        cycle_length=len(entries),
        block_length=streams.block,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _chosen(streams: Streams, touched: Sequence[int], shards: Shards) -> np.ndarray | None:
    """Returns the places of a batch that this pipeline fills; None if all of its streams."""
    chosen = np.repeat(np.isin(np.arange(shards.count), shards.ids), shards.part)
    return None if chosen.sum() == len(touched) * streams.block else chosen


def _numbered(
    records: tf.data.Dataset, position: Callable[[Any], Any], chosen: np.ndarray | None
) -> tf.data.Dataset:
    """(index, record) of the records whose place in their batch is among those chosen."""
    import tensorflow as tf

    if chosen is None:
        return records.enumerate()

    def wanted(index: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(chosen), position(index) % len(chosen))

    return records.enumerate().filter(plain(wanted))


def _images_of(count: int, shards: Shards, shard: int) -> int:
    """Returns the number of images of a shard, of `count` in all."""
    whole, rest = divmod(count, shards.batch_size)
    return whole * shards.part + min(max(rest - shard * shards.part, 0), shards.part)


def _decoded(numbered: tf.data.Dataset, example: Callable[..., Any]) -> tf.data.Dataset:
    import tensorflow as tf

    return numbered.map(plain(example), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _batched(decoded: tf.data.Dataset, shards: Shards) -> tf.data.Dataset:
    ahead = PREFETCHED_STEPS * len(shards.ids)
    return deterministic(decoded.batch(shards.part, drop_remainder=True).prefetch(ahead))
