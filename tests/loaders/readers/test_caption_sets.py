"""The readers of captioned images, on miniatures in the true formats; Flickr8k on the real mirror where it is there."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import Split, load_manifest
from reprolib.loaders.folds import folds
from reprolib.loaders.readers import groups_of, load_items, search_of
from reprolib.loaders.readers.captions import first_captions, repeated_texts
from reprolib.loaders.readers.flickr8k import load_features
from reprolib.loaders.readers.nocaps import domains

PARTS = {"train": 4, "restval": 2, "val": 3, "test": 10}


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(path)


def sentences(imgid: int, count: int) -> list[dict]:
    """Captions as Karpathy's files hold them: raw text with stray blanks, tokens, ids that are not in order."""
    texts = [f"caption {number} of image {imgid}" for number in range(count)]
    return [
        {
            "tokens": text.split(),
            "raw": f"{text.capitalize()}. \n",
            "imgid": imgid,
            "sentid": 9000 - 10 * imgid - number,
        }
        for number, text in enumerate(texts)
    ]


def entry(part: str, imgid: int, coco: bool, count: int) -> dict:
    folder = "train2014" if part == "train" else "val2014"
    name = f"COCO_{folder}_{700 + imgid:012d}.jpg" if coco else f"10{imgid}_ab.jpg"
    found = {"split": part, "filename": name, "imgid": imgid, "sentences": sentences(imgid, count)}
    found["sentids"] = [sentence["sentid"] for sentence in found["sentences"]]
    return found | ({"filepath": folder, "cocoid": 700 + imgid} if coco else {})


def karpathy(coco: bool) -> dict:
    """A file of Karpathy's: parts in turn, not in blocks; the first test image has a sixth caption."""
    left, entries = dict(PARTS) if coco else {**PARTS, "restval": 0}, []
    while any(left.values()):
        for part in [part for part, count in left.items() if count]:
            left[part] -= 1
            first = part == "test" and left[part] == PARTS["test"] - 1
            entries.append(entry(part, len(entries), coco, 6 if first else 5))
    return {"images": entries, "dataset": "coco" if coco else "flickr30k"}


