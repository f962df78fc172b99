"""How to train."""

from __future__ import annotations

from dataclasses import dataclass

from sbiflow.seeding import check_seed

OPTIMISERS = ("muon", "adam")
SCHEDULES = ("cosine", "onecycle")


@dataclass(frozen=True)
class TrainConfig:
    """Training settings; the defaults suit a few thousand to a few million simulations.

    Attributes:
        steps: number of steps; None chooses 40 passes over the data, within 2,000 to 20,000.
        batch: rows per step.
        learning_rate: peak rate.
        optimiser: "muon" (orthogonalised momentum for hidden matrices, Adam for the rest) or "adam".
        schedule: "cosine" (short linear warm-up, then annealed to zero) or "onecycle" (long warm-up).
        clip: bound on the gradient norm, None for none.
        validation: share of the rows held out (at most 10,000).
        validate_every: steps between validations; None for 20 validations in a run.
        patience: stop after so many validations without a better loss; None trains the whole budget.
        seed: fixes initial weights, split, order of the rows and noise.
    """

    steps: int | None = None
    batch: int = 512
    learning_rate: float = 4e-3
    optimiser: str = "muon"
    schedule: str = "cosine"
    clip: float | None = 50.0
    validation: float = 0.05
    validate_every: int | None = None
    patience: int | None = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser: expected one of {', '.join(OPTIMISERS)}, got {self.optimiser!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        counts = {
            "steps": self.steps,
            "batch": self.batch,
            "validate_every": self.validate_every,
            "patience": self.patience,
        }
        for name, value in counts.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
        if not self.learning_rate > 0 or (self.clip is not None and not self.clip > 0):
            raise ValueError(
                f"learning_rate and clip: expected values > 0, got {self.learning_rate}, {self.clip}"
            )
        if not 0 < self.validation < 1:
            raise ValueError(f"validation: expected a share between 0 and 1, got {self.validation}")

    def steps_for(self, rows: int) -> int:
        """The number of steps for a training part of so many rows."""
        return self.steps or min(max(40 * rows // self.batch, 2_000), 20_000)
