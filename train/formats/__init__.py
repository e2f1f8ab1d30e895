"""Readers of data files.  The only exception is DataError, which names the file and its fault."""

from train.formats.arrays import MAX_CLASSES, check_inputs, check_targets, read_idx, read_npz
from train.formats.audio import Audio, read_audio, read_audio_bytes
from train.formats.files import MAX_BYTES, DataError, named, not_read, opened, reading, visible
from train.formats.images import (
    check_image_shape,
    common_shape,
    image_size,
    opened_image,
    read_image,
    read_mask,
    read_sized_image,
)
from train.formats.lazy import Images, Mapped, map_images
from train.formats.text import decoded, read_byte_lines, read_lines, read_text

__all__ = [
    "MAX_BYTES",
    "MAX_CLASSES",
    "Audio",
    "DataError",
    "Images",
    "Mapped",
    "check_image_shape",
    "check_inputs",
    "check_targets",
    "common_shape",
    "decoded",
    "image_size",
    "map_images",
    "named",
    "not_read",
    "opened",
    "opened_image",
    "read_audio",
    "read_audio_bytes",
    "read_byte_lines",
    "read_idx",
    "read_image",
    "read_lines",
    "read_mask",
    "read_npz",
    "read_sized_image",
    "read_text",
    "reading",
    "visible",
]
