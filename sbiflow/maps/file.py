"""The HDF5 file of a map of posteriors: one image per statistic, written block by block, resumable.

Datasets, (K, ny, nx) float32, NaN where a pixel has no answer:
    median, low, high, K = D: 50, 16 and 84 % of every parameter, in its unit. For a periodic parameter as in
        `summary.ParameterSummary`: low <= median <= high, the median in the support, an end perhaps beyond its edge.
    circular_mean, concentration, K = P: of the P periodic parameters, the direction and the length R = |mean
        exp(i phase)| of the mean unit vector: 1 for a sharp direction, about 0.9 / sqrt(n) for none.
    novelty, K = 2: p-values that x looks like the simulations, in input and in embedding space (novelty.py).
    chi2, chi2_p, K = 1: with a simulator, the misfit at posterior draws and its p-value (statistics.py).
`status` (ny, nx) uint8 is a `PixelStatus`. Attributes: the fields of `MapMeta`.

The file has its final layout from birth (store_file.py). A block's status is written last, after its statistics are
on the disk, so that a pixel whose status is not pending is complete, after a kill as after a power cut.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from sbiflow.store_file import Region, create_file, locked, read_layout, sync_data, write_at

FORMAT = "sbiflow map"
FORMAT_VERSION = 1
COMMIT_SECONDS = 2.0  # a kill loses the finished blocks of this long at most, besides those being computed
_NOT_COMPARED = ("source", "wcs", "sbiflow_version")
_JSON = ("names", "units", "periodic", "prior_spec", "shape", "x_shape")


class PixelStatus(IntEnum):
    """What became of a pixel."""

    PENDING = 0
    OK = 1
    MASKED = 2  # NaN or infinite values in x
    REFUSED = 3  # so far from the simulations that the network's numbers overflow
    NO_SIGNAL = 4  # as OK, but the simulator failed at the posterior's draws: no chi2


@dataclass(frozen=True)
class MapMeta:
    """What a map is of; every field is an attribute of the file.

    Attributes:
        names, units: of the D parameters; `periodic`: names of those that are.
        prior_spec: `Prior.spec`.
        model: SHA-256 of the posterior's weights, settings and prior.
        shape, x_shape: (ny, nx), and the shape of one observation.
        x_sha256: of all observations (`Cube.sha256`).
        n, seed, block, device: draws per pixel, and what else fixes them: each block of pixels, counted along x, then
            y, has random numbers of its own.
        predictive: draws per pixel that chi2 is taken at; 0 for none.
        simulator, noise_sha256: of which; "" for none.
        n_input, n_embedding: simulations that the p-values of `novelty` compare with.
        source: what drew; wcs: FITS cards of the image's coordinates.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    periodic: tuple[str, ...]
    prior_spec: list[dict[str, Any]]
    model: str
    shape: tuple[int, int]
    x_shape: tuple[int, ...]
    x_sha256: str
    n: int
    seed: int
    block: int
    device: str
    predictive: int
    simulator: str
    noise_sha256: str
    n_input: int
    n_embedding: int
    source: str
    wcs: str
    sbiflow_version: str

    def differences(self, found: MapMeta) -> list[str]:
        """A sentence for every field of `found` that makes it another map."""
        mine, theirs = json.loads(json.dumps(asdict(self))), json.loads(json.dumps(asdict(found)))
        return [
            f"{key}: expected {mine[key]}, got {theirs[key]}"
            for key in mine
            if key not in _NOT_COMPARED and mine[key] != theirs[key]
        ]

    def attributes(self) -> dict[str, Any]:
        """As HDF5 attributes: numbers and text, lists as JSON."""
        values = asdict(self)
        lists = {key: json.dumps(values[key]) for key in _JSON}
        return (
            {"format": FORMAT, "format_version": FORMAT_VERSION} | values | lists | {"seed": str(self.seed)}
        )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> MapMeta:
        """The inverse of `attributes`."""
        values = {field.name: attributes[field.name] for field in fields(cls)}
        values |= {key: int(value) for key, value in values.items() if isinstance(value, np.integer)}
        values |= {key: json.loads(values[key]) for key in _JSON} | {"seed": int(values["seed"])}
        values |= {key: tuple(values[key]) for key in _JSON if key != "prior_spec"}
        return cls(**values)

    def images(self) -> dict[str, int]:
        """Number of images K of every dataset but `status`."""
        count = {name: len(self.names) for name in ("median", "low", "high")}
        if self.periodic:
            count |= {name: len(self.periodic) for name in ("circular_mean", "concentration")}
        count["novelty"] = 2
        return count | ({"chi2": 1, "chi2_p": 1} if self.predictive else {})


