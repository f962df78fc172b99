"""Observations from files of every kind, and one clear line for everything that is wrong with one."""

from __future__ import annotations

import builtins
import importlib

import h5py
import numpy as np
import pytest

from sbiflow import datasets
from sbiflow.observation import read_observation

X = np.array([[1.0, -2.5, 3e-7], [0.0, 1e300, 4.0]])


def write_npy(path):
    np.save(path, X)


def write_csv(path):
    path.write_text("a, b, c\n" + "\n".join(",".join(map(repr, map(float, row))) for row in X) + "\n")


def write_txt(path):
    path.write_text("# a spectrum\n1 -2.5\t3e-7  # first\n\n0 1e300 4\n")


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"] = X
        file["group/other"] = X + 1


def write_fits(path):
    fits = pytest.importorskip("astropy.io.fits")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(X, name="SPECTRUM")]).writeto(path)


WRITERS = {
    ".npy": write_npy,
    ".csv": write_csv,
    ".txt": write_txt,
    ".dat": write_txt,
    ".h5": write_hdf5,
    ".hdf5": write_hdf5,
    ".fits": write_fits,
    ".FITS": write_fits,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_numbers(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    WRITERS[suffix](path)
    x = read_observation(path, (2, 3))
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".h5", ".fits"])
@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 2), (2, 3, 2)])
def test_another_shape_is_refused_not_reshaped(tmp_path, suffix, shape):
    path = tmp_path / f"x{suffix}"
    WRITERS[suffix](path)
    with pytest.raises(ValueError, match=r"expected shape .*, got \(2, 3\)") as caught:
        read_observation(path, shape)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".fits", ".hdf5"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"x{suffix}"
    WRITERS[suffix](path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="expected a complete"):
        read_observation(path, (2, 3))


def test_axes_of_length_one_do_not_matter(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1\n2\n3\n")
    np.testing.assert_array_equal(read_observation(path, (3,)), [1.0, 2.0, 3.0])
    path.write_text("1,2,3")
    np.testing.assert_array_equal(read_observation(path, (1, 3)), [[1.0, 2.0, 3.0]])
    path.write_text("7")
    assert read_observation(path, ()).shape == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 nan\n", r"expected finite values, got 1 NaN or inf, the first at \(2,\)"),
        ("1 -inf nan\n", r"got 2 NaN or inf, the first at \(1,\)"),
        ("1 2 three\n", "line 1: expected a number, got 'three'"),
        ("a b c\n\n1 2 3\n4 5\n", "line 4: expected 3 numbers, got 2"),
        ("1,2,3\n4,,6\n", "line 2: expected a number, got ''"),
        ("# nothing\n\n", "expected numbers, got an empty file"),
        ("wavelength\n", "expected numbers, got an empty file"),
    ],
)
def test_bad_text_is_told_by_line(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_observation(path, (3,))


def test_binary_data_named_as_text(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\x93NUMPY\xff\xfe")
    with pytest.raises(ValueError, match="expected text, got binary data"):
        read_observation(path, (3,))


def test_pickled_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(
        ValueError, match=r"expected a complete \.npy file, got Object arrays cannot be loaded"
    ):
        read_observation(tmp_path / "x.npy", (1,))


@pytest.mark.parametrize("values", [np.array([1j, 2.0]), np.array(["a", "b"]), np.array([True, False])])
def test_only_real_numbers(tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ValueError, match="expected real numbers, got values of type"):
        read_observation(tmp_path / "x.npy", (2,))


def test_a_dataset_is_chosen_by_name(tmp_path):
    path = tmp_path / "x.h5"
    write_hdf5(path)
    np.testing.assert_array_equal(read_observation(path, (2, 3), "/group/other"), X + 1)
    with pytest.raises(ValueError, match="expected a dataset 'y', got group/other, x; choose one"):
        read_observation(path, (2, 3), "y")


def test_the_only_dataset_needs_no_name(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep/spectrum"] = X
    np.testing.assert_array_equal(read_observation(tmp_path / "x.h5", (2, 3)), X)


def test_several_datasets_need_a_name(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"], file["b"] = X, X
    with pytest.raises(ValueError, match="expected a dataset 'x', got a, b"):
        read_observation(tmp_path / "x.h5", (2, 3))


def test_fits_extensions(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    path = tmp_path / "x.fits"
    fits.HDUList([fits.PrimaryHDU(X + 1), fits.ImageHDU(X, name="SPECTRUM")]).writeto(path)
    for name in ("spectrum", "1"):
        np.testing.assert_array_equal(read_observation(path, (2, 3), name), X)
    for name in (None, "noise"):
        with pytest.raises(ValueError, match=r"expected one extension .*, got 0 \(PRIMARY\), 1 \(SPECTRUM\)"):
            read_observation(path, (2, 3), name)


def test_the_real_crisp_spectrum():
    try:
        path = datasets.find("crisp/feobs.fits")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    x = read_observation(path, (5, 16))
    assert np.all((x[0] > 6301.0) & (x[0] < 6303.5))  # wavelength [Å]
    assert np.all(np.diff(x[0]) > 0)
    assert np.abs(x[2:]).max() < x[1].min()  # polarisation is below intensity


def test_fits_without_astropy_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "x.fits"
    path.write_bytes(b"")

    def no_astropy(name, package=None):
        if name.startswith("astropy"):
            raise ModuleNotFoundError("No module named 'astropy'", name="astropy")
        return builtins.__import__(name)

    monkeypatch.setattr(importlib, "import_module", no_astropy)
    with pytest.raises(ImportError, match=r'run `pip install "sbiflow\[fits\]"`'):
        read_observation(path, (3,))


def test_missing_file_and_unknown_ending(tmp_path):
    with pytest.raises(ValueError, match="got no such file"):
        read_observation(tmp_path / "x.npy", (3,))
    with pytest.raises(ValueError, match=r"expected a file ending in \.npy, .*, got \.doc"):
        read_observation(tmp_path / "x.doc", (3,))
    write_npy(tmp_path / "y.npy")
    with pytest.raises(ValueError, match="dataset: expected None"):
        read_observation(tmp_path / "y.npy", (2, 3), "x")
