"""Checkpoints without pickle: tensors in safetensors, the rest as JSON in its header; replaced atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT_FORMAT = 1


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write beside the target and rename: a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    try:
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(flat, temporary, {"meta": json.dumps(meta)})
        os.replace(temporary, path)
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
