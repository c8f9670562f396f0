"""Sets of noise, noise:HxWxC:CLASSES: images of any size with nothing to read and nothing to learn.

For the speed and the memory of a network at the size of a set that is not here.
"""

import dataclasses
import re

import numpy as np

from jaxdl import InputError
from jaxdl.data.sources import Dataset, Example

TRAIN, TEST = 1_281_167, 50_000
"""Examples of the splits: as many as ImageNet's of 2012 (arXiv:1409.0575)."""


@dataclasses.dataclass(frozen=True)
class Noise:
    """Images whose pixels are uniform, each drawn from its own index when it is asked for.

    Attributes:
      shape: of an image.
      num_classes: they take turns.
      count: of examples.
      seed: of all draws.
    """

    shape: tuple[int, int, int]
    num_classes: int
    count: int
    seed: int

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self.count

    def __getitem__(self, index: int) -> Example:
        """Returns example `index`."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        image = np.random.default_rng((self.seed, index)).integers(0, 256, self.shape, np.uint8)
        label = index % self.num_classes
        return {"image": image, "label": label, "name": f"noise {index}"}


def load(text: str) -> Dataset:
    """Makes the set that `HxWxC:CLASSES` or `HxWxC:CLASSES:EXAMPLES` names.

    Raises:
      InputError: it names none.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x([13]):(\d+)(?::(\d+))?", text)
    numbers = [int(n) for n in found.groups() if n is not None] if found else [0]
    if min(numbers) < 1:
        raise InputError(
            f"noise:{text}: expected noise:HEIGHTxWIDTHxCHANNELS:CLASSES, such as "
            "noise:224x224x3:1000, with 1 or 3 channels, and :EXAMPLES after it if need be"
        )
    height, width, channels, classes, *count = numbers
    shape = height, width, channels
    train, test = (count[0], count[0]) if count else (TRAIN, TEST)
    splits = {"train": Noise(shape, classes, train, 0), "test": Noise(shape, classes, test, 1)}
    names = tuple(map(str, range(classes)))
    return Dataset(f"noise:{text}", {**splits}, names, channels)
