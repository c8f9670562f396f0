"""What one can train, by name."""

import importlib
import pkgutil
from typing import Any

import experiments


def names() -> tuple[str, ...]:
    """The names of all experiments."""
    return tuple(
        m.name for m in pkgutil.iter_modules(experiments.__path__) if is_experiment(m.name)
    )


def is_experiment(name: str) -> bool:
    """Whether `experiments.NAME` is there and has what a run is made of."""
    if name not in {module.name for module in pkgutil.iter_modules(experiments.__path__)}:
        return False
    module = load(name)
    return hasattr(module, "Config") and hasattr(module, "build")


def load(name: str) -> Any:
    """The module `experiments.NAME`, which is known when it is named."""
    return importlib.import_module(f"experiments.{name}")
