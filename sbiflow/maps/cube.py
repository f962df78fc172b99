"""A field of view, one observation per pixel, read a few pixels at a time from memory or from a file of any size.

A cube has two pixel axes (y, x) and those of one observation: (ny, nx, *x_shape), or with `axes="last"`
(*x_shape, ny, nx), the order of FITS files whose first two axes are the image's.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbiflow.observation import choose_dataset, choose_extension, datasets_of
from sbiflow.optional import require

STRIPE_BYTES = (
    1 << 25
)  # of float64: what is read at once, so that compressed chunks are not read for every pixel


@dataclass(frozen=True)
class Cube:
    """A field of view; made by `open_cube`.

    Attributes:
        data: what can be sliced: an array, a memory map, an HDF5 dataset, or a FITS image's section.
        shape: (ny, nx).
        x_shape: of one observation.
        axes: "first" or "last": where the pixel axes are.
        wcs: FITS header cards of the image's world coordinates, one a line; "" for none.
    """

    data: Any
    shape: tuple[int, int]
    x_shape: tuple[int, ...]
    axes: str
    wcs: str = ""

    def __len__(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Pixels start..stop, counted along x, then y: (stop - start, *x_shape) float64, C order, native bytes."""
        out = np.empty((stop - start, *self.x_shape))
        for y, x in _rectangles(start, stop, self.shape[1]):
            rows = self._slice(y, x)
            place = y.start * self.shape[1] + x.start - start
            out[place : place + len(rows)] = rows
        return out

    def stripes(self, unit: int, budget: int = STRIPE_BYTES) -> Iterator[tuple[int, int]]:
        """(start, stop) of consecutive parts of about `budget` bytes, each of whole units of `unit` pixels."""
        pixel = 8 * int(np.prod(self.x_shape, dtype=np.int64))
        step = max(budget // (pixel * unit), 1) * unit
        for start in range(0, len(self), step):
            yield start, min(start + step, len(self))

    def sha256(self) -> str:
        """SHA-256 of all values as float64 in the order (ny, nx, *x_shape), as hex; reads everything once."""
        digest = hashlib.sha256()
        for start, stop in self.stripes(1):
            digest.update(self.read(start, stop).astype("<f8", copy=False).data)
        return digest.hexdigest()

    def _slice(self, y: slice, x: slice) -> np.ndarray:
        """(pixels, *x_shape)."""
        whole = (slice(None),) * len(self.x_shape)
        if self.axes == "first":
            return np.asarray(self.data[(y, x, *whole)]).reshape(-1, *self.x_shape)
        part = np.asarray(self.data[(*whole, y, x)])
        return np.moveaxis(part, (-2, -1), (0, 1)).reshape(-1, *self.x_shape)


@contextmanager
def open_cube(
    source: Any, x_shape: tuple[int, ...], *, axes: str = "first", dataset: str | None = None
) -> Iterator[Cube]:
    """A `Cube` of an array, an h5py dataset, an astropy HDU, or a .npy, .h5, .hdf5 or .fits file.

    Args:
        source: of shape (ny, nx, *x_shape) or, with `axes="last"`, (*x_shape, ny, nx). Files are memory-mapped.
        x_shape: of one observation.
        axes: "first" or "last": where the pixel axes are.
        dataset: in HDF5 the name of the dataset, in FITS the name or number of the extension, if there are several.

    Raises:
        ValueError: no such file, another kind of file, values that are not real numbers, or another shape.
        ImportError: FITS without astropy; the message is the command that installs it.
    """
    if axes not in ("first", "last"):
        raise ValueError(f'axes: expected "first" or "last", got {axes!r}')
    if isinstance(source, Cube):
        _check_shape(source.data, "cube", x_shape, source.axes)
        yield source
    elif isinstance(source, str | Path):
        with _opened(Path(source), dataset) as data:
            yield _cube(data, str(source), x_shape, axes)
    else:
        yield _cube(source, "cube", x_shape, axes)


def _cube(source: Any, name: str, x_shape: tuple[int, ...], axes: str) -> Cube:
    if hasattr(source, "section") and hasattr(
        source, "header"
    ):  # an astropy HDU: what it scales, it scales by part
        data, header = source.section, source.header
    else:
        sliceable = isinstance(
            getattr(source, "dtype", None), np.dtype
        )  # HDF5, memory map, zarr: not read as a whole
        data = source if sliceable and hasattr(source, "shape") else np.asarray(source)
        header = None
    shape = _check_shape(data, name, x_shape, axes)
    wcs = "" if header is None else _celestial(header, 2 + len(x_shape), axes)
    return Cube(data, shape, x_shape, axes, wcs)


def _check_shape(data: Any, name: str, x_shape: tuple[int, ...], axes: str) -> tuple[int, int]:
    shape, own = tuple(data.shape), len(x_shape)
    pixels, rest = (shape[:2], shape[2:]) if axes == "first" else (shape[own:], shape[:own])
    if len(pixels) != 2 or rest != x_shape or not all(pixels):
        wanted = ["ny", "nx"]
        parts = [*wanted, *map(str, x_shape)] if axes == "first" else [*map(str, x_shape), *wanted]
        raise ValueError(f"{name}: expected shape ({', '.join(parts)}), got {shape}")
    if data.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected real numbers, got values of type {data.dtype}")
    return int(pixels[0]), int(pixels[1])


@contextmanager
def _opened(path: Path, dataset: str | None) -> Iterator[Any]:
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"{path}: expected a file ending in {', '.join(_READERS)}, got {path.suffix or 'no ending'}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: expected a field of view, got no such file")
    if dataset is not None and read is _open_npy:
        raise ValueError(f"dataset: expected None for {path.suffix}, got {dataset!r}")
    with ExitStack() as files:  # only what opening raises is about the file
        try:
            found = read(path, dataset, files)
        except (OSError, EOFError, UserWarning) as error:
            raise ValueError(f"{path}: expected a complete {path.suffix} file, got {error}") from None
        yield found


