"""Any image classification set of TensorFlow Datasets, which are downloaded when first used."""

import difflib
import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from kd_jax.data import images, lazy
from kd_jax.data.lazy import Images
from kd_jax.data.split import Source, cut, with_test
from kd_jax.data.tfrecord import TFRecords
from kd_jax.errors import InputError, one_line
from kd_jax.quiet_tensorflow import import_tensorflow
from kd_jax.types import Split

_importing = threading.Lock()  # it takes stderr away for a moment, and gives back what it found


def load(name: str, *, image_size: int, data_dir: str = "", stream: str = "never") -> Source:
    """Reads a data set into memory.

    Args:
      name: as TFDS spells it, with a configuration or version where wanted: "cifar10", "imagenet_resized/32x32".
      image_size: in pixels. Images that all share one square size of at most this are kept as they are; otherwise each
        is resized so that its shorter side has this size, and its center square is kept.
      data_dir: where the data lies or is put; "" for the default of TFDS.
      stream: "always", or "auto" where memory has no room for them: images are read when they are asked for, out of the
        files as they were prepared, of TFRecord or ArrayRecord. TensorFlow decodes them, as other decoders make other
        pixels of a JPEG: each process that reads imports it, which takes seconds.

    Returns:
      Images [N, H, H, C], C is 1 for gray sets. The test set is the split `test`, else `validation`, else a fixed,
      class-balanced fifth of `train`; the validation split is `validation` where there is a `test` too. The fingerprint
      is of the class names and of the pixels and labels in their order: version and sizes stay the same where a set is
      prepared again from other images, or in another order, and hashing costs a tenth of reading. That of images that
      stream is the same, and costs decoding all of them once.

    Raises:
      InputError: if TensorFlow is missing, the name unknown, the download fails, the set is not one of labeled images,
        the files are damaged or of a format that cannot stream, or the images do not fit in memory.
    """
    tfds = _import_tfds()
    builder = _builder(tfds, name, data_dir)
    channels = _channels(tfds, name, builder.info.features)
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the network, the disk, or a set that has to be fetched by hand
        raise InputError(f"dataset.name is {name!r}, which cannot be prepared: {one_line(error)}") from None
    splits = builder.info.splits
    if "train" not in splits:
        raise InputError(
            f"dataset.name is {name!r}, with splits {', '.join(splits)}; expected a set with a split train"
        )
    test_name = next((split for split in ("test", "validation") if split in splits), None)
    names = ["train", test_name] if test_name else ["train"]
    if test_name == "test" and "validation" in splits:
        names.append("validation")
    class_names = tuple(builder.info.features["label"].names)
    digest = hashlib.sha256(repr((class_names, names)).encode())
    count = sum(int(splits[split].num_examples) for split in names)
    streams = lazy.are_needed(stream, count * channels * image_size**2)
    parts = _read(tfds, builder, names, image_size, channels, digest, streams)
    train, test = parts[:2] if test_name else with_test(parts[0], in_place=True)
    return Source(
        train,
        test,
        class_names,
        digest.hexdigest(),
        skipped=0,
        name=name,
        validation=parts[2] if len(parts) > 2 else None,
    )


def former_fingerprint(name: str, *, data_dir: str = "") -> str:
    """The fingerprint of name, version and sizes that stands in the config.json of older runs."""
    tfds = _import_tfds()
    info = _builder(tfds, name, data_dir).info
    sizes = sorted((split, int(info.splits[split].num_examples)) for split in info.splits)
    return hashlib.sha256(repr((info.full_name, str(info.version), sizes)).encode()).hexdigest()


@functools.cache
def _tensorflow() -> ModuleType:
    with _importing:
        return import_tensorflow()


def _import_tfds() -> ModuleType:
    try:
        import_tensorflow()
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f'dataset.source is "tfds", but {error.name or "TensorFlow"} cannot be imported; install it (pip install '
            'tensorflow tensorflow-datasets), or use another source: "folder" or "digits"'
        ) from None
    return tfds


def _builder(tfds: ModuleType, name: str, data_dir: str) -> Any:
    try:
        return tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None)
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=5, cutoff=0.5)
        valid = f"near names are {', '.join(near)}" if near else "see https://www.tensorflow.org/datasets/catalog"
        raise InputError(f"dataset.name is {name!r}; expected the name of a TFDS data set: {valid}") from None
    except Exception as error:  # a wrong version or configuration
        raise InputError(f"dataset.name is {name!r}: {one_line(error)}") from None


