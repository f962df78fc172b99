"""Train several flows on one store and stack them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sbiflow.contracts import RowSimulator, Simulator
from sbiflow.embedding import EmbeddingConfig
from sbiflow.ensemble import Ensemble, stack
from sbiflow.families import FlowConfig
from sbiflow.store import Store
from sbiflow.training.config import TrainConfig
from sbiflow.training.run import observed, train
from sbiflow.training.shards import Shards
from sbiflow.training.stream import StreamedData, budget_of


@dataclass(frozen=True)
class Member:
    """Settings of one member of an ensemble."""

    flow: FlowConfig
    embedding: EmbeddingConfig
    config: TrainConfig


def default_members(simulations: int) -> tuple[Member, ...]:
    """Settings by the number of simulations: many small and diverse networks for few, fewer and larger for many.

    With and without dropout, with and without an embedding, affine and spline: over-fitting sets in at different
    times for different problems, and stacking finds out. Chosen by the log-density of simulations that no member had
    seen.
    """
    spline_ar = "spline_autoregressive"
    bare, none = FlowConfig(spline_ar, layers=2, hidden=96, blocks=1), EmbeddingConfig("none")
    if simulations < 4_000:
        passes = simulations / 128
        embedding = EmbeddingConfig(features=32, hidden=64, blocks=2)
        plain = FlowConfig(layers=4, hidden=32, blocks=1)
        large = replace(plain, hidden=64, blocks=2)
        kinds = [
            (replace(plain, family="maf", layers=5), embedding, 4e-3, 20),
            (replace(plain, family="maf", layers=2, dropout=0.2), embedding, 2e-3, 20),
            (replace(plain, layers=2, dropout=0.1), embedding, 8e-3, 40),
            (replace(plain, dropout=0.2), embedding, 8e-3, 40),
            (replace(plain, dropout=0.2), embedding, 16e-3, 40),
            (replace(plain, family=spline_ar, layers=3, dropout=0.2), embedding, 8e-3, 40),
            (replace(large, dropout=0.2), embedding, 8e-3, 60),
            (replace(large, dropout=0.4), embedding, 8e-3, 60),
        ]
    elif simulations < 40_000:
        passes = simulations // 256
        embedding = EmbeddingConfig(features=32, hidden=128, blocks=2)
        plain = FlowConfig(layers=5, hidden=48, blocks=1)
        kinds = [
            (replace(plain, family="maf"), embedding, 4e-3, 20),
            (plain, embedding, 4e-3, 25),
            (replace(plain, dropout=0.1), embedding, 8e-3, 40),
            (replace(plain, dropout=0.05), embedding, 8e-3, 30),
            (replace(plain, family=spline_ar, layers=4, dropout=0.1), embedding, 8e-3, 30),
            (replace(bare, layers=1, dropout=0.3), none, 8e-3, 30),
            (replace(bare, dropout=0.2), none, 4e-3, 30),
        ]
    else:
        passes = simulations // 512
        kinds = [
            (FlowConfig(), EmbeddingConfig(), 4e-3, 20),
            (replace(bare, dropout=0.1), none, 4e-3, 20),
        ]
    return tuple(
        Member(flow, embedding, _config(rate, int(share * passes))) for flow, embedding, rate, share in kinds
    )


def _config(rate: float, steps: int) -> TrainConfig:
    return TrainConfig(steps=min(max(steps, 150), 20_000), learning_rate=rate, patience=None)


def train_ensemble(
    store: Store | Sequence[Store],
    simulator: Simulator | RowSimulator,
    members: Sequence[Member] | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    checkpoint_folder: str | Path | None = None,
    progress: bool = True,
    memory: float | None = None,
) -> Ensemble:
    """Train several flows on the same rows of a store, each from its own seed, and weight them by held-out rows.

    Args:
        store, simulator, memory: as for `train`.
        members: settings; by default `default_members` of the store's number of simulations. Their own seeds are
            ignored.
        seed: of the split, and of every member's weights, order of rows and noise.
        device: "auto" takes a GPU if there is one.
        checkpoint_folder: where each member keeps its checkpoint, for the run to be resumed.
        progress: show progress bars.

    Raises:
        ValueError: as `train`; no members, or members with different validation shares.
    """
    shards = Shards.of(store)
    chosen = tuple(default_members(shards.n_ok) if members is None else members)
    shares = {member.config.resolved(shards.n_ok).validation for member in chosen}
    if len(shares) != 1:
        raise ValueError(f"members: expected at least one, of one validation share, got shares {shares}")
    if checkpoint_folder is not None:
        Path(checkpoint_folder).mkdir(parents=True, exist_ok=True)
    posteriors = []
    for i, member in enumerate(chosen):
        own = replace(member.config, seed=seed + 1000 * i)
        checkpoint = (
            None if checkpoint_folder is None else Path(checkpoint_folder) / f"member-{i}.safetensors"
        )
        posteriors.append(
            train(
                store, simulator, own, flow=member.flow, embedding=member.embedding, device=device,
                checkpoint=checkpoint, split=seed, progress=progress,
                memory=memory,
            )
        )  # fmt: skip
    share = shares.pop() or 0.0
    cpu = torch.device("cpu")
    with StreamedData(shards, simulator.prior, share, seed, cpu, budget=budget_of(memory)) as data:
        z, x = observed(simulator, data.validation, seed)  # no other rows are read
    theta = simulator.prior.constrain(z.double())[0]
    return Ensemble(
        tuple(posteriors), stack(torch.stack([posterior.log_prob(theta, x) for posterior in posteriors]))
    )
