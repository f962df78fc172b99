"""Where data files are looked for, and how they are downloaded (from a server of the test's own)."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from types import MappingProxyType

import pooch
import pytest

from sbiflow import datasets
from sbiflow.datasets import DATASETS, Dataset, fetch, find


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data on this machine; the cache is tmp_path/cache."""
    monkeypatch.delenv(datasets.ENVIRONMENT, raising=False)
    monkeypatch.setattr(datasets, "_BESIDE_REPOSITORY", tmp_path / "shared")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    return tmp_path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """URL of a server of the files in tmp_path/origin."""
    folder = tmp_path / "origin"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def register(monkeypatch, url: str, content: bytes) -> None:
    entry = Dataset(f"{url}/remote.bin", hashlib.sha256(content).hexdigest(), "a test")
    monkeypatch.setattr(datasets, "DATASETS", MappingProxyType({"folder/file.bin": entry}))


def test_the_order_of_the_places(nowhere, monkeypatch):
    name = "crisp/feobs.fits"
    for folder in ("cache", "shared", "own"):  # each goes before the one made before it
        path = nowhere / folder / name
        path.parent.mkdir(parents=True)
        path.touch()
        if folder == "own":
            assert find(name) == nowhere / "shared" / name
            monkeypatch.setenv(datasets.ENVIRONMENT, str(nowhere / "own"))
        assert find(name) == path


def test_a_missing_file_names_the_command(nowhere):
    with pytest.raises(FileNotFoundError) as caught:
        find("crisp/feobs.fits")
    assert (
        str(caught.value) == "crisp/feobs.fits is not on this machine: run `sbiflow fetch crisp/feobs.fits`"
    )


def test_an_unknown_name_lists_the_known_ones(nowhere):
    with pytest.raises(FileNotFoundError, match=r"nothing\.fits: expected one of crisp/feobs\.fits, "):
        find("nothing.fits")
    with pytest.raises(ValueError, match=r"expected one of crisp/feobs\.fits, .* got 'nothing\.fits'"):
        fetch("nothing.fits")


def test_fetch_downloads_once_into_the_cache(nowhere, server, monkeypatch):
    register(monkeypatch, server, b"content")
    (nowhere / "origin" / "remote.bin").write_bytes(b"content")
    path = fetch("folder/file.bin")
    assert path == nowhere / "cache" / "folder" / "file.bin" == find("folder/file.bin")
    assert path.read_bytes() == b"content"
    (nowhere / "origin" / "remote.bin").unlink()
    assert fetch("folder/file.bin") == path  # nothing is asked of the server


def test_a_file_with_another_checksum_is_not_kept(nowhere, server, monkeypatch):
    register(monkeypatch, server, b"content")
    (nowhere / "origin" / "remote.bin").write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA256 hash"):
        fetch("folder/file.bin")
    with pytest.raises(FileNotFoundError):
        find("folder/file.bin")


def test_an_origin_that_cannot_be_reached(nowhere, server, monkeypatch):
    register(monkeypatch, server, b"content")
    with pytest.raises(
        OSError, match=r"folder/file\.bin: could not be downloaded from http://127\.0\.0\.1.*404"
    ):
        fetch("folder/file.bin")


@pytest.mark.parametrize("name", DATASETS)
def test_the_checksums_are_those_of_the_files_here(name):
    try:
        path = find(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == DATASETS[name].sha256
