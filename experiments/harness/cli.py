"""Frozen dataclasses as command-line flags; the only importer of absl.flags.

A tool declares its flags as the fields of a dataclass made with `flag`, and hands the class and a
function to `main`. An experiment composes its own out of groups: a field whose default is a
dataclass of flags is a group, and its flags are flags of the whole. Flags live in a set of their
own for each call, so any number of experiments can be imported into one process.
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from absl import flags

from experiments.harness import recipes
from jaxdl import InputError, hosts

C = TypeVar("C")
Owner = Callable[[Mapping[str, Any]], Any]
"""(the values of a group by its fields' names) -> what a flag of the group belongs to"""


def flag(
    default: Any,
    help: str,
    choices: Sequence[str] | str = (),
    *,
    part_of_run: bool = True,
    belongs_to: Owner | None = None,
) -> Any:
    """A dataclass field that is a flag.

    Args:
      default: its default; a tuple makes a comma-separated list.
      help: one line, shown by --help.
      choices: the words it accepts, or the name of the field of its group that holds them; anything
        of its type when empty.
      part_of_run: whether another value makes another run, so that a run cannot be resumed with it.
      belongs_to: what its value was chosen for: where that is another, the value is not taken over
        (see `parse`, and `group`).
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices if isinstance(choices, str) else tuple(choices),
            "part_of_run": part_of_run,
            "belongs_to": belongs_to,
        },
    )


def group(default: Any, prefix: str, like: str) -> Any:
    """A dataclass field that is a group of flags, and like another group where nothing is given.

    A group with neither a prefix nor another that it is like is an ordinary field.

    Args:
      default: the group.
      prefix: what its flags' names begin with.
      like: the field of the group whose values it takes, but for those that belong to what is
        another here.
    """
    return dataclasses.field(default=default, metadata={"prefix": prefix, "like": like})


class Flag(NamedTuple):
    """A flag of a config.

    Attributes:
      name: as the command line has it.
      group: the config's field that holds the group it is of; empty for one of the config's own.
      field: of the group, or of the config.
      default: its default; None for one that is like another group's.
      like: the name of the flag whose value it takes when not given; empty for most.
      choices: the words it accepts; anything of its type when empty.
    """

    name: str
    group: str
    field: dataclasses.Field
    default: Any
    like: str
    choices: tuple[str, ...]

    @property
    def help(self) -> str:
        """One line, shown by --help."""
        return self.field.metadata["help"]


def flags_of(config_type: type) -> tuple[Flag, ...]:
    """The flags of a config's class, group by group."""
    found: list[Flag] = []
    for field in dataclasses.fields(config_type):
        if "help" in field.metadata:
            choices = field.metadata["choices"]
            found.append(Flag(field.name, "", field, field.default, "", choices))
        elif dataclasses.is_dataclass(field.default):
            prefix, like = (field.metadata.get(name, "") for name in ("prefix", "like"))
            of_group: Any = field.default
            for own in dataclasses.fields(of_group):
                if "help" in own.metadata:
                    default = None if like else getattr(of_group, own.name)
                    name, other = f"{prefix}{own.name}", own.name if like else ""
                    choices = own.metadata["choices"]
                    if isinstance(choices, str):
                        choices = getattr(of_group, choices)
                    found.append(Flag(name, field.name, own, default, other, choices))
    return tuple(found)


def default(config_type: type, name: str) -> Any:
    """The default of a flag, by its name."""
    return next(flag.default for flag in flags_of(config_type) if flag.name == name)


def parse(config_type: type[C], argv: Sequence[str]) -> tuple[C, list[str]]:
    """Reads `--name=value` arguments and flagfiles into a config.

    Later arguments win over earlier ones. What a flagfile says for its own method is left out
    where the command line names another method: see `flag`.

    A field `given` that is no flag, of the config or a group, gets the names of the flags that the
    arguments or a flagfile gave, be it at their defaults.

    Returns:
      The config, validated by its own `__post_init__` and its groups', and the arguments that are
      no flags.

    Raises:
      InputError: an unknown flag, a value of the wrong type, not among the choices or not finite.
    """
    values, rest = _read(config_type, argv)
    if values["help"].value:
        print(_usage(config_type))
        raise SystemExit(0)
    for name in _left_behind(config_type, values, argv):
        values[name].unparse()
    read = {flag.name: values[flag.name].value for flag in flags_of(config_type)}
    read = {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}
    # To be like the other group is what a flag of a group that is like one says by nothing.
    given = {
        flag.name
        for flag in flags_of(config_type)
        if values[flag.name].present and not (flag.like and read[flag.name] == "")
    }
    config = _build(config_type, read, frozenset(given))
    # Afterwards, so that a flag with bounds of its own is told of those.
    for name, value in read.items():
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(n) for n in numbers if isinstance(n, float))
        require(config, name, finite, "finite")
    return config, rest


