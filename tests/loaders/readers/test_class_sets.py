"""Readers of image sets with classes, on miniatures in the layout that each set is published in."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import datasets, load_manifest
from reprolib.loaders.files import root
from reprolib.loaders.readers import READERS, SPLITS, groups_of, load_items, readers, search_of
from reprolib.loaders.readers.classes import in_part, table

# KaiyangZhou/CoOp, trainers/zsclip.py, CUSTOM_TEMPLATES at commit 5cceba3, with a class of each set filled in
PROMPTS = {
    "caltech": ("airplane", "a photo of a airplane."),
    "pets": ("american_bulldog", "a photo of a american bulldog, a type of pet."),
    "cars": ("2012 Audi TTS Coupe", "a photo of a 2012 Audi TTS Coupe."),
    "flowers": ("pink primrose", "a photo of a pink primrose, a type of flower."),
    "dtd": ("banded", "banded texture."),
    "eurosat": ("Annual Crop Land", "a centered satellite photo of Annual Crop Land."),
    "food": ("apple_pie", "a photo of apple pie, a type of food."),
    "sun": ("indoor church", "a photo of a indoor church."),
    "ucf": ("Apply_Eye_Makeup", "a photo of a person doing Apply Eye Makeup."),
}
COOP = {"train": "train", "validation": "val", "test": "test"}


def picture(path: Path, shade: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(path, format="PNG")  # decoded by content, whatever its name


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """An empty mirror, which the environment names; the cache is empty, too."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("REPROLIB_MIRROR", str(folder))
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    return folder


def place(mirror: Path, name: str) -> Path:
    return mirror / load_manifest(name).place


def build_coop(mirror: Path, name: str) -> dict[str, list]:
    """Write three images of two classes per split, one of a third class in train, and the list that names them."""
    options = load_manifest(name).options
    folder = place(mirror, name)
    first = PROMPTS[name][0]
    under = {part: part for part in COOP}
    if name == "cars":  # whose list names the folders of its two archives
        under = {"train": "cars_train", "validation": "cars_train/v", "test": "cars_test"}
    split = {
        COOP[part]: [[f"{where}/c{i}/{i}.jpg", 10 * (i % 2), (first, "z_last")[i % 2]] for i in range(3)]
        for part, where in under.items()
    }
    split["train"].append([f"{under['train']}/only.jpg", 5, "in train only"])
    for part, rows in split.items():
        for number, (path, _, _) in enumerate(rows):
            picture(folder / options["images"] / path, 10 * number + len(part))
    (folder / options["split_file"]).write_text(json.dumps(split, indent=4))
    return split


def build_cub(mirror: Path) -> None:
    folder = place(mirror, "cub") / "CUB_200_2011"
    images = [f"{c:03d}.Bird_no_{c}/Bird_{c}_{i}.jpg" for c in (1, 2, 3) for i in range(20)]
    for number, path in enumerate(images):
        picture(folder / "images" / path, number)
    numbered = range(1, len(images) + 1)
    (folder / "images.txt").write_text("".join(f"{i} {images[i - 1]}\n" for i in numbered))
    (folder / "image_class_labels.txt").write_text("".join(f"{i} {1 + (i - 1) // 20}\n" for i in numbered))
    (folder / "train_test_split.txt").write_text("".join(f"{i} {int(i % 4 != 0)}\n" for i in numbered))
    (folder / "classes.txt").write_text("".join(f"{c} {c:03d}.Bird_no_{c}\n" for c in (1, 2, 3)))


def build_sop(mirror: Path) -> None:
    folder = place(mirror, "sop") / "Stanford_Online_Products"
    image = 0
    for file, products in (("Ebay_train.txt", range(1, 41)), ("Ebay_test.txt", range(41, 45))):
        lines = ["image_id class_id super_class_id path"]
        for product in products:
            for view in range(2):
                image += 1
                kind = 1 + product % 12
                path = f"kind{kind}_final/{product}_{view}.JPG"
                picture(folder / path, image)
                lines.append(f"{image} {product} {kind} {path}")
        (folder / file).write_text("\n".join(lines) + "\n")


