"""Settings of the integrator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sbiflow.families import FlowConfig

METHODS = ("auto", "grid", "flow")
_FEW_AXES = 3  # up to here a step of training is cheap, and structure is fine in proportion to the axes


def default_flow(dim: int) -> FlowConfig:
    """Autoregressive splines, which take two modes or a ridge in one layer, where couplings need many."""
    bins = 16 if dim <= _FEW_AXES else 10
    return FlowConfig("spline_autoregressive", layers=2, hidden=64, blocks=1, bins=bins, start="prior")


@dataclass(frozen=True)
class IntegratorConfig:
    """How the budget is spent and what is trained on it. The defaults serve the integrands of analyses/30.

    Attributes:
        method: "auto" tries the flow and keeps what measures the smaller variance; "grid" or "flow" decide.
        flow: the flow of every channel; None: `default_flow`.
        grid_bins, grid_iterations, grid_share: bins per axis, refinements of the grid, and their share of the budget.
        train_share: share of the budget that is spent before the estimate, the grid included; more is spent (up to
            `most_share`) only while annealing has not arrived at the integrand.
        most_share: see train_share.
        explore_share: share of the budget that looks uniformly for what a warm start lacks.
        rounds: draws from the flow in training, of equal size.
        rows: training rows, but between 2 and 60 per evaluation in training; up to twice as many below 8 axes.
        effort: factor on the rows; 2 trains twice as long on the same evaluations.
        batch, rate: rows per step and learning rate.
        tail_share, tail_power: this share of the training rows follows |f|^tail_power instead of |f|, so that the
            flow learns the tails, where a proposal that is too small ruins the estimate.
        wide_share, wide_scale: this share of the draws has a normal base of this width.
        defence: share of uniform draws: no region has zero proposal density.
        replicas: independent randomisations of the final estimate, at least; up to twice as many are used.
    """

    method: str = "auto"
    flow: FlowConfig | None = None
    grid_bins: int = 50
    grid_iterations: int = 5
    grid_share: float = 0.06
    train_share: float = 0.4
    most_share: float = 0.7
    explore_share: float = 0.1
    rounds: int = 8
    rows: int = 800_000
    effort: float = 1.0
    batch: int = 1024
    rate: float = 8e-3
    tail_share: float = 0.4
    tail_power: float = 0.4
    wide_share: float = 0.04
    wide_scale: float = 1.4
    defence: float = 0.02
    replicas: int = 32

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        shares = (self.grid_share, self.train_share, self.most_share, self.tail_share, self.wide_share)
        if not all(0 <= share < 1 for share in shares) or not 0 < self.defence < 1:
            raise ValueError(f"integrator: expected shares in [0, 1) and defence in (0, 1), got {self}")
        if not max(self.grid_share, self.explore_share) <= self.train_share <= self.most_share:
            raise ValueError(
                f"integrator: expected grid_share, explore_share <= train_share <= most_share, got {self}"
            )
        whole = (self.grid_bins, self.grid_iterations, self.rounds, self.rows, self.batch)
        if min(whole) < 1 or self.replicas < 8 or min(self.effort, self.rate, self.wide_scale) <= 0:
            raise ValueError(f"integrator: expected positive sizes and at least 8 replicas, got {self}")

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> IntegratorConfig:
        """From what `dataclasses.asdict` made of one, and JSON of that."""
        return cls(**(spec | {"flow": spec["flow"] and FlowConfig.from_spec(spec["flow"])}))

    def steps(self, dim: int, evaluations: float) -> int:
        """Training steps for D axes and so many evaluations in training."""
        rows = min(max(self.rows, 2 * evaluations), 60 * evaluations) * min(max(8 / dim, 1.0), 2.0)
        return int(self.effort * rows / self.batch)