def name_of(argument: str) -> str:
    """The name of the flag that an argument gives."""
    return argument.lstrip("-").partition("=")[0]


def apart(config_type: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A tool's own arguments, --help among them, and those of what it runs."""
    own = {"help", "h", *(flag.name for flag in flags_of(config_type))}
    ours = [argument for argument in argv if name_of(argument) in own]
    return ours, [argument for argument in argv if name_of(argument) not in own]


def replace(config: C, **values: Any) -> C:
    """A config with other values of some flags, by their names; these count as given."""
    given = _given(config) | values.keys()
    return _build(type(config), to_dict(config) | values, given, like=False)


def settle(config: Any, **values: Any) -> None:
    """Sets flags of a config in its own `__post_init__`: what follows from its other flags."""
    of_groups: dict[str, dict[str, Any]] = {}
    for flag in flags_of(type(config)):
        if flag.name in values:
            of_groups.setdefault(flag.group, {})[flag.field.name] = values[flag.name]
    for name, value in of_groups.pop("", {}).items():
        object.__setattr__(config, name, value)
    for name, changed_values in of_groups.items():
        changed_group = dataclasses.replace(getattr(config, name), **changed_values)
        object.__setattr__(config, name, changed_group)


def _build(
    config_type: type[C], values: Mapping[str, Any], given: frozenset[str], like: bool = True
) -> C:
    """A config of values by flags' names."""
    own: dict[str, dict[str, Any]] = {"": {}}
    for flag in flags_of(config_type):
        own.setdefault(flag.group, {})[flag.field.name] = values[flag.name]
    as_class: Any = config_type  # which mypy does not know to be a dataclass
    fields = {field.name: field for field in dataclasses.fields(as_class)}
    built: dict[str, Any] = own.pop("")
    for name, of_group in own.items():
        metadata = fields[name].metadata
        if like and "like" in metadata:
            members = [flag for flag in flags_of(config_type) if flag.group == name]
            present = {flag.field.name for flag in members if flag.name in given}
            of_group = _like(own[metadata["like"]], of_group, present, members)
            own[name] = of_group
        kept: Any = fields[name].default  # with what of it is no flag
        if hasattr(kept, "given"):
            of_group = of_group | {"given": given}
        with _named(metadata.get("prefix", "")):
            built[name] = dataclasses.replace(kept, **of_group)
    if hasattr(config_type, "given"):
        built["given"] = given
    return config_type(**built)


def _like(
    other: Mapping[str, Any],
    own: Mapping[str, Any],
    present: set[str],
    members: Sequence[Flag],
) -> dict[str, Any]:
    """The values of a group that is like another: its own where they are present."""
    mine = {name: own[name] if name in present else other[name] for name in own}
    for flag in members:
        owner, name = flag.field.metadata["belongs_to"], flag.field.name
        if owner and name not in present and owner(mine) != owner(other):
            mine[name] = flag.field.default
    return mine


class _Refused(InputError):
    """A flag's value that cannot be."""

    def __init__(self, name: str, value: str, accepted: str):
        super().__init__(f"--{name}={value}: it must be {accepted}")
        self.name, self.value, self.accepted = name, value, accepted


@contextlib.contextmanager
def _named(prefix: str) -> Iterator[None]:
    """Puts a group's prefix before the names in what the group refuses."""
    try:
        yield
    except _Refused as refused:
        raise _Refused(prefix + refused.name, refused.value, refused.accepted) from None
    except InputError as error:
        raise InputError(f"{prefix.rstrip('_')}: {error}" if prefix else str(error)) from None


def _given(config: Any) -> frozenset[str]:
    holders = [config, *(getattr(config, f.name) for f in dataclasses.fields(config))]
    return next((h.given for h in holders if hasattr(h, "given")), frozenset())


def _read(config_type: type, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a class with the values of the arguments, and what of these is no flag."""
    values = flags.FlagValues()
    for flag in flags_of(config_type):
        _define(values, flag, config_type)
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    try:
        return values, values(["", *recipes.in_place(argv)])[1:]
    except flags.UnrecognizedFlagError as error:
        names = [flag.name for flag in flags_of(config_type)]
        close = difflib.get_close_matches(error.flagname, names, 1)
        hint = f"; did you mean --{close[0]}?" if close else "; see --help"
        raise InputError(f"no flag --{error.flagname}{hint}") from None
    except flags.Error as error:  # absl marks a missing flagfile "ERROR:: "
        raise InputError(str(error).removeprefix("ERROR:: ")) from None
    except UnicodeDecodeError:
        raise InputError(f"a flagfile is no text: {' '.join(argv)}") from None


def _left_behind(config_type: type, values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """The flags that only a flagfile gives, where the command line changes what they belong to."""
    on_line, in_files, arguments = [], [], iter(argv)
    for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
        if not re.fullmatch("--?flagfile(=.*)?", argument):
            on_line.append(argument)
        else:
            in_files += (
                [argument] if "=" in argument else [argument, *itertools.islice(arguments, 1)]
            )
    if not (on_line and in_files):
        return []
    (own, _), (filed, _) = _read(config_type, on_line), _read(config_type, in_files)

    everything = flags_of(config_type)

    def owner(flag: Flag, there: flags.FlagValues) -> Any:
        members = [f for f in flags_of(config_type) if f.group == flag.group]
        return flag.field.metadata["belongs_to"](
            {f.field.name: there[f.name].value for f in members}
        )

    return [
        flag.name
        for flag in everything
        if flag.field.metadata["belongs_to"]
        and filed[flag.name].present
        and not own[flag.name].present
        and owner(flag, filed) != owner(flag, values)
    ]


def _define(values: flags.FlagValues, flag: Flag, config_type: type) -> None:
    owner = type(getattr(config_type, flag.group)) if flag.group else config_type
    hint, choices = _hints(owner)[flag.field.name], flag.choices
    default: Any = flag.default
    if isinstance(hint, types.UnionType):  # `int | None` is an int that may be left out
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    common: dict[str, Any] = {"flag_values": values}
    if choices and hint is str:
        words = (*choices, "") if flag.like else choices
        flags.DEFINE_enum(flag.name, default, words, flag.help, **common)
    elif hint is str:
        flags.DEFINE_string(flag.name, default, flag.help, **common)
    elif hint is bool:
        flags.DEFINE_bool(flag.name, default, flag.help, **common)
    elif hint is int:
        flags.DEFINE_integer(flag.name, default, flag.help, **common)
    elif hint is float:
        flags.DEFINE_float(flag.name, default, flag.help, **common)
    else:  # tuple[item, ...]
        item = typing.get_args(hint)[0]
        parser = _ListParser(item, choices)
        listed = None if default is None else list(default)
        flags.DEFINE(parser, flag.name, listed, flag.help, **common)


_hints = functools.cache(typing.get_type_hints)  # which reads them anew


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
    doc = inspect.cleandoc(config_type.__doc__ or "")
    lines = [doc, "", "flags (or --flagfile=FILE_OR_RECIPE, one to a line):"]
    if any(flag.field.metadata["belongs_to"] for flag in flags_of(config_type)):
        lines[-1:] = [
            "flags (or --flagfile=FILE_OR_RECIPE, one to a line, of which the penalties, the decay",
            "and the arguments of its --optimizer and --schedule are left out where the command",
            "line names others):",
        ]
    for flag, before in zip(flags_of(config_type), (None, *flags_of(config_type)), strict=False):
        if flag.group and (before is None or flag.group != before.group):
            of_group = getattr(config_type, flag.group)
            prefix = flag.name.removesuffix(flag.field.name)
            title = (type(of_group).__doc__ or "").strip().splitlines()[0]
            lines += ["", f" {title}{f' --{prefix}*, where it is another' if flag.like else ''}"]
        choices = f" <{'|'.join(flag.choices)}>" if flag.choices else ""
        lines.append(f"  --{flag.name}={to_text(flag.default)}{choices}")
        like = f"; as --{flag.like} when not given" if flag.like else ""
        lines.append(f"      {flag.help}{like}")
    return "\n".join(lines)


def to_text(value: Any) -> str:
    """A flag's value as the command line has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def to_dict(config: Any) -> dict[str, Any]:
    """The value of each flag by its name."""
    holder = lambda flag: getattr(config, flag.group) if flag.group else config
    return {flag.name: getattr(holder(flag), flag.field.name) for flag in flags_of(type(config))}


def to_flags(config: Any) -> str:
    """A config as the text of a flagfile that gives it back."""
    values = to_dict(config)
    like = {flag.name: flag.like for flag in flags_of(type(config)) if flag.like}
    return "".join(
        f"--{name}={to_text(value)}\n"
        for name, value in values.items()
        if value is not None and not (name in like and value == values[like[name]])
    )


def changed(config: Any) -> dict[str, Any]:
    """The values of a config that are not the defaults of its class, by the names of the flags."""
    values = to_dict(config)
    defaults = {f.name: values[f.like] if f.like else f.default for f in flags_of(type(config))}
    return {name: value for name, value in values.items() if value != defaults[name]}


def require(config: Any, name: str, holds: bool, accepted: str) -> None:
    """Raises InputError that names a flag, its value, and what would be accepted.

    Args:
      config: what has the flag, a config or a group of one.
      name: the flag's.
      holds: whether its value is accepted.
      accepted: what is, in words.
    """
    if not holds:
        raise _Refused(name, to_text(to_dict(config)[name]), accepted)


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
