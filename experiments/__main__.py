"""Lists what can be run: `python -m experiments`."""

import ast
import difflib
import sys
from pathlib import Path

HERE = Path(__file__).parent
KINDS = {
    "trains": "Experiments, which train",
    "tools": "Tools",
    "studies": "Studies, each of a claim of the textbooks",
}


def listed() -> dict[str, dict[str, str]]:
    """What there is, by its kind.

    Files are read, not imported: that would take JAX, and seconds.

    Returns:
      {kind: {name: the first line of its docstring}}; what has a `build` trains.
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for path in sorted([*HERE.glob("*.py"), *HERE.glob("studies/*.py")]):
        if path.stem.startswith("__"):
            continue
        module = ast.parse(path.read_text(encoding="utf-8"))
        trains_or_tools = "trains" if _has_build(module) else "tools"
        kind = trains_or_tools if path.parent == HERE else "studies"
        name = ".".join(path.relative_to(HERE).with_suffix("").parts)
        found[kind][name] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def _has_build(module: ast.Module) -> bool:
    """Whether a module defines, assigns or imports `build`."""
    outside = [node for node in module.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    nodes = [*module.body, *(inner for node in outside for inner in ast.walk(node))]
    return any("build" in (getattr(n, "name", None), getattr(n, "id", None)) for n in nodes)


def main(arguments: list[str]) -> int:
    """Prints the list, or the command of what is named; gives the exit code."""
    found = listed()
    names = [name for kind in found.values() for name in kind]
    if not arguments or arguments[0] in ("--help", "-h"):
        width = max(map(len, names))
        for kind, title in KINDS.items():
            print(f"{title}:")
            for name, line in found[kind].items():
                print(f"  {name:<{width}}  {line}")
            print()
        print("Run one with python -m experiments.NAME; --help after it tells its flags.")
        return 0
    name, *flags = arguments
    if name not in names:
        close = difflib.get_close_matches(name, names, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "without a name it lists them"
        print(f"error: python -m experiments knows no {name}; {hint}", file=sys.stderr)
        return 1
    line = f"run it with python -m experiments.{' '.join([name, *flags])}"
    if flags:  # a script that gave them expects more than a line
        print(f"error: {line}", file=sys.stderr)
        return 1
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
