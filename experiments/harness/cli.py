"""Frozen dataclasses as command-line flags; the only importer of absl.flags.

An experiment declares its flags as the fields of a dataclass made with `flag`, and hands the class
and a function to `main`. Flags live in a set of their own for each call, so any number of
experiments can be imported into one process.
"""

import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from jaxdl import InputError, hosts

FLAGS_FILE = "flags.txt"
RECIPES = Path(__file__).parent.parent / "flags"
C = TypeVar("C")


def flag(default: Any, help: str, choices: Sequence[str] = (), *, part_of_run: bool = True) -> Any:
    """A dataclass field that is a flag.

    Args:
      default: its default; a tuple makes a comma-separated list.
      help: one line, shown by --help.
      choices: the words it accepts; anything of its type when empty.
      part_of_run: whether another value makes another run, so that a run cannot be resumed with it.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "choices": tuple(choices), "part_of_run": part_of_run},
    )


def parse(config_type: type[C], argv: Sequence[str]) -> tuple[C, list[str]]:
    """Reads `--name=value` arguments and flagfiles into a config.

    Later arguments win over earlier ones. What a flagfile says for its own method is left out
    where the command line names another method: see the class's `BELONGS_TO`.

    A field `given` that is no flag gets the names of the flags that the arguments or a flagfile
    gave, be it at their defaults.

    Returns:
      The config, validated by its own `__post_init__`, and the arguments that are no flags.

    Raises:
      InputError: an unknown flag, a value of the wrong type, not among the choices or not finite.
    """
    values, rest = _read(config_type, argv)
    if values["help"].value:
        print(_usage(config_type))
        raise SystemExit(0)
    for name in _left_behind(config_type, values, argv):
        values[name].unparse()
    names = [field.name for field in _flags_of(config_type)]
    read = {name: values[name].value for name in names}
    as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}
    given = {"given": frozenset(name for name in names if values[name].present)}
    config = config_type(**as_tuples, **(given if hasattr(config_type, "given") else {}))
    # Afterwards, so that a flag with bounds of its own is told of those.
    for name, value in as_tuples.items():
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(n) for n in numbers if isinstance(n, float))
        require(config, name, finite, "finite")
    return config, rest


def _read(config_type: type, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a class with the values of the arguments, and what of these is no flag."""
    values = flags.FlagValues()
    fields = _flags_of(config_type)
    hints = typing.get_type_hints(config_type)
    for field in fields:
        _define(values, field, hints[field.name])
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    try:
        return values, values(["", *_with_recipes(argv)])[1:]
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, [f.name for f in fields], 1)
        hint = f"; did you mean --{close[0]}?" if close else "; see --help"
        raise InputError(f"no flag --{error.flagname}{hint}") from None
    except flags.Error as error:  # absl marks a missing flagfile "ERROR:: "
        raise InputError(str(error).removeprefix("ERROR:: ")) from None
    except UnicodeDecodeError:
        raise InputError(f"a flagfile is no text: {' '.join(argv)}") from None


def find_recipe(path: str) -> str:
    """The file of a recipe: the one at a path, or else the one of that name in this package.

    Raises:
      InputError: there is neither; the message names recipes that are close.
    """
    there = Path(os.path.expanduser(path))  # as absl does, which lets strange homes be
    if there.exists() and not there.is_dir():
        return path
    recipe = RECIPES / f"{path.removesuffix('.flags')}.flags"
    if path and "/" not in path and recipe.is_file():
        return str(recipe)
    names = sorted(file.stem for file in RECIPES.glob("*.flags"))
    close = difflib.get_close_matches(Path(path).stem, names, 3)
    hint = f"; did you mean the recipe {' or '.join(close)}?" if close else ""
    raise InputError(f"--flagfile={path}: there is no such file and no such recipe{hint}")


