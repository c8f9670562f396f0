"""The host's part of preprocessing: one stored image to one uint8 array of fixed size."""

import contextlib
import io
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdl import InputError
from jaxdl.data.rows import Unreadable

FORMATS = "JPEG, PNG, BMP, GIF, TIFF or WebP"
ORIENTATION, UPRIGHT = 0x0112, 1  # of EXIF; from 5 to 8 the sides change places

Size = tuple[int, int]  # width and height
Box = tuple[int, int, int, int]  # left, top, right and bottom
Interpolation = Literal["bilinear", "bicubic"]


class CorruptImage(Unreadable):
    """An image whose bytes cannot be decoded: truncated, damaged, or not an image at all."""


class Preprocess(NamedTuple):
    """Decodes, resizes and crops an image on the host; colour and flips belong on the device.

    The same value serves training, evaluation and prediction, so a run keeps it. With `random_crop`
    a call that is given a generator takes a random-resized crop; every other call resizes the
    shorter side to `size / crop_share` and cuts the centre out. It is resampled as Pillow does,
    antialiased, and rounded as torchvision does, so published weights see the pixels they know.

    Attributes:
      size: height and width of the result, in pixels.
      channels: 1 (grey) or 3 (RGB).
      crop_share: the side of the centre crop as a share of the resized shorter side, in (0, 1];
        0.875 is the classic 224 of 256.
      random_crop: train on Inception crops: 8% to 100% of the area, aspect ratio 3/4 to 4/3.
      interpolation: of the resampling, "bilinear" or "bicubic".
    """

    size: int
    channels: int
    crop_share: float = 1.0
    random_crop: bool = False
    interpolation: Interpolation = "bilinear"

    def __call__(
        self,
        image: bytes | np.ndarray,
        rng: np.random.Generator | None = None,
        name: str = "the image",
    ) -> np.ndarray:
        """Returns the image as uint8 [size, size, channels].

        An image that already has that size (and `crop_share` 1, and no random crop) keeps every
        bit. EXIF orientation is obeyed, so photographs stand as they are shown. Transparency is
        laid over white, 16-bit grey keeps its high byte, palettes and CMYK become RGB, and of an
        animation or several pages the first is taken.

        A JPEG at least four times as large as what is made of it is decoded at a half, a quarter
        or an eighth of its size, for speed: as small as is still twice what is wanted, if that is
        a whole number of pixels. The decoder then averages blocks of pixels and the resampling,
        antialiased as ever, does the rest: the values differ by less than one of 256 levels on
        average, and by 13 at most in 400 crops of a noisy picture.

        Args:
          image: an encoded file (PNG, JPEG, WebP, ...) or uint8 [H, W], [H, W, 1] or [H, W, 3].
          rng: drawn from only when `random_crop` is set.
          name: what error messages call the image.

        Raises:
          CorruptImage: the bytes cannot be decoded.
          InputError: an array of another type or shape.
        """
        whole = self.crop_share == 1 and not (self.random_crop and rng is not None)
        fits = (self.size, self.size, self.channels)
        if (
            whole
            and isinstance(image, np.ndarray)
            and (image.shape, image.dtype) == (fits, "uint8")
        ):
            return image.copy()  # as Pillow would, in a fortieth of the time
        picture, turned = _open(image, name)
        shown = picture.size[::-1] if turned in (5, 6, 7, 8) else picture.size
        box, resized = self._choose(shown, rng)
        shrink = _decode(picture, turned, name, box, resized)
        picture = _with_channels(picture, self.channels)
        left, top, right, bottom = (side / shrink for side in box)
        x, y = math.floor(left), math.floor(top)
        picture = picture.crop((x, y, math.ceil(right), math.ceil(bottom)))
        resampling = Image.Resampling[self.interpolation.upper()]
        picture = picture.resize(resized, resampling, (left - x, top - y, right - x, bottom - y))
        if resized != (self.size, self.size):
            left, top = (round((side - self.size) / 2) for side in resized)
            picture = picture.crop((left, top, left + self.size, top + self.size))
        return np.array(picture).reshape(self.size, self.size, self.channels)

    def _choose(self, shown: Size, rng: np.random.Generator | None) -> tuple[Box, Size]:
        """Which part of an image to take, and the size to resize it to before the centre is cut.

        Random crops are those of Szegedy et al. 2014, "Going deeper with convolutions", section 6.
        """
        if self.random_crop and rng is not None:
            draw = rng.random  # of a generator's methods by far the quickest
            for _ in range(10):
                area = shown[0] * shown[1] * (0.08 + 0.92 * draw())
                aspect = 3 / 4 * (16 / 9) ** draw()  # its logarithm is uniform
                width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if 0 < width <= shown[0] and 0 < height <= shown[1]:
                    left = int(draw() * (shown[0] - width + 1))
                    top = int(draw() * (shown[1] - height + 1))
                    return (left, top, left + width, top + height), (self.size, self.size)
            # A strip so long that ten draws did not fit.
        shorter = round(self.size / self.crop_share)
        width, height = (int(shorter * side / min(shown)) for side in shown)
        return (0, 0, *shown), (width, height)


def _open(image: bytes | np.ndarray, name: str) -> tuple[Image.Image, int]:
    """The image, of which an encoded one is not decoded yet, and its orientation by EXIF."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] not in ((), (1,), (3,)) or image.ndim < 2:
            raise InputError(
                f"{name} is an array {image.dtype} {list(image.shape)}; "
                "expected uint8 [H, W], [H, W, 1] or [H, W, 3]"
            )
        return Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image), UPRIGHT
    with _damage_named(name):
        picture = Image.open(io.BytesIO(image))
        exif = picture.getexif()
        return picture, exif.get(ORIENTATION, UPRIGHT)


def _decode(picture: Image.Image, turned: int, name: str, box: Box, resized: Size) -> int:
    """Decodes an image and turns it as it is shown; returns by how much it was made smaller."""
    whole = picture.size
    enlarged = min((box[2] - box[0]) / resized[0], (box[3] - box[1]) / resized[1])
    for shrink in (8, 4, 2):
        if enlarged >= 2 * shrink and not (whole[0] % shrink or whole[1] % shrink):
            picture.draft(None, (whole[0] // shrink, whole[1] // shrink))  # JPEG obeys alone
            break
    with _damage_named(name):
        picture.load()
        shrink = whole[0] // picture.width
        if turned != UPRIGHT:
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode == "F":
            raise ValueError("its pixels are floating-point numbers of no known range")
    return shrink


@contextlib.contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Pillow's decoders raise whatever their format's code raises; make it a CorruptImage."""
    try:
        yield
    except UnidentifiedImageError:
        raise CorruptImage(
            f"{name} is not an image that Pillow can read; expected a whole {FORMATS}"
        ) from None
    except Exception as error:
        raise CorruptImage(
            f"{name} cannot be decoded ({error}); expected a whole {FORMATS}"
        ) from error


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        high_byte = np.clip(np.asarray(picture) >> 8, 0, 255)
        picture = Image.fromarray(high_byte.astype(np.uint8))
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)
