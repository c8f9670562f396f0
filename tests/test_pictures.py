"""Pictures by hand, and files as Pillow reads them back."""

import numpy as np
import pytest
from PIL import Image, ImageSequence
from scipy.spatial import geometric_slerp

from jaxdl import InputError, pictures

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (20, 16, 1)).astype(np.uint8)
COLOR = RNG.integers(0, 256, (9, 11, 3)).astype(np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def test_grid_by_hand():
    images = np.array([0, 0.5, 1, 2, -1]).reshape(5, 1, 1, 1) * np.ones((1, 1, 2, 1))
    g = 128
    expected = [
        [g, g, g, g, g, g, g],
        [g, 0, 0, g, 128, 128, g],
        [g, g, g, g, g, g, g],
        [g, 255, 255, g, 255, 255, g],
        [g, g, g, g, g, g, g],
        [g, 0, 0, g, g, g, g],
        [g, g, g, g, g, g, g],
    ]
    picture = pictures.grid(images, columns=2)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[:, :, 0], expected)


def test_grid_keeps_every_pixel(rng):
    """Each image stands in its place, upright, in its colors."""
    images = rng.integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)
    picture = pictures.grid(images / 255, columns=3)
    assert picture.shape == (2 * 5 + 1, 3 * 6 + 1, 3)
    for i, image in enumerate(images):
        top, left = 1 + 5 * (i // 3), 1 + 6 * (i % 3)
        np.testing.assert_array_equal(picture[top : top + 4, left : left + 5], image)
    assert pictures.grid(images[:2] / 255, columns=5).shape == (6, 5 * 6 + 1, 3)


def test_scatter_by_hand():
    """Up is up, the points cover the references, and what is beyond the limit is left out."""
    points = [[2, 2], [2.1, 0], [0, -2.1], [0, np.nan]]
    picture = pictures.scatter(points, [[0, 0], [2, 2], [-2, 0]], limit=2, size=9)
    marks = {(255, 255, 255): ".", pictures.REFERENCE: "r", pictures.POINT: "p"}
    drawn = ["".join(marks[tuple(int(c) for c in pixel)] for pixel in row) for row in picture]
    assert drawn == [
        ".......pp",
        "........p",
        ".........",
        "r...r....",
        "rr.rrr...",
        "r...r....",
        ".........",
        ".........",
        ".........",
    ]


def test_scatter_of_many_points(rng):
    points = rng.uniform(-1, 1, (2000, 2))
    picture = pictures.scatter(points)
    assert picture.shape == (256, 256, 3)
    rows, columns = np.rint((1 - points[:, 1]) * 127.5), np.rint((1 + points[:, 0]) * 127.5)
    assert np.all(picture[rows.astype(int), columns.astype(int)] == pictures.POINT)
    assert np.all(pictures.scatter(np.zeros((0, 2)), size=16) == 255)


def test_spherical_walk_is_scipys(rng):
    a, b = rng.normal(size=(2, 7))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    walk = pictures.spherical_walk(a, b, 9)
    assert walk.dtype == np.float32
    np.testing.assert_allclose(walk, geometric_slerp(a, b, np.linspace(0, 1, 9)), atol=1e-7)
    np.testing.assert_allclose(pictures.spherical_walk(5 * a, 5 * b, 9), 5 * walk, atol=1e-6)


def test_spherical_walk_by_hand():
    half = np.sqrt(0.5)
    walk = pictures.spherical_walk([1, 0], [0, 3], 3)
    np.testing.assert_allclose(walk, [[1, 0], [half, 3 * half], [0, 3]], atol=1e-7)
    assert np.all(pictures.spherical_walk([1, 2], [1, 2], 4) == np.float32([1, 2]))
    near = pictures.spherical_walk([1, 0], [1, 1e-9], 3)
    np.testing.assert_allclose(near, [[1, 0], [1, 5e-10], [1, 1e-9]], rtol=1e-6)


@pytest.mark.parametrize(("picture", "mode"), [(GRAY, "L"), (COLOR, "RGB")])
def test_png_is_read_back(tmp_path, picture, mode):
    pictures.write_png(tmp_path / "it.png", picture)
    with Image.open(tmp_path / "it.png") as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image).reshape(picture.shape), picture)


def played(path, milliseconds):
    """What a GIF shows in each interval, RGB."""
    shown = []
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        for frame in ImageSequence.Iterator(image):
            pixels, times = np.asarray(frame.convert("RGB")), frame.info["duration"] / milliseconds
            shown += [pixels] * int(times)
            assert times == int(times)
    return shown


