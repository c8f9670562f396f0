"""Image augmentation on the device: (key, images) -> images, batched and pure.

`images` is [B, H, W, C], uint8 or float in [0, 1], gray or RGB. `key` is one key, or one for each
image as `jaxdl.task.supervised` gives them in `batch["key"]`; each image's randomness depends on
its own key alone, so it does not matter how a batch is spread over devices.
"""

from jaxdl.augment.base import Augment, as_float, compose, normalize
from jaxdl.augment.color import (
    IMAGENET_PCA,
    PixelStatistics,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    adjust_sharpness,
    color_jitter,
    pca_color,
    pixel_statistics,
)
from jaxdl.augment.geometry import cutout, elastic, flip, padded_crop, random_resized_crop, warp
from jaxdl.augment.mix import Mix, cutmix, mixup
from jaxdl.augment.rand import (
    RAND_AUGMENT,
    autocontrast,
    equalize,
    posterize,
    rand_augment,
    solarize,
)

__all__ = [
    "IMAGENET_PCA",
    "RAND_AUGMENT",
    "Augment",
    "Mix",
    "PixelStatistics",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "adjust_sharpness",
    "as_float",
    "autocontrast",
    "color_jitter",
    "compose",
    "cutmix",
    "cutout",
    "elastic",
    "equalize",
    "flip",
    "mixup",
    "normalize",
    "padded_crop",
    "pca_color",
    "pixel_statistics",
    "posterize",
    "rand_augment",
    "random_resized_crop",
    "solarize",
    "warp",
]
