"""The one place where modules are imported late.

Optional dependencies, by `require`: a missing one is named with its extra. Heavy ones, by `deferred`: scipy.stats,
scikit-learn and matplotlib take three times as long to import as the whole of sbiflow.
"""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import and return an optional module, e.g. `require("astropy.io.fits", extra="fits")`.

    Args:
        module: dotted name of the module.
        extra: the extra of sbiflow (pyproject.toml) that installs it.

    Raises:
        ImportError: the module is not installed; the message is the command that installs it.

    >>> require("math", extra="export").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # the module is there and one of its own imports is not: its own message is the right one
        raise ImportError(f'{module} is not installed: run `pip install "sbiflow[{extra}]"`') from None


class _Deferred:
    """A module that is imported when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def deferred(module: str) -> Any:
    """Stands for a module of ours or of a dependency, dotted name, and imports it on first use.

    >>> stats = deferred("scipy.stats")
    >>> float(stats.norm.cdf(0.0))
    0.5
    """
    return _Deferred(module)
