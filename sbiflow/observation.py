"""Read an observation from a file: an array of the simulator's x_shape, finite, or one line why not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbiflow.optional import require

_DEFAULT_DATASET = "x"


def read_observation(path: str | Path, x_shape: Sequence[int], dataset: str | None = None) -> np.ndarray:
    """The observation in a .npy, .csv, .txt, .h5, .hdf5 or .fits file, (*x_shape) float64.

    Text is one number or one row a line, separated by commas or blanks, with `#` comments and an optional
    line of column names. Axes of length one are ignored when shapes are compared; nothing is transposed or cut.

    Args:
        path: the file.
        x_shape: what the simulator or posterior expects.
        dataset: in HDF5 the name of the dataset ("x", or the only one, if not given); in FITS the name or
            number of the extension (the only one with data, if not given).

    Raises:
        ValueError: no such file, unreadable, another shape, not numbers, NaN or infinite.
        ImportError: FITS without astropy; the message is the command that installs it.
    """
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"{path}: expected a file ending in {', '.join(_READERS)}, got {path.suffix or 'no ending'}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: expected an observation, got no such file")
    if dataset is not None and read not in (_read_hdf5, _read_fits):
        raise ValueError(f"dataset: expected None for {path.suffix}, got {dataset!r}")
    return _check(read(path, dataset), path, tuple(x_shape))


def _check(value: Any, path: Path, x_shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: expected real numbers, got values of type {array.dtype}")
    if array.squeeze().shape != tuple(size for size in x_shape if size != 1):
        raise ValueError(f"{path}: expected shape {x_shape}, got {array.shape}")
    array = array.astype(np.float64).reshape(x_shape)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        first = tuple(int(i) for i in bad[0])
        raise ValueError(f"{path}: expected finite values, got {len(bad)} NaN or inf, the first at {first}")
    return array


def _read_npy(path: Path, dataset: str | None) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: expected a complete .npy file, got {error}") from None


def _read_text(path: Path, dataset: str | None) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected text, got binary data") from None
    split = [line.split("#")[0].replace(",", " , ").split() for line in lines]
    rows = [(number, _cells(cells)) for number, cells in enumerate(split, 1) if cells]
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        rows = rows[1:]  # the names of the columns
    if not rows:
        raise ValueError(f"{path}: expected numbers, got an empty file")
    for number, cells in rows:
        wrong = [cell for cell in cells if not _is_number(cell)]
        if wrong:
            raise ValueError(f"{path}, line {number}: expected a number, got {wrong[0]!r}")
        if len(cells) != len(rows[0][1]):
            raise ValueError(f"{path}, line {number}: expected {len(rows[0][1])} numbers, got {len(cells)}")
    return np.array([[float(cell) for cell in cells] for _, cells in rows])


def _cells(tokens: list[str]) -> list[str]:
    """The values of a line; with commas, what stands between them, so that an empty field is seen."""
    if "," not in tokens:
        return tokens
    fields = " ".join(tokens).split(",")
    fields = fields if fields[-1].strip() else fields[:-1]  # a comma at the end of the line
    return [field.strip() for field in fields]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_hdf5(path: Path, dataset: str | None) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            return file[choose_dataset(datasets_of(file), dataset, path)][()]
    except OSError as error:
        raise ValueError(f"{path}: expected a complete HDF5 file, got {error}") from None


def datasets_of(file: h5py.File) -> list[str]:
    """Paths of all datasets of an HDF5 file."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def choose_dataset(names: list[str], wanted: str | None, path: Path) -> str:
    """The wanted dataset, or the only one, or "x"; ValueError otherwise."""
    if wanted is None and len(names) == 1:
        return names[0]
    name = (wanted or _DEFAULT_DATASET).strip("/")
    if name not in names:
        raise ValueError(
            f"{path}: expected a dataset {name!r}, got {', '.join(names) or 'none'}; choose one of them"
        )
    return name


def _read_fits(path: Path, dataset: str | None) -> np.ndarray:
    fits = require("astropy.io.fits", extra="fits")
    try:
        with warnings.catch_warnings(), fits.open(io.BytesIO(path.read_bytes())) as units:
            warnings.filterwarnings("error", message=".*truncated")  # astropy would only warn
            names = [unit.name or str(number) for number, unit in enumerate(units)]
            filled = [number for number, unit in enumerate(units) if unit.data is not None]
            return np.array(units[choose_extension(names, filled, dataset, path)].data)
    except (OSError, TypeError, UserWarning) as error:  # astropy reports a truncated file by any of them
        raise ValueError(f"{path}: expected a complete FITS file, got {error}") from None


def choose_extension(names: list[str], filled: list[int], wanted: str | None, path: Path) -> int:
    """Number of the wanted FITS extension, or of the only one with data; ValueError otherwise."""
    if wanted is None and len(filled) == 1:
        return filled[0]
    matches = [n for n in filled if wanted is not None and wanted.upper() in (names[n].upper(), str(n))]
    if len(matches) != 1:
        listing = ", ".join(f"{number} ({names[number]})" for number in filled) or "none"
        raise ValueError(
            f"{path}: expected one extension {wanted or 'with data'!r}, got {listing}; choose by number"
        )
    return matches[0]


_READERS: dict[str, Callable[[Path, str | None], np.ndarray]] = {
    ".npy": _read_npy,
    ".csv": _read_text,
    ".txt": _read_text,
    ".dat": _read_text,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".fits": _read_fits,
}
