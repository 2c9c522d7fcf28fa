"""Images in memory."""

import io

from PIL import Image


def png(value: int, size: int = 6) -> bytes:
    """A file of one gray."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(file, "png")
    return file.getvalue()
