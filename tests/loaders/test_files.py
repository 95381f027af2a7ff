"""Resolving files: cache, then mirror, then network; verified each time, never half written."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import socket
import threading
from typing import ClassVar

import pytest

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.loaders.files import resolve
from reprolib.loaders.manifest import Manifest

CONTENT = b"embeddings " * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()


def manifest(url=None, **changes):
    entry = {"name": "rows.npy", "url": url, "sha256": SHA, "bytes": len(CONTENT)}
    fields = {
        "name": "small", "title": "t", "kind": "features", "summary": "s", "modalities": ["image", "text"],
        "licence": "MIT", "access": "a", "source": {}, "files": [entry], "format": "npy",
        "row_correspondence": "r",
        "counts": {}, "splits": {}, "citation": "c", "how_to_obtain": "ask the authors of small",
    }  # fmt: skip
    return Manifest.model_validate(fields | changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no mirror, and no proxy between the tests and the loopback server."""
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path / "cache"


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def put(folder, content=CONTENT):
    path = folder / "small" / "rows.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    """/good, /wrong, /short (fewer bytes than announced), /cut (fewer, and none announced); else 404."""

    answers: ClassVar[dict[str, bytes]] = {
        "/good": CONTENT,
        "/wrong": CONTENT[::-1],
        "/short": CONTENT[:100],
        "/cut": CONTENT[:100],
    }
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path not in self.answers:
            self.send_error(404)
            return
        body = self.answers[self.path]
        self.send_response(200)
        if self.path != "/cut":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep the test output clean."""


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}"
        service.shutdown()
        thread.join()


def test_a_good_download_lands_in_the_cache_and_is_fetched_once(server, cache):
    Handler.asked.clear()
    found = [resolve(manifest(f"{server}/good"), "rows.npy") for _ in range(2)]
    assert found[0] == found[1] == cache / "datasets" / "small" / "rows.npy"
    assert found[0].read_bytes() == CONTENT and Handler.asked == ["/good"]
    assert everything_in(cache) == ["datasets/small/rows.npy"]


@pytest.mark.parametrize("page", ["wrong", "cut"])
def test_a_download_that_is_not_the_file_is_discarded(server, cache, page):
    with pytest.raises(InputError) as error:
        resolve(manifest(f"{server}/{page}"), "rows.npy")
    actual = hashlib.sha256(Handler.answers[f"/{page}"]).hexdigest()
    assert all(word in str(error.value) for word in (f"{server}/{page}", SHA, actual, "discarded"))
    assert everything_in(cache) == []


@pytest.mark.parametrize(("page", "reason"), [("missing", "HTTP status 404"), ("short", "before the end")])
def test_a_download_that_fails_says_how_to_obtain_the_data(server, cache, page, reason):
    with pytest.raises(DataUnavailable) as error:
        resolve(manifest(f"{server}/{page}"), "rows.npy")
    assert all(word in str(error.value) for word in ("small/rows.npy", reason, "ask the authors of small"))
    assert everything_in(cache) == []


def test_without_network_and_mirror_the_way_to_obtain_it_is_said(cache):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/good"
    for url, reason in ((closed, "no connection"), (None, "no direct address")):
        with pytest.raises(DataUnavailable) as error:
            resolve(manifest(url), "rows.npy")
        assert reason in str(error.value) and "ask the authors of small" in str(error.value)
        assert error.value.exit_code == 1 and everything_in(cache) == []


def test_order_is_cache_then_mirror_then_network(server, cache, tmp_path, monkeypatch):
    Handler.asked.clear()
    wanted = manifest(f"{server}/good")
    argument, variable = put(tmp_path / "argument"), put(tmp_path / "variable")
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "variable"))
    assert resolve(wanted, "rows.npy") == variable
    assert resolve(wanted, wanted.files[0], mirror=tmp_path / "argument") == argument
    cached = put(cache / "datasets")
    assert resolve(wanted, "rows.npy", mirror=str(tmp_path / "argument")) == cached
    assert Handler.asked == [] and everything_in(cache) == ["datasets/small/rows.npy"]


def test_a_mirror_without_the_file_leads_on_to_the_network(server, cache, tmp_path):
    assert resolve(manifest(f"{server}/good"), "rows.npy", mirror=tmp_path).is_relative_to(cache)


def test_a_folder_of_another_name_is_looked_into(tmp_path):
    shared = put(tmp_path / "mirror")
    assert resolve(manifest(name="small-random", folder="small"), "rows.npy", tmp_path / "mirror") == shared


@pytest.mark.parametrize("content", [CONTENT[:100], CONTENT[::-1], b""])
def test_a_corrupted_file_is_refused_wherever_it_lies(cache, tmp_path, content):
    for folder, mirror in ((tmp_path / "mirror", tmp_path / "mirror"), (cache / "datasets", None)):
        path = put(folder, content)
        with pytest.raises(InputError) as error:
            resolve(manifest(), "rows.npy", mirror)
        actual = hashlib.sha256(content).hexdigest()
        assert all(word in str(error.value) for word in (str(path), SHA, actual, f"{len(content)} of {len(CONTENT)}"))
        path.unlink()


def test_a_change_after_the_first_look_is_noticed(tmp_path):
    path = put(tmp_path)
    assert resolve(manifest(), "rows.npy", tmp_path) == path
    put(tmp_path, CONTENT[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="sha256"):
        resolve(manifest(), "rows.npy", tmp_path)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(server, cache, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match=r"rows\.npy cannot be written: No space left on device"):
        resolve(manifest(f"{server}/good"), "rows.npy")
    assert everything_in(cache) == []


def test_a_cache_that_cannot_be_made_is_one_sentence(server, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(RunError, match="cannot be written"):
        resolve(manifest(f"{server}/good"), "rows.npy")


def test_unknown_files_and_mirrors_that_are_no_folder(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no file 'row\.npy'; valid: rows\.npy"):
        resolve(manifest(), "row.npy")
    with pytest.raises(InputError, match="is not a folder"):
        resolve(manifest(), "rows.npy", tmp_path / "nowhere")
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "nowhere"))
    assert paths.mirror() == tmp_path / "nowhere"
    with pytest.raises(InputError, match="is not a folder"):
        resolve(manifest(), "rows.npy")