def write(folder: Path, name: str, stored: dict, images: str = "") -> None:
    for number, found in enumerate(stored["images"]):
        picture(folder / (found.get("filepath") or images) / found["filename"], 10 * number)
    (folder / name).write_text(json.dumps(stored), encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A mirror with miniatures of COCO and Flickr30k, and an empty cache."""
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "mirror"))
    write(tmp_path / "mirror" / "coco", "dataset_coco.json", karpathy(True))
    write(tmp_path / "mirror" / "flickr30k", "dataset_flickr30k.json", karpathy(False), "flickr30k-images")
    return tmp_path / "mirror"


@pytest.fixture
def manifests(tmp_path, monkeypatch):
    """Return a function that alters a manifest; all others stay as they are."""
    source, target = paths.manifests(), tmp_path / "manifests"

    def alter(name, **changes):
        (target / "datasets").mkdir(parents=True, exist_ok=True)
        for path in (source / "datasets").glob("*.yaml"):
            text = path.read_text(encoding="utf-8")
            if path.stem == name:
                stored = yaml.safe_load(text)
                options = stored.get("options", {}) | changes.pop("options", {})
                text = yaml.safe_dump(stored | changes | {"options": options})
            (target / "datasets" / path.name).write_text(text, encoding="utf-8")
        monkeypatch.setattr(paths, "manifests", lambda: target)

    return alter


# ---------------------------------------------------------------- Karpathy's files


@pytest.mark.parametrize("dataset", ["coco", "flickr30k"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_items_are_the_entries_of_the_file(place, dataset, split):
    stored = karpathy(dataset == "coco")["images"]
    parts = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}[split]
    wanted = [found for found in stored if found["split"] in parts]
    items = load_items(dataset, split)
    assert (items.name, items.split) == (dataset, split)
    assert items.image_ids.tolist() == [str(found.get("cocoid", found["filename"])) for found in wanted]
    assert items.text_ids.tolist() == [str(name) for found in wanted for name in found["sentids"]]
    assert items.texts == [s["raw"].strip() for found in wanted for s in found["sentences"]]
    owners = [row for row, found in enumerate(wanted) for _ in found["sentences"]]
    assert np.array_equal(items.relevance.toarray(), np.arange(len(wanted))[:, None] == owners)
    shades = [10 * stored.index(found) for found in wanted]
    assert [round(image.mean(), -1) for image in items.images] == pytest.approx(shades, abs=10)


def test_the_counts_of_the_splits_are_those_of_the_file(place):
    counts = {split: load_items("coco", split).relevance.shape for split in ("train", "validation", "test")}
    assert counts == {"train": (6, 30), "validation": (3, 15), "test": (10, 51)}


def test_validation_and_test_change_places_for_cross_the_gap(place):
    for one, other in (("validation", "test"), ("test", "validation"), ("train", "train")):
        assert load_items("flickr30k-val", one).text_ids.tolist() == load_items("flickr30k", other).text_ids.tolist()


def test_flickr8k_by_the_same_format(place):
    write(place / "flickr8k", "dataset_flickr8k.json", karpathy(False), "Flicker8k_Dataset")
    assert load_items("flickr8k-karpathy", "test").relevance.shape == (10, 51)


def archive_of(place, manifests, member="dataset_coco.json"):
    with zipfile.ZipFile(place / "coco" / "caption_datasets.zip", "w") as archive:
        archive.write(place / "coco" / "dataset_coco.json", member)
    (place / "coco" / "dataset_coco.json").unlink()
    files = yaml.safe_load((paths.manifests() / "datasets" / "coco.yaml").read_text(encoding="utf-8"))["files"]
    manifests("coco", files=[file | {"sha256": None, "bytes": None} for file in files])


def test_the_file_is_read_from_the_published_archive(place, manifests):
    wanted = load_items("coco", "test")
    archive_of(place, manifests)
    found = load_items("coco", "test")
    assert (found.texts, found.image_ids.tolist()) == (wanted.texts, wanted.image_ids.tolist())


def test_an_archive_that_is_another_one_is_refused(place):
    with zipfile.ZipFile(place / "coco" / "caption_datasets.zip", "w") as archive:
        archive.write(place / "coco" / "dataset_coco.json", "dataset_coco.json")
    (place / "coco" / "dataset_coco.json").unlink()
    with pytest.raises(InputError, match=r"caption_datasets.zip is not the file that the manifest names"):
        load_items("coco", "test")


def test_an_archive_without_the_file_is_refused(place, manifests):
    archive_of(place, manifests, "dataset_other.json")
    with pytest.raises(InputError, match=r"caption_datasets.zip holds no dataset_coco.json"):
        load_items("coco", "test")


def broken(place, change):
    stored = karpathy(True)
    change(stored["images"])
    (place / "coco" / "dataset_coco.json").write_text(json.dumps(stored), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: images[3]["sentences"].clear(), r"images\[3\]: the image .* has no caption"),
        (lambda images: images[5].update(split="dev"), r"images\[5\]: the split 'dev' is not known; valid: train, re"),
        (lambda images: images[2].pop("filename"), r"images\[2\] is not of Karpathy's format \(KeyError: 'filename'\)"),
        (lambda images: images[1]["sentences"][0].pop("raw"), r"images\[1\] is not of .* \(KeyError: 'raw'\)"),
        (lambda images: images[4].update(sentences=[7]), r"images\[4\] is not of Karpathy's format \(TypeError"),
        (lambda images: images.append("image"), r"images\[19\] is not of Karpathy's format \(TypeError"),
        (lambda images: images[2]["sentences"][0].update(raw=" \n"), r"images\[2\]: the caption 8980 .* is blank"),
        (lambda images: images[7].update(cocoid=703), r"images\[7\]: the id '703' stands on an earlier entry too"),
        (lambda images: images.clear(), r"coco has no images with texts in the split train"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_entry(place, change, words):
    broken(place, change)
    with pytest.raises(InputError, match=words) as error:
        for split in ("train", "validation", "test"):
            load_items("coco", split)
    assert "\n" not in str(error.value)


def test_a_missing_picture_is_named_with_its_entry(place):
    stored = karpathy(True)["images"]
    gone = [number for number, found in enumerate(stored) if found["split"] == "test"][2:4]
    for number in gone:
        (place / "coco" / "val2014" / stored[number]["filename"]).unlink()
    with pytest.raises(InputError, match=rf"images\[{gone[0]}\]: there is no picture .* \(2 of 10 pictures"):
        load_items("coco", "test")
    assert len(load_items("coco", "validation").images) == 3


def test_malformed_json_is_named_by_file_and_line(place):
    path = place / "coco" / "dataset_coco.json"
    path.write_text('{"images": [\n{"split": "train",\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"dataset_coco.json, line 3: this is not valid JSON"):
        load_items("coco", "test")
    for text in ("[]", '{"images": {}}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="there is no list 'images'"):
            load_items("coco", "test")


def test_an_unknown_split_gets_the_nearest(place, manifests):
    with pytest.raises(InputError, match="unknown split of coco 'tests'; nearest valid: test"):
        load_items("coco", "tests")
    manifests("coco", options={"splits": {"test": ["dev"]}})
    with pytest.raises(InputError, match=r"coco.yaml, option splits: 'dev' is no part"):
        load_items("coco", "test")


def test_without_the_files_it_is_said_how_to_obtain_them(place):
    (place / "flickr30k" / "flickr30k-images").rename(place / "elsewhere")
    with pytest.raises(DataUnavailable, match=r"flickr30k-images is neither .* ask its publisher"):
        load_items("flickr30k", "test")


@pytest.mark.parametrize("name", ["coco-1k", "coco-eccv", "coco-cxc"])
def test_variants_take_everything_else_from_coco(name):
    manifest, coco = load_manifest(name), load_manifest("coco")
    assert (manifest.folder, manifest.options["dataset"], manifest.options["captions"]) == ("coco", "coco", 5)
    assert (manifest.root_files, manifest.model, manifest.reader) == (coco.root_files, coco.model, coco.reader)
    assert {key: coco.counts[key] for key in manifest.counts if key.endswith("_images") and key in coco.counts} == {
        key: manifest.counts[key] for key in ("train_images", "validation_images", "test_images")
    }


def test_the_first_captions_of_every_image_are_used(place, manifests):
    items, whole = load_items("coco-1k", "test"), load_items("coco", "test")
    assert items.name == "coco-1k" and items.relevance.shape == (10, 50)
    assert items.texts == whole.texts[:5] + whole.texts[6:]
    manifests("coco-1k", options={"captions": 0})
    with pytest.raises(InputError, match=r"coco-1k.yaml, option captions: 0 is not valid"):
        load_items("coco-1k", "test")


def test_counts_of_coco_add_up_as_published():
    # www.tensorflow.org/datasets/catalog/coco_captions; COCO's train2014 and restval captions: 414,113 and 152,634
    counts = load_manifest("coco").counts
    assert counts["train_images"] == 82783 + 30504 and counts["train_texts"] == 414113 + 152634
    domain = load_manifest("nocaps").counts
    assert sum(domain[f"{name}_domain_images"] for name in ("in", "near", "out")) == domain["test_images"]
    assert domain["test_texts"] == 10 * domain["test_images"]


# ---------------------------------------------------------------- folds


def split_of(counts: list[int], seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(counts)), counts)
    image, text = rng.standard_normal((len(counts), 3)), rng.standard_normal((len(owners), 3))
    names = np.arange(len(owners)).astype(str)
    return Split(image, text, np.arange(len(counts))[:, None] == owners, np.arange(len(counts)), names)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=23), st.data())
def test_folds_are_the_images_in_turn_with_their_captions(counts, data):
    split, n = split_of(counts), data.draw(st.integers(1, len(counts)))
    parts = folds(split, n)
    assert len(parts) == n and max(len(p.image) for p in parts) - min(len(p.image) for p in parts) <= 1
    for name in ("image_ids", "text_ids", "image", "text"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(split, name))
    whole = split.relevance.toarray()
    for part in parts:
        rows, columns = part.image_ids.astype(int), part.text_ids.astype(int)
        assert np.array_equal(part.relevance.toarray(), whole[rows][:, columns])


def test_folds_of_a_thousand_are_those_of_the_released_protocol():
    split = split_of([5] * 50)
    for number, part in enumerate(folds(split, 5)):
        assert np.array_equal(part.image, split.image[number * 10 : (number + 1) * 10])
        assert np.array_equal(part.text, split.text[number * 50 : (number + 1) * 50])


def test_folds_that_make_no_sense_are_refused():
    split = split_of([2, 2])
    for n in (0, 3):
        with pytest.raises(InputError, match=f"{n} folds of 2 images: valid is a number from 1"):
            folds(split, n)
    shared = Split(split.image, split.text, np.ones((2, 4), dtype=bool), split.image_ids, split.text_ids)
    with pytest.raises(InputError, match="2 folds: a text is relevant to images of two folds"):
        folds(shared, 2)


# ---------------------------------------------------------------- search among captions


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=20))
def test_the_first_caption_queries_the_others(letters):
    owners = np.array(letters)
    queries, gallery, seen = [], [], set()
    for row, owner in enumerate(letters):
        (gallery if owner in seen else queries).append(row)
        seen.add(owner)
    queries = [row for row in queries if letters[row] in {letters[other] for other in gallery}]
    if not queries:
        with pytest.raises(InputError, match="no image has two captions"):
            first_captions(owners)
        return
    found = first_captions(owners)
    assert (found.queries.tolist(), found.gallery.tolist()) == (queries, gallery)
    wanted = [[letters[q] == letters[g] for g in gallery] for q in queries]
    assert found.relevance["item"].toarray().tolist() == wanted
    assert found.junk["item"].shape == (len(queries), len(gallery)) and found.junk["item"].nnz == 0


def test_search_and_groups_go_by_the_image_of_each_caption(place):
    items = load_items("coco", "test")
    images, texts = groups_of("coco", items)["item"]
    assert images.tolist() == items.image_ids.tolist()
    assert np.array_equal(images[:, None] == texts, items.relevance.toarray())
    assert search_of("coco", items, "image") is None
    found = search_of("coco", items, "text")
    assert len(found.queries) == 10 and len(found.gallery) == 41
    assert np.diff(found.relevance["item"].indptr).tolist() == [5] + [4] * 9


def test_repeated_texts_are_counted(place):
    broken(place, lambda images: [found["sentences"][0].update(raw="The same.") for found in images])
    assert repeated_texts(load_items("coco", "test")) == {"The same.": 10}


# ---------------------------------------------------------------- Flickr8k


FLICKR8K = {"train.txt": ["b.jpg", "a.jpg"], "dev.txt": ["c.jpg"], "test.txt": ["d.jpg", "e.jpg", "f.jpg"]}


@pytest.fixture
def flickr8k(place, manifests):
    """A miniature of Flickr8k, with a photograph that is in no split."""
    folder = place / "flickr8k"
    names = sorted(sum(FLICKR8K.values(), ["unused.jpg"]))
    for number, name in enumerate(names):
        picture(folder / "Flicker8k_Dataset" / name, 20 * number)
    for listing, listed in FLICKR8K.items():
        (folder / listing).write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
    with (folder / "captions.txt").open("w", encoding="utf-8", newline="") as stream:
        rows = [(name, f'{name}, "number" {number} .') for name in names for number in range(5)]
        csv.writer(stream).writerows([("image", "caption"), *rows])
    (folder / "filenames.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    np.save(folder / "mobilenet_v1_features.npy", np.arange(len(names) * 4, dtype=np.float16).reshape(-1, 4))
    files = yaml.safe_load((paths.manifests() / "datasets" / "flickr8k.yaml").read_text(encoding="utf-8"))["files"]
    manifests("flickr8k", files=[file | {"sha256": None, "bytes": None} for file in files])
    return folder


@pytest.mark.parametrize(
    ("split", "listing"), [("train", "train.txt"), ("validation", "dev.txt"), ("test", "test.txt")]
)
def test_flickr8k_follows_the_official_lists(flickr8k, split, listing):
    names = FLICKR8K[listing]
    items, features = load_items("flickr8k", split), load_features(split)
    for found in (items, features):
        assert found.image_ids.tolist() == names
        assert found.texts == [f'{name}, "number" {number} .' for name in names for number in range(5)]
        assert found.text_ids.tolist() == [f"{name}#{number}" for name in names for number in range(5)]
        assert np.array_equal(found.relevance.toarray(), np.repeat(np.eye(len(names), dtype=bool), 5, axis=1))
    every = sorted(sum(FLICKR8K.values(), ["unused.jpg"]))
    assert features.image.dtype == np.float32
    assert features.image.tolist() == [[4.0 * every.index(name) + j for j in range(4)] for name in names]
    assert [round(image.mean()) for image in items.images] == pytest.approx([20 * every.index(n) for n in names], abs=2)


def test_features_do_not_need_the_photographs(flickr8k):
    (flickr8k / "Flicker8k_Dataset").rename(flickr8k / "elsewhere")
    assert len(load_features("test").image) == 3
    with pytest.raises(DataUnavailable, match="Flicker8k_Dataset is neither"):
        load_items("flickr8k", "test")


def append(text):
    return lambda path: path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("test.txt", append("nobody.jpg\n"), r"test.txt, line 4: the image .*nobody.jpg has no caption"),
        ("captions.txt", append("a.jpg,one,two\n"), r"captions.txt, line 37: there are 3 columns; valid is 2"),
        ("captions.txt", append("d.jpg,\n"), r"test.txt, line 1: the caption d.jpg#5 of .* is blank"),
        ("captions.txt", lambda path: path.write_text("a b\n"), r"captions.txt, line 1: the columns are .* image,capt"),
        ("captions.txt", lambda path: path.write_bytes(b"\xff\xfe"), r"captions.txt cannot be read as CSV"),
        ("test.txt", lambda path: path.write_bytes(b"\xff\xfe"), r"test.txt cannot be read"),
        (
            "filenames.txt",
            append("g.jpg\n"),
            r"mobilenet_v1_features.npy has shape \(7, 4\); valid is a row for each of 8",
        ),
        (
            "filenames.txt",
            lambda path: path.write_text("\n".join("abcghij")),
            "does not name d.jpg, which stands in test",
        ),
        ("mobilenet_v1_features.npy", lambda path: path.write_bytes(b"PK"), "is not a .npy file of numbers"),
    ],
)
def test_files_of_flickr8k_that_are_wrong_are_named(flickr8k, file, change, words):
    change(flickr8k / file)
    with pytest.raises(InputError, match=words) as error:
        load_features("test")
    assert "\n" not in str(error.value)


def test_an_unknown_split_of_flickr8k_gets_the_nearest(flickr8k):
    with pytest.raises(InputError, match="unknown split of flickr8k 'dev'"):
        load_features("dev")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_real_flickr8k_has_the_counts_of_its_manifest(split, mirror):
    """With the mirror at hand these are counts of real data; without, the miniature's manifest has none to compare."""
    counts = load_manifest("flickr8k").counts
    if not mirror.real:
        assert counts[f"{split}_texts"] == 5 * counts[f"{split}_images"]
        return
    found = load_features(split, mirror.path)
    assert found.image.shape == (counts[f"{split}_images"], counts["width"]) and found.image.dtype == np.float32
    assert len(found.texts) == counts[f"{split}_texts"]
    assert len(set(found.texts)) == counts[f"{split}_unique_texts"]
    assert (np.diff(found.relevance.indptr) == 5).all()


# ---------------------------------------------------------------- nocaps


DOMAINS = ["in-domain", "near-domain", "out-domain", "near-domain"]


def nocaps_file() -> dict:
    images = [
        {
            "id": number,
            "open_images_id": f"00{number}ea2087020901",
            "height": 4,
            "width": 6,
            "coco_url": f"https://s3.amazonaws.com/nocaps/val/00{number}ea2087020901.jpg",
            "file_name": f"00{number}ea2087020901.jpg",
            "license": 0,
            "date_captured": "2018-11-06 11:04:33",
            "domain": domain,
        }
        for number, domain in enumerate(DOMAINS)
    ]
    annotations = [
        {"image_id": image, "id": 10 * image + number, "caption": f"Caption {number} of {image}. "}
        for number in range(10)
        for image in range(len(images))
    ]
    return {"licenses": [], "info": {"version": "0.1"}, "images": images, "annotations": annotations}


@pytest.fixture
def nocaps(place):
    folder = place / "nocaps"
    for number in range(len(DOMAINS)):
        picture(folder / "val" / f"00{number}ea2087020901.jpg", 30 * number)
    return folder


def store(folder: Path, stored: object) -> None:
    (folder / "nocaps_val_4500_captions.json").write_text(json.dumps(stored), encoding="utf-8")


def test_nocaps_is_tested_on_its_published_captions_and_trained_on_coco(nocaps):
    store(nocaps, nocaps_file())
    items = load_items("nocaps", "test")
    assert items.image_ids.tolist() == [f"00{number}ea2087020901" for number in range(4)]
    assert items.texts == [f"Caption {number} of {image}." for image in range(4) for number in range(10)]
    assert items.text_ids.tolist()[:2] == ["nocaps-0", "nocaps-1"]
    assert np.array_equal(items.relevance.toarray(), np.repeat(np.eye(4, dtype=bool), 10, axis=1))
    assert domains(items).tolist() == DOMAINS
    search = search_of("nocaps", items, "text")
    assert search.queries.tolist() == [0, 10, 20, 30] and len(search.gallery) == 36
    for split in ("train", "validation"):
        part, coco = load_items("nocaps", split), load_items("coco", split)
        assert part.name == "nocaps" and part.texts == coco.texts
        assert not {*part.text_ids.tolist(), *part.image_ids.tolist()} & {*items.text_ids, *items.image_ids}
        assert len(search_of("nocaps", part, "text").queries) == len(part.images)
    with pytest.raises(InputError, match="is no image of nocaps with a domain"):
        domains(load_items("coco", "test"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["annotations"].clear(), r"images\[0\]: the image val/.* has no caption"),
        (
            lambda s: s["annotations"][3].pop("caption"),
            r"annotations\[3\] is not of COCO's form \(KeyError: 'caption'\)",
        ),
        (lambda s: s["annotations"][0].update(image_id=99), r"annotations name the image 99, which is not among"),
        (lambda s: s["images"][1].pop("file_name"), r"images\[1\] is not of COCO's form"),
        (lambda s: s.update(images=None), r"there is no list 'images'"),
        (lambda s: s["images"][1].update(file_name="no.jpg"), r"images\[1\]: there is no picture .*no.jpg \(1 of 4"),
    ],
)
def test_files_of_nocaps_that_are_wrong_are_named(nocaps, change, words):
    stored = nocaps_file()
    change(stored)
    store(nocaps, stored)
    with pytest.raises(InputError, match=words) as error:
        load_items("nocaps", "test")
    assert "\n" not in str(error.value)