def _with_recipes(argv: Sequence[str]) -> list[str]:
    """The arguments with the file of each recipe in place of its name."""
    found: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, has_value, path = argument.partition("=")
        if argument == "--":
            return [*found, argument, *arguments]
        if name not in ("--flagfile", "-flagfile"):
            found.append(argument)
        elif has_value:
            found.append(f"{name}={find_recipe(path)}")
        else:
            found += [name, *map(find_recipe, itertools.islice(arguments, 1))]
    return found


def _left_behind(config_type: type, values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """The flags that only a flagfile gives, where the command line changes what they belong to.

    The class's `BELONGS_TO` holds it: {flag: (values) -> what the flag belongs to}.
    """
    on_line, in_files, arguments = [], [], iter(argv)
    for argument in arguments:
        if not re.fullmatch("--?flagfile(=.*)?", argument):
            on_line.append(argument)
        else:
            in_files += (
                [argument] if "=" in argument else [argument, *itertools.islice(arguments, 1)]
            )
    belongs_to = getattr(config_type, "BELONGS_TO", {})
    if not (belongs_to and on_line and in_files):
        return []
    (own, _), (filed, _) = _read(config_type, on_line), _read(config_type, in_files)
    return [
        name
        for name, owner in belongs_to.items()
        if filed[name].present and not own[name].present and owner(filed) != owner(values)
    ]


def _flags_of(config: Any) -> list[dataclasses.Field]:
    """The fields of a config, or of its class, that are flags."""
    return [field for field in dataclasses.fields(config) if "help" in field.metadata]


def _define(values: flags.FlagValues, field: dataclasses.Field, hint: Any) -> None:
    help, choices = field.metadata["help"], field.metadata["choices"]
    default: Any = field.default
    if isinstance(hint, types.UnionType):  # `int | None` is an int that may be left out
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    common: dict[str, Any] = {"flag_values": values}
    if choices and hint is str:
        flags.DEFINE_enum(field.name, default, choices, help, **common)
    elif hint is str:
        flags.DEFINE_string(field.name, default, help, **common)
    elif hint is bool:
        flags.DEFINE_bool(field.name, default, help, **common)
    elif hint is int:
        flags.DEFINE_integer(field.name, default, help, **common)
    elif hint is float:
        flags.DEFINE_float(field.name, default, help, **common)
    else:  # tuple[item, ...]
        item = typing.get_args(hint)[0]
        parser = _ListParser(item, choices)
        flags.DEFINE(parser, field.name, list(default), help, **common)


class _ListParser(flags.ArgumentParser):
    """`a,b,c` as a list of items of one type, each among the choices if there are any."""

    def __init__(self, item: type, choices: Sequence[str]):
        self._item, self._choices = item, choices

    def parse(self, argument: Any) -> list[Any]:
        if isinstance(argument, list):
            return argument
        items = []
        for word in filter(None, argument.split(",")):
            if self._choices and word not in self._choices:
                raise ValueError(f"{word!r} should be one of <{'|'.join(self._choices)}>")
            try:
                items.append(self._item(word))
            except ValueError:
                raise ValueError(f"{word!r} is no {self._item.__name__}") from None
        return items

    def flag_type(self) -> str:
        return f"comma-separated {self._item.__name__}s"


def _usage(config_type: type) -> str:
    doc = (config_type.__doc__ or "").strip()
    lines = [doc, "", "flags (or --flagfile=FILE_OR_RECIPE, one to a line):"]
    if hasattr(config_type, "BELONGS_TO"):
        lines[-1:] = [
            "flags (or --flagfile=FILE_OR_RECIPE, one to a line, of which the penalties, the decay",
            "and the arguments of its --optimizer and --schedule are left out where the command",
            "line names others):",
        ]
    for field in _flags_of(config_type):
        choices = f" <{'|'.join(field.metadata['choices'])}>" if field.metadata["choices"] else ""
        lines.append(f"  --{field.name}={_to_text(field.default)}{choices}")
        lines.append(f"      {field.metadata['help']}")
    return "\n".join(lines)


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def to_dict(config: Any) -> dict[str, Any]:
    """The value of each flag by its name."""
    return {field.name: getattr(config, field.name) for field in _flags_of(config)}


def to_flags(config: Any) -> str:
    """A config as the text of a flagfile that gives it back."""
    pairs = to_dict(config).items()
    return "".join(f"--{name}={_to_text(value)}\n" for name, value in pairs if value is not None)


def changed(config: Any) -> dict[str, Any]:
    """The values of a config that are not the defaults of its class, by the names of the flags."""
    pairs = ((field, getattr(config, field.name)) for field in _flags_of(config))
    return {field.name: value for field, value in pairs if value != field.default}


def require(config: Any, name: str, holds: bool, accepted: str) -> None:
    """Raises InputError that names a flag, its value, and what would be accepted."""
    if not holds:
        raise InputError(f"--{name}={_to_text(getattr(config, name))}: it must be {accepted}")


def check_same_run(config: C, workdir: Path, apart_from: Collection[str] = ()) -> C:
    """Gives the flags of the run in `workdir`, which must be the same where they make the run.

    Args:
      config: the flags given now.
      workdir: the run's folder.
      apart_from: flags that may differ all the same, as what uses a trained run takes them anew.

    Raises:
      InputError: one is another; the message names it.
    """
    try:
        saved, _ = parse(type(config), [f"--flagfile={workdir / FLAGS_FILE}"])
    except InputError as error:
        raise InputError(f"{workdir / FLAGS_FILE} is damaged: {error}") from None
    for field in _flags_of(config):
        was, now = getattr(saved, field.name), getattr(config, field.name)
        checked = field.metadata["part_of_run"] and field.name not in apart_from
        if checked and was != now:
            further = "--resume=extend, " if field.name in ("steps", "epochs") else ""
            raise InputError(
                f"{workdir} holds a run with --{field.name}={_to_text(was)}, not "
                f"{_to_text(now) or 'none'}; give the flags of {workdir / FLAGS_FILE}, {further}or "
                "another --workdir"
            )
    return saved


def experiment_of(workdir: str | Path) -> str:
    """The name of the experiment whose run is in `workdir`.

    Raises:
      InputError: there is no run.
    """
    path = Path(workdir) / FLAGS_FILE
    if not path.is_file():
        raise InputError(f"no run in {workdir}: it has no {FLAGS_FILE}")
    for line in path.read_text().splitlines():
        if line.startswith("--experiment="):
            return line.split("=", 1)[1]
    raise InputError(f"{path} names no --experiment")


class Interrupted(Exception):
    """A signal ended a run before its end, and it is saved; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.number = number


@contextlib.contextmanager
def if_interrupted(line: str) -> Iterator[None]:
    """Prints what to know beyond the command that goes on with the interrupted run alone."""
    try:
        yield
    except Interrupted:
        if hosts.is_first():
            print(line)
        raise


def main(run: Callable[[list[str]], None]) -> typing.NoReturn:
    """Runs with the command line; a user's mistake becomes one line and exit code 1.

    A run that a signal ended exits with 128 and the signal's number, as a shell would tell it.
    """
    # XLA tells its own concerns at length; errors remain.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        run(sys.argv[1:])
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.number)
    except (InputError, OSError, FloatingPointError) as error:
        hosts.fail(" ".join(str(error).split()))
        sys.exit(1)
    except KeyboardInterrupt:
        if hosts.are_several():
            hosts.fail("interrupted", exit_code=130)
        sys.exit(130)
    except Exception as error:
        if hosts.is_consequence(error):
            hosts.end_with_the_others()
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            hosts.fail(f"out of memory: {' '.join(str(error).split())[:200]}")
            sys.exit(1)
        if hosts.are_several():  # who wait for this one
            traceback.print_exc()
            hosts.fail(type(error).__name__)
        raise
    sys.exit(0)
