"""A model on disk: a folder with `config.json` and `model.safetensors`, no pickle.

The configuration carries the SHA-256 of the weights, so that files of two models (a save that was killed between
them, a copy gone wrong) are never taken for one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MODEL_FORMAT = 2  # 2: the novelty test in embedding space
_FILES = ("training.csv", "training.png", "model.safetensors", "config.json")  # in the order of replacement


def write_model(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], save_log: Callable[[Path], None] | None
) -> None:
    """Write everything beside the folder, then move it in, the configuration last.

    Args:
        folder: made if need be; other files in it (a checkpoint) are left alone.
        config: JSON-able; format version and checksum are added.
        tensors: the weights.
        save_log: writes training.csv and training.png into the folder it is given.

    Raises:
        OSError: the folder cannot be written (a full disk); a former model in it is kept.
    """
    rank = os.environ.get(
        "RANK", ""
    )  # the processes of torchrun all save the model that they trained together
    partial = folder.with_name(f"{folder.name}.partial{rank}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        weights = partial / "model.safetensors"
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, weights)
        config = {"format_version": MODEL_FORMAT, "weights_sha256": _sha256(weights), **config}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if save_log is not None:
            save_log(partial)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if (partial / name).exists():
                (partial / name).replace(folder / name)
    except SafetensorError as error:
        raise OSError(f"{folder}: cannot be written ({error}); a former model is kept") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights.

    Raises:
        ValueError: no model there, one of another format version, or files that are damaged or of two models.
    """
    path, weights = folder / "config.json", folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder}: expected a model made by `sbiflow train`, got no {path.name} there")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a readable model, got {error}") from None
    found = config.get("format_version") if isinstance(config, dict) else None
    if found != MODEL_FORMAT:
        raise ValueError(
            f"{folder}: expected model format {MODEL_FORMAT}, got {found}: update sbiflow or retrain"
        )
    if not weights.is_file():
        raise ValueError(f"{folder}: expected a model made by `sbiflow train`, got no {weights.name} there")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights}: expected a readable model, got {error}") from None
    if config.get("weights_sha256") != _sha256(weights):
        raise ValueError(f"{weights}: expected the weights that {path.name} belongs to, got others")
    return config, tensors


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
