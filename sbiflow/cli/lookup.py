"""From what a user or a file names to the object: simulators, their observations, devices, kinds of file."""

from __future__ import annotations

import importlib
import os
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch

from sbiflow import provenance, samples_file, store
from sbiflow.blocks import AnySimulator, is_row_simulator
from sbiflow.observation import read_observation
from simulators.registry import BUILT_IN, BuiltIn


def simulator_by_name(text: str) -> AnySimulator:
    """A built-in simulator, or `package.module:attribute`: an object, or what makes it without arguments.

    Modules are looked for in the current folder first.

    Raises:
        ValueError: no such simulator, its code raises, or it is no simulator.
    """
    if text in BUILT_IN:
        return BUILT_IN[text].make()
    module, colon, attribute = text.partition(":")
    if not (module and colon and attribute):
        known = ", ".join(BUILT_IN)
        raise ValueError(f"simulator: expected {known} or package.module:attribute, got {text!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = attrgetter(attribute)(importlib.import_module(module))
        if isinstance(found, type) or not _has_method(found):
            found = found()
    except Exception as error:  # it is the user's code: whatever it raises
        raise ValueError(f"simulator {text}: {type(error).__name__}: {error}") from error
    is_row_simulator(found)
    if missing := [name for name in ("prior", "x_shape") if not hasattr(found, name)]:
        raise ValueError(f"simulator {text}: expected the attributes prior and x_shape, got no {missing[0]}")
    return found


def _has_method(thing: Any) -> bool:
    return hasattr(thing, "signal") or hasattr(thing, "simulate_row")


def built_in(recorded: str) -> BuiltIn | None:
    """The built-in simulator that stores and models record by this name."""
    return next((entry for entry in BUILT_IN.values() if entry.recorded == recorded), None)


def recorded_simulator(given: str | None, recorded: str, file: Path) -> AnySimulator:
    """The simulator that `--simulator` gives, or else the built-in one that `file` was made with.

    Raises:
        ValueError: it is not built in, and none is given.
    """
    if given is not None:
        return simulator_by_name(given)
    entry = built_in(recorded)
    if entry is None:
        raise ValueError(
            f"{file}: made with the simulator {recorded!r}, which is not built in: "
            "pass --simulator package.module:attribute"
        )
    return entry.make()


def differences(simulator: AnySimulator, name: str, version: str) -> list[str]:
    """Sentences on how the simulator differs from the recorded one."""
    own = getattr(simulator, "name", None) or type(simulator).__name__, str(getattr(simulator, "version", ""))
    pairs = zip(("name", "version"), (name, version), own, strict=True)
    return [f"{what}: expected {old!r}, got {new!r}" for what, old, new in pairs if old != new]


def source_changed(simulator: AnySimulator, source_hash: str) -> bool:
    """Whether the simulator's source is not the recorded one (it may still do the same)."""
    return provenance.source_hash(simulator) != source_hash


def load_observation(
    path: Path, x_shape: tuple[int, ...], simulator: AnySimulator | None, dataset: str | None
) -> np.ndarray:
    """x (*x_shape): by the simulator's own `read_observation(path)` if it has one, a built-in's reader, or as numbers.

    The first two may answer None: a format that they leave to `sbiflow.observation`.
    """
    own = getattr(simulator, "read_observation", None)
    entry = built_in(getattr(simulator, "name", ""))
    x = None
    if own is not None:
        x = own(path)
    elif entry is not None:
        x = entry.read(path, cast(Any, simulator))  # the recorded name says that it is its own
    return read_observation(path, x_shape, dataset) if x is None else np.asarray(x)


def pick_device(text: str) -> str:
    """ "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1" as a device that is there."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(text).type
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu or cuda, got {text!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected auto or cpu (no CUDA GPU here), got {text!r}")
    return text


def kind_of(path: Path) -> str:
    """ "model", "store" or "samples".

    Raises:
        ValueError: it is none of them.
        FileNotFoundError: there is nothing.
    """
    if path.is_dir():
        return "model"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("format")
    except OSError as error:
        raise ValueError(f"{path}: expected a store, a model folder or draws, got {error}") from None
    kinds = {store.FORMAT: "store", samples_file.FORMAT: "samples"}
    if not isinstance(found, str) or found not in kinds:
        raise ValueError(
            f"{path}: expected a store, a model folder or draws, got an HDF5 file of something else"
        )
    return kinds[found]


def check_target(path: Path | None, made_by_us: str | None = None) -> None:
    """Raise before any work if a result cannot be written there, or would replace a file of another kind.

    Raises:
        ValueError: no such folder; a folder of that name; an existing file that is not of kind `made_by_us`.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected a file in an existing folder, got no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path}: expected the name of a file, got a folder")
    if made_by_us and path.exists() and _kind_or_none(path) != made_by_us:
        raise ValueError(f"{path}: expected a new file or {made_by_us} to replace, got another kind of file")


def _kind_or_none(path: Path) -> str | None:
    try:
        return kind_of(path)
    except ValueError:
        return None
