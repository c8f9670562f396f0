"""Data: where images come from, how they become arrays, and which batch belongs to which step.

`load` finds a set by name, `Preprocess` is the host's part of the input transform, and `Pipeline`
gives the batch of step n as a pure function of (seed, n); `Ring` does so for points that it draws.
Importing this package imports neither JAX nor TensorFlow nor TensorFlow Datasets: worker processes
import it too.
"""

from jaxdl.data.images import CorruptImage, Preprocess
from jaxdl.data.pipeline import Batch, Pipeline
from jaxdl.data.ring import Ring
from jaxdl.data.sources import (
    Dataset,
    Example,
    Source,
    fingerprint,
    from_arrays,
    labels,
    load,
    require_classes,
)
from jaxdl.data.subsets import few, fold, only, split_off

__all__ = [
    "Batch",
    "CorruptImage",
    "Dataset",
    "Example",
    "Pipeline",
    "Preprocess",
    "Ring",
    "Source",
    "few",
    "fingerprint",
    "fold",
    "from_arrays",
    "labels",
    "load",
    "only",
    "require_classes",
    "split_off",
]
