"""The UCI handwritten digits of scikit-learn as a TFDS builder that needs no TensorFlow.

This is the set that every command and test can use without a download, and the pattern for
preparing a set of one's own: TFDS writes ArrayRecord without TensorFlow as long as its images are
given as PIL images or encoded bytes (arrays it would encode through TensorFlow).
"""

import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_TRAIN = 1437


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits, 8x8 grey: scikit-learn's order, 1,437 to train and 360 to test.

    The ink levels 0..16 become 0..255. Within each split, record i is scikit-learn's next image.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}  # noqa: RUF012 (TFDS defines it so)
    # Nothing is downloaded, so there are no checksums; TFDS would look for their file by way of
    # importlib_resources, which it does not declare among its dependencies.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The UCI optical recognition of handwritten digits, as in scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation="""@misc{alpaydin1998optical,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, E. and Kaynak, C.},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}""",
            disable_shuffling=True,  # TFDS would order the records by a hash of their keys
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        return {
            "train": self._generate_examples(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
            "test": self._generate_examples(images[NUM_TRAIN:], labels[NUM_TRAIN:]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": Image.fromarray(image), "label": int(label)}


def prepare(data_dir: pathlib.Path) -> None:
    """Writes `digits` under `data_dir` unless it is there; takes under a second.

    The set is written aside and renamed into place whole, so neither an interrupted preparation
    nor two at once can leave a broken set.

    Raises:
      OSError: `data_dir` cannot be written.
    """
    version_dir = data_dir / "digits" / str(Digits.VERSION)
    if version_dir.exists():
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incomplete.digits-", dir=data_dir) as scratch:
        # TFDS prints its progress; under a second of work deserves no output.
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            Digits(data_dir=scratch, file_format="array_record").download_and_prepare()
        version_dir.parent.mkdir(exist_ok=True)
        try:
            os.rename(os.path.join(scratch, "digits", version_dir.name), version_dir)
        except OSError:
            if not version_dir.exists():  # else another process was first, with the same bytes
                raise
