"""Recipes: flagfiles that come with the package, found by their names."""

import difflib
import itertools
from collections.abc import Sequence
from pathlib import Path

from jaxdl import InputError

FOLDER = Path(__file__).parent.parent / "flags"


def find(path: str) -> str:
    """The file of a recipe: the one at a path, or else the one of that name in this package.

    Raises:
      InputError: there is neither; the message names recipes that are close.
    """
    there = Path(path).expanduser()
    if there.exists() and not there.is_dir():
        return path
    recipe = FOLDER / f"{path.removesuffix('.flags')}.flags"
    if path and "/" not in path and recipe.is_file():
        return str(recipe)
    names = sorted(file.stem for file in FOLDER.glob("*.flags"))
    close = difflib.get_close_matches(Path(path).stem, names, 3)
    hint = f"; did you mean the recipe {' or '.join(close)}?" if close else ""
    raise InputError(f"--flagfile={path}: there is no such file and no such recipe{hint}")


def in_place(argv: Sequence[str]) -> list[str]:
    """The arguments with the file of each recipe in place of its name."""
    arguments, found = iter(argv), list[str]()
    for argument in arguments:
        flag, has_value, path = argument.partition("=")
        if argument == "--":
            return [*found, argument, *arguments]
        if flag not in ("--flagfile", "-flagfile"):
            found.append(argument)
        elif has_value:
            found.append(f"{flag}={find(path)}")
        else:
            found += [flag, *map(find, itertools.islice(arguments, 1))]
    return found
