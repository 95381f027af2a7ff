"""Unpacking: what is packed comes out, and what would harm is refused in one sentence, leaving nothing."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError, RunError
from reprolib.loaders import unpack as module
from reprolib.loaders.unpack import Limits, unpack

FILES = {"images/a.jpg": b"a" * 3000, "images/deep/b.jpg": b"", "labels.txt": b"a 1\n"}
KINDS = {"zip": None, "tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def pack(path, files, kind=None):
    kind = kind or path.name.partition(".")[2]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, KINDS[kind]) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, target, *words, limits=None):
    """Check that the archive is refused in one sentence with these words, and that nothing is left."""
    before = contents(archive.parent)
    with pytest.raises(InputError) as error:
        unpack(archive, target, limits)
    sentence = str(error.value)
    assert all(word in sentence for word in (str(archive), *words)), sentence
    assert "\n" not in sentence and contents(archive.parent) == before
    assert not [path for path in archive.parent.iterdir() if path.name.endswith(".unpacking")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_what_was_packed(tmp_path, kind):
    target = tmp_path / "out"
    target.mkdir()
    (target / "labels.txt").write_bytes(b"older")
    (target / "mine.txt").write_bytes(b"mine")
    unpack(pack(tmp_path / f"a.{kind}", FILES), target)
    assert contents(target) == FILES | {"mine.txt": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{kind}", "out"]


@given(
    st.dictionaries(
        st.lists(st.text("abcé .-", min_size=1).filter(lambda part: part.strip(". ")), min_size=1, max_size=3).map(
            lambda parts: "f/" + "/".join(parts) + ".x"
        ),
        st.binary(max_size=300),
        min_size=1,
        max_size=6,
    ).filter(lambda files: not any(a != b and b.startswith(a + "/") for a in files for b in files)),
    st.sampled_from(list(KINDS)),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packing_and_unpacking_are_inverse(tmp_path, files, kind):
    unpack(pack(tmp_path / f"a.{kind}", files), tmp_path / "out")
    assert contents(tmp_path / "out") == files
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..", "a\\..\\evil"])
def test_no_path_leads_outside(tmp_path, kind, name):
    refused(pack(tmp_path / f"a.{kind}", {"good": b"", name: b"x"}), tmp_path / "out", repr(name), "outside")


@pytest.mark.parametrize(
    ("type_", "what"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_no_links_and_no_devices_in_tar(tmp_path, type_, what):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("odd")
        member.type, member.linkname = type_, "/etc/passwd"
        archive.addfile(member)
    refused(tmp_path / "a.tar", tmp_path / "out", "'odd'", what)


@pytest.mark.parametrize(("mode", "what"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device")])
def test_no_links_and_no_devices_in_zip(tmp_path, mode, what):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("odd")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", tmp_path / "out", "'odd'", what)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_limits_hold(tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {f"{i}": bytes(1000) for i in range(5)})
    refused(archive, tmp_path / "out", "more than 4 entries", limits=Limits(entries=4))
    refused(archive, tmp_path / "out", "larger than 4.5 kB", limits=Limits(total=4500))
    refused(archive, tmp_path / "out", "larger than", limits=Limits(ratio=0.01, free=1))
    unpack(archive, tmp_path / "out", Limits(entries=5, total=5000 if kind != "tar" else 20_000, free=20_000))
    assert len(contents(tmp_path / "out")) == 5


def test_a_bomb_is_refused_before_it_is_written(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", {"zeros": bytes(3_000_000)})
    written = []
    monkeypatch.setattr(module, "_copy", lambda *_: written.append(1))
    refused(archive, tmp_path / "out", "larger than", limits=Limits(free=1000))
    assert not written


def test_a_size_that_lies_is_noticed(tmp_path):
    archive = pack(tmp_path / "a.zip", {"f": bytes(500)})
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # where the two headers state the size
        at = content.index(mark) + place
        content[at : at + 4] = (100).to_bytes(4, "little")
    archive.write_bytes(content)
    refused(archive, tmp_path / "out")


def test_an_entry_stands_once(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("f", "1")
        archive.writestr("f", "2")
    refused(tmp_path / "a.zip", tmp_path / "out", "'f'", "twice")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_truncated_archive_is_refused(tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {f"{i}": os.urandom(5000) for i in range(4)})
    whole = archive.read_bytes()
    for length in (0, 1, 100, len(whole) // 3, 12_000):
        archive.write_bytes(whole[:length])
        refused(archive, tmp_path / "out")


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path):
    archive = pack(tmp_path / "a.zip", {"f": os.urandom(5000)})
    content = bytearray(archive.read_bytes())
    content[2500] ^= 1
    archive.write_bytes(content)
    refused(archive, tmp_path / "out", "not a whole zip or tar archive")


def test_encrypted_entries_are_refused(tmp_path):
    archive = pack(tmp_path / "a.zip", {"f": b"1"})
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    archive.write_bytes(content)
    refused(archive, tmp_path / "out", "'f'", "encrypted")


def test_an_interruption_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", FILES)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    left = tmp_path / ".out.a.zip.unpacking"  # what a killed process leaves
    left.mkdir()
    (left / "half").write_bytes(b"half")
    unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES and not left.exists()


def test_a_disk_without_room_is_one_sentence(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(RunError, match=r"unpacking a\.zip needs 3\.0 kB, and .* has 100 bytes left"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
