"""A map as FITS: an image extension per statistic and parameter, with its unit and the input's world coordinates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sbiflow.maps.file import MapFile, PixelStatus
from sbiflow.optional import require

_QUANTILES = ("median", "low", "high")
_CIRCULAR = ("circular_mean", "concentration")


def write_fits(map_file: MapFile, target: Path) -> Path:
    """Write all images, one after the other, under a temporary name; an older file stays until then.

    Extensions are named STATISTIC_PARAMETER (MEDIAN_B, LOW_B, …; upper case as FITS has it), NOVELTY_INPUT,
    NOVELTY_EMBEDDING, CHI2, CHI2_P and STATUS; PARNAME and STATISTC hold the names as they are, UNITTEXT a unit that
    FITS does not know. Pixels that are not done are NaN.
    """
    fits = require("astropy.io.fits", extra="fits")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        fits.PrimaryHDU(header=_provenance(fits, map_file)).writeto(temporary, overwrite=True)
        for image, header in _images(fits, map_file):
            fits.append(temporary, image, header)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _images(fits: Any, map_file: MapFile) -> Iterator[tuple[np.ndarray, Any]]:
    meta, status = map_file.meta, map_file.read("status")
    units = dict(zip(meta.names, meta.units, strict=True))

    def made(
        dataset: str, k: int, extension: str, parameter: str = "", unit: str = ""
    ) -> tuple[np.ndarray, Any]:
        image = np.where(status == PixelStatus.PENDING, np.float32(np.nan), map_file.read(dataset)[k])
        return image, _header(fits, meta.wcs, extension, dataset, parameter, unit)

    for dataset, names in [*((q, meta.names) for q in _QUANTILES), *((c, meta.periodic) for c in _CIRCULAR)]:
        for k, name in enumerate(names):
            unit = "" if dataset == "concentration" else units[name]
            yield made(dataset, k, f"{dataset}_{name}", name, unit)
    yield made("novelty", 0, "novelty_input")
    yield made("novelty", 1, "novelty_embedding")
    for dataset in ("chi2", "chi2_p") if meta.predictive else ():
        yield made(dataset, 0, dataset)
    header = _header(fits, meta.wcs, "status", "status", "", "")
    header["COMMENT"] = ", ".join(f"{kind.value}: {kind.name}" for kind in PixelStatus)
    yield np.asarray(status), header


def _header(fits: Any, wcs: str, extension: str, statistic: str, parameter: str, unit: str) -> Any:
    header = fits.Header.fromstring(wcs, sep="\n") if wcs else fits.Header()
    header["EXTNAME"] = _ascii(extension).upper()
    header["STATISTC"] = (statistic, "what the image shows")
    if parameter:
        header["PARNAME"] = (_ascii(parameter), "parameter")
    if unit:
        standard = _standard(unit)
        header["BUNIT" if standard else "UNITTEXT"] = standard or _ascii(unit)
    return header


def _standard(unit: str) -> str:
    """The unit as FITS spells it, "" if it has no such unit."""
    units = require("astropy.units", extra="fits")
    try:
        return str(units.Unit(unit).to_string("fits"))
    except ValueError:
        return ""


def _ascii(text: str) -> str:
    """FITS headers are ASCII: Δm -> \\u0394m."""
    return text.encode("ascii", "backslashreplace").decode()


def _provenance(fits: Any, map_file: MapFile) -> Any:
    meta, header = map_file.meta, fits.Header()
    header["ORIGIN"] = f"sbiflow {meta.sbiflow_version}"
    header["NDRAWS"] = (meta.n, "posterior draws per pixel")
    header["SEED"] = (str(meta.seed), "of the draws")
    header["NPREDICT"] = (meta.predictive, "draws per pixel that chi2 is taken at")
    for text in (f"model sha256 {meta.model}", f"observations sha256 {meta.x_sha256}", meta.source):
        header["HISTORY"] = _ascii(text)
    return header
