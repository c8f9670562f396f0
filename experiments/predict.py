"""Classifies image files with a trained run, or with published weights.

    python -m experiments.predict --workdir=runs/resnet_digits --images a.png b.jpg

prints for each image its name, its class and the probability, one line each. Images are
preprocessed as that run was trained.

    python -m experiments.predict --model=resnet50 --weights=resnet50.safetensors --images photos

prints five such lines for each image below the folder, for its best classes from the best on.
Images are preprocessed as those weights were trained. Classes are numbers, or the lines of
--labels=FILE. `--top` gives more or fewer lines, `--format` other forms.

    python -m experiments.predict --workdir=RUN --images=PHOTOS --report=FOLDER

of PHOTOS/CLASS/*.jpg leaves in FOLDER how often each class is taken for which (confusion.png), a
table of the classes (classes.md), and the images that it is most wrong about (wrong.png).
"""

import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.harness import cli, study
from experiments.harness.cli import flag, require
from experiments.harness.serving import Server, ServerFlags
from jaxdl import InputError, data, figures, pictures
from jaxdl.data.folders import IMAGE_SUFFIXES

WRONG = 24
"""How many of the images that it is most wrong about are shown."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Classifies images: --workdir=RUN or --model=NAME --weights=FILE, and --images a.png ..."""

    served: ServerFlags = ServerFlags()
    images: str = flag("", "an image file or a folder; more may follow it, separated by spaces")
    top: int = flag(0, "how many of the best classes to tell; 0 for 1 of a run and 5 of weights")
    format: str = flag("text", "of what is printed", ("text", "csv", "json"))
    report: str = flag("", "a folder for what is right and wrong of images in folders by class")

    def __post_init__(self) -> None:
        self.served.require_one("--images a.png b.jpg ...")
        require(self, "images", self.images != "", "a.png b.jpg ..., image files or folders")
        require(self, "top", self.top >= 0, "at least 0")


def find_images(paths: Sequence[str]) -> list[str]:
    """The paths, with the images below it in the place of a folder.

    Raises:
      InputError: there are none in a folder.
    """
    found = []
    for path in paths:
        if not Path(path).is_dir():
            found.append(path)
            continue
        files = sorted(file for file in Path(path).rglob("[!.]*") if file.is_file())
        images = [str(file) for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise InputError(f"no file in {path} ends in {', '.join(IMAGE_SUFFIXES)}")
        found += images
    return found


Said = Callable[[str, list[tuple[str, float]]], None]
"""(path, its best classes with their probabilities) -> None."""


def printer(form: str) -> Said:
    """What prints the best classes of an image in a format."""
    if form == "json":
        return lambda path, best: print(
            json.dumps(
                {"image": path, "classes": [{"class": c, "probability": p} for c, p in best]}
            ),
            flush=True,
        )
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])

        def row(path: str, best: list[tuple[str, float]]) -> None:
            writer.writerows((path, rank, c, f"{p:.6g}") for rank, (c, p) in enumerate(best, 1))

        return row

    def lines(path: str, best: list[tuple[str, float]]) -> None:
        for name, probability in best:
            print(f"{path}\t{name}\t{probability:.4f}", flush=True)

    return lines


def classified(paths: Sequence[str], server: Server) -> Iterator[tuple[str, np.ndarray | None]]:
    """(path, probabilities [K]) of each image; None, told on stderr, for what cannot be read."""
    classify = server.classify()
    for path in tqdm(paths, unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty()):
        try:
            yield path, classify(path)
        except (OSError, data.CorruptImage) as error:
            with tqdm.external_write_mode():
                print(f"error: {error}", file=sys.stderr)
            yield path, None


def true_class(path: str, server: Server) -> int:
    """The class that the folder of an image is named by.

    Raises:
      InputError: none is.
    """
    name = Path(path).parent.name
    if name not in server.class_names:
        known = ", ".join(list(server.class_names)[:10])
        raise InputError(
            f"--report: {path} lies in a folder {name!r}, which is no class; expected folders "
            f"called {known}{' ...' if len(server.class_names) > 10 else ''}"
        )
    return list(server.class_names).index(name)