DARK = GRAY // 2
CORNER = GRAY.copy()
CORNER[:2, :2] = 255 - CORNER[:2, :2]
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
DOTS = [pictures.scatter(RNG.uniform(-1, 1, (9, 2)), np.eye(2), size=64) for _ in range(3)]
ANIMATIONS = {
    "gray": [GRAY, DARK, CORNER, GRAY],
    "repeated": [GRAY, GRAY, GRAY, CORNER, CORNER, DARK, GRAY, GRAY],
    "still": [GRAY] * 5,
    "one": [GRAY],
    "all grays": [RAMP, RAMP[::-1], RAMP[::-1], RAMP.swapaxes(0, 1)],
    "one changed pixel": [np.zeros((5, 5, 1), np.uint8), np.eye(5, dtype=np.uint8)[:, :, None]],
    "colors": [DOTS[0], DOTS[1], DOTS[1], DOTS[2]],
    "gray in colors": [GRAY.repeat(3, 2), DARK.repeat(3, 2)],
}


@pytest.mark.parametrize("name", ANIMATIONS)
@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.02, 20), (1 / 15, 70)])
def test_gif_shows_every_frame_in_its_time(tmp_path, name, seconds, milliseconds):
    frames = ANIMATIONS[name]
    pictures.write_gif(tmp_path / "it.gif", frames, seconds)
    shown = played(tmp_path / "it.gif", milliseconds)
    assert len(shown) == len(frames)
    for pixels, frame in zip(shown, frames, strict=True):
        np.testing.assert_array_equal(pixels, np.broadcast_to(frame, pixels.shape))


@pytest.mark.parametrize("side", [3, 16, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_labelled(side, channels):
    """The picture itself is untouched, enlarged at most, and every row has its own word."""
    images = np.random.default_rng(0).uniform(size=(8, side, side, channels))
    picture = pictures.grid(images, 2)
    labelled = pictures.label_rows(picture, ["sample", "nearest", "", "sample"])
    enlarged = len(labelled) // len(picture)
    assert labelled.dtype == np.uint8
    assert (enlarged > 1) == (side == 3)
    own = picture.repeat(enlarged, 0).repeat(enlarged, 1)
    np.testing.assert_array_equal(labelled[:, -own.shape[1] :], own)
    margin = labelled[:, : -own.shape[1], 0]
    ink = [int((row < 128).sum()) for row in np.array_split(margin, 4)]
    assert min(ink[:2]) > 20
    assert ink[2] == 0
    assert abs(ink[3] - ink[0]) < 20  # the same word, a fraction of a pixel elsewhere


BAD = {
    "no images": (lambda: pictures.grid(GRAY, 1), r"shape \(20, 16, 1\): expected \[N, H, W, C\]"),
    "nan": (lambda: pictures.grid(np.full((1, 2, 2, 1), np.nan), 1), "finite"),
    "columns": (lambda: pictures.grid(np.ones((1, 2, 2, 1)), 0), "columns=0: expected at least 1"),
    "labels": (lambda: pictures.label_rows(GRAY, []), r"labels=\[\]: expected one for each row"),
    "points": (lambda: pictures.scatter(np.ones((2, 3))), r"points of shape \(2, 3\)"),
    "references": (lambda: pictures.scatter([[0, 0]], [0, 0]), r"points of shape \(2,\)"),
    "limit": (lambda: pictures.scatter([[0, 0]], limit=0), "limit=0, size=256"),
    "size": (lambda: pictures.scatter([[0, 0]], size=0), "limit=1.0, size=0"),
    "opposite": (lambda: pictures.spherical_walk([1, 2], [-2, -4], 3), "opposite"),
    "zero": (lambda: pictures.spherical_walk([1, 2], [0, 0], 3), "and 0.0: expected more than 0"),
    "sizes": (lambda: pictures.spherical_walk([1, 2], [1], 3), r"shapes \(2,\) and \(1,\)"),
    "steps": (lambda: pictures.spherical_walk([1, 2], [2, 1], 1), "steps=1: expected at least 2"),
    "floats": (lambda: pictures.write_png("it.png", GRAY / 255), "a picture float64 of shape"),
    "channels": (lambda: pictures.write_png("it.png", GRAY.repeat(2, 2)), r"\(20, 16, 2\)"),
    "no frames": (lambda: pictures.write_gif("it.gif", [], 1), r"frames of shapes \[\]"),
    "frames": (lambda: pictures.write_gif("it.gif", [GRAY, COLOR], 1), "all of one shape"),
    "seconds": (lambda: pictures.write_gif("it.gif", [GRAY], 0.01), "seconds_per_frame=0.01"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
