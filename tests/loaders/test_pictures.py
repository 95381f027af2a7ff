"""Pictures read on access: files, parts of files, and pictures of any other kind, alike."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from reprolib.errors import InputError
from reprolib.loaders.pictures import Crop, PictureFiles, decode


@pytest.fixture
def folder(tmp_path):
    """Five PNG pictures of different sizes; picture i is all of the value 10 i but for its corner."""
    for i in range(5):
        pixels = np.full((4 + i, 6, 3), 10 * i, dtype=np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


class Plain:
    """A picture without a file."""

    def pixels(self):
        return np.zeros((2, 2, 3), dtype=np.uint8)

    def digest(self):
        return "plain"


def test_a_sequence_gives_what_a_list_of_arrays_gives(folder):
    paths = [folder / f"{i}.png" for i in range(5)]
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    pictures = PictureFiles(list(map(str, paths)))
    assert len(pictures) == 5
    for found, expected in zip(pictures, arrays, strict=True):
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
    for rows in (slice(1, 4), [3, 0], np.array([True, False, True, False, False])):
        expected = [arrays[row] for row in np.arange(5)[rows]]
        found = list(pictures[rows])
        assert len(found) == len(expected) and all(map(np.array_equal, found, expected))
    assert np.array_equal(pictures[np.int64(-1)], arrays[-1])


def test_the_digest_is_of_content_and_order(folder):
    paths = [folder / f"{i}.png" for i in range(3)]
    (folder / "copy.png").write_bytes(paths[0].read_bytes())
    digest = PictureFiles(paths).digest()
    assert digest == PictureFiles([folder / "copy.png", *paths[1:]]).digest()
    assert len({digest, PictureFiles(paths[::-1]).digest(), PictureFiles(paths[:2]).digest()}) == 3


def test_a_crop_is_the_part_in_its_box(folder):
    whole = decode(folder / "4.png")
    crop = Crop(folder / "4.png", (0.4, 1.6, 3, 5.2))
    assert np.array_equal(PictureFiles([crop])[0], whole[2:5, 0:3])
    assert np.array_equal(Crop(folder / "4.png", (-5, -5, 99, 99)).pixels(), whole)
    digests = [PictureFiles([part]).digest() for part in (crop, Crop(crop.path, (0, 0, 2, 2)), crop.path)]
    assert len(set(digests)) == 3
    with pytest.raises(InputError, match=r"6 x 8 pixels: nothing of it lies in the box"):
        Crop(folder / "4.png", (6, 0, 9, 9)).pixels()


def test_any_picture_will_do(folder):
    pictures = PictureFiles([Plain(), folder / "0.png"])
    assert pictures[0].shape == (2, 2, 3) and pictures[[1, 0]][1].shape == (2, 2, 3)
    assert pictures.digest() != pictures[::-1].digest()


def test_transparent_parts_are_white_and_exif_turns(tmp_path):
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    found = decode(tmp_path / "clear.png")
    assert found[0, 0].tolist() == [10, 20, 30] and (found[1] == 255).all()
    lying = Image.fromarray(np.zeros((2, 5, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees
    lying.save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg").shape == (5, 2, 3)


def test_bytes_are_decoded_as_files_are(folder):
    content = (folder / "1.png").read_bytes()
    assert np.array_equal(decode(content), decode(folder / "1.png"))
    for broken in (content[:40], b"no picture", b""):
        with pytest.raises(InputError, match="row 7 is not a whole picture") as error:
            decode(broken, "row 7")
        assert "BytesIO" not in str(error.value)


def test_what_cannot_be_read_is_named(folder):
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    for name in ("bad.jpg", "absent.jpg"):
        with pytest.raises(InputError, match=name):
            PictureFiles([folder / name])[0]
    with pytest.raises(InputError, match=r"absent\.jpg cannot be read"):
        PictureFiles([folder / "absent.jpg"]).digest()


def test_a_huge_picture_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(stream, "PNG")
    with pytest.raises(InputError, match="not a whole picture"):
        decode(stream.getvalue())
