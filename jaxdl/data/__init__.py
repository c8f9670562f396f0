"""Data: where they come from, how they become arrays, and which batch belongs to which step.

`load` finds a set of images by name, `Preprocess` is the host's part of the input transform, and
`Pipeline` gives the batch of step n as a pure function of (seed, n); `RowPipeline` does so for rows
of any schema, such as those of a `Table`, and `Ring` for points that it draws.
Importing this package imports neither JAX nor TensorFlow nor TensorFlow Datasets: worker processes
import it too.
"""

from jaxdl.data.image_pipeline import Pipeline
from jaxdl.data.images import CorruptImage, Preprocess
from jaxdl.data.pipeline import RowPipeline
from jaxdl.data.ring import Ring
from jaxdl.data.rows import Field, Rows, Schema, Table, Unreadable
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
from jaxdl.data.subsets import fold, hold_out, select_classes, subsample

__all__ = [
    "CorruptImage",
    "Dataset",
    "Example",
    "Field",
    "Pipeline",
    "Preprocess",
    "Ring",
    "RowPipeline",
    "Rows",
    "Schema",
    "Source",
    "Table",
    "Unreadable",
    "fingerprint",
    "fold",
    "from_arrays",
    "hold_out",
    "labels",
    "load",
    "require_classes",
    "select_classes",
    "subsample",
]
