"""The HDF5 file that holds a set of draws: plain arrays and attributes, written whole or not at all.

Datasets: theta, log_q, x, for draws whose observations were tested novelty_input and novelty_embedding (p-values), for
weighted draws log_weights and weights (normalised). Attributes: names,
units, prior (JSON), x_sha256, seed, source, warnings, and what else `PosteriorSamples.save` gives.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT = "sbiflow samples"
FORMAT_VERSION = 1


def observation_hash(x: np.ndarray) -> str:
    """SHA-256 of an observation's float64 values in C order, as hex."""
    return hashlib.sha256(np.ascontiguousarray(x, dtype="<f8").tobytes()).hexdigest()


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> Path:
    """Write the file under a temporary name, then rename it into place; an older file stays until then."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs.update(
                format=FORMAT, format_version=FORMAT_VERSION, x_sha256=observation_hash(arrays["x"])
            )
            file.attrs.update(attributes)
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every dataset and every attribute of a file of draws.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not HDF5, truncated, another program's, of a newer format, or the observation in it
            no longer matches its hash.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            arrays = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a readable HDF5 file, got one that is truncated or foreign ({error})"
        ) from None
    if attributes.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected {FORMAT!r}, got an HDF5 file with format {attributes.get('format')!r}"
        )
    if attributes["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path}: expected format version {FORMAT_VERSION} or older, got {attributes['format_version']}; "
            "update sbiflow"
        )
    missing = {"theta", "log_q", "x"} - set(arrays)
    if missing:
        raise ValueError(
            f"{path}: expected the datasets theta, log_q and x, got none named {', '.join(sorted(missing))}"
        )
    if observation_hash(arrays["x"]) != attributes["x_sha256"]:
        raise ValueError(
            f"{path}: expected an observation with SHA-256 {attributes['x_sha256']}, got another: damaged"
        )
    return arrays, attributes
