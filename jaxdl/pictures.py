"""Pictures of what a generator draws: uint8 arrays [H, W, C], and files of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxdl import InputError

BORDER = 128
REFERENCE = (190, 190, 190)
POINT = (31, 119, 180)


def grid(images: Any, columns: int) -> np.ndarray:
    """Images side by side, row by row, each within a border of one gray pixel.

    Args:
      images: float [N, H, W, C] in [0, 1]; what is beyond is clipped.
      columns: how many in a row. What is left of the last row is gray.

    Returns:
      uint8 [rows (H + 1) + 1, columns (W + 1) + 1, C].

    Raises:
      InputError: images that are not [N, H, W, C] or not finite, or fewer than one column.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not images.size or not np.isfinite(images).all():
        raise InputError(f"images of shape {images.shape}: expected [N, H, W, C], finite")
    if columns < 1:
        raise InputError(f"columns={columns}: expected at least 1")
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), BORDER, np.uint8)
    cells[:count, 1:, 1:] = np.rint(np.clip(images, 0, 1) * 255)
    cells = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    picture = cells.reshape(rows * (height + 1), columns * (width + 1), channels)
    return np.pad(picture, ((0, 1), (0, 1), (0, 0)), constant_values=BORDER)


def label_rows(picture: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """A picture with words in a white margin, at the left of its rows.

    Args:
      picture: uint8 [H, W, C], of rows that are all as high. It is enlarged, every pixel to a
        square, where they are lower than letters.
      labels: of each row, from the top.

    Returns:
      uint8 [s H, margin + s W, C], with s the whole number that it is enlarged by.

    Raises:
      InputError: there are no labels.
    """
    if not labels:
        raise InputError("labels=[]: expected one for each row of the picture")
    font = ImageFont.load_default()
    boxes = [font.getbbox(label) for label in labels]  # left, top, right, bottom
    tallest = max(box[3] - box[1] for box in boxes)
    enlarged = max(1, math.ceil((tallest + 2) * len(labels) / len(picture)))
    picture = picture.repeat(enlarged, 0).repeat(enlarged, 1)
    height, width = len(picture), math.ceil(max(box[2] for box in boxes)) + 6
    margin = Image.new("L", (width, height), 255)
    for row, (label, (_, top, _, bottom)) in enumerate(zip(labels, boxes, strict=True)):
        middle = (row + 0.5) * height / len(labels)
        ImageDraw.Draw(margin).text((3, middle - (top + bottom) / 2), label, fill=0, font=font)
    shape = height, width, picture.shape[2]
    return np.concatenate([np.broadcast_to(np.asarray(margin)[..., None], shape), picture], 1)


def scatter(points: Any, references: Any = None, limit: float = 1.0, size: int = 256) -> np.ndarray:
    """Points of the plane as blue dots on white, over gray ones for the references.

    Drawn without matplotlib, which takes far longer than a frame of an animation should.

    Args:
      points: [N, 2], x to the right and y upwards. Those beyond the limit are not drawn.
      references: [M, 2].
      limit: the picture shows [-limit, limit] both ways.
      size: of the picture, in pixels.

    Returns:
      uint8 [size, size, 3].

    Raises:
      InputError: points that are not [N, 2], or a limit or size that is not more than 0.
    """
    if not (limit > 0 and size > 0):
        raise InputError(f"limit={limit}, size={size}: expected more than 0")
    radius = max(1, size // 128)
    across = np.arange(-radius, radius + 1)
    disc = np.argwhere(across[:, None] ** 2 + across**2 <= radius**2)
    # A margin takes the parts of dots that reach over the edge.
    picture = np.full((size + 2 * radius, size + 2 * radius, 3), 255, np.uint8)
    for values, color in ((references, REFERENCE), (points, POINT)):
        if values is None:
            continue
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or values.shape[1] != 2:
            raise InputError(f"points of shape {values.shape}: expected [N, 2]")
        values = values[np.all(np.abs(values) <= limit, axis=1)]
        pixels = np.rint((values * (1, -1) / limit + 1) / 2 * (size - 1)).astype(int)
        columns, rows = (pixels[:, None] + disc[:, ::-1]).reshape(-1, 2).T
        picture[rows, columns] = color
    return picture[radius:-radius, radius:-radius]


def spherical_walk(a: Any, b: Any, steps: int) -> np.ndarray:
    """Latents on the way from one to another, in equal steps of the angle between them.

    Spherical linear interpolation (Shoemake 1985). On the straight way the length would fall to
    what a generator has never seen: Gaussian latents lie near a sphere (White 2016,
    arXiv:1609.04468).

    Args:
      a: [Z], the first.
      b: [Z], the last.
      steps: how many, both ends among them.

    Returns:
      float32 [steps, Z].

    Raises:
      InputError: not two vectors of one size with a direction each, two that are opposite (no way
        is the shortest), or fewer than two steps.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"latents of shapes {a.shape} and {b.shape}: expected [Z] twice")
    if steps < 2:
        raise InputError(f"steps={steps}: expected at least 2")
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if not (min(lengths) > 0 and np.isfinite(lengths).all()):
        raise InputError(f"latents of length {lengths[0]} and {lengths[1]}: expected more than 0")
    start, end = a / lengths[0], b / lengths[1]
    # The arc cosine of the product would lose half of the digits of a small angle.
    half = np.arctan2(np.linalg.norm(end - start), np.linalg.norm(end + start))
    if np.pi / 2 - half < 1e-6:
        raise InputError("the two latents are opposite: the way between them is not defined")
    angle = 2 * half
    # sin(t angle) / sin(angle), which is t where the angle is 0.
    weight = lambda t: t * np.sinc(t * angle / np.pi) / np.sinc(angle / np.pi)
    times = np.linspace(0, 1, steps)[:, None]
    return (weight(1 - times) * a + weight(times) * b).astype(np.float32)


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 1] (gray) or [H, W, 3], as a PNG file.

    Raises:
      InputError: not such a picture.
    """
    _image(picture).save(path, format="PNG")


def read_png(path: str | Path) -> np.ndarray:
    """Reads a picture that `write_png` wrote, uint8 [H, W, 1] or [H, W, 3]."""
    with Image.open(path) as image:
        picture = np.asarray(image)
    return picture.reshape(*picture.shape[:2], -1)


def write_gif(path: str | Path, frames: Sequence[np.ndarray], seconds_per_frame: float) -> None:
    """Writes pictures as an animation that repeats for ever.

    Gray stays as it is; of colors, each frame keeps at most 256. A frame that equals the one before
    it is not stored again: the one before is shown as much longer, so the animation lasts
    `len(frames) * seconds_per_frame`.

    Args:
      path: of the GIF file.
      frames: uint8 [H, W, 1] or [H, W, 3], all of one shape.
      seconds_per_frame: at least 0.02 (viewers slow down what is faster), rounded to hundredths.

    Raises:
      InputError: no frames, of different shapes, not such pictures, or too short.
    """
    shapes = sorted({np.shape(frame) for frame in frames})
    if len(shapes) != 1:
        raise InputError(f"frames of shapes {shapes}: expected at least one, all of one shape")
    if not 0.02 <= seconds_per_frame <= 655:
        raise InputError(f"seconds_per_frame={seconds_per_frame}: expected 0.02 to 655")
    first, *others = map(_image, frames)
    milliseconds = 10 * round(100 * seconds_per_frame)
    first.save(
        path, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0
    )


def _image(picture: np.ndarray) -> Image.Image:
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] not in (1, 3) or picture.dtype != np.uint8:
        raise InputError(
            f"a picture {picture.dtype} of shape {picture.shape}: expected uint8 [H, W, 1 or 3]"
        )
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