@dataclass(frozen=True)
class MapFile:
    """A map on disk; holds no open file."""

    path: Path
    meta: MapMeta
    layout: Mapping[str, Region]

    @classmethod
    def open(cls, path: str | Path) -> MapFile:
        """An existing map.

        Raises:
            ValueError: missing, truncated, not a map, or of another format version.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: expected a map made by `sbiflow map`, got no such file")
        with path.open("rb") as file:
            attributes, layout = read_layout(file)
        if attributes.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a map made by `sbiflow map`, got another kind of HDF5 file")
        if int(attributes["format_version"]) != FORMAT_VERSION:
            found = attributes["format_version"]
            raise ValueError(f"{path}: expected map format {FORMAT_VERSION}, got {found}: update sbiflow")
        return cls(path, MapMeta.from_attributes(attributes), layout)

    @classmethod
    def continue_or_create(cls, path: str | Path, meta: MapMeta) -> MapFile:
        """The map at `path` if it is this one, or a new one of pending pixels, its disk space reserved.

        Raises:
            ValueError: the file is another map, with every field that differs, or no map.
            OSError: the disk has no room.
        """
        path = Path(path)
        if not path.exists():
            arrays = {name: ((count, *meta.shape), "<f4") for name, count in meta.images().items()}
            create_file(path, {**arrays, "status": (meta.shape, "u1")}, meta.attributes())
        found = cls.open(path)
        if different := meta.differences(found.meta):
            raise ValueError(f"{path}: another map, use another file: {'; '.join(different)}")
        return found

    def read(self, name: str) -> np.ndarray:
        """A dataset as a read-only memory map: (K, ny, nx), or (ny, nx) for `status`."""
        with self.path.open("rb") as file:
            return self.layout[name].map(file)

    def pending(self) -> np.ndarray:
        """Numbers of the blocks that are not done, ascending."""
        waiting = np.flatnonzero(self.read("status").ravel() == PixelStatus.PENDING)
        return np.unique(waiting // self.meta.block)

    @contextmanager
    def writer(self) -> Iterator[MapWriter]:
        """Writes blocks; what is written by the end, even by an exception, is committed.

        Raises:
            OSError: another process is writing this map.
        """
        with locked(self.path) as fd:
            writer = MapWriter(fd, self.layout)
            try:
                yield writer
            finally:
                writer.commit()


class MapWriter:
    """Writes blocks of pixels in place; made by `MapFile.writer`."""

    def __init__(self, fd: int, layout: Mapping[str, Region]) -> None:
        self._fd, self._layout = fd, layout
        self._uncommitted: list[tuple[int, np.ndarray]] = []
        self._committed_at = time.monotonic()

    def write(self, start: int, images: Mapping[str, np.ndarray], status: np.ndarray) -> None:
        """Write pixels from `start` on: images (K, m) by dataset, status (m,)."""
        for name, values in images.items():
            region = self._layout[name]
            pixels = int(np.prod(region.shape[1:]))
            for k, row in enumerate(values):
                offset = region.offset + (k * pixels + start) * region.dtype.itemsize
                write_at(self._fd, row, region.dtype, offset)
        self._uncommitted.append((start, status))
        if time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Mark what was written as done, once it is on the disk."""
        if self._uncommitted:
            sync_data(self._fd)
            for start, status in self._uncommitted:
                write_at(self._fd, status, np.dtype("u1"), self._layout["status"].offset + start)
            self._uncommitted.clear()
        self._committed_at = time.monotonic()
