"""Resolving files: cache, then mirror, then network; verified each time, resumed, never half written."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import multiprocessing
import os
import re
import shutil
import socket
import threading
import time
import zipfile
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.loaders import download, files
from reprolib.loaders.download import size_text
from reprolib.loaders.files import resolve, root
from reprolib.loaders.manifest import Manifest

CONTENT = b"embeddings " * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


def manifest(url=None, entry=None, **changes):
    stated = {"name": "rows.npy", "url": url, "sha256": SHA, "bytes": len(CONTENT)}
    fields = {
        "name": "small", "title": "t", "kind": "features", "summary": "s", "modalities": ["image", "text"],
        "licence": "MIT", "access": "a", "source": {}, "files": [stated | (entry or {})], "format": "npy",
        "row_correspondence": "r",
        "counts": {}, "splits": {}, "citation": "c", "how_to_obtain": "ask the authors of small",
    }  # fmt: skip
    return Manifest.model_validate(fields | changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no mirror, no proxy before the loopback server, and little patience."""
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", (2.0, 0.4))
    return tmp_path / "cache"


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def put(folder, content=CONTENT):
    path = folder / "small" / "rows.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    """What the paths do is said beside them; a path that is not there is 404.

    ``breaks`` counts, per path, how many answers still break off after half of what they announced.
    """

    whole: ClassVar[dict[str, bytes]] = {
        "/good": CONTENT,  # without ranges, like all but /ranged and /weak
        "/wrong": CONTENT[::-1],
        "/short": CONTENT[:100],  # fewer bytes than announced, each time
        "/cut": CONTENT[:100],  # fewer, and none announced
        "/plain": CONTENT,
        "/slow": CONTENT,  # in pieces, each within the time allowed
        "/dead": CONTENT,  # half, and then nothing
        "/busy": CONTENT,  # 503 first
        "/ranged": CONTENT,  # ranges and an ETag
        "/weak": CONTENT,  # ranges, and nothing that tells versions apart
        "/lying": CONTENT,  # another range than asked for
        "/packed": CONTENT,  # said to be compressed, as servers say of an archive
        "/page": CONTENT,  # a web page, as hosts send when they want a click
    }
    breaks: ClassVar[dict[str, int]] = {}
    version: ClassVar[str] = "1"
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if self.path not in self.whole:
            self.send_error(404)
            return
        breaking = self.breaks.get(self.path, 0) > 0
        if breaking:
            self.breaks[self.path] -= 1
        if self.path == "/busy" and breaking:
            self.send_error(503)
            return
        body, start = self.whole[self.path], 0
        etag = f'"{self.version}"'
        if wanted and self.path in ("/ranged", "/weak", "/lying") and self.headers.get("If-Range", etag) == etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            sent = 0 if self.path == "/lying" else start
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {sent}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if self.path == "/ranged":
            self.send_header("ETag", etag)
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        if self.path == "/page":
            self.send_header("Content-Type", "text/html; charset=utf-8")
        body = body[start:]
        if self.path != "/cut":
            announced = len(CONTENT) if self.path == "/short" else len(body)
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.path == "/slow":
            for piece in range(0, len(body), len(body) // 8 + 1):
                time.sleep(0.1)
                self.wfile.write(body[piece : piece + len(body) // 8 + 1])
        elif self.path == "/dead":
            self.wfile.write(body[:HALF])
            self.wfile.flush()
            time.sleep(0.8)
        else:
            self.wfile.write(body[: len(body) // 2] if breaking else body)

    def log_message(self, *_):
        """Keep the test output clean."""


@pytest.fixture(scope="module")
def service():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def server(service):
    Handler.asked.clear()
    Handler.breaks.clear()
    Handler.version = "1"
    return service


def asked():
    return [path for path, _ in Handler.asked]


# ---------------------------------------------------------------- one file


def test_a_good_download_lands_in_the_cache_and_is_fetched_once(server, cache):
    found = [resolve(manifest(f"{server}/good"), "rows.npy") for _ in range(2)]
    assert found[0] == found[1] == cache / "datasets" / "small" / "rows.npy"
    assert found[0].read_bytes() == CONTENT and asked() == ["/good"]
    assert everything_in(cache) == ["datasets/small/rows.npy"]


@pytest.mark.parametrize("page", ["wrong", "cut"])
def test_a_download_that_is_not_the_file_is_discarded(server, cache, page):
    with pytest.raises(InputError) as error:
        resolve(manifest(f"{server}/{page}"), "rows.npy")
    actual = hashlib.sha256(Handler.whole[f"/{page}"]).hexdigest()
    assert all(word in str(error.value) for word in (f"{server}/{page}", SHA, actual, "discarded"))
    assert everything_in(cache) == []


@pytest.mark.parametrize(
    ("page", "reason", "left"), [("missing", "HTTP status 404", 0), ("short", "before the end", 2)]
)
def test_a_download_that_fails_says_how_to_obtain_the_data(server, cache, page, reason, left):
    with pytest.raises(DataUnavailable) as error:
        resolve(manifest(f"{server}/{page}"), "rows.npy")
    assert all(word in str(error.value) for word in ("small/rows.npy", reason, "ask the authors of small"))
    assert len(everything_in(cache)) == left, "what has arrived waits for the next call"
    assert not (cache / "datasets" / "small" / "rows.npy").exists()


def test_without_network_and_mirror_the_way_to_obtain_it_is_said(cache):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/good"
    for url, reason in ((closed, "no connection"), (None, "no direct address")):
        with pytest.raises(DataUnavailable) as error:
            resolve(manifest(url), "rows.npy")
        assert reason in str(error.value) and "ask the authors of small" in str(error.value)
        assert error.value.exit_code == 1 and everything_in(cache) == []


@pytest.mark.parametrize("page", ["ranged", "weak"])
def test_a_broken_download_goes_on_where_it_broke_off(server, page):
    Handler.breaks[f"/{page}"] = 1
    assert resolve(manifest(f"{server}/{page}"), "rows.npy").read_bytes() == CONTENT
    assert Handler.asked == [(f"/{page}", None), (f"/{page}", f"bytes={HALF}-")]


def test_the_next_call_goes_on_too(server, cache, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 0)
    Handler.breaks["/ranged"] = 1
    with pytest.raises(DataUnavailable, match="before the end"):
        resolve(manifest(f"{server}/ranged"), "rows.npy")
    assert (cache / "datasets/small/rows.npy.part").read_bytes() == CONTENT[:HALF]
    assert resolve(manifest(f"{server}/ranged"), "rows.npy").read_bytes() == CONTENT
    assert Handler.asked[-1] == ("/ranged", f"bytes={HALF}-")
    assert everything_in(cache) == ["datasets/small/rows.npy"]


def begin(cache, content, url, validator='"1"'):
    """Leave a part of an earlier download, as a killed process does."""
    part = cache / "datasets" / "small" / "rows.npy.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    part.with_name("rows.npy.part.json").write_text(json.dumps({"url": url, "validator": validator}))


@given(share=st.integers(0, len(CONTENT)))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_of_any_length_is_completed(server, cache, share):
    url = f"{server}/ranged"
    begin(cache, CONTENT[:share], url)
    assert resolve(manifest(url), "rows.npy").read_bytes() == CONTENT
    shutil.rmtree(cache)


@pytest.mark.parametrize(
    ("page", "part", "validator", "requests"),
    [
        ("ranged", b"older " * 100, '"0"', 1),  # the file has changed: If-Range brings it whole
        ("weak", b"older " * 100, None, 2),  # continued, found wrong by its hash, and fetched anew
        ("weak", CONTENT + b"more", None, 2),  # longer than the file: the range is refused
        ("lying", CONTENT[:50], None, 2),
        ("plain", CONTENT[:50], '"1"', 1),  # no ranges: the whole file comes
    ],
)
def test_a_part_that_does_not_fit_does_no_harm(server, cache, page, part, validator, requests):
    url = f"{server}/{page}"
    begin(cache, part, url, validator)
    assert resolve(manifest(url), "rows.npy").read_bytes() == CONTENT
    assert len(Handler.asked) == requests and everything_in(cache) == ["datasets/small/rows.npy"]


def test_a_part_that_nothing_can_tell_from_another_version_is_not_continued(server, cache):
    begin(cache, b"older " * 100, f"{server}/weak", None)
    unknown = manifest(f"{server}/weak", {"sha256": None})
    assert resolve(unknown, "rows.npy").read_bytes() == CONTENT and Handler.asked == [("/weak", None)]


def test_a_part_from_another_address_is_not_continued(server, cache):
    begin(cache, CONTENT[:50], f"{server}/elsewhere")
    assert resolve(manifest(f"{server}/ranged"), "rows.npy").read_bytes() == CONTENT
    assert Handler.asked == [("/ranged", None)]


@pytest.mark.parametrize(("page", "breaks"), [("plain", 2), ("busy", 3)])
def test_a_server_without_ranges_and_a_busy_one_are_asked_again(server, page, breaks):
    Handler.breaks[f"/{page}"] = breaks
    assert resolve(manifest(f"{server}/{page}"), "rows.npy").read_bytes() == CONTENT
    assert len(Handler.asked) == breaks + 1


def test_a_server_that_always_breaks_is_given_up(server):
    Handler.breaks["/plain"] = 99
    with pytest.raises(DataUnavailable, match="before the end"):
        resolve(manifest(f"{server}/plain"), "rows.npy")
    assert len(Handler.asked) == 1 + download.ATTEMPTS  # the first brings something, those that follow nothing new


def test_a_slow_server_is_waited_for_and_a_dead_one_is_not(server, monkeypatch):
    begun = time.monotonic()
    assert resolve(manifest(f"{server}/slow"), "rows.npy").read_bytes() == CONTENT
    assert time.monotonic() - begun > download.TIMEOUT[1], "in all it takes longer than one piece may"
    monkeypatch.setattr(download, "ATTEMPTS", 0)
    with pytest.raises(DataUnavailable, match="no answer in time"):
        resolve(manifest(f"{server}/dead", {"name": "others.npy"}), "others.npy")


def test_bytes_are_kept_as_sent_and_a_web_page_is_no_file(server, cache):
    assert resolve(manifest(f"{server}/packed"), "rows.npy").read_bytes() == CONTENT
    shutil.rmtree(cache)
    with pytest.raises(DataUnavailable, match="it sent a web page instead"):
        resolve(manifest(f"{server}/page", {"sha256": None}), "rows.npy")
    assert everything_in(cache) == []


def test_addresses_are_tried_in_order(server, cache):
    urls = [f"{server}/{page}" for page in ("missing", "wrong", "good", "plain")]
    assert resolve(manifest(urls), "rows.npy").read_bytes() == CONTENT
    assert asked() == ["/missing", "/wrong", "/good"] and everything_in(cache) == ["datasets/small/rows.npy"]
    shutil.rmtree(cache)
    with pytest.raises(DataUnavailable) as error:
        resolve(manifest(urls[:2] + urls[:1]), "rows.npy")
    assert all(word in str(error.value) for word in (urls[0], urls[1], "HTTP status 404", "sha256"))


def test_a_disk_without_room_is_said_before_anything_is_written(server, cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RunError, match=r"needs 55\.0 kB, and .* has 1\.0 kB left"):
        resolve(manifest(f"{server}/good"), "rows.npy")
    assert everything_in(cache) == []


def test_sizes_in_words():
    assert [size_text(n) for n in (0, 999, 1000, 25_400_000, 13_510_573_713, 2e15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "25.4 MB", "13.5 GB", "2000.0 TB",
    ]  # fmt: skip


def _resolve_in_process(url, results):
    results.put(resolve(manifest(url), "rows.npy").read_bytes() == CONTENT)


def test_two_processes_fetch_a_file_once(server):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    pair = [context.Process(target=_resolve_in_process, args=(f"{server}/slow", results)) for _ in range(2)]
    for process in pair:
        process.start()
    assert [results.get(timeout=20) for _ in pair] == [True, True]
    for process in pair:
        process.join()
    assert asked() == ["/slow"]


def test_order_is_cache_then_mirror_then_network(server, cache, tmp_path, monkeypatch):
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


def test_a_published_md5_is_checked(tmp_path):
    stated = manifest(entry={"sha256": None, "md5": MD5, "bytes": None})
    assert resolve(stated, "rows.npy", put(tmp_path).parents[1]).read_bytes() == CONTENT
    put(tmp_path, CONTENT[::-1])
    with pytest.raises(InputError, match=f"md5 .*, expected {MD5}"):
        resolve(stated, "rows.npy", tmp_path)


def test_a_published_size_alone_is_checked(tmp_path):
    put(tmp_path, CONTENT[:-1])
    with pytest.raises(InputError, match=f"{len(CONTENT) - 1} of {len(CONTENT)} bytes"):
        resolve(manifest(entry={"sha256": None}), "rows.npy", tmp_path)


def test_without_a_hash_the_first_use_is_recorded(server, cache, tmp_path):
    unknown = manifest(f"{server}/good", {"sha256": None, "bytes": None})
    path = resolve(unknown, "rows.npy")
    record = cache / "datasets" / "small" / "recorded.json"
    assert json.loads(record.read_text()) == {"rows.npy": SHA}
    assert everything_in(cache) == ["datasets/small/recorded.json", "datasets/small/rows.npy"]
    assert resolve(unknown, "rows.npy") == path
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match=rf"recorded\.json tells .*expected {SHA}; .*delete the line"):
        resolve(unknown, "rows.npy")
    path.unlink()
    put(tmp_path / "mirror", b"another")
    with pytest.raises(InputError, match="of the first use"):  # a record holds wherever the file comes from
        resolve(unknown, "rows.npy", tmp_path / "mirror")
    record.write_text("[")
    with pytest.raises(InputError, match=r"recorded\.json is damaged"):
        resolve(unknown, "rows.npy", tmp_path / "mirror")


def test_a_full_disk_is_one_sentence_and_nothing_appears(server, cache, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(RunError, match=r"rows\.npy cannot be written: No space left on device"):
            resolve(manifest(f"{server}/ranged"), "rows.npy")
        assert not (cache / "datasets" / "small" / "rows.npy").exists()
    assert resolve(manifest(f"{server}/ranged"), "rows.npy").read_bytes() == CONTENT


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


# ---------------------------------------------------------------- the tree that archives unpack to


@pytest.fixture
def archive(tmp_path):
    """A mirror with a zip of two pictures, and the manifest that names it."""
    folder = tmp_path / "mirror" / "small"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as packed:
        packed.writestr("images/a.jpg", b"a")
        packed.writestr("images/b.jpg", b"b")
    sha = hashlib.sha256((folder / "images.zip").read_bytes()).hexdigest()
    entry = {"name": "images.zip", "url": None, "sha256": sha, "unpack": True}
    return manifest(files=[entry], root_files=["images/a.jpg"]), tmp_path / "mirror"


def test_an_archive_of_a_mirror_is_unpacked_into_the_cache_once(cache, archive, monkeypatch):
    stated, mirror = archive
    before = everything_in(mirror)
    folder = root(stated, mirror)
    assert folder == cache / "datasets" / "small" and everything_in(mirror) == before
    assert everything_in(folder) == [".unpacked/images.zip", "images/a.jpg", "images/b.jpg"]
    assert (folder / ".unpacked/images.zip").read_text().strip() == stated.files[0].sha256
    monkeypatch.setattr(files, "unpack", None)  # a second call unpacks nothing
    monkeypatch.setattr(files, "resolve", None)  # and reads no archive
    assert root(stated, mirror) == folder == root(stated)


def test_a_tree_that_is_there_is_used_in_place(cache, archive):
    stated, mirror = archive
    (mirror / "small" / "images").mkdir()
    (mirror / "small" / "images" / "a.jpg").write_bytes(b"a")
    assert root(stated, mirror) == mirror / "small" and not cache.exists()


def test_an_unpacking_that_was_killed_does_not_count(cache, archive):
    stated, mirror = archive
    folder = cache / "datasets" / "small"
    (folder / ".unpacked").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(b"half of it")
    assert root(stated, mirror) == folder and (folder / "images" / "a.jpg").read_bytes() == b"a"
    (folder / "images" / "a.jpg").unlink()  # what was deleted comes back, too
    assert root(stated, mirror) == folder and (folder / "images" / "a.jpg").read_bytes() == b"a"


def test_a_new_archive_is_unpacked_anew(cache, archive):
    stated, mirror = archive
    root(stated, mirror)
    with zipfile.ZipFile(mirror / "small" / "images.zip", "w") as packed:
        packed.writestr("images/a.jpg", b"new")
    sha = hashlib.sha256((mirror / "small" / "images.zip").read_bytes()).hexdigest()
    changed = manifest(files=[stated.files[0].model_dump() | {"sha256": sha}], root_files=["images/a.jpg"])
    assert (root(changed, mirror) / "images" / "a.jpg").read_bytes() == b"new"


def test_a_file_beside_the_archive_is_brought_to_the_tree(cache, archive, tmp_path):
    stated, mirror = archive
    put(mirror)
    both = manifest(
        files=[stated.files[0].model_dump(), manifest().files[0].model_dump()],
        root_files=["images/a.jpg", "rows.npy"],
    )
    assert (root(both, mirror) / "rows.npy").read_bytes() == CONTENT
    assert root(both, mirror) == cache / "datasets" / "small"


def test_a_tree_put_there_by_hand_lacks_only_the_file_beside_it(server, cache, archive, monkeypatch):
    stated, _ = archive
    both = manifest(
        files=[stated.files[0].model_dump(), manifest(f"{server}/good").files[0].model_dump()],
        root_files=["images/a.jpg", "rows.npy"],
    )
    (cache / "datasets" / "small" / "images").mkdir(parents=True)
    (cache / "datasets" / "small" / "images" / "a.jpg").write_bytes(b"a")
    monkeypatch.setattr(files, "unpack", None)
    assert (root(both) / "rows.npy").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": []}, ["small/images/a.jpg", "ask the authors of small"]),
        ({"root_files": ["images/c.jpg"]}, ["small/images/c.jpg", "no archive", "ask the authors of small"]),
    ],
)
def test_a_tree_that_cannot_be_had_is_named_by_its_first_missing_path(archive, change, words):
    stated, mirror = archive
    with pytest.raises(DataUnavailable) as error:
        root(manifest(**(stated.model_dump() | change)), mirror)
    assert all(word in str(error.value) for word in words)


def test_an_archive_that_is_not_the_stated_one_is_not_unpacked(cache, archive):
    stated, mirror = archive
    (mirror / "small" / "images.zip").write_bytes(b"PK other")
    with pytest.raises(InputError, match="is not the file that the manifest names"):
        root(stated, mirror)
    assert everything_in(cache) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/a", "images/../../b", "", "a\\b"])
def test_root_files_stay_inside(path):
    with pytest.raises(ValueError, match="relative path"):
        manifest(root_files=[path])
