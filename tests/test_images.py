"""The host's part of preprocessing."""

import io

import numpy as np
import pytest
from image_sets import encode
from PIL import Image, JpegImagePlugin

from jaxdl import InputError
from jaxdl.data import CorruptImage, Preprocess


def test_an_image_of_the_right_size_keeps_every_bit():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    np.testing.assert_array_equal(Preprocess(9, 3)(image), image)
    np.testing.assert_array_equal(Preprocess(9, 3)(encode(image)), image)
    np.testing.assert_array_equal(Preprocess(9, 1)(encode(image[..., 0])), image[..., :1])
    np.testing.assert_array_equal(Preprocess(9, 1)(image[..., :1]), image[..., :1])


def test_the_shorter_side_is_resized_and_the_centre_cut_out():
    image = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    resized = Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[2:30, 10:38]
    np.testing.assert_array_equal(Preprocess(28, 3, crop_share=0.875)(image), expected)
    turned = image.transpose(1, 0, 2)
    resized = Image.fromarray(turned).resize((32, 48), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[10:38, 2:30]
    np.testing.assert_array_equal(Preprocess(28, 3, crop_share=0.875)(turned), expected)


def test_random_crops_lie_within_their_bounds():
    # Each pixel holds its own coordinates, so a crop tells where it came from.
    rows, columns = np.mgrid[0:200, 0:250].astype(np.uint8)
    image = np.stack([rows, columns, columns], axis=-1)
    preprocess = Preprocess(64, 3, random_crop=True)
    rng = np.random.default_rng(0)
    areas, aspects = [], []
    for _ in range(200):
        crop = preprocess(image, rng).astype(int)
        height, width = (np.ptp(crop[..., axis]) + 1 for axis in (0, 1))
        areas.append(height * width / (200 * 250))
        aspects.append(width / height)
    assert 0.07 < min(areas) < 0.15
    assert 0.85 < max(areas) <= 1
    assert 0.72 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.39
    np.testing.assert_array_equal(preprocess(image), Preprocess(64, 3)(image))
    assert preprocess(np.zeros((2, 999, 3), np.uint8), rng).shape == (64, 64, 3)


def test_every_kind_of_file_becomes_grey_or_rgb():
    def convert(picture, channels=3, **save):
        buffer = io.BytesIO()
        picture.save(buffer, **{"format": "PNG"} | save)
        return Preprocess(2, channels)(buffer.getvalue())[0, 0].tolist()

    red = (255, 0, 0)
    assert convert(Image.new("RGB", (2, 2), red)) == [255, 0, 0]
    assert convert(Image.new("RGB", (2, 2), red), channels=1) == [76]
    assert convert(Image.new("L", (2, 2), 7)) == [7, 7, 7]
    assert convert(Image.new("1", (2, 2), 1)) == [255, 255, 255]
    assert convert(Image.new("RGB", (2, 2), red).quantize()) == [255, 0, 0]
    assert convert(Image.new("RGBA", (2, 2), (*red, 0))) == [255, 255, 255]
    assert convert(Image.new("LA", (2, 2), (0, 0)), channels=1) == [255]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0])
    assert convert(palette, transparency=0) == [255, 255, 255]
    assert convert(Image.fromarray(np.full((2, 2), 0x1234, np.uint16))) == [0x12] * 3
    cyan = convert(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), format="JPEG")
    assert np.abs(np.subtract(cyan, [0, 255, 255])).max() < 4


def photo(width, height, seed=0):
    """A picture with the smooth shapes of a photograph and a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(pixels + rng.integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8)


def as_stored(encoded):
    """The same pixels in a file that cannot be decoded at another size."""
    picture = Image.open(io.BytesIO(encoded))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=picture.getexif())
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("random_crop", [False, True])
def test_a_large_jpeg_is_decoded_small(orientation, random_crop, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(photo(640, 480)).save(buffer, "JPEG", quality=95, exif=exif)
    encoded, stored, decoded = buffer.getvalue(), as_stored(buffer.getvalue()), []
    load_pixels = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "load",
        lambda self: [load_pixels(self), decoded.append(self.size)][0],
    )
    preprocess = Preprocess(28, 3, 0.875, random_crop)
    for seed in range(8 if random_crop else 1):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        small = preprocess(encoded, rngs[0]).astype(int)
        whole = preprocess(stored, rngs[1])
        assert np.abs(small - whole).mean() < 1
        assert np.abs(small - whole).max() <= 13  # the most of 400 crops, of whose half 4
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
    assert min(decoded) <= (160, 120)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(640, 480, 480), (640, 480, 121), (639, 481, 16), (40, 40, 40)],
)
def test_other_jpegs_keep_every_bit(width, height, size):
    encoded = encode(photo(width, height), "JPEG")
    np.testing.assert_array_equal(
        Preprocess(size, 3)(encoded), Preprocess(size, 3)(as_stored(encoded))
    )


def test_exif_orientation_is_obeyed():
    image = np.zeros((16, 16), np.uint8)
    image[:8] = 255
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: what is stored as the top is the right
    Image.fromarray(image).save(buffer, "JPEG", exif=exif)
    upright = Preprocess(16, 1)(buffer.getvalue())
    assert upright[:, 12:].min() > 250
    assert upright[:, :4].max() < 5


def test_damaged_images_are_named():
    whole = encode(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8), "JPEG")
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"GIF89a"):
        with pytest.raises(CorruptImage, match=r"^cat\.jpg .*; expected a whole JPEG, PNG"):
            Preprocess(8, 3)(damaged, name="cat.jpg")
    with pytest.raises(InputError, match=r"cat is an array float32 \[8, 8\]; expected uint8"):
        Preprocess(8, 3)(np.zeros((8, 8), np.float32), name="cat")
