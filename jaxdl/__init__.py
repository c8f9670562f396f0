"""jaxdl: the classics of deep learning as pure JAX functions.

Importing this package touches no device and reads no flag. Start from `jaxdl.models` for the
networks, `jaxdl.task` for the train step, and `jaxdl.loop` for the loop around it.
"""

from typing import Any

__version__ = "0.1.0"

Batch = dict[str, Any]
"""Arrays, of JAX or of NumPy, whose first axis counts the rows.

`mask` [B], where there is one, is 1 for what counts and 0 for padding or, in evaluation, for a row
that cannot be read, of which all else is padding too.
"""


class InputError(ValueError):
    """A mistake in what the user gave: a flag, a name, a file, an image, a checkpoint.

    The message is one line that names what was wrong and what would be accepted, fit to be shown
    without a traceback. Library callers may catch it as the `ValueError` it is.
    """


def require(holds: bool, given: str, accepted: str) -> None:
    """Refuses what a user gave unless a condition holds.

    Args:
      holds: the condition.
      given: what was given, by its name and with its value.
      accepted: what would be accepted.

    Raises:
      InputError: it does not hold; the message tells both.
    """
    if not holds:
        raise InputError(f"{given}: expected {accepted}")
