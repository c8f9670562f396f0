"""Prints the layers of a network, what each holds and what each costs for one image.

    python -m experiments.summary --model=vgg16
    python -m experiments.summary --model=vgg16 --small_images --num_classes=10

Nothing is computed and no weight is made, so it is a matter of seconds for every network.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

from experiments.harness import cli
from experiments.harness.cli import flag, require
from jaxdl import InputError, cost, models


class Published(NamedTuple):
    """What a paper or a reference implementation says of a network; None where it is silent."""

    parameters: float | None
    multiply_adds: float | None
    source: str


# torchvision calls them GFLOPS; inception_v3's parameters are with its auxiliary head, its
# multiply-adds without. timm, which rounds, counts batch normalization among them.
TORCHVISION = "torchvision 0.28"
TIMM = "timm's benchmark tables"
HE = "He et al. 2015, Table 1"
HE_CIFAR = "He et al. 2015, Table 6"
VGG = "Simonyan and Zisserman 2014, Table 2"

PUBLISHED = {
    "alexnet": Published(61_100_840, 0.714e9, TORCHVISION),
    "alexnet_paper": Published(61e6, 0.724e9, "Sze et al. 2017, Table II"),
    "densenet121": Published(7_978_856, 2.834e9, TORCHVISION),
    "densenet161": Published(28_681_000, 7.728e9, TORCHVISION),
    "densenet169": Published(14_149_480, 3.36e9, TORCHVISION),
    "densenet201": Published(20_013_928, 4.291e9, TORCHVISION),
    "densenet100_bc_cifar": Published(0.8e6, None, "Huang et al. 2016, Table 2"),
    "googlenet": Published(6_624_904, 1.498e9, TORCHVISION),
    "googlenet_paper": Published(None, 1.5e9, "Szegedy et al. 2014, the budget in section 1"),
    "inception_v3": Published(27_161_264, 5.713e9, f"{TORCHVISION}, with the auxiliary head"),
    "inception_v4": Published(42.68e6, 12.28e9, TIMM),
    "inception_resnet_v2": Published(55.84e6, 13.18e9, TIMM),
    "lenet5_1998": Published(60_000, None, "LeCun et al. 1998, section II.B"),
    "plain18": Published(None, 1.8e9, HE),
    "plain34": Published(None, 3.6e9, HE),
    "resnet18": Published(11_689_512, 1.814e9, TORCHVISION),
    "resnet34": Published(21_797_672, 3.664e9, TORCHVISION),
    "resnet50": Published(25_557_032, 4.089e9, TORCHVISION),
    "resnet101": Published(44_549_160, 7.801e9, TORCHVISION),
    "resnet152": Published(60_192_808, 11.514e9, TORCHVISION),
    "resnet101_v2": Published(44.54e6, 7.83e9, TIMM),
    "resnet152_v2": Published(60.19e6, 11.55e9, TIMM),
    "resnet20_cifar": Published(0.27e6, None, HE_CIFAR),
    "resnet32_cifar": Published(0.46e6, None, HE_CIFAR),
    "resnet44_cifar": Published(0.66e6, None, HE_CIFAR),
    "resnet56_cifar": Published(0.85e6, None, HE_CIFAR),
    "resnet110_cifar": Published(1.7e6, None, HE_CIFAR),
    "vgg11": Published(132_863_336, 7.609e9, TORCHVISION),
    "vgg11_lrn": Published(133e6, None, VGG),
    "vgg13": Published(133_047_848, 11.308e9, TORCHVISION),
    "vgg16": Published(138_357_544, 15.47e9, TORCHVISION),
    "vgg16_c": Published(134e6, None, VGG),
    "vgg19": Published(143_667_240, 19.632e9, TORCHVISION),
    "vgg11_bn": Published(132_868_840, 7.609e9, TORCHVISION),
    "vgg13_bn": Published(133_053_736, 11.308e9, TORCHVISION),
    "vgg16_bn": Published(138_365_992, 15.47e9, TORCHVISION),
    "vgg19_bn": Published(143_678_248, 19.632e9, TORCHVISION),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Prints what the layers of a network hold and cost: --model=NAME"""

    model: str = flag("resnet50", "a name of jaxdl.models.names()")
    image_size: int | None = flag(None, "height and width in pixels; the network's own by default")
    num_classes: int | None = flag(
        None, "how many logits, 0 for none; the network's own number by default"
    )
    channels: int | None = flag(None, "of the images; the network's own number by default")
    small_images: bool = flag(False, "the network as it is fitted to images of 32x32")

    def __post_init__(self) -> None:
        for name, least in {"image_size": 1, "num_classes": 0, "channels": 1}.items():
            value = getattr(self, name)
            require(self, name, value is None or value >= least, f"at least {least}")


def native_shape(name: str) -> tuple[int, int, int]:
    """The images [H, W, C] that a network was published for."""
    if name.startswith("lenet"):
        return 32, 32, 1
    if name == "mlp":
        return 28, 28, 1
    if "_cifar" in name:
        return 32, 32, 3
    if name in ("inception_v3", "inception_v4", "inception_resnet_v2"):
        return 299, 299, 3
    if name == "alexnet_paper":
        return 227, 227, 3
    return 224, 224, 3


def table(layers: list[cost.Layer], published: Published | None) -> str:
    """The layers, their sums and the published figures as columns of text."""
    rows = [["layer", "type", "output", "parameters", "multiply-adds", "activation bytes"]]
    for path, name, shape, *amounts in layers:
        rows.append([path or ".", name, str(list(shape)), *_texts(amounts)])
    totals = [sum(amounts) for amounts in list(zip(*layers, strict=True))[3:]]
    rows.append(["total", "", "", *_texts(totals)])
    if published:
        known = (published.parameters, published.multiply_adds, None)
        rows.append(["published", "", "", *_texts(known)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = (str.ljust,) * 3 + (str.rjust,) * 3
    lines = []
    for row in rows:
        columns = zip(aligns, row, widths, strict=True)
        lines.append("  ".join(align(text, width) for align, text, width in columns).rstrip())
    return "\n".join(lines)


def _texts(amounts: Iterable[float | None]) -> list[str]:
    """Amounts with their thousands marked; nothing for none."""
    return [f"{amount:,.0f}" if amount else "" for amount in amounts]


def run(argv: list[str]) -> None:
    """Prints the table of the network that was asked for."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    arguments: dict[str, Any] = {}
    if config.num_classes is not None:
        arguments["num_classes"] = config.num_classes
    if config.small_images:
        arguments["small_images"] = True
    model = models.create(config.model, **arguments)

    height, width, channels = native_shape(config.model)
    size = config.image_size or (32 if config.small_images else height)
    image_shape = (size, size, config.channels or channels)
    layers = cost.layers(model, image_shape)
    published = PUBLISHED.get(config.model)
    print(f"{config.model} for one image of {size}x{size}x{image_shape[-1]}, in float32\n")
    print(table(layers, published))
    print("\nactivations: what convolutions and matrix products write")
    if published:
        print(f"published: {published.source}, for images of {height}x{width}x{channels}")


if __name__ == "__main__":
    cli.main(run)
