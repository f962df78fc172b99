"""A density from a table: the training loop of posteriors, with the table's columns as the parameters.

The maximum of the mean log-density of a flow behind a fixed bijection; x is the columns that it is conditional on, or
nothing. A share of the rows is set apart before anything is fitted, for the evidence (evidence.py); of the others a
share says when to stop.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor

from sbiflow.checks import check_count
from sbiflow.density.dequantise import KINDS, Dequantised, Dequantiser
from sbiflow.density.evidence import DensityWarning, Rows
from sbiflow.density.model import Density
from sbiflow.density.table import Bounds, Columns, bijection, read_columns
from sbiflow.embedding import EmbeddingConfig
from sbiflow.families import FlowConfig
from sbiflow.flows import ConditionalFlow
from sbiflow.posterior import Posterior
from sbiflow.priors import Prior
from sbiflow.seeding import check_seed, torch_generator
from sbiflow.training.checkpoint import digest
from sbiflow.training.config import TrainConfig
from sbiflow.training.data import TrainingData, held_out
from sbiflow.training.group import join
from sbiflow.training.run import Source, finished, pick_device, train_on

_APART_KEY = 0x44415054
_MOST_APART, _FEWEST_APART, _ENTROPY_ROWS = 10_000, 20, 10_000
_REPEATED = 0.5  # share of distinct values below which a real column looks like counts


@dataclass(frozen=True)
class _Table:
    """What the training loop asks of a simulator: bijection and shapes; rows of a table have their noise already."""

    prior: Prior
    x_shape: tuple[int, ...]
    name: str = "table"
    version: str = ""

    def signal(self, theta: Tensor) -> Tensor:
        raise NotImplementedError("a table is not simulated")

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        return signal


def fit_density(
    data: Any,
    names: Sequence[str] | None = None,
    *,
    bounds: Bounds | None = None,
    given: Sequence[str] | None = None,
    counts: Sequence[str] | None = None,
    dequantise: str = "uniform",
    flow: FlowConfig | None = None,
    embedding: EmbeddingConfig | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
) -> Density:
    """The density of a table's rows, or of some columns given the others.

    Args:
        data: (n, columns), an array, tensor or DataFrame; at least 100 rows.
        names: of the columns; by default those of a DataFrame, or c0, c1, ...
        bounds: by name, for columns that have any: (low, high), either None where there is none, or a marginal of
            `sbiflow.priors` to be used as it is (an angle: PeriodicUniform). Of a count low and high are its least
            and its largest value; by default it is 0 or more.
        given: names of the columns that the density is conditional on.
        counts: names of the columns that hold whole numbers.
        dequantise: how they become continuous, "uniform" or "variational" (dequantise.py).
        flow: the flow; its `start` "regression" is the normal distribution with the data's covariance.
        embedding: how the given columns are read; by default as they are, standardised.
        config: of training; its `validation` share is also that of the rows set apart for the evidence.
        seed: takes the place of the one in `config`.
        device, checkpoint, checkpoint_every, progress: as in `train`.

    Warns:
        DensityWarning: draws differ from the rows held out; a real column has many equal values.

    Raises:
        ValueError: data on or outside of a bound, with their number; a constant column; NaN or inf; too few rows;
            unknown names; an embedding of nothing; and what `train` raises.
    """
    columns, rows, conditions = read_columns(data, names, given, counts)
    check_count(checkpoint_every, "checkpoint_every")
    flow, embedding = flow or FlowConfig(), embedding or EmbeddingConfig("none")
    _check_kinds(columns, dequantise, embedding)
    config = _settings(config, seed, bool(columns.counts))
    apart, rest = _split(len(rows), config)
    problem = _Problem(columns, bijection(columns, rows, rows[rest], bounds), dequantise, flow, embedding)
    _warn_of_repeats(columns, rows)
    everything, team = Rows(rows, conditions), join()
    where, config = team.device(pick_device(device)), config.resolved(len(rest), team.size)
    training = _training_data(problem, everything, rest, config, where)
    source = Source(problem.kind, "", digest(rows, conditions), len(rest), 0)
    run, fit = train_on(
        source, training, problem.table, config, flow, embedding, checkpoint, checkpoint_every, progress, team,
        problem.wrap,
    )  # fmt: skip
    posterior, dequantiser = _unwrapped(finished(source, problem.table, run, fit, flow, embedding))
    own, trained = everything.at(apart), everything.at(training.rows).some(_ENTROPY_ROWS)
    density = Density.of(posterior, columns, dequantiser, own, trained, config.seed)
    for text in density.warnings:
        warnings.warn(text, DensityWarning, stacklevel=2)
    return density


@dataclass(frozen=True)
class _Problem:
    """What is fitted: columns behind their bijection, and the kinds of flow, embedding and dequantisation."""

    columns: Columns
    prior: Prior
    dequantise: str
    flow: FlowConfig
    embedding: EmbeddingConfig

    @property
    def table(self) -> _Table:
        """As the training loop knows it."""
        return _Table(self.prior, self.columns.x_shape)

    @property
    def kind(self) -> str:
        """For the records, and for a checkpoint to be told apart by."""
        return f"table, {self.dequantise} dequantisation" if self.columns.counts else "table"

    def wrap(self, flow: ConditionalFlow) -> ConditionalFlow:
        """What is trained: the flow, behind a dequantiser if there are counts."""
        if not self.columns.counts:
            return flow
        made = Dequantiser(
            self.prior, self.columns.counts, len(self.columns.given), self.dequantise, self.flow
        )
        return cast(ConditionalFlow, Dequantised(flow, made))  # it has all that the loop asks of a flow


def _unwrapped(posterior: Posterior) -> tuple[Posterior, Dequantiser | None]:
    own: object = posterior.flow
    if not isinstance(own, Dequantised):
        return posterior, None
    return replace(posterior, flow=own.flow), own.dequantiser


def _check_kinds(columns: Columns, dequantise: str, embedding: EmbeddingConfig) -> None:
    if dequantise not in KINDS:
        raise ValueError(f"dequantise: expected one of {', '.join(KINDS)}, got {dequantise!r}")
    if not columns.given and embedding.kind != "none":
        raise ValueError(f'embedding: expected "none" without given columns, got {embedding.kind!r}')


def _settings(config: TrainConfig | None, seed: int, random: bool) -> TrainConfig:
    config = replace(config or TrainConfig(), seed=check_seed(seed))
    # the maps of counts check what they are given: that is no single graph
    return replace(config, compile=False) if random and config.compile is None else config


def _split(rows: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Rows set apart for the evidence and the others, both ascending."""
    share = config.validation or config.resolved(rows).validation or 0.0
    count = min(max(int(share * rows), _FEWEST_APART), _MOST_APART)
    order = torch.randperm(rows, generator=torch_generator(config.seed, _APART_KEY))
    return order[:count].sort().values, order[count:].sort().values


def _training_data(
    problem: _Problem, everything: Rows, rest: Tensor, config: TrainConfig, device: torch.device
) -> TrainingData:
    z = problem.prior.unconstrain(problem.columns.centred(everything.data[rest]))[0].float()
    x = everything.given[rest].float()
    valid = held_out(len(z), config.validation or 0.0, config.seed)
    training = torch.ones(len(z), dtype=torch.bool)
    training[valid] = False
    train = training.nonzero().squeeze(1)
    return TrainingData(
        z[train].to(device), x[train].to(device), z[valid].to(device), x[valid].to(device),
        rest[train], rest[valid], config.seed,
    )  # fmt: skip


def _warn_of_repeats(columns: Columns, rows: Tensor) -> None:
    for i, name in enumerate(columns.names):
        distinct = len(rows[:, i].unique())
        if i not in columns.counts and distinct < _REPEATED * len(rows):
            warnings.warn(
                f"{name}: expected real numbers, got {distinct} distinct values in {len(rows)} rows: their density is "
                "without limit; whole numbers belong into `counts`",
                DensityWarning,
                stacklevel=3,
            )