def write_report(folder: Path, found: Sequence[tuple[str, int, np.ndarray]], server: Server) -> str:
    """Writes what is right and wrong of (path, class, probabilities), and returns a line of it."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(server.class_names)
    counts = np.zeros((count, count), int)
    for _, label, probabilities in found:
        counts[label, np.argmax(probabilities)] += 1
    (folder / "classes.md").write_text(f"{class_table(counts, server.class_names)}\n")
    figures.save(
        folder / "confusion.png",
        lambda figure: draw_confusion(figure, counts, server.class_names),
        (min(12.0, 2.5 + 0.4 * count),) * 2,
    )
    wrong = [row for row in found if np.argmax(row[2]) != row[1]]
    wrong.sort(key=lambda row: row[2][row[1]] - row[2].max())
    if wrong:
        images = [server.preprocess(Path(p).read_bytes(), name=p) for p, _, _ in wrong[:WRONG]]
        picture = pictures.grid(np.stack(images) / 255, min(8, len(images)))
        pictures.write_png(folder / "wrong.png", picture)
        names = server.class_names
        lines = [
            f"{path}\t{names[label]}\t{names[int(np.argmax(p))]}\t{p.max():.4f}"
            for path, label, p in wrong[:WRONG]
        ]
        (folder / "wrong.tsv").write_text("image\tis\ttaken for\tprobability\n" + "\n".join(lines))
    right = int(np.trace(counts))
    return f"{right} of {len(found)} images are right, {right / len(found):.4f}; in {folder}"


def class_table(counts: np.ndarray, names: Sequence[str]) -> str:
    """Recall and precision of each class, in Markdown.

    Args:
      counts: how often class i was taken for j, [K, K].
      names: of the classes.
    """
    rows = [["class", "images", "recall", "precision", "most often taken for"]]
    for i, name in enumerate(names):
        images, taken = counts[i].sum(), counts[:, i].sum()
        if not images and not taken:
            continue
        others = np.where(np.arange(len(names)) == i, 0, counts[i])
        most = f"{names[int(others.argmax())]} ({others.max()})" if others.any() else ""
        recall = f"{counts[i, i] / images:.4f}" if images else ""
        precision = f"{counts[i, i] / taken:.4f}" if taken else ""
        rows.append([name, str(images), recall, precision, most])
    return study.table(rows)


def draw_confusion(figure: Any, counts: np.ndarray, names: Sequence[str]) -> None:
    """Shares of each class that are taken for each, as a heat map."""
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    if len(names) <= 20:
        for i, j in np.argwhere(counts):
            color = "black" if shares[i, j] > 0.5 else "white"
            axes.text(j, i, counts[i, j], ha="center", va="center", color=color, size=7)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.set(xlabel="taken for", ylabel="is")
    axes.set_title(f"{np.trace(counts) / max(counts.sum(), 1):.1%} of {counts.sum()} images right")


def run(argv: list[str]) -> None:
    """Prints lines for each image; what cannot be read is told on stderr and fails the command."""
    config, more = cli.parse(Config, argv)
    paths = find_images([config.images, *more])
    server = config.served.server()
    labels = [true_class(path, server) for path in paths] if config.report else []
    top, say = config.top or (1 if config.served.workdir else 5), printer(config.format)
    found: list[tuple[str, int, np.ndarray]] = []
    failures = 0
    for number, (path, probabilities) in enumerate(classified(paths, server)):
        if probabilities is None:
            failures += 1
            continue
        best = np.argsort(-probabilities, kind="stable")[:top]
        with tqdm.external_write_mode():
            say(path, [(server.class_names[i], float(probabilities[i])) for i in best])
        if labels:
            found.append((path, labels[number], probabilities))
    if found:
        print(write_report(Path(config.report), found, server), file=sys.stderr)
    if failures:
        raise InputError(f"{failures} of {len(paths)} images could not be read")


if __name__ == "__main__":
    cli.main(run)
