"""Checkpoints without pickle: tensors in safetensors, the rest as JSON in its header; replaced atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT_FORMAT = 2  # 2: the regression start and dropout


@dataclass(frozen=True)
class Checkpoint:
    """The file that a run writes every `every` steps; `identity` is what makes it this run's and no other's."""

    path: Path
    every: int
    identity: dict[str, Any]

    def write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Replace the file."""
        save_tensors(self.path, tensors, {"identity": self.identity, "state": state})

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state, or None if there is no file yet.

        Raises:
            ValueError: not a readable checkpoint, or another run's; names every setting that differs.
        """
        if not self.path.exists():
            return None
        tensors, meta = load_tensors(self.path)
        found, expected = flat(meta.get("identity", {})), flat(json.loads(json.dumps(self.identity)))
        different = [
            f"{key}: expected {expected.get(key)}, got {found.get(key)}"
            for key in dict.fromkeys([*expected, *found])
            if expected.get(key) != found.get(key)
        ]
        if different:
            raise ValueError(
                f"{self.path}: a checkpoint of another run; use another file. {'; '.join(different)}"
            )
        return tensors, meta["state"]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = [flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write beside the target and rename: a kill leaves the old file or the new one, never half of one.

    Raises:
        OSError: the file cannot be written (a full disk); a former one is kept.
    """
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    try:
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(flat, temporary, {"meta": json.dumps(meta)})
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error}); a former file is kept") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta data of a file written by `save_tensors`.

    Raises:
        ValueError: not a readable safetensors file of ours.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path}: expected a safetensors file written by sbiflow, got {error}") from None


def digest(*tensors: Tensor) -> str:
    """16 hexadecimal digits of the tensors' bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def pack(
    model: nn.Module, optimisers: list[torch.optim.Optimizer], best: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of a training run under flat names."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for i, optimiser in enumerate(optimisers):
        for j, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{j}/{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


def unpack(
    tensors: dict[str, Tensor], model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Load a run's tensors into model and optimisers; returns the best weights so far."""

    def group(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }

    model.load_state_dict(group("model/"))
    for i, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in group(f"optimiser/{i}/").items():
            j, key = name.split("/", 1)
            state.setdefault(int(j), {})[key] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return group("best/")
