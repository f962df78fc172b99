"""The store on disk: layout, reading, refusals, reservation, growth."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sbiflow import store_file, store_writer
from sbiflow.store import Failure, Status, Store, StoreMeta

META = StoreMeta(
    names=("a", "b"),
    units=("m", "km/s"),
    prior_spec=[{"kind": "Normal", "name": "a", "label": "A"}, {"kind": "Normal", "name": "b", "label": "B"}],
    simulator="toy",
    version="1",
    source_hash="0123",
    seed=2**70,
    block=4,
)


def make(path: Path, n: int = 10, meta: StoreMeta = META) -> Store:
    return Store.create(path, n=n, x_shape=(3,), meta=meta)


def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(start, stop, dtype=float)
    return np.stack([index, -index], -1), np.stack([index, index**2, index / 3], -1)


def write(store: Store, start: int, failures: dict[int, tuple[Status, str]] | None = None) -> None:
    failures = failures or {}
    stop = min(start + store.meta.block, store.n)
    theta, signal = rows(start, stop)
    status = np.full(stop - start, Status.OK, np.uint8)
    for row, (code, _) in failures.items():
        status[row] = code
    with store.writer() as writer:
        writer.write(start, theta, signal, status, {row: text for row, (_, text) in failures.items()})


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_is_written_is_read_back(tmp_path):
    store = make(tmp_path / "s.h5")
    write(store, 4, {1: (Status.NOT_FINITE, "NaN"), 3: (Status.EXCEPTION, "boom")})
    theta, signal = rows(4, 8)
    valid = [0, 2]
    np.testing.assert_array_equal(store.theta(), theta[valid])
    np.testing.assert_array_equal(store.signal(), signal[valid].astype("f4"))
    np.testing.assert_array_equal(store.status, [0, 0, 0, 0, 1, 2, 1, 3, 0, 0])
    np.testing.assert_array_equal(store.valid_rows(), [4, 6])
    np.testing.assert_array_equal(store.theta(valid=False)[4:8], theta)
    for some in (slice(5, 8), np.array([7, 5])):
        np.testing.assert_array_equal(store.read(some)[0], store.theta(valid=False)[some])
    assert (store.n, len(store), store.n_done, store.n_ok, store.n_failed) == (10, 10, 4, 2, 2)
    assert (store.x_shape, store.dtype) == ((3,), "float32")
    assert store.failures() == [Failure("NaN", 1, 5), Failure("boom", 1, 7)]


def test_the_file_is_ordinary_hdf5_with_its_provenance(tmp_path):
    store = make(tmp_path / "s.h5")
    write(store, 8)
    with h5py.File(store.path) as file:
        np.testing.assert_array_equal(file["theta"][8:], rows(8, 10)[0])
        np.testing.assert_array_equal(file["status"], [0] * 8 + [1, 1])
        assert file.attrs["simulator"] == "toy"
        assert file.attrs["seed"] == str(2**70)
    assert Store.open(store.path).meta == META


def test_failures_are_counted_over_blocks_with_the_most_frequent_first(tmp_path):
    store = make(tmp_path / "s.h5")
    write(store, 0, {2: (Status.EXCEPTION, "rare")})
    write(store, 4, {0: (Status.EXCEPTION, "often"), 1: (Status.TIMEOUT, "late")})
    write(store, 8, {1: (Status.EXCEPTION, "often")})
    assert store.failures() == [Failure("often", 2, 4), Failure("rare", 1, 2), Failure("late", 1, 5)]


def test_more_reasons_than_a_block_can_hold_are_still_counted(tmp_path):
    store = make(tmp_path / "s.h5", n=12, meta=replace(META, block=12))
    write(store, 0, {row: (Status.EXCEPTION, f"reason {row}") for row in range(12)})
    kept = store_writer.REASONS_PER_BLOCK - 1
    found = store.failures()
    assert sum(failure.rows for failure in found) == 12
    assert found[0] == Failure(store_writer.FURTHER_REASONS, 12 - kept, kept)


def test_a_long_reason_is_cut_between_characters_and_put_on_one_line(tmp_path):
    store = make(tmp_path / "s.h5")
    write(store, 0, {0: (Status.EXCEPTION, "a\nb" + "é" * 200)})
    (failure,) = store.failures()
    assert failure.reason == "a b" + "é" * ((store_writer.REASON_BYTES - 3) // 2)


def test_bytes_do_not_depend_on_the_order_of_blocks(tmp_path):
    failures = {0: {1: (Status.EXCEPTION, "x")}, 4: {1: (Status.EXCEPTION, "y")}, 8: {}}
    contents = []
    for name, order in (("a", [0, 4, 8]), ("b", [8, 4, 0])):
        store = make(tmp_path / name)
        for start in order:
            write(store, start, failures[start])
        contents.append(store.path.read_bytes())
    assert contents[0] == contents[1]


def test_nothing_is_done_before_the_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "COMMIT_SECONDS", 1e9)
    store = make(tmp_path / "s.h5")
    with store.writer() as writer:
        theta, signal = rows(0, 4)
        writer.write(0, theta, signal, np.ones(4, np.uint8), {})
        assert store.n_done == 0
        writer.commit()
        assert store.n_done == 4


def test_data_reach_the_disk_before_the_status(tmp_path, monkeypatch):
    calls = []
    store = make(tmp_path / "s.h5")
    status_offset = store.layout["status"].offset
    real_write, real_sync = store_writer.write_at, store_writer.sync_data
    monkeypatch.setattr(
        store_writer, "write_at", lambda fd, a, d, o: (calls.append(o), real_write(fd, a, d, o))[1]
    )
    monkeypatch.setattr(store_writer, "sync_data", lambda fd: (calls.append("sync"), real_sync(fd))[1])
    write(store, 0)
    assert calls[-2:] == ["sync", status_offset]
    assert status_offset not in calls[:-1]


def test_only_one_process_writes(tmp_path):
    store = make(tmp_path / "s.h5")
    with store.writer(), pytest.raises(BlockingIOError, match="another process is writing"), store.writer():
        pass
    write(store, 0)  # free again
    assert store.n_done == 4


def test_a_file_is_never_overwritten(tmp_path):
    make(tmp_path / "s.h5")
    with pytest.raises(ValueError, match="expected a new file, got an existing one"):
        make(tmp_path / "s.h5")


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="expected an existing folder"):
        make(tmp_path / "nowhere" / "s.h5")


def test_wrong_dtype(tmp_path):
    with pytest.raises(ValueError, match='expected "float32" or "float64", got \'int32\''):
        Store.create(tmp_path / "s.h5", n=1, x_shape=(1,), meta=META, dtype="int32")
    assert list(tmp_path.iterdir()) == []


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="got no such file"):
        Store.open(tmp_path / "s.h5")


def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path):
    whole = make(tmp_path / "s.h5", n=300).path.read_bytes()
    cut = tmp_path / "cut.h5"
    for size in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="expected a complete HDF5 file"):
            Store.open(cut)


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("not HDF5\n" * 100)
    with pytest.raises(ValueError, match="another kind of file"):
        Store.open(text)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["strain"] = np.zeros(3)
    with pytest.raises(ValueError, match="another kind of HDF5 file"):
        Store.open(other)


def test_a_newer_format_is_refused(tmp_path):
    path = make(tmp_path / "s.h5").path
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(ValueError, match="expected store format 1, got 99: update sbiflow"):
        Store.open(path)


def test_disk_space_is_reserved_at_creation(tmp_path):
    store = make(tmp_path / "s.h5", n=100_000)
    found = store.path.stat()
    assert found.st_blocks * 512 >= found.st_size > 100_000 * (2 * 8 + 3 * 4 + 2)


def test_full_disk_is_reported_at_creation_and_leaves_nothing(small_disk):
    with pytest.raises(OSError, match=r"needs 27\.0 MB, 1\.0 MB free") as caught:
        make(small_disk / "s.h5", n=100_000)
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_full_disk_found_only_by_the_reservation(small_disk, monkeypatch):
    free = shutil.disk_usage(small_disk)
    monkeypatch.setattr(store_file.shutil, "disk_usage", lambda folder: free._replace(free=10**12))
    with pytest.raises(OSError, match="nothing was written") as caught:
        make(small_disk / "s.h5", n=100_000)
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_full_disk_at_growth_keeps_the_store(small_disk):
    store = make(small_disk / "s.h5")
    write(store, 0)
    before = store.path.read_bytes()
    with pytest.raises(OSError, match="needs"):
        store.grow(100_000)
    assert store.path.read_bytes() == before
    assert [path.name for path in small_disk.iterdir()] == ["s.h5"]


def test_reservation_error_without_a_small_disk(tmp_path, monkeypatch):
    def no_space(fd, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_file.os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match="nothing was written"):
        make(tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []


def test_reservation_where_there_is_no_fallocate(tmp_path, monkeypatch):
    monkeypatch.delattr(store_file.os, "posix_fallocate")
    store = make(tmp_path / "s.h5", n=100_000)
    found = store.path.stat()
    assert found.st_blocks * 512 >= 100_000 * (2 * 8 + 3 * 4 + 2)
    write(store, 0)
    np.testing.assert_array_equal(store.theta(), rows(0, 4)[0])


def test_what_a_killed_creation_left_is_replaced(tmp_path):
    (tmp_path / ".s.h5.tmp").write_bytes(b"left behind" * 1000)
    store = make(tmp_path / "s.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
    assert store.n_done == 0


def test_growth_keeps_whole_blocks_and_computes_a_cut_one_again(tmp_path):
    store = make(tmp_path / "s.h5")
    for start, failures in ((0, {1: (Status.EXCEPTION, "boom")}), (4, {}), (8, {})):
        write(store, start, failures)
    grown = store.grow(21)
    np.testing.assert_array_equal(grown.status, [1, 3, 1, 1] + [1] * 4 + [0] * 13)
    np.testing.assert_array_equal(grown.theta(valid=False)[:8], rows(0, 8)[0])
    np.testing.assert_array_equal(grown.signal(valid=False)[:8], rows(0, 8)[1].astype("f4"))
    assert grown.failures() == [Failure("boom", 1, 1)]
    assert grown.meta == META


def test_a_store_that_was_replaced_is_not_read_at_the_old_places(tmp_path):
    store = make(tmp_path / "s.h5")
    store.grow(20)
    for use in (store.theta, lambda: write(store, 0), lambda: store.grow(30)):
        with pytest.raises(ValueError, match="open it again"):
            use()


def test_growth_must_grow(tmp_path):
    with pytest.raises(ValueError, match="expected more than the 10 rows"):
        make(tmp_path / "s.h5").grow(10)


def test_differences_name_each_field_but_not_labels_and_provenance():
    prior = [{**META.prior_spec[0], "label": "other"}, {**META.prior_spec[1], "kind": "Uniform"}]
    found = replace(META, seed=3, block=7, created="now", git_revision="x", prior_spec=prior)
    sentences = META.differences(found)
    assert [sentence.split(":")[0] for sentence in sentences] == ["seed", "block", "prior[1]"]
    assert sentences[1] == "block: expected 4, got 7"
    assert META.differences(replace(META, prior_spec=META.prior_spec[:1])) == [
        "prior[1]: expected {'kind': 'Normal', 'name': 'b'}, got None"
    ]