def _channels(tfds: ModuleType, name: str, features: Any) -> int:
    """The images' number of channels, of a set that has images and labels."""
    names = list(features.keys()) if hasattr(features, "keys") else [str(features)]
    image, label = ((features[key] if key in names else None) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise InputError(
            f"dataset.name is {name!r}, with features {', '.join(names)}; expected an image and a class label"
        )
    channels = image.shape[-1]
    if image.np_dtype != np.uint8 or channels not in (1, 3):
        kind = f"{channels} channels of {np.dtype(image.np_dtype)}"
        raise InputError(f"dataset.name is {name!r}, whose images have {kind}; expected 1 or 3 channels of uint8")
    return channels


def _read(
    tfds: ModuleType,
    builder: Any,
    names: list[str],
    size: int,
    channels: int,
    digest: "hashlib._Hash",
    streams: bool,
) -> list[Split]:
    """The images of some splits, read together so that they get one size; `digest` sees all as they are."""
    counts = [int(builder.info.splits[name].num_examples) for name in names]
    labels = []

    def whole() -> Iterator[np.ndarray]:
        for example in _examples(tfds, builder, names):
            labels.append(example["label"])
            digest.update(repr((example["image"].shape, int(example["label"]))).encode())
            digest.update(example["image"].tobytes())
            yield example["image"]

    try:
        if streams:
            records = _records(builder, names)
            seen = images.counted(whole(), len(records))
            sides = {image.shape[0] if image.shape[0] == image.shape[1] else 0 for image in seen}
            side = images.common_side(sides, size)
            read = functools.partial(_read_as, records, size, channels, side)
            pixels: Any = Images(read, range(len(records)), (side, side, channels))
        else:
            shrunk = (images.shrink_to(images.to_image(image), size) for image in whole())
            pixels = images.collect(shrunk, sum(counts), size)
    except _tensorflow().errors.OpError as error:
        raise InputError(
            f"dataset.name is {builder.name!r}, whose files are damaged: {one_line(error, 160)}; prepare it again"
        ) from None
    both = Split(pixels, np.array(labels, np.int32))
    if (both.labels < 0).any():
        raise InputError(f"dataset.name is {builder.name!r}, with images without a label; expected one for every image")
    parts = []
    for count in counts:
        part, both = cut(both, count)
        parts.append(part)
    return parts


def _examples(tfds: ModuleType, builder: Any, names: list[str]) -> Iterator[Any]:
    """{"image": [h, w, C], "label": []} of each example of some splits, in the order of `_records`."""
    if builder.info.file_format.value != "array_record":
        # One file after another: the order of the examples is that on the disk.
        order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        for name in names:
            yield from tfds.as_numpy(builder.as_dataset(split=name, shuffle_files=False, read_config=order))
        return
    tf = _tensorflow()  # TFDS itself reads these files without it, and decodes a JPEG to other pixels
    records = tf.data.Dataset.from_generator(
        functools.partial(iter, _records(builder, names)), output_signature=tf.TensorSpec((), tf.string)
    )
    yield from tfds.as_numpy(records.map(builder.info.features.deserialize_example, tf.data.AUTOTUNE))


def _records(builder: Any, names: list[str]) -> Any:
    """The encoded examples [N] of some splits, one split after another, as bytes.

    They go to another process without the builder, whose class may be of a module that it does not have.
    """
    kind = builder.info.file_format.value
    splits = "+".join(names)
    if kind == "array_record":
        return builder.as_data_source(splits).data_source
    if kind == "tfrecord":
        return TFRecords([part.filename for part in builder.info.splits[splits].file_instructions])
    raise InputError(
        f"dataset.name is {builder.name!r}, prepared as {kind}, whose images cannot be read one by one; expected"
        " tfrecord, as it is prepared in another dataset.path"
    )


def _read_as(records: Any, largest: int, channels: int, side: int, number: int) -> np.ndarray:
    """An image as it is where all are in memory: a square of this `side`."""
    tf = _tensorflow()
    try:
        example = tf.train.Example.FromString(records[number])
        encoded = example.features.feature["image"].bytes_list.value[0]
        pixels = tf.io.decode_image(encoded, channels).numpy()
    except Exception as error:  # of the disk, protobuf or TensorFlow; the files were whole when training began
        raise InputError(f"image {number} of the TFDS set cannot be read any more: {one_line(error, 160)}") from None
    return images.to_side(images.shrink_to(images.to_image(pixels), largest), side)
