"""The flags of augmentation, and what they make of images."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.harness.cli import flag, require
from jaxdl import InputError, augment
from jaxdl.augment import Augment
from jaxdl.losses import MixLabels

# The flags that say how an augmentation does what it does.
_FLAGS_OF = {
    "crop": ("padding",),
    "warp": ("degrees", "shift", "scale", "shear"),
    "elastic": ("elastic_alpha", "elastic_sigma"),
    "color_jitter": ("brightness", "contrast", "saturation", "hue"),
    "pca_color": ("pca_file",),
    "cutout": ("cutout_size",),
    "rand_augment": ("rand_ops", "rand_magnitude"),
}


def read_components(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues [3] and eigenvectors [3, 3] that experiments.pixels wrote, for `pca_color`.

    Raises:
      InputError: the file is not there or holds none, as that of a gray data set.
    """
    try:
        saved = json.loads(Path(path).read_text())
        eigenvalues, eigenvectors = (
            np.asarray(saved[name], np.float64) for name in ("eigenvalues", "eigenvectors")
        )
    except (OSError, ValueError, TypeError, KeyError):
        eigenvalues, eigenvectors = np.zeros(0), np.zeros(0)
    if eigenvalues.shape != (3,) or eigenvectors.shape != (3, 3):
        raise InputError(
            f"{path} holds no color components; expected a file that "
            "python -m experiments.pixels wrote for a set of RGB images"
        )
    return eigenvalues, eigenvectors


@dataclasses.dataclass(frozen=True)
class AugmentFlags:
    """What training images go through on the device."""

    augment: tuple[str, ...] = flag(
        (),
        "what training images go through, in this order",
        (
            *("flip", "crop", "resized_crop", "warp", "elastic"),
            *("color_jitter", "pca_color", "cutout", "rand_augment"),
        ),
    )
    padding: int = flag(4, "of crop: pixels that each side is padded with before")
    degrees: float = flag(10.0, "of warp: greatest rotation")
    shift: float = flag(0.1, "of warp: greatest shift, as a share of the side")
    scale: float = flag(0.1, "of warp: greatest change of size, as a share")
    shear: float = flag(0.0, "of warp: greatest slant, pixels sideways for each pixel down")
    elastic_alpha: float = flag(8.0, "of elastic: strength in pixels; 34 is Simard's, for 29x29")
    elastic_sigma: float = flag(3.0, "of elastic: pixels over which neighbors move alike")
    brightness: float = flag(0.4, "of color_jitter: greatest change of the factor")
    contrast: float = flag(0.4, "of color_jitter: greatest change of the factor")
    saturation: float = flag(0.4, "of color_jitter: greatest change of the factor")
    hue: float = flag(0.0, "of color_jitter: greatest turn, as a share of the circle")
    pca_file: str = flag(
        "", "of pca_color: what experiments.pixels wrote; ImageNet's components when empty"
    )
    cutout_size: int = flag(8, "of cutout: side of the square in pixels")
    rand_ops: int = flag(2, "of rand_augment: operations one after another")
    rand_magnitude: float = flag(9.0, "of rand_augment: their strength, 0 to 10")
    mix: str = flag("", "what mixes two images and their labels", ("", "mixup", "cutmix"))
    mix_alpha: float = flag(1.0, "of mixup and cutmix: the smaller, the closer to unmixed")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be, or of what is not chosen.

        The library checks what it can itself.
        """
        require(self, "padding", self.padding >= 0, "at least 0")
        require(self, "rand_ops", self.rand_ops >= 1, "at least 1")
        strength = self.rand_magnitude
        require(self, "rand_magnitude", 0 <= strength <= 10, "at least 0 and at most 10")
        for name in ("degrees", "shift", "shear"):
            value = getattr(self, name)
            require(self, name, 0 <= value < math.inf, "at least 0")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for owner, names in _FLAGS_OF.items():
            for name in names:
                fits = owner in self.augment or getattr(self, name) == defaults[name]
                require(self, name, fits, f"left out without --augment={owner}")
        fits = self.mix != "" or self.mix_alpha == defaults["mix_alpha"]
        require(self, "mix_alpha", fits, "left out without --mix")
        self.make_augment(fill=(0.0,))
        self.make_mix(num_classes=2)

    def make_augment(self, fill: tuple[float, ...]) -> Augment:
        """The augmentation that the flags describe; cutout fills with `fill`, the images' mean."""
        build: dict[str, Callable[[], Augment]] = {
            "flip": lambda: augment.flip,
            "crop": lambda: augment.padded_crop(self.padding),
            "resized_crop": augment.random_resized_crop,
            "warp": lambda: augment.warp(self.degrees, self.shift, self.scale, self.shear),
            "elastic": lambda: augment.elastic(self.elastic_alpha, self.elastic_sigma),
            "color_jitter": lambda: augment.color_jitter(
                self.brightness, self.contrast, self.saturation, self.hue
            ),
            "pca_color": lambda: augment.pca_color(
                *(read_components(self.pca_file) if self.pca_file else augment.IMAGENET_PCA)
            ),
            "cutout": lambda: augment.cutout(self.cutout_size, fill),
            "rand_augment": lambda: augment.rand_augment(self.rand_ops, self.rand_magnitude),
        }
        return augment.compose(*(build[name]() for name in self.augment))

    def make_mix(self, num_classes: int) -> MixLabels | None:
        """What mixes images whose labels are int [B]; None when nothing does."""
        if not self.mix:
            return None
        mix = (augment.mixup if self.mix == "mixup" else augment.cutmix)(self.mix_alpha)

        def mix_labels(keys, images, labels, mask):
            return mix(keys, images, jax.nn.one_hot(labels, num_classes), mask)

        return mix_labels
