"""Where a result came from: package version, a hash of the simulator's source, the git revision beside it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def package_version() -> str:
    """The installed version of sbiflow."""
    try:
        return importlib.metadata.version("sbiflow")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # a source tree on the path, not installed


def source_hash(thing: Any) -> str:
    """SHA-256 of the source that defines a simulator (an object, or a function), "" where there is no source.

    For a class or function of an imported module it is the module's whole file, since helpers stand beside
    it; in a script or notebook only the function or class itself: a new figure title refuses no store.
    What other modules contain is not covered: a simulator can say more with an attribute `source_hash`.
    """
    own = getattr(thing, "source_hash", None)
    if isinstance(own, str):
        return own
    defined = definition(thing)
    module = inspect.getmodule(defined)
    in_script = module is None or module.__name__ in ("__main__", "__mp_main__")
    try:
        source = inspect.getsource(defined if in_script or module is None else module)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()


def git_revision(thing: Any) -> str:
    """The git commit at the source of `thing`, with "+" if tracked files differ from it; "" without git."""
    try:
        folder = Path(inspect.getsourcefile(definition(thing)) or "").resolve().parent
        revision = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, TypeError, subprocess.SubprocessError):
        return ""
    return revision + ("+" if changed else "")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def definition(thing: Any) -> Callable[..., Any] | type:
    """The function or class behind a wrapper, a partial or an object."""
    thing = inspect.unwrap(thing)  # a FunctionSimulator points to its function with `__wrapped__`
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
