"""Parts of a set: a held-out share, folds, some of its classes, a few examples of each.

Each is a pure function of the set and a seed, so every host and every start draws the same.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxdl import InputError
from jaxdl.data.sources import (
    Dataset,
    Example,
    Source,
    identify,
    labels,
    name_some,
    require_classes,
    wrong_label,
)


def hold_out(dataset: Dataset, share: float, seed: int, split: str = "validation") -> Dataset:
    """Moves a random share of 'train' to a new split; the same one for the same seed.

    Every class keeps its share, as near as whole examples allow, and at least one train example.
    Of a set without classes the share is drawn of all examples.

    Args:
      dataset: a set without such a split.
      share: the part of the train examples to move, in (0, 1).
      seed: which examples.
      split: 'validation' or 'test', what becomes of them.

    Raises:
      InputError: there is such a split, either part would be empty, or a label is of no class.
    """
    if split in dataset.splits:
        raise InputError(
            f"{dataset.name} has a {split} split of its own; "
            "a share of train can be split off only from a set without one"
        )
    train = dataset.splits["train"]
    kept, taken = draw_share(_classes(dataset), share, seed, split)
    parts: dict[str, Source] = {"train": _Subset(train, kept), split: _Subset(train, taken)}
    return dataset._replace(splits=dataset.splits | parts)


def draw_share(
    classes: np.ndarray, share: float, seed: int, split: str = "validation"
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the examples that `hold_out` moves, of their classes alone.

    Args:
      classes: int [N], from 0; all 0 for a share of examples without classes.
      share: the part of the examples to draw, in (0, 1).
      seed: which examples.
      split: what becomes of them, as an error says.

    Returns:
      The indices of those that stay and of those drawn, both ascending.

    Raises:
      InputError: either part would be empty.
    """
    order, classes = _in_order(classes, seed)
    counts = np.bincount(classes)
    wanted = share * counts
    taken = np.floor(wanted).astype(int)
    # The greatest remainders are rounded up, but no class is emptied.
    most = np.minimum(np.ceil(wanted), counts - 1)
    for label in np.argsort(taken - wanted, kind="stable"):
        if taken.sum() < round(share * len(classes)) and taken[label] < most[label]:
            taken[label] += 1
    chosen = _rank(classes) < taken[classes]
    if not 0 < chosen.sum() < len(classes):
        raise InputError(
            f"{split} share {share} of {len(classes)} train examples leaves a part empty; "
            "expected a share between 0 and 1 that gives both parts an example"
        )
    return np.sort(order[~chosen]), np.sort(order[chosen])