def build_aircraft(mirror: Path) -> None:
    data = place(mirror, "aircraft") / "fgvc-aircraft-2013b" / "data"
    for shade, number in enumerate(("0034309", "0034958", "1025794", "0056978", "0062765")):
        picture(data / "images" / f"{number}.jpg", shade)
    (data / "variants.txt").write_text("707-320\nDC-3\nF/A-18\nDHC-8 100\n")
    (data / "images_variant_train.txt").write_text("0034309 707-320\n1025794 DC-3\n")
    (data / "images_variant_val.txt").write_text("0056978 DC-3\n")
    (data / "images_variant_test.txt").write_text("0034958 F/A-18\n0062765 DHC-8 100\n")


def build_imagenet(mirror: Path) -> None:
    folder = place(mirror, "imagenet")
    names = {"n01440764": "tench", "n02012849": "crane bird", "n03126707": "crane bird"}
    for wnid in names:
        for image in range(40):
            picture(folder / "images" / "train" / wnid / f"{wnid}_{image}.JPEG", image, size=(2, 1))
        for image in range(2):
            picture(folder / "images" / "val" / wnid / f"ILSVRC2012_val_{wnid}_{image}.JPEG", image, size=(2, 1))
    (folder / "images" / "train" / ".hidden").mkdir()
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in names.items()))


def idx(values: np.ndarray) -> bytes:
    lengths = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return gzip.compress(bytes((0, 0, 8, values.ndim)) + lengths + values.astype(np.uint8).tobytes(), mtime=0)


def build_fashion(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changed: bytes) -> None:
    """Write 60 and 20 images in the four files, and a manifest that names their hashes."""
    folder = place(mirror, "fashion-mnist")
    folder.mkdir()
    manifest = yaml.safe_load((paths.manifests() / "datasets" / "fashion-mnist.yaml").read_text(encoding="utf-8"))
    contents = {}
    for prefix, n in (("train", 60), ("t10k", 20)):
        contents[f"{prefix}-images-idx3-ubyte.gz"] = idx(np.arange(n)[:, None, None] + np.arange(12).reshape(3, 4))
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = idx(np.arange(n) % 9)
    contents |= {f"{name.replace('_', '-')}-ubyte.gz": content for name, content in changed.items()}
    for entry in manifest["files"]:
        content = contents[entry["name"]]
        (folder / entry["name"]).write_bytes(content)
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "md5": None, "bytes": len(content)}
    (tmp_path / "manifests" / "datasets").mkdir(parents=True)
    (tmp_path / "manifests" / "datasets" / "fashion-mnist.yaml").write_text(yaml.safe_dump(manifest))
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path / "manifests")


def classes_of(items) -> list[str]:
    """Return the text id of every image, by a loop over the dense relevance."""
    dense = items.relevance.toarray()
    assert (dense.sum(axis=1) == 1).all()
    return [items.text_ids[row.tolist().index(True)] for row in dense]


# ---------------------------------------------------------------- CoOp's lists


@pytest.mark.parametrize("name", PROMPTS)
def test_a_coop_set_has_the_images_classes_and_prompts_of_its_list(mirror, name):
    split = build_coop(mirror, name)
    assert load_manifest(name).reader == "coop"
    for part in SPLITS:
        items = load_items(name, part)
        rows = split[COOP[part]]
        assert items.image_ids.tolist() == [path for path, _, _ in rows]
        assert classes_of(items) == [str(label) for _, label, _ in rows]
        assert items.text_ids.tolist() == (["0", "5", "10"] if part == "train" else ["0", "10"])
        assert items.texts[0] == PROMPTS[name][1]
        assert items.texts[-1] == PROMPTS[name][1].replace(PROMPTS[name][0].replace("_", " "), "z last")
        assert items.images[2].shape == (4, 6, 3) and items.images[2][0, 0, 0] == 20 + len(COOP[part])


