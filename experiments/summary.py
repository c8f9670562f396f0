"""Prints the layers of a network, what each holds and what each costs for one image.

    python -m experiments.summary --model=vgg16
    python -m experiments.summary --model=vgg16 --small_images --num_classes=10

Nothing is computed and no weight is made, so it is a matter of seconds for every network.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from experiments.harness import cli
from experiments.harness.cli import flag, require
from jaxdl import InputError, cost, models
from jaxdl.published import Published


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

    height, width, channels = models.IMAGE_SHAPES[config.model]
    size = config.image_size or (32 if config.small_images else height)
    image_shape = (size, size, config.channels or channels)
    layers = cost.layers(model, image_shape)
    published = models.PUBLISHED.get(config.model)
    print(f"{config.model} for one image of {size}x{size}x{image_shape[-1]}, in float32\n")
    print(table(layers, published))
    print("\nactivations: what convolutions and matrix products write")
    if published:
        print(f"published: {published.source}, for images of {height}x{width}x{channels}")


if __name__ == "__main__":
    cli.main(run)
