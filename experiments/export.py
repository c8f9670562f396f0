"""Gives a trained classifier away as one file: StableHLO with its weights, for JAX and for others.

    python -m experiments.export --workdir=runs/resnet_digits --out=digits.stablehlo

The file takes any number of images at once, on a CPU, an NVIDIA GPU or a TPU, and gives the
probabilities of the classes, whose names lie beside it in digits.stablehlo.json. It needs JAX
alone:

    from jax import export
    function = export.deserialize(open("digits.stablehlo", "rb").read()).call
    probabilities = function(images)  # uint8 [N, H, W, C]

`--preprocess=outside` takes float32 images that are normalized already.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from experiments.harness import cli, serving, training
from experiments.harness.cli import flag, require
from experiments.harness.serving import ServerFlags
from jaxdl import InputError


@dataclasses.dataclass(frozen=True)
class Config:
    """Writes a classifier as StableHLO: --workdir=RUN --out=FILE"""

    served: ServerFlags = ServerFlags()
    out: str = flag("", "the file to write; the names of the classes go to the same with .json")
    preprocess: str = flag(
        "inside", "whether it takes uint8 images or normalized ones", ("inside", "outside")
    )

    def __post_init__(self) -> None:
        self.served.require_one("--out=FILE")
        there = self.out != "" and Path(self.out).parent.is_dir()
        require(self, "out", there, "a file in a folder that there is")


def run(argv: list[str]) -> None:
    """Writes the file, and says what is in it."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    training.prepare_jax()
    server = config.served.server()
    dtype = np.uint8 if config.preprocess == "inside" else np.float32
    out = Path(config.out)
    out.write_bytes(server.exported(dtype).serialize())
    record = {
        "images": ["b", *server.image_shape],
        "dtype": np.dtype(dtype).name,
        "platforms": serving.PLATFORMS,
        "classes": list(server.class_names),
    }
    described = out.with_name(f"{out.name}.json")
    described.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    height, width, channels = server.image_shape
    print(
        f"{server.title}: {np.dtype(dtype).name} images [b, {height}, {width}, {channels}] to "
        f"{len(server.class_names)} probabilities, on {', '.join(serving.PLATFORMS)}; "
        f"{out.stat().st_size / 1e6:.1f} MB in {out}, classes in {described}"
    )


if __name__ == "__main__":
    cli.main(run)