def test_items_of_a_class_are_a_group_and_are_searched_all_against_all(mirror):
    build_coop(mirror, "dtd")
    items = load_items("dtd", "test")
    images, texts = groups_of("dtd", items)["item"]
    assert images[0] == images[2] == texts[0] != images[1] == texts[1]
    assert search_of("dtd", items, "image") is None and search_of("dtd", items, "text") is None


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_any_list_gives_one_text_for_each_class_that_occurs(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("any")
    for row in range(len(labels)):
        (folder / f"{row}.jpg").touch()
    entries = [[f"{row}.jpg", label, f"class {label}"] for row, label in enumerate(labels)]
    split = {"train": [["0.jpg", label, f"class {label}"] for label in range(5)], "val": [], "test": entries}
    (folder / "split.json").write_text(json.dumps(split))
    manifest = load_manifest("dtd").model_copy(
        update={
            "folder": folder.name,
            "root_files": ["split.json"],
            "options": {"split_file": "split.json", "images": ".", "template": "{}"},
        }
    )
    items = readers()["coop"].read(manifest, "test", folder.parent)
    assert items.texts == [f"class {label}" for label in sorted(set(labels))]
    assert classes_of(items) == [str(label) for label in labels]


@pytest.mark.parametrize("name", [name for name in datasets() if name.endswith("-train-gallery")])
def test_every_train_gallery_is_that_of_a_set_that_is_there(name):
    manifest = load_manifest(name)
    base = load_manifest(name.removesuffix("-train-gallery"))
    assert manifest.options["dataset"] == base.name
    assert (manifest.place, manifest.root_files, manifest.reader) == (base.place, base.root_files, base.reader)
    assert manifest.options["search"]["queries"] == ["test"] and "train" in manifest.options["search"]["gallery"]


def test_cross_the_gap_searches_the_training_images_with_the_test_images(mirror):
    split = build_coop(mirror, "dtd")
    items = load_items("dtd-train-gallery", "test")
    assert items.image_ids.tolist() == [path for part in ("test", "train") for path, _, _ in split[part]]
    assert items.name == "dtd-train-gallery" and items.texts[0] == "banded texture."
    found = search_of("dtd-train-gallery", items, "image")
    assert found.queries.tolist() == [0, 1, 2] and found.gallery.tolist() == [3, 4, 5, 6]
    labels = [label for part in ("test", "train") for _, label, _ in split[part]]
    expected = [[labels[query] == labels[image] for image in found.gallery] for query in found.queries]
    assert found.relevance["item"].toarray().tolist() == expected and found.junk["item"].nnz == 0
    for part in ("train", "validation"):
        assert load_items("dtd-train-gallery", part).image_ids.tolist() == load_items("dtd", part).image_ids.tolist()
        assert search_of("dtd-train-gallery", load_items("dtd-train-gallery", part), "image") is None


def test_an_archive_is_unpacked_to_the_layout_that_the_reader_reads(mirror, tmp_path, monkeypatch):
    build_coop(mirror, "dtd")
    folder = place(mirror, "dtd")
    with tarfile.open(folder / "dtd-r1.0.1.tar.gz", "w:gz") as archive:
        archive.add(folder / "dtd", "dtd")
    content = (folder / "dtd-r1.0.1.tar.gz").read_bytes()
    for image in sorted((folder / "dtd").rglob("*.jpg")):
        image.unlink()
    for part in sorted((folder / "dtd").rglob("*"), reverse=True):
        part.rmdir()
    (folder / "dtd").rmdir()
    manifest = yaml.safe_load((paths.manifests() / "datasets" / "dtd.yaml").read_text(encoding="utf-8"))
    manifest["files"][0] |= {"sha256": hashlib.sha256(content).hexdigest(), "md5": None, "bytes": len(content)}
    (tmp_path / "manifests" / "datasets").mkdir(parents=True)
    (tmp_path / "manifests" / "datasets" / "dtd.yaml").write_text(yaml.safe_dump(manifest))
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path / "manifests")
    items = load_items("dtd", "validation")
    assert len(items.images) == 3 and items.images[1].shape == (4, 6, 3)
    assert root(load_manifest("dtd")) == tmp_path / "cache" / "datasets" / "dtd"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda split: split["test"][1].pop(), ["test, entry 1 (counting from 0)", "[path, label, class name]"]),
        (lambda split: split["test"][1].__setitem__(2, "other"), ["test, entry 1", "class 10", "'other'", "'z_last'"]),
        (lambda split: split["test"][2].__setitem__(0, "../up.jpg"), ["test, entry 2", "'../up.jpg'", "relative"]),
        (lambda split: split["test"][2].__setitem__(0, "/etc/up.jpg"), ["test, entry 2", "'/etc/up.jpg'"]),
        (lambda split: split["test"][2].__setitem__(0, "no/such.jpg"), ["test, entry 2", "such.jpg is not there"]),
        (lambda split: split["test"].clear(), ["dtd", "split 'test'", "at least one"]),
        (lambda split: split.pop("val"), ["split_zhou_DescribableTextures.json", "train, val and test"]),
    ],
)
def test_a_bad_list_is_refused_in_one_sentence(mirror, change, words):
    split = build_coop(mirror, "dtd")
    change(split)
    (place(mirror, "dtd") / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    with pytest.raises(InputError) as error:
        load_items("dtd", "test")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"train": [\n[', ["line 2", "not valid JSON"]), (b'"\xff"', ["byte 1", "UTF-8"]), (b"[]", ["train, val"])],
)
def test_a_list_that_is_no_list_is_refused(mirror, content, words):
    build_coop(mirror, "dtd")
    (place(mirror, "dtd") / "split_zhou_DescribableTextures.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        load_items("dtd", "test")
    assert all(word in str(error.value) for word in ["split_zhou_DescribableTextures.json", *words])


def test_a_damaged_image_is_named_when_it_is_read(mirror):
    build_coop(mirror, "dtd")
    path = place(mirror, "dtd") / "dtd" / "images" / "test" / "c1" / "1.jpg"
    path.write_bytes(path.read_bytes()[:40])
    items = load_items("dtd", "test")
    with pytest.raises(InputError, match=r"c1/1\.jpg is not a whole picture"):
        items.images[1]


def test_files_that_are_not_at_hand_are_said_to_be_so(mirror):
    with pytest.raises(DataUnavailable, match=r"cars_train\.tgz"):
        load_items("cars", "test")
    with pytest.raises(DataUnavailable, match=r"register at https://image-net\.org"):
        load_items("imagenet", "test")


# ---------------------------------------------------------------- the others


def test_held_out_keys_are_a_share_that_depends_on_the_key_alone():
    keys = [f"train/{number:05d}" for number in range(4000)]
    held = [key for key in keys if in_part(key, "validation", 0.1)]
    assert set(held) == set(keys) - {key for key in keys if in_part(key, "train", 0.1)}
    assert abs(len(held) - 400) < 5 * np.sqrt(4000 * 0.1 * 0.9)
    digest = hashlib.sha256(keys[0].encode()).digest()
    assert in_part(keys[0], "validation", 0.1) == (int.from_bytes(digest[:8], "big") / 2**64 < 0.1)


def test_cub_is_split_as_published_and_validation_is_a_share_of_train(mirror):
    build_cub(mirror)
    parts = {split: load_items("cub", split) for split in SPLITS}
    images = [f"{c:03d}.Bird_no_{c}/Bird_{c}_{i}.jpg" for c in (1, 2, 3) for i in range(20)]
    training = [path for number, path in enumerate(images, start=1) if number % 4]
    assert parts["test"].image_ids.tolist() == [path for path in images if path not in training]
    assert {*parts["train"].image_ids.tolist()} | {*parts["validation"].image_ids.tolist()} == {*training}
    assert parts["validation"].image_ids.tolist() == [path for path in training if in_part(path, "validation", 0.1)]
    assert not {*parts["train"].image_ids.tolist()} & {*parts["validation"].image_ids.tolist()}
    assert parts["test"].texts == [f"a photo of a Bird no {c}." for c in (1, 2, 3)]
    assert classes_of(parts["test"]) == [str(int(path[:3])) for path in parts["test"].image_ids]
    assert parts["test"].images[0][0, 0, 0] == 3  # the fourth image


def test_all_of_cub_is_searched_with_all_of_it_but_the_query(mirror):
    build_cub(mirror)
    items = load_items("cub-all", "test")
    assert len(items.images) == 60 and sorted(items.image_ids) == sorted({*items.image_ids.tolist()})
    found = search_of("cub-all", items, "image")
    assert found.queries.tolist() == found.gallery.tolist() == list(range(60))
    labels = np.array(classes_of(items))
    same = labels[:, None] == labels[None, :]
    np.testing.assert_array_equal(found.junk["item"].toarray(), np.eye(60, dtype=bool))
    np.testing.assert_array_equal(found.relevance["item"].toarray(), same & ~np.eye(60, dtype=bool))


def test_sop_keeps_products_whole_and_names_them_by_their_kind(mirror):
    build_sop(mirror)
    parts = {split: load_items("sop", split) for split in SPLITS}
    products = {split: set(items.text_ids.tolist()) for split, items in parts.items()}
    assert products["train"] | products["validation"] == {str(product) for product in range(1, 41)}
    assert products["validation"] == {str(p) for p in range(1, 41) if in_part(str(p), "validation", 0.1)} != set()
    assert not products["train"] & products["validation"] and products["test"] == {"41", "42", "43", "44"}
    for items in parts.values():
        assert Counter(classes_of(items)) == dict.fromkeys(items.text_ids.tolist(), 2)
    # 41 % 12 = 5, so the sixth kind; the texts of two products may be equal, their ids are not
    assert parts["test"].texts == [f"a photo of a {kind}." for kind in ("kettle", "lamp", "mug", "sofa")]
    assert len(set(parts["train"].texts)) == 12 < len(parts["train"].texts)


def test_aircraft_reads_its_own_lists(mirror):
    build_aircraft(mirror)
    assert load_items("aircraft", "train").image_ids.tolist() == ["0034309.jpg", "1025794.jpg"]
    assert load_items("aircraft", "validation").texts == ["a photo of a DC-3, a type of aircraft."]
    test = load_items("aircraft", "test")
    assert test.text_ids.tolist() == ["F/A-18", "DHC-8 100"] == classes_of(test)
    assert test.texts[1] == "a photo of a DHC-8 100, a type of aircraft."
    found = search_of("aircraft-train-gallery", load_items("aircraft-train-gallery", "test"), "image")
    assert found.relevance["item"].shape == (2, 2) and found.relevance["item"].nnz == 0


def test_imagenet_tests_on_the_published_validation_images(mirror):
    build_imagenet(mirror)
    parts = {split: load_items("imagenet", split) for split in SPLITS}
    assert len(parts["test"].images) == 6 and all(name.startswith("val/") for name in parts["test"].image_ids)
    assert parts["test"].texts == ["a photo of a tench.", "a photo of a crane bird.", "a photo of a crane bird."]
    assert parts["test"].text_ids.tolist() == ["n01440764", "n02012849", "n03126707"]
    held = parts["validation"].image_ids.tolist()
    assert held and all(in_part(name, "validation", 0.02) for name in held)
    assert len(held) + len(parts["train"].image_ids) == 120
    whole = load_items("imagenet-train-gallery", "test")
    found = search_of("imagenet-train-gallery", whole, "image")
    assert (len(found.queries), len(found.gallery), found.relevance["item"].nnz) == (6, 120, 6 * 40)


def test_fashion_mnist_is_read_from_its_four_files(mirror, tmp_path, monkeypatch):
    build_fashion(mirror, tmp_path, monkeypatch)
    parts = {split: load_items("fashion-mnist", split) for split in SPLITS}
    test = parts["test"]
    assert test.images.shape == (20, 3, 4) and test.images.dtype == np.uint8
    np.testing.assert_array_equal(test.images[7], 7 + np.arange(12).reshape(3, 4))
    assert test.texts[:2] == ["a photo of a T-shirt/top.", "a photo of a Trouser."] and len(test.texts) == 9
    assert classes_of(test) == [str(row % 9) for row in range(20)] and test.image_ids[3] == "test/00003"
    names = [f"train/{row:05d}" for row in range(60)]
    assert parts["validation"].image_ids.tolist() == [name for name in names if in_part(name, "validation", 0.1)]
    assert sorted([*parts["train"].image_ids, *parts["validation"].image_ids]) == names
    row = names.index(parts["validation"].image_ids[0])
    np.testing.assert_array_equal(parts["validation"].images[0], row + np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"t10k_images_idx3": b"no gzip"}, ["t10k-images-idx3-ubyte.gz", "not a whole gzip file"]),
        ({"t10k_images_idx3": idx(np.zeros((20, 3, 4)))[:-12]}, ["not a whole gzip file"]),
        ({"t10k_images_idx3": idx(np.zeros(20))}, ["not an IDX file of bytes with 3 axes", "00000801"]),
        ({"t10k_images_idx3": gzip.compress(bytes((0, 0, 8, 3)) + bytes(3 * 4) + b"x")}, ["1 bytes", "(0, 0, 0)"]),
        ({"t10k_labels_idx1": idx(np.zeros(19))}, ["20 images", "19 labels"]),
        ({"t10k_labels_idx1": idx(np.arange(20))}, ["entry 10 (counting from 0)", "class 10 of 10"]),
    ],
)
def test_bad_idx_files_are_refused(mirror, tmp_path, monkeypatch, changed, words):
    build_fashion(mirror, tmp_path, monkeypatch, **changed)
    with pytest.raises(InputError) as error:
        load_items("fashion-mnist", "test")
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("build", "name", "file", "old", "new", "words"),
    [
        (build_cub, "cub", "images.txt", "2 001", "2001", ["images.txt, line 2", "1 of 2 fields"]),
        (build_cub, "cub", "image_class_labels.txt", "7 1\n", "", ["images.txt, line 7", "image_class_labels.txt"]),
        (build_cub, "cub", "train_test_split.txt", "7 1\n", "7 x\n", ["train_test_split.txt, line 7", "'x'"]),
        (build_cub, "cub", "image_class_labels.txt", "4 1\n", "4 9\n", ["images.txt, line 4", "'9'", "3 classes"]),
        (build_cub, "cub", "images.txt", "Bird_1_3.jpg", "gone.jpg", ["images.txt, line 4", "gone.jpg is not there"]),
        (build_sop, "sop", "Ebay_test.txt", "image_id", "id", ["Ebay_test.txt, line 1", "'image_id class_id"]),
        (build_sop, "sop", "Ebay_test.txt", " 42 7 ", " 42 13 ", ["Ebay_test.txt, line 4", "'13'", "1 to 12"]),
        (build_sop, "sop", "Ebay_test.txt", "84 42 7 ", "84 42 8 ", ["Ebay_test.txt, line 5", "another super-class"]),
        (build_aircraft, "aircraft", "images_variant_test.txt", "DHC-8 100", "DHC-8", ["line 2", "'DHC-8'"]),
    ],
)
def test_bad_lines_are_named(mirror, build, name, file, old, new, words):
    build(mirror)
    path = next(place(mirror, name).rglob(file))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        load_items(name, "test")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


