"""How to train."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sbiflow.seeding import check_seed

OPTIMISERS = ("muon", "adam")
SCHEDULES = ("cosine", "onecycle")
_BATCHES = ((4_000, 128), (40_000, 256))  # simulations below which a batch is so large


@dataclass(frozen=True)
class TrainConfig:
    """Training settings; the defaults suit a few thousand to a few million simulations.

    Attributes:
        steps: number of steps; None chooses 40 passes over the data, within 300 to 20,000.
        batch: rows per step, of all processes together; None chooses 128 below 4,000 simulations, 256 below 40,000,
            else 512, rounded up to a multiple of `lanes`.
        learning_rate: peak rate.
        optimiser: "muon" (orthogonalised momentum for hidden matrices, Adam for the rest) or "adam".
        schedule: "cosine" (short linear warm-up, then annealed to zero) or "onecycle" (long warm-up).
        clip: bound on the gradient norm, None for none.
        validation: share of the rows held out (at most 10,000); None chooses 200 rows, but 5 % to 15 % of all.
        validate_every: steps between validations; None for 20 validations in a run.
        patience: stop after so many validations without a better loss; None trains the whole budget.
        compile: whether torch.compile makes one graph of the density; None decides by the length of the run.
        seed: fixes initial weights, split, order of the rows and noise.
        lanes: equal parts of a batch, each with noise and dropout of its own, which the processes of a distributed run
            share out; None for one each. The result depends on the lanes, not on who computes them: set them, to go
            on from a checkpoint with another number of processes.
    """

    steps: int | None = None
    batch: int | None = None
    learning_rate: float = 4e-3
    optimiser: str = "muon"
    schedule: str = "cosine"
    clip: float | None = 50.0
    validation: float | None = None
    validate_every: int | None = None
    patience: int | None = 5
    compile: bool | None = None
    seed: int = 0
    lanes: int | None = None

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
            "lanes": self.lanes,
        }
        for name, value in counts.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
        if not self.learning_rate > 0 or (self.clip is not None and not self.clip > 0):
            raise ValueError(
                f"learning_rate and clip: expected values > 0, got {self.learning_rate}, {self.clip}"
            )
        if self.validation is not None and not 0 < self.validation < 1:
            raise ValueError(f"validation: expected a share between 0 and 1, got {self.validation}")

    def resolved(self, rows: int, processes: int = 1) -> TrainConfig:
        """With every None that depends on the number of simulations (valid rows) or processes replaced by its value.

        Raises:
            ValueError: the batch is no multiple of the lanes, or the lanes of the processes.
        """
        lanes = self.lanes or processes
        share = self.validation or min(max(200 / rows, 0.05), 0.15)
        batch = self.batch or next((size for below, size in _BATCHES if rows < below), 512)
        batch = batch if self.batch else -(-batch // lanes) * lanes
        _check_shares(batch, lanes, processes)
        steps = self.steps or min(max(40 * int(rows * (1 - share)) // batch, 300), 20_000)
        every = self.validate_every or max(steps // 20, 1)
        parts = lanes if lanes > 1 else None  # as in checkpoints that were written before there were lanes
        return replace(self, steps=steps, batch=batch, validation=share, validate_every=every, lanes=parts)


def _check_shares(batch: int, lanes: int, processes: int) -> None:
    """Raise unless every process has equally many lanes, and every lane equally many rows of a batch."""
    if lanes % processes:
        raise ValueError(
            f"lanes: expected a multiple of the {processes} processes, got {lanes}; start as many processes as divide "
            f"it, or set lanes={-(-lanes // processes) * processes}"
        )
    if batch % lanes:
        near = batch // lanes * lanes
        options = " or ".join(str(size) for size in (near, near + lanes) if size)
        raise ValueError(f"batch: expected a multiple of its {lanes} lanes, got {batch}; set batch={options}")