def select_classes(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """Keeps the examples of some classes, labelled anew in the order given.

    Args:
      dataset: the set, of which every split is reduced.
      class_names: at least two of its classes; the first becomes label 0.

    Raises:
      InputError: a class that the set does not have or that is given twice, fewer than two, or a
        split that would be left empty.
    """
    require_classes(dataset)
    unknown = [name for name in class_names if name not in dataset.class_names]
    if unknown:
        raise InputError(
            f"{dataset.name} has no class {unknown[0]!r}; it has {name_some(dataset.class_names)}"
        )
    if len(set(class_names)) < max(2, len(class_names)):
        raise InputError(
            f"classes {name_some(class_names)} of {dataset.name}: expected at least two, each once"
        )
    new_labels = np.full(len(dataset.class_names), -1)
    new_labels[[dataset.class_names.index(name) for name in class_names]] = range(len(class_names))
    splits: dict[str, Source] = {}
    for split, source in dataset.splits.items():
        relabelled = new_labels[_checked_labels(dataset, split)]
        indices = np.flatnonzero(relabelled >= 0)
        if not len(indices):
            raise InputError(
                f"the {split} split of {dataset.name} has no example of {name_some(class_names)}"
            )
        splits[split] = _Subset(source, indices, relabelled[indices])
    return dataset._replace(splits=splits, class_names=tuple(class_names))


def subsample(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    """Keeps so many train examples of each class, and all of the other splits.

    The same seed draws the same examples, and a smaller number a part of a larger one's.

    Args:
      dataset: the set.
      per_class: how many of each class.
      seed: which examples.

    Raises:
      InputError: fewer than one is wanted, or more than a class has, or there are no classes.
    """
    require_classes(dataset)
    train = dataset.splits["train"]
    order, classes = _by_class(dataset, seed)
    counts = np.bincount(classes, minlength=len(dataset.class_names))
    if not 1 <= per_class <= counts.min():
        raise InputError(
            f"{per_class} train examples of each class of {dataset.name}: expected 1 to "
            f"{counts.min()}, what there is of class {dataset.class_names[counts.argmin()]!r}"
        )
    subset = _Subset(train, np.sort(order[_rank(classes) < per_class]))
    return dataset._replace(splits=dataset.splits | {"train": subset})


def fold(dataset: Dataset, folds: int, number: int, seed: int) -> Dataset:
    """Cuts 'train' into equal parts at random; one becomes 'validation' and the others 'train'.

    Every example is in the validation split of just one fold. Parts differ by one example at most,
    in all and in each class, so a class with fewer examples than folds is missing from some; one
    with a single example is missing from 'train' where that is for validation.

    Args:
      dataset: a set without a validation split.
      folds: how many parts.
      number: which part is for validation, from 0.
      seed: of the cut, the same for all folds of one cross-validation.

    Raises:
      InputError: there is a validation split, one of the numbers is out of range, or a label is
        of no class.
    """
    if "validation" in dataset.splits:
        raise InputError(
            f"{dataset.name} has a validation split of its own; "
            "folds can be cut only from a set without one"
        )
    train = dataset.splits["train"]
    if not 2 <= folds <= len(train):
        raise InputError(
            f"{folds} folds of {len(train)} train examples: expected 2 to {len(train)}"
        )
    if not 0 <= number < folds:
        raise InputError(f"fold {number} of {folds}: expected 0 to {folds - 1}")
    order, _ = _by_class(dataset, seed)
    chosen = np.arange(len(train)) % folds == number
    parts: dict[str, Source] = {
        "train": _Subset(train, np.sort(order[~chosen])),
        "validation": _Subset(train, np.sort(order[chosen])),
    }
    return dataset._replace(splits=dataset.splits | parts)


def origin(source: Source) -> tuple[Source, np.ndarray]:
    """The source that a part was taken out of, and the indices there of its examples.

    Examples that were labelled anew are those of no other source.
    """
    indices = np.arange(len(source))
    while isinstance(source, _Subset) and source.new_labels is None:
        indices = source.indices[indices]
        source = source.source
    return source, indices


def _by_class(dataset: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The train examples class by class, at random within each, and the class of each of them."""
    return _in_order(_classes(dataset), seed)


def _classes(dataset: Dataset) -> np.ndarray:
    """The class of every train example; all 0 in a set without classes."""
    if dataset.class_names:
        return _checked_labels(dataset, "train")
    return np.zeros(len(dataset.splits["train"]), int)


def _in_order(classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples class by class, at random within each, and the class of each of them."""
    order = np.random.default_rng(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    return order, classes[order]


def _rank(classes: np.ndarray) -> np.ndarray:
    """The place of each example among those of its class, of classes in ascending order."""
    return np.arange(len(classes)) - np.searchsorted(classes, classes)


def _checked_labels(dataset: Dataset, split: str) -> np.ndarray:
    """The label of every example of a split, each of which is of a class."""
    found = labels(dataset.splits[split])
    outside = np.flatnonzero((found < 0) | (found >= len(dataset.class_names)))
    if len(outside):
        raise wrong_label(dataset, split, int(outside[0]), int(found[outside[0]]))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Subset:
    source: Source
    indices: np.ndarray
    new_labels: np.ndarray | None = None  # of the chosen examples, where they are not the source's

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        example = self.source[int(self.indices[index])]
        if self.new_labels is not None:
            example["label"] = int(self.new_labels[index])
        return example

    @property
    def labels(self) -> np.ndarray:
        return labels(self.source)[self.indices] if self.new_labels is None else self.new_labels

    def identify(self) -> Iterator[bytes | memoryview]:
        yield f"{len(self)} {self.new_labels is None} ".encode()
        yield self.indices.tobytes()
        yield b"" if self.new_labels is None else self.new_labels.tobytes()
        yield from identify(self.source)
