"""The host's part of preprocessing: one stored image to one uint8 array of fixed size."""

import io
import math
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdl import InputError

Interpolation = Literal["bilinear", "bicubic"]


class CorruptImage(InputError):
    """An image whose bytes cannot be decoded: truncated, damaged, or not an image at all."""


class Preprocess(NamedTuple):
    """Decode, resize and crop an image on the host; random colour and flips belong on the device.

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
        """Return the image as uint8 [size, size, channels].

        An image that already has that size (and `crop_share` 1, and no random crop) keeps every
        bit. EXIF orientation is obeyed, so photographs stand as they are shown. Transparency is
        laid over white, 16-bit grey keeps its high byte, palettes and CMYK become RGB.

        Args:
            image: an encoded file (PNG, JPEG, WebP, ...) or uint8 [H, W], [H, W, 1] or [H, W, 3].
            rng: drawn from only when `random_crop` is set.
            name: what error messages call the image.

        Raises:
            CorruptImage: the bytes cannot be decoded.
            InputError: an array of another type or shape.
        """
        picture = _with_channels(_open(image, name), self.channels)
        if self.random_crop and rng is not None:
            picture = self._crop_randomly(picture, rng)
        else:
            picture = self._crop_centre(picture)
        return np.array(picture).reshape(self.size, self.size, self.channels)

    @property
    def _resampling(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

    def _crop_centre(self, picture: Image.Image) -> Image.Image:
        shorter = round(self.size / self.crop_share)
        width, height = picture.size
        scale_by = min(width, height)
        resized = (int(shorter * width / scale_by), int(shorter * height / scale_by))
        if resized != picture.size:
            picture = picture.resize(resized, self._resampling)
        left, top = (round((side - self.size) / 2) for side in picture.size)
        return picture.crop((left, top, left + self.size, top + self.size))

    def _crop_randomly(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Szegedy et al. 2014, "Going deeper with convolutions", section 6."""
        for _ in range(10):
            area = picture.width * picture.height * rng.uniform(0.08, 1.0)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < width <= picture.width and 0 < height <= picture.height:
                left = int(rng.integers(picture.width - width + 1))
                top = int(rng.integers(picture.height - height + 1))
                crop = picture.crop((left, top, left + width, top + height))
                return crop.resize((self.size, self.size), self._resampling)
        return self._crop_centre(picture)  # a strip so long that ten draws did not fit


def _open(image: bytes | np.ndarray, name: str) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] not in ((), (1,), (3,)) or image.ndim < 2:
            raise InputError(
                f"{name} is an array {image.dtype} {list(image.shape)}; "
                "expected uint8 [H, W], [H, W, 1] or [H, W, 3]"
            )
        return Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image)
    try:
        picture = Image.open(io.BytesIO(image))
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
    except UnidentifiedImageError:
        raise CorruptImage(
            f"{name} is not an image that Pillow can read; expected a whole JPEG, PNG, BMP or WebP"
        ) from None
    except Exception as error:  # Pillow's decoders raise whatever their format's code raises
        raise CorruptImage(
            f"{name} cannot be decoded ({error}); expected a whole JPEG, PNG, BMP or WebP"
        ) from error
    return picture


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        high_byte = np.clip(np.asarray(picture) >> 8, 0, 255)
        picture = Image.fromarray(high_byte.astype(np.uint8))
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)