def test_what_is_missing_below_a_root_is_named(mirror):
    build_cub(mirror)
    (place(mirror, "cub") / "CUB_200_2011" / "classes.txt").unlink()
    with pytest.raises(DataUnavailable, match=r"classes\.txt cannot be read"):
        load_items("cub", "test")
    build_imagenet(mirror)
    for image in sorted((place(mirror, "imagenet") / "images" / "val").rglob("*.JPEG")):
        image.rename(image.parents[1] / image.name)  # flat, as the archive unpacks
    with pytest.raises(InputError, match="images/val holds no image; valid is one folder of images per class"):
        load_items("imagenet", "test")
    (place(mirror, "imagenet") / "classnames.txt").write_bytes(b"n01440764 t\xe9nch\n")
    with pytest.raises(InputError, match=r"classnames\.txt: byte 11 is not UTF-8"):
        load_items("imagenet", "train")


def test_the_last_field_of_a_line_keeps_its_blanks(tmp_path):
    (tmp_path / "list.txt").write_text("1 a  b c \n\n2 d\n")
    assert list(table(tmp_path / "list.txt", 2)) == [
        ("list.txt, line 1", ["1", "a  b c"]),
        ("list.txt, line 3", ["2", "d"]),
    ]


def test_a_manifest_without_what_the_reader_needs_is_named(mirror):
    build_coop(mirror, "dtd")
    options = {key: value for key, value in load_manifest("dtd").options.items() if key != "template"}
    manifest = load_manifest("dtd").model_copy(update={"options": options})
    with pytest.raises(InputError, match=r"dtd\.yaml, field options: the reader coop needs 'template'"):
        readers()["coop"].read(manifest, "test", mirror)
    wrong = {"dataset": "dtd", "search": {"queries": ["tests"], "gallery": ["train"]}}
    manifest = load_manifest("dtd-train-gallery").model_copy(update={"options": wrong})
    with pytest.raises(InputError, match=r"unknown split .*'tests'; nearest valid: test"):
        READERS["coop"].read(manifest, "test", mirror)


