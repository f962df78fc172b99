"""A map on disk, read as far as it is asked for: images of every parameter, and whether they may be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sbiflow import plots
from sbiflow.maps.file import MapFile, PixelStatus
from sbiflow.maps.fits import write_fits
from sbiflow.novelty import ALARM, NoveltyCheck
from sbiflow.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXCESS = 1e-3  # probability below which there are more alarms than chance explains


@dataclass(frozen=True, eq=False)
class ParameterMap:
    """Images (ny, nx) of one parameter in `unit`, float32, NaN without an answer; see maps/file.py for each."""

    name: str
    unit: str
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    circular_mean: np.ndarray | None = None
    concentration: np.ndarray | None = None

    @property
    def sigma(self) -> np.ndarray:
        """Half of the 16 to 84 % interval."""
        return 0.5 * (self.high - self.low)


@dataclass(frozen=True)
class MapCounts:
    """How many pixels of a map there are of every kind.

    Attributes:
        pixels: all; `pending` of them are not done yet.
        inferred: with a posterior; `masked` had NaN or infinite values in x, `refused` overflow the network.
        no_signal: of those inferred, without chi2, since the simulator failed at their draws.
        unlike: of those inferred, unlike the simulations; `unlike_by_chance` at most are expected of ordinary ones.
        misfit: of those inferred, whose data do not fit their own posterior; `misfit_by_chance` at most are expected of
            right ones. None without a simulator.
        signals: calls of the simulator.
    """

    pixels: int
    pending: int
    inferred: int
    masked: int
    refused: int
    no_signal: int
    unlike: int
    unlike_by_chance: float
    misfit: int | None
    misfit_by_chance: float | None
    signals: int


@dataclass(frozen=True, eq=False)
class MapResult:
    """A map of posteriors; holds no open file. Made by `Posterior.map`, opened by `MapResult.open`."""

    file: MapFile

    @classmethod
    def open(cls, path: str | Path) -> MapResult:
        """An existing map; errors as in `MapFile.open`."""
        return cls(MapFile.open(path))

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names."""
        return self.file.meta.names

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.file.meta.shape

    @cached_property
    def prior(self) -> Prior:
        """Names, units, labels and support of the parameters."""
        return Prior.from_spec(self.file.meta.prior_spec)

    @property
    def status(self) -> np.ndarray:
        """`PixelStatus` (ny, nx), uint8."""
        return self.file.read("status")

    def image(self, name: str, k: int = 0) -> np.ndarray:
        """Image k of a dataset, (ny, nx) float32, NaN where a pixel has no answer or is not done.

        Raises:
            ValueError: no such dataset or image in this map.
        """
        images = self.file.meta.images()
        if name not in images or not 0 <= k < images[name]:
            raise ValueError(f"image: expected one of {images} (number of images), got {name!r}, {k}")
        return np.where(self.status == PixelStatus.PENDING, np.float32(np.nan), self.file.read(name)[k])

    def __getitem__(self, name: str) -> ParameterMap:
        """The images of a parameter."""
        if name not in self.names:
            raise KeyError(f"no parameter {name!r}; the names are {', '.join(self.names)}")
        k, periodic = self.names.index(name), self.file.meta.periodic
        images = [self.image(statistic, k) for statistic in ("low", "median", "high")]
        if name in periodic:
            images += [
                self.image(statistic, periodic.index(name))
                for statistic in ("circular_mean", "concentration")
            ]
        return ParameterMap(name, self.file.meta.units[k], *images)

    @property
    def novelty(self) -> np.ndarray:
        """p-values (ny, nx) that x looks like the simulations, both tests together."""
        return np.minimum(2 * np.minimum(self.image("novelty", 0), self.image("novelty", 1)), 1)

    @property
    def unlike(self) -> np.ndarray:
        """(ny, nx) bool: pixels unlike the simulations (`NoveltyCheck.alarm`)."""
        return self._check().alarm.reshape(self.shape).numpy()

    @property
    def misfit(self) -> np.ndarray:
        """(ny, nx) bool: pixels whose data do not fit their own posterior; none without a simulator.

        Model and noise may be wrong there, or the network not exact enough: which, importance weights tell
        (`Posterior.sample` of the pixel, then `reweight`): after it only a wrong model still does not fit.
        """
        if not self.file.meta.predictive:
            return np.zeros(self.shape, bool)
        return self.image("chi2_p") <= self._misfit_level

    @property
    def suspect(self) -> np.ndarray:
        """(ny, nx) bool: inferred pixels that either test warns of, false alarms included."""
        return self.unlike | self.misfit

    @property
    def counts(self) -> MapCounts:
        """Pixels of every kind."""
        status, meta = self.status, self.file.meta
        of = {kind: int((status == kind).sum()) for kind in PixelStatus}
        inferred = of[PixelStatus.OK] + of[PixelStatus.NO_SIGNAL]
        return MapCounts(
            pixels=status.size,
            pending=of[PixelStatus.PENDING],
            inferred=inferred,
            masked=of[PixelStatus.MASKED],
            refused=of[PixelStatus.REFUSED],
            no_signal=of[PixelStatus.NO_SIGNAL],
            unlike=int(self.unlike.sum()),
            unlike_by_chance=inferred * self._unlike_level,
            misfit=int(self.misfit.sum()) if meta.predictive else None,
            misfit_by_chance=of[PixelStatus.OK] * ALARM if meta.predictive else None,
            signals=inferred * meta.predictive,
        )

    @property
    def verdict(self) -> str:
        """Whether to use the map, and which pixels not, in plain words."""
        c = self.counts
        lines = [
            f"{c.pixels:,} pixels: {c.inferred:,} with a posterior, {c.masked:,} masked (NaN or infinite values in x), "
            f"{c.refused:,} refused (so far from the simulations that the network overflows)",
            f"unlike the simulations: {_against(c.unlike, c.unlike_by_chance)}",
        ]
        if c.misfit is None or c.misfit_by_chance is None:
            lines.append("fit at the posterior's draws: not tested, for no simulator was given")
        else:
            text = (
                f"; median chi2/N {np.nanmedian(self.image('chi2')):.3g}" if c.inferred > c.no_signal else ""
            )
            lines.append(f"misfit at their own posterior: {_against(c.misfit, c.misfit_by_chance)}{text}")
        if c.no_signal:
            lines.append(f"without that test: {c.no_signal:,} pixels, where the simulator failed")
        if c.pending:
            lines.append(f"INCOMPLETE: {c.pending:,} pixels are pending; run the same again to continue")
        return "\n".join([self._judgement(c), *lines])

    def _judgement(self, c: MapCounts) -> str:
        reasons = []
        if _too_many(c.unlike, c.unlike_by_chance):
            reasons.append("are unlike the simulations")
        if (
            c.misfit is not None
            and c.misfit_by_chance is not None
            and _too_many(c.misfit, c.misfit_by_chance)
        ):
            reasons.append(
                "do not fit their data at their own posterior (model, noise or network is wrong there)"
            )
        if reasons:
            number = int(self.suspect.sum())
            return f"Do not use the {number:,} suspect pixels as they are: more than by chance {' and '.join(reasons)}."
        if not c.inferred:
            return "Do not use: no pixel has a posterior."
        return "No more alarms than chance explains; single ones may still be right (`suspect` marks them)."

    def __str__(self) -> str:
        meta = self.file.meta
        ny, nx = self.shape
        return f"{self.path}: {ny} x {nx} pixels, {meta.n} draws each, {meta.source}\n{self.verdict}"

    def figure(self) -> Figure:
        """The medians of all parameters; masked and refused pixels grey."""
        return plots.map_figure([self._panel(name, "median") for name in self.names], "posterior medians")

    def figures(self) -> tuple[Figure, Figure, Figure]:
        """The medians, half of the 16 to 84 % intervals (concentrations of periodic parameters), and the checks."""
        periodic = self.file.meta.periodic
        widths = [self._panel(name, "concentration" if name in periodic else "sigma") for name in self.names]
        title = "half of the 16 to 84 % interval; concentration of angles"
        return (
            self.figure(),
            plots.map_figure(widths, title),
            plots.map_figure(self._checks(), "can it be trusted?"),
        )

    def to_fits(self, path: str | Path) -> Path:
        """Write a FITS file: an image per statistic and parameter with its unit, and the input's coordinates.

        Raises:
            ImportError: no astropy; the message is the command that installs it.
        """
        return write_fits(self.file, Path(path))

    def _panel(self, name: str, what: str) -> plots.Panel:
        found, marginal = self[name], self.prior.marginals[self.names.index(name)]
        label = marginal.label or name
        if what == "concentration":
            return plots.Panel(getattr(found, what), f"R of {label}", limits=(0.0, 1.0))
        if what == "sigma":
            return plots.Panel(found.sigma, f"σ of {label}", found.unit)
        period = marginal.support if marginal.periodic else None
        return plots.Panel(found.median, label, found.unit, limits=period, cyclic=marginal.periodic)

    def _checks(self) -> list[plots.Panel]:
        done = np.isin(self.status, (PixelStatus.OK, PixelStatus.NO_SIGNAL))
        flags = np.where(done, self.unlike + 2.0 * self.misfit, np.nan)
        kinds = ("no alarm", "unlike the simulations", "misfit", "both")
        panels = [plots.Panel(self.novelty, "p: like the simulations", log=True, limits=(1e-4, 1.0))]
        if self.file.meta.predictive:
            panels.append(plots.Panel(self.image("chi2"), "χ² / N at the posterior", log=True))
            panels.append(plots.Panel(self.image("chi2_p"), "p of χ²", log=True, limits=(1e-9, 1.0)))
        return [*panels, plots.Panel(flags, "alarms", categories=kinds)]

    def _check(self) -> NoveltyCheck:
        """Of all pixels, NaN where there is none."""
        input, embedding = (torch.from_numpy(self.image("novelty", k).ravel()) for k in range(2))
        return NoveltyCheck(input, embedding, self.file.meta.n_input, self.file.meta.n_embedding)

    @property
    def _unlike_level(self) -> float:
        none = torch.zeros(0)
        return sum(NoveltyCheck(none, none, self.file.meta.n_input, self.file.meta.n_embedding).levels)

    @property
    def _misfit_level(self) -> float:
        """At which a share `ALARM` of the prior's simulations alarms, or with several draws at most (statistics.py)."""
        return ALARM if self.file.meta.predictive == 1 else ALARM / 2


def _against(count: int, by_chance: float) -> str:
    return f"{count:,} pixels, at most {by_chance:,.1f} by chance"


def _too_many(count: int, by_chance: float) -> bool:
    """Whether chance gives so many with a probability below 1e-3 (Poisson: many pixels, a small level)."""
    tail = torch.special.gammainc(torch.tensor(float(max(count, 1))), torch.tensor(by_chance))
    return count > 0 and float(tail) < _EXCESS
