"""Measures the pixels of a data set's training images: mean, spread and principal colors.

    python -m experiments.pixels --dataset=cifar10
    python -m experiments.pixels --dataset=folder:photos --image_size=224 --crop_share=0.875

prints the flags that normalize the set's images, and writes what `--pca_file` reads, for the color
shift of Krizhevsky et al. 2012. Images are resized as training resizes them, which evens them out
somewhat; random crops are left out.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.harness import cli
from experiments.harness.cli import flag, require
from jaxdl import InputError, augment, data


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures the pixels of a data set's training images: --dataset=NAME"""

    dataset: str = flag("digits", "digits, folder:PATH, idx:FOLDER, or a prepared TFDS set")
    data_dir: str = flag("", "where TFDS sets are; TFDS's own place when empty")
    image_size: int = flag(32, "height and width that images are resized to, in pixels")
    crop_share: float = flag(1.0, "share of the resized image that the crop keeps")
    on_corrupt: str = flag("fail", "what an unreadable image does", ("fail", "skip"))
    workers: int = flag(0, "Grain's worker processes; 0 for threads")
    output: str = flag("pixels.json", "the file to write")

    def __post_init__(self) -> None:
        folder = Path(self.output).parent
        fits = folder.is_dir() and not Path(self.output).is_dir()
        require(self, "output", fits, "a file in a folder that is there")


def run(argv: list[str]) -> None:
    """Prints the flags and writes the file."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    dataset = data.load(config.dataset, config.data_dir or None)
    pipeline = data.Pipeline(
        dataset,
        data.Preprocess(config.image_size, dataset.channels, config.crop_share),
        batch_size=min(128, len(dataset.splits["train"])),
        backend="grain",  # one pass, and nothing of it kept
        workers=config.workers,
        on_corrupt=config.on_corrupt,  # type: ignore[arg-type]  # the flag's choices
    )

    def batches():
        examples = pipeline.examples("train")
        with tqdm(
            total=examples, unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty()
        ) as bar:
            for batch in pipeline.evaluate("train"):
                yield batch["image"][batch["mask"] > 0]
                bar.update(min(pipeline.batch_size, examples - bar.n))

    measured = augment.pixel_statistics(batches())
    images = pipeline.examples("train") - pipeline.skipped
    report: dict[str, Any] = {
        "dataset": config.dataset,
        "images": images,
        "image_size": config.image_size,
        "crop_share": config.crop_share,
        "mean": measured.mean.tolist(),
        "std": measured.std.tolist(),
    }
    if dataset.channels == 3:
        report["eigenvalues"] = measured.eigenvalues.tolist()
        report["eigenvectors"] = measured.eigenvectors.tolist()
    Path(config.output).write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"{images} train images of {config.dataset}, {config.image_size} pixels square, in [0, 1]"
    )
    for name, values in (("mean", measured.mean), ("std", measured.std)):
        print(f"--{name}=" + ",".join(f"{value:.4f}" for value in values))
    if dataset.channels == 3:
        print(f"--pca_file={config.output}")


if __name__ == "__main__":
    cli.main(run)