# ---------------------------------------------------------------- counts, against the sources that are named

PUBLISHED = {
    # tensorflow/datasets, docs/catalog: caltech_birds2011.md, stanford_online_products.md, fashion_mnist.md and
    # imagenet2012.md; the products of SOP: PaddlePaddle/PaddleClas, docs/en/data_preparation/recognition_dataset_en.md
    "cub": {"train": 5994, "test": 5794, "classes": 200},
    "sop": {"train": 59551, "test": 60502, "classes": 11316},
    "fashion-mnist": {"train": 60000, "test": 10000, "classes": 10},
    "imagenet": {"train": 1281167, "test": 50000, "classes": 1000},
    # pytorch/vision, torchvision/datasets/stanford_cars.py
    "cars": {"train": 8144, "test": 8041, "classes": 196},
    # tensorflow/datasets, docs/catalog/oxford_iiit_pet.md
    "pets": {"train": 3680, "test": 3669, "classes": 37},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_counts_of_the_manifests_are_the_published_ones(name):
    counts = load_manifest(name).counts
    assert counts["test_images"] == PUBLISHED[name]["test"] and counts["test_texts"] == PUBLISHED[name]["classes"]
    if "train_images" in counts:  # CoOp divides what is published as training data, and leaves the test images alone
        assert counts["train_images"] + counts["validation_images"] == PUBLISHED[name]["train"]


@pytest.mark.parametrize(("name", "total"), [("food", 101000), ("eurosat", 27000), ("flowers", 1020 + 1020 + 6149)])
def test_coop_divides_whole_sets_by_class_in_half_a_fifth_and_the_rest(name, total):
    """Totals: torchvision's food101.py, the card of torchgeo/eurosat, tensorflow/datasets' oxford_flowers102.py."""
    counts = load_manifest(name).counts
    sizes = [counts[f"{split}_images"] for split in SPLITS]
    assert sum(sizes) == total
    # datasets/dtd.py of CoOp rounds the shares of every class: each can be off by half an image
    bound = counts["test_texts"] / 2
    assert all(abs(size - share * total) <= 2 * bound for size, share in zip(sizes, (0.5, 0.2, 0.3), strict=True))
