"""The bytes under the store: one HDF5 file of fixed layout, born complete, then only overwritten in place.

HDF5 keeps its metadata in caches; a process that is killed between two flushes can leave a file that no
longer opens, and so can a disk that fills up in the middle of a write. So HDF5 is used for one thing here, to
lay the file out, under a temporary name in the same folder: every dataset contiguous, allocated early, its
space reserved on the disk, synced, and renamed into place. From then on no HDF5 library opens the file for
writing. Rows are written with `pwrite` at the offsets that HDF5 reports and read through a memory map, so no
metadata is ever in flight, and others can read while one writes (`h5py.File(path, "r", locking=False)`).

POSIX only. On copy-on-write file systems (btrfs, ZFS) a reservation is a promise that the system may not
keep: a disk that fills up there is an OSError of the write in question; the rows committed before are safe.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class Region:
    """Where a dataset lies in the file: `shape` values of `dtype`, row-major, from byte `offset`."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole dataset."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (one index of the first axis)."""
        return self.nbytes // self.shape[0]

    def map(self, file: BinaryIO) -> np.ndarray:
        """A read-only memory map of the dataset; nothing is read until it is indexed."""
        return np.memmap(file, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)


Layout = Mapping[str, Region]


def create_file(
    path: Path,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    attributes: Mapping[str, Any],
    fill: Callable[[int, Layout], None] = lambda fd, layout: None,
) -> None:
    """Create (or replace) `path` atomically, every array zero, its space reserved on the disk.

    Args:
        path: the file; a reader sees either what was there before or the complete new file.
        arrays: shape and dtype by dataset name.
        attributes: written to the root group.
        fill: called with (file descriptor, layout) before the file gets its name, to write first contents.

    Raises:
        OSError: (ENOSPC) the disk has no room, with what is needed and what is free; (EWOULDBLOCK) another
            process is creating the same file. In both cases nothing is left behind.
    """
    path = path.resolve()  # a symbolic link stays one
    needed = sum(
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in arrays.values()
    )
    _check_space(path, needed)
    temporary = path.with_name(
        f".{path.name}.tmp"
    )  # fixed: what a killed run left is overwritten by the next
    with locked(temporary, os.O_RDWR | os.O_CREAT) as fd:
        try:
            os.ftruncate(fd, 0)
            _lay_out(temporary, arrays, attributes)
            with temporary.open("rb") as file:
                _, layout = read_layout(file)
            _reserve(fd, layout, path)
            fill(fd, layout)
            os.fsync(fd)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def identity(fd: int) -> tuple[int, int, int]:
    """Tells whether a name still stands for the same file: device, inode, size (fixed from birth)."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_size


def read_layout(opened: BinaryIO) -> tuple[dict[str, Any], dict[str, Region]]:
    """Attributes and dataset positions of a file made by `create_file`, as it was when it was opened.

    Raises:
        ValueError: not HDF5, damaged, or shorter than its own layout says.
    """
    try:
        with h5py.File(opened, "r") as file:
            attributes = dict(file.attrs)
            layout = {
                name: Region(item.id.get_offset(), item.shape, item.dtype)
                for name, item in file.items()
                if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None
            }
    except OSError as error:
        raise ValueError(
            f"{opened.name}: expected a complete HDF5 file, got {_plain_reason(error)}"
        ) from None
    size = identity(opened.fileno())[-1]
    end = max((region.offset + region.nbytes for region in layout.values()), default=0)
    if size < end:
        raise ValueError(f"{opened.name}: expected at least {end} bytes, got {size}: the file is truncated")
    return attributes, layout


@contextmanager
def locked(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """A file descriptor under an exclusive lock, so that two processes never write one file.

    Raises:
        OSError: (EWOULDBLOCK) another process holds it.
    """
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path) from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):  # a file system without locks
                raise
        if not path.exists() or not os.path.samestat(os.fstat(fd), path.stat()):
            raise _busy(path)  # renamed by its owner between our open and our lock: not ours to touch
        yield fd
    finally:
        os.close(fd)


def write_at(fd: int, array: np.ndarray, dtype: np.dtype, offset: int) -> None:
    """Write all the bytes of an array, as `dtype`, at `offset`."""
    view = memoryview(np.ascontiguousarray(array, dtype=dtype).reshape(-1).view(np.uint8).data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def copy_rows(source: int, origin: Region, target: int, region: Region, rows: int) -> None:
    """Copy the first `rows` rows of a dataset from one file descriptor to another."""
    total = rows * origin.row_bytes
    for start in range(0, total, _COPY_BYTES):
        chunk = os.pread(source, min(_COPY_BYTES, total - start), origin.offset + start)
        write_at(target, np.frombuffer(chunk, np.uint8), np.dtype(np.uint8), region.offset + start)


def sync_data(fd: int) -> None:
    """Wait until what was written is on the disk: what is written later cannot get there before it."""
    getattr(os, "fdatasync", os.fsync)(fd)


def _lay_out(
    path: Path, arrays: Mapping[str, tuple[tuple[int, ...], str]], attributes: Mapping[str, Any]
) -> None:
    with h5py.File(path, "w", locking=False) as file:
        for name, (shape, dtype) in arrays.items():
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the file system's own zeros do
            plist.set_obj_track_times(False)
            kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist)
        file.attrs.update(attributes)


def _reserve(fd: int, layout: Layout, path: Path) -> None:
    size = os.fstat(fd).st_size
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
            return
        for region in layout.values():  # macOS
            for start in range(0, region.nbytes, _COPY_BYTES):
                os.pwrite(fd, bytes(min(_COPY_BYTES, region.nbytes - start)), region.offset + start)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path, size) from None
        raise


def _check_space(path: Path, needed: int) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected an existing folder, got {path.parent}, which does not exist")
    if needed > shutil.disk_usage(path.parent).free:
        raise _no_space(path, needed)


def _no_space(path: Path, needed: int) -> OSError:
    free = shutil.disk_usage(path.parent).free
    text = f"{path}: needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB free on the disk; nothing was written"
    return OSError(errno.ENOSPC, text)


def _busy(path: Path) -> OSError:
    return BlockingIOError(errno.EWOULDBLOCK, f"{path}: another process is writing this file")


def _plain_reason(error: OSError) -> str:
    text = str(error)
    if "truncated file" in text:
        return "a truncated one"
    return "another kind of file" if "signature not found" in text else text


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
