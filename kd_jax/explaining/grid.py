"""A grid of images and saliency maps: which images it shows, what a cell holds, and the picture."""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from kd_jax import gradcam
from kd_jax.data.names import printable

# Lengths are in inches.
CELL, CAPTION, GAP, MARGIN, HEADER, HEADING, FOOTER = 1.2, 0.26, 0.08, 0.1, 0.5, 0.3, 0.4
LINE = 0.12  # of a title, beyond the two that the header has room for
DPI = 120
MIN_CELL_PIXELS = 96  # smaller images are enlarged, so that the map over them is smooth
# Nine colors of matplotlib's "inferno", from 0 to 1: brighter is more, also in gray and to a color-blind reader.
COLORS = np.array(
    [
        [0.001, 0.000, 0.014],
        [0.129, 0.047, 0.291],
        [0.342, 0.062, 0.429],
        [0.541, 0.135, 0.415],
        [0.736, 0.216, 0.330],
        [0.894, 0.353, 0.194],
        [0.978, 0.558, 0.035],
        [0.975, 0.798, 0.206],
        [0.988, 0.998, 0.645],
    ],
    np.float32,
)


class Cell(NamedTuple):
    """An image of the grid, and the line under it."""

    pixels: np.ndarray  # [h, w, 1 or 3] in [0, 1]
    caption: str
    correct: bool = True  # the caption of a wrong prediction is red


def choose_images(
    correct: np.ndarray, disagreement: np.ndarray, labels: np.ndarray, count: int
) -> dict[str, list[int]]:
    """Chooses at most `count` images by rule, never by hand.

    One of each class, or of evenly spaced classes if there are too many: its first that the teacher and the first
    student both get right, else its first. Up to a third are the images with the largest positive `disagreement` among
    those that the teacher gets right.

    Args:
      correct: [networks, N] bool, the teacher first.
      disagreement: [N], of the first two students.
      labels: [N].
    Returns:
      {heading: positions in the test set}.
    """
    both_correct = correct[0] & correct[1]
    score = np.where(correct[0], disagreement, -1)
    largest = [int(i) for i in np.argsort(-score, kind="stable")[: count // 3] if score[i] > 0]
    classes = np.unique(labels)
    room = min(len(classes), count - len(largest))

    def first(label: int) -> int:
        members = labels == label
        return int(np.argmax(members & both_correct if (members & both_correct).any() else members))

    spaced = classes[np.linspace(0, len(classes) - 1, room).round().astype(int)]
    heading = "one of each class" if room == len(classes) else f"one of each of {room} classes"
    chosen = {heading: [first(label) for label in spaced]}
    return chosen | ({"where the student differs most from the first compared": largest} if largest else {})


def overlay(images: jax.Array, maps: jax.Array) -> jax.Array:
    """Images with their maps over them.

    Args:
      images: [B, H, W, C] with values in [0, 1], C 1 (gray) or 3 (RGB).
      maps: [B, h, w] of any size and range; each is rescaled by itself.
    Returns:
      [B, H, W, 3] in [0, 1]: the mean of the image in gray and the map in color.
    """
    height, width = images.shape[1:3]
    heat = gradcam.normalize(gradcam.upsample(maps, (height, width)))
    levels = np.linspace(0, 1, len(COLORS), dtype=np.float32)
    colors = jnp.stack([jnp.interp(heat, levels, COLORS[:, channel]) for channel in range(3)], axis=-1)
    return (images.mean(-1, keepdims=True) + colors) / 2


def cells(
    positions: Sequence[int],
    images: np.ndarray,
    labels: np.ndarray,
    maps: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    class_names: Sequence[str],
) -> list[list[Cell]]:
    """A row of cells for each image: the image, then each network's map over it.

    Args:
      positions: of the B images in the test set.
      images: [B, H, W, C] uint8.
      labels: [B].
      maps: each network's, [B, h, w].
      probabilities: each network's, [B, K].
      class_names: K of them.
    """
    factor = max(1, -(-MIN_CELL_PIXELS // images.shape[1]))
    pixels = images.repeat(factor, 1).repeat(factor, 2).astype(np.float32) / 255
    overlays = jax.device_get(jax.jit(lambda x, maps: [overlay(x, one) for one in maps])(pixels, list(maps)))
    names = [shortened(name, 13) for name in class_names]
    rows = []
    for i, (position, label) in enumerate(zip(positions, labels, strict=True)):
        row = [Cell(pixels[i], f"{names[label]}  #{position}")]
        for blended, probability in zip(overlays, probabilities, strict=True):
            predicted = probability[i].argmax()
            mark = "" if predicted == label else "✗ "
            caption = f"{mark}{names[predicted]} {100 * probability[i, predicted]:.0f}%"
            row.append(Cell(blended[i], caption, bool(predicted == label)))
        rows.append(row)
    return rows


def draw(groups: Mapping[str, int], titles: Sequence[str], rows: Sequence[Sequence[Cell]], note: str) -> np.ndarray:
    """Draws the grid.

    Args:
      groups: {heading: the number of rows below it}.
      titles: one per column, of lines that are wrapped at its width.
      rows: all groups' rows, in order.
      note: the text at the bottom.
    Returns:
      [H, W, 3] uint8.
    """
    wrapped = [[part for line in title.split("\n") for part in textwrap.wrap(printable(line), 20)] for title in titles]
    header = HEADER + LINE * max(0, max(map(len, wrapped)) - 2)
    width = 2 * MARGIN + len(titles) * (CELL + GAP) - GAP
    height = header + len(groups) * HEADING + len(rows) * (CELL + CAPTION) + FOOTER
    figure = Figure((width, height), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    lefts = [MARGIN + column * (CELL + GAP) for column in range(len(titles))]

    def write(x: float, top: float, text: str, **options: Any) -> None:
        style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7.5, "parse_math": False} | options
        figure.text(x / width, 1 - top / height, text, **style)

    for left, lines in zip(lefts, wrapped, strict=True):
        write(left + CELL / 2, 0.1, "\n".join(lines), fontsize=6.8)
    top, remaining = header, iter(rows)
    for heading, count in groups.items():
        write(MARGIN, top + 0.08, heading, ha="left", fontweight="bold")
        top += HEADING
        for row in itertools.islice(remaining, count):
            for left, cell in zip(lefts, row, strict=True):
                axes = figure.add_axes((left / width, 1 - (top + CELL) / height, CELL / width, CELL / height))
                axes.imshow(np.broadcast_to(cell.pixels, (*cell.pixels.shape[:2], 3)))
                axes.set_axis_off()
                write(left + CELL / 2, top + CELL + 0.04, cell.caption, color="black" if cell.correct else "#b00020")
            top += CELL + CAPTION
    write(MARGIN, top + 0.06, note, ha="left", fontsize=6.5, color="#444444")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(pixels: np.ndarray) -> bytes:
    """The PNG file of an image [H, W, 3] uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def shortened(text: str, length: int) -> str:
    """The text in characters that can be drawn, cut to `length` of them with an ellipsis."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"
