"""The flags that say which text a run is about."""

import dataclasses

from experiments.harness.cli import flag
from jaxdl.data.text import read_corpus


@dataclasses.dataclass(frozen=True)
class CorpusFlags:
    """Which text, and where it is."""

    text: str = flag("", "a file, a folder, or tfds:NAME; empty for Python's standard library")
    data_dir: str = flag("", "where TFDS sets are; TFDS's own place when empty", part_of_run=False)

    @property
    def name(self) -> str:
        """What it is, in words."""
        return self.text or "the standard library"

    def read(self) -> dict[str, str]:
        """The text of each split."""
        return read_corpus(self.text, self.data_dir or None)
