"""What a training run shows and keeps: a progress bar and a log."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from sbiflow import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class TrainingLog:
    """Losses of a run, per interval of steps: -mean log q(z | x) in the prior's base space [nats].

    Unless `is_log_prob` is false: then minus the mean of what the family climbs in its place.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    validation_step: list[int] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    is_log_prob: bool = True

    @property
    def best(self) -> float:
        """The lowest validation loss so far."""
        return min(self.validation_loss, default=float("inf"))

    def figure(self) -> Figure:
        """Loss, validation loss and learning rate against the step."""
        return plots.training_curve(
            self.step, self.loss, self.validation_step, self.validation_loss, self.rate, self.is_log_prob
        )

    def save(self, folder: Path) -> None:
        """training.csv and training.png in `folder`."""
        validation = dict(zip(self.validation_step, self.validation_loss, strict=True))
        with open(folder / "training.csv", "w", newline="") as file:
            rows = csv.writer(file)
            unit = "_nats" if self.is_log_prob else ""
            rows.writerow(["step", f"loss{unit}", f"validation_loss{unit}", "learning_rate"])
            for step, loss, rate in zip(self.step, self.loss, self.rate, strict=True):
                rows.writerow(
                    [step, f"{loss:.6f}", f"{validation[step]:.6f}" if step in validation else "", rate]
                )
        self.figure().savefig(folder / "training.png", dpi=120)

    def state(self) -> dict[str, Any]:
        """As JSON-able data."""
        return dict(vars(self))


@contextmanager
def progress_bar(steps: int, start: int, show: bool) -> Iterator[Any]:
    """A bar that fits 80 columns; call the yielded function with (step, loss, validation loss)."""
    columns = (
        TextColumn("training"), BarColumn(8), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("training", total=steps, completed=start, state="")

        def update(step: int, loss: float, validation: float) -> None:
            speed = bar.tasks[0].speed or 0.0
            state = f"loss {loss:.3f}, validation {validation:.3f}, {speed:.0f}/s"
            bar.update(task, completed=step, state=state)

        yield update