def _open_npy(path: Path, dataset: str | None, files: ExitStack) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:  # truncated, or Python objects
        raise EOFError(error) from None


def _open_hdf5(path: Path, dataset: str | None, files: ExitStack) -> Any:
    file = files.enter_context(h5py.File(path, "r"))
    return file[choose_dataset(datasets_of(file), dataset, path)]


def _open_fits(path: Path, dataset: str | None, files: ExitStack) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*truncated")  # astropy would only warn
        units = files.enter_context(require("astropy.io.fits", extra="fits").open(path))  # memory-mapped
        names = [unit.name or str(number) for number, unit in enumerate(units)]
        filled = [number for number, unit in enumerate(units) if unit.is_image and unit.shape]
    return units[choose_extension(names, filled, dataset, path)]


_READERS: dict[str, Callable[[Path, str | None, ExitStack], Any]] = {
    ".npy": _open_npy,
    ".h5": _open_hdf5,
    ".hdf5": _open_hdf5,
    ".fits": _open_fits,
}


def _rectangles(start: int, stop: int, width: int) -> Iterator[tuple[slice, slice]]:
    """The pixels start..stop of an image as at most three rectangles (y, x)."""
    while start < stop:
        y, x = divmod(start, width)
        rows = 1 if x else max((stop - start) // width, 1)
        columns = min(width - x, stop - start)
        yield slice(y, y + rows), slice(x, x + columns)
        start += rows * columns


def _celestial(header: Any, naxis: int, axes: str) -> str:
    """World coordinates of the two pixel axes alone."""
    if not any(key.startswith(("CTYPE", "CRPIX")) for key in header):
        return ""
    own = [1, 2] if axes == "last" else [naxis - 1, naxis]
    wcs = require("astropy.wcs", extra="fits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wcs.FITSFixedWarning)  # dates and units in another spelling
        return str(wcs.WCS(header).sub(own).to_header().tostring(sep="\n"))
