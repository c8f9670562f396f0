"""The form in which a family of networks says what is published of it: counts, weights, images.

A file of `jaxdl.models` fills these in beside its networks, and `jaxdl.models` merges them.
"""

from typing import Literal, NamedTuple


class Published(NamedTuple):
    """What a paper or a reference implementation says of a network; None where it is silent."""

    parameters: float | None
    multiply_adds: float | None  # for one image
    source: str


# torchvision calls them GFLOPS. timm, which rounds, counts batch normalization among them.
TORCHVISION = "torchvision 0.28"
TIMM = "timm's benchmark tables"

# Permutations: where each axis here is in torch's array. Dense layers after a flatten need none of
# their own, since `jaxdl.nn.flatten` puts the channels first as torch does.
Permutation = tuple[int, ...]
CONV: Permutation = (2, 3, 1, 0)  # OIHW there, HWIO here
DENSE: Permutation = (1, 0)  # OI there, IO here
NORM: Permutation = (0,)

# Rows of a layer here (a pattern of its whole path), the layer there, and its kernel's permutation.
# What the pattern has in parentheses carries over. The first row that fits counts.
Rows = tuple[tuple[str, str, Permutation], ...]


class Images(NamedTuple):
    """What is done to an image before published weights see it.

    The shorter side is resized, the centre cut out, and (pixel - mean) / std taken of pixels in
    [0, 1], by channel.

    Attributes:
      resize: the shorter side after resizing, in pixels.
      crop: height and width of the result, in pixels.
      interpolation: "bilinear" or "bicubic", antialiased.
      mean, std: of red, green and blue.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and deviation that put pixels in [-1, 1]
TORCHVISION_IMAGES = Images(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Weights(NamedTuple):
    """The published form of a network's weights.

    Attributes:
      rows: where its layers stand in the files.
      heads: the published layers with an output for each class; the network's own first, then one
        of each auxiliary head.
      images: those that the weights which were published first were trained on.
    """

    rows: Rows
    heads: tuple[str, ...]
    images: Images = TORCHVISION_IMAGES

    def is_auxiliary(self, key: str) -> bool:
        """Whether an array belongs to an auxiliary head."""
        return key.split(".")[0] in [head.split(".")[0] for head in self.heads[1:]]
