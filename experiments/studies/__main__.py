"""Lists the studies: `python -m experiments.studies`."""

import sys

from experiments.__main__ import listed


def main(arguments: list[str]) -> int:
    """Prints the list; gives the exit code."""
    studies = {name.removeprefix("studies."): line for name, line in listed()["studies"].items()}
    if arguments and arguments[0] not in ("--help", "-h"):
        known = arguments[0] in studies
        hint = (
            f"run it with python -m experiments.studies.{arguments[0]}"
            if known
            else ("there are " + ", ".join(studies))
        )
        print(f"error: python -m experiments.studies takes nothing; {hint}", file=sys.stderr)
        return 1
    width = max(map(len, studies))
    for name, line in studies.items():
        print(f"{name:<{width}}  {line}")
    print("\nRun one with python -m experiments.studies.NAME; --quick takes less than two minutes,")
    print("and --page=docs/results writes its page, where it has them.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
