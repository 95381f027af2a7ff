"""Judgements of ECCV Caption and CxC in their true formats, and the published metrics against a slow count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reprolib.errors import InputError
from reprolib.loaders import Items, Split, load_manifest
from reprolib.loaders.judgements import Judgements, judged, load_judgements, merge, read_cxc, read_eccv
from reprolib.loaders.readers import groups_of, load_items, search_of
from reprolib.metrics import as_scorer, retrieval_metrics

IMAGES, CAPTIONS = 6, 5  # COCO ids 100 to 105; captions 1000 to 1004 are of image 100, and so on


def caption_ids(image: int) -> list[int]:
    return [1000 + 10 * image + number for number in range(CAPTIONS)]


def write_coco(folder: Path) -> None:
    """Two images in each of train, val and test parts, the last two being test; one test image has a sixth caption."""
    images = []
    for image, part in enumerate(["train", "restval", "val", "val", "test", "test"]):
        name = f"COCO_val2014_{100 + image:012d}.jpg"
        ids = caption_ids(image) + ([1999] if image == 4 else [])
        texts = [{"raw": f"Caption {i}.", "tokens": [], "imgid": image, "sentid": i} for i in ids]
        images.append({"filepath": "val2014", "filename": name, "cocoid": 100 + image, "split": part,
                       "imgid": image, "sentids": ids, "sentences": texts})  # fmt: skip
        (folder / "val2014").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / "val2014" / name)
    (folder / "train2014").mkdir()
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}), encoding="utf-8")


def write_eccv(folder: Path) -> tuple[Path, Path]:
    """Image 104 is judged to fit a caption of 105, and 1042 of its own not; caption 1052 fits both test images."""
    paths = folder / "eccv_image_to_caption.json", folder / "eccv_caption_to_image.json"
    paths[0].write_text(json.dumps({"104": [1040, 1041, 1051], "999": [1]}), encoding="utf-8")
    paths[1].write_text(json.dumps({"1052": [105, 104], "7": [104]}), encoding="utf-8")
    return paths


def write_cxc(path: Path, *pairs: tuple[int, int, object, str]) -> Path:
    rows = [f"COCO_val2014:sentid:{text},COCO_val2014_{image:012d}.jpg,{s},{how}" for text, image, s, how in pairs]
    path.write_text("\n".join(["caption,image,agg_score,sampling_method", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def coco(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "mirror"))
    write_coco(tmp_path / "mirror" / "coco")
    return tmp_path / "mirror" / "coco"


def pairs_of(items: Items) -> set[tuple[str, str]]:
    rows, columns = items.relevance.nonzero()
    return {(str(items.image_ids[row]), str(items.text_ids[column])) for row, column in zip(rows, columns, strict=True)}


def own(*images: int) -> set[tuple[str, str]]:
    return {(str(100 + image), str(text)) for image in images for text in caption_ids(image)}


# ---------------------------------------------------------------- the datasets


def test_eccv_caption_adds_both_directions_to_the_test_split(coco):
    write_eccv(coco)
    items = load_items("coco-eccv", "test")
    assert items.name == "coco-eccv"
    assert pairs_of(items) == own(4, 5) | {("104", "1051"), ("104", "1052")}
    for split in ("train", "validation"):
        assert pairs_of(load_items("coco-eccv", split)) == pairs_of(load_items("coco-1k", split))


def test_cxc_adds_pairs_from_its_threshold_on(coco):
    write_cxc(coco / "sits_val.csv", (1021, 103, 4.5, "c2i_intrasim"), (1020, 103, 2.99, "c2i_intrasim"))
    write_cxc(coco / "sits_test.csv", (1041, 105, 3.0, "c2i_intrasim"), (1040, 104, 1.2, "c2i_original"))
    assert pairs_of(load_items("coco-cxc", "test")) == own(4, 5) | {("105", "1041")}
    assert pairs_of(load_items("coco-cxc", "validation")) == own(2, 3) | {("103", "1021")}
    assert pairs_of(load_items("coco-cxc", "train")) == own(0, 1)


def test_groups_and_search_stay_with_the_image_that_a_caption_was_written_for(coco):
    write_eccv(coco)
    items = load_items("coco-eccv", "test")
    images, texts = groups_of("coco-eccv", items)["item"]
    assert (images.tolist(), texts.tolist()) == (["104", "105"], ["104"] * 5 + ["105"] * 5)
    assert np.diff(search_of("coco-eccv", items, "text").relevance["item"].indptr).tolist() == [4, 4]


def test_the_published_protocol_of_a_dataset(coco):
    write_eccv(coco)
    items, judgements = load_items("coco-eccv", "test"), load_judgements("coco-eccv")
    rows, relevance = judged(items, judgements, "image->text")
    assert items.image_ids[rows].tolist() == ["104"]
    assert items.text_ids[relevance.toarray()[0]].tolist() == ["1040", "1041", "1051"]
    rows, relevance = judged(items, judgements, "text->image")
    assert items.text_ids[rows].tolist() == ["1052"] and relevance.toarray().tolist() == [[True, True]]


def test_what_has_no_judgements_is_said(coco):
    write_eccv(coco)
    with pytest.raises(InputError, match="the test split of coco has no judgements"):
        load_judgements("coco")
    with pytest.raises(InputError, match="the validation split of coco-eccv has no judgements"):
        load_judgements("coco-eccv", "validation")
    with pytest.raises(InputError, match="no judged query is among the ids of the split"):
        judged(load_items("coco-eccv", "validation"), load_judgements("coco-eccv"), "image->text")
    with pytest.raises(InputError, match="unknown direction 'text'"):
        judged(load_items("coco", "test"), load_judgements("coco-eccv"), "text")


def test_the_statistics_of_eccv_caption_are_those_of_its_readme():
    # naver-ai/eccv-caption at 0be8d41, README.md: 22,550 positive captions, x3.58 of 1,261 x 5; 11,279 images, x8.47
    counts = load_manifest("coco-eccv").counts
    assert round(counts["positives_of_judged_images"] / (5 * counts["judged_images"]), 2) == 3.58
    assert round(counts["positives_of_judged_texts"] / counts["judged_texts"], 2) == 8.47


# ---------------------------------------------------------------- files


def test_files_are_read_as_they_are_published(tmp_path):
    found = read_eccv(*write_eccv(tmp_path))
    assert found.images == {"104": ("1040", "1041", "1051"), "999": ("1",)}
    assert found.texts == {"1052": ("105", "104"), "7": ("104",)}
    path = write_cxc(tmp_path / "sits.csv", (1, 2, 3, "c2i_original"), (1, 4, "5.0", "x"), (6, 2, 2.9, "x"))
    assert read_cxc(path) == Judgements({"2": ("1",), "4": ("1",)}, {"1": ("2", "4")})
    assert set(read_cxc(path, positive=0).texts) == {"1", "6"} and not read_cxc(path, positive=5.1).texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"1": [2,\n', r"a.json, line 2: this is not valid JSON"),
        ("[1, 2]", r"a.json holds a list; valid is a JSON object"),
        ('{"1": 2}', r"a.json, key '1': the value is not a list of ids"),
        ('{"1": [[2]]}', r"a.json, key '1': the value is not a list of ids"),
    ],
)
def test_a_wrong_file_of_eccv_caption_is_named(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read_eccv(path, path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("COCO_val2014:sentid:1,COCO_val2014_000000000002.jpg,high,x", r"sits.csv, line 3: .* is not a rated pair"),
        ("COCO_val2014:sentid:1,COCO_val2014_000000000002.jpg,3.0", r"sits.csv, line 3: .* is not a rated pair"),
        ("COCO_val2014:sentid:,COCO_val2014_000000000002.jpg,3.0,x", r"sits.csv, line 3: .* is not a rated pair"),
        ("COCO_val2014:sentid:1,picture.png,3.0,x", r"sits.csv, line 3: .* is not a rated pair"),
    ],
)
def test_a_wrong_row_of_cxc_is_named(tmp_path, row, words):
    path = write_cxc(tmp_path / "sits.csv", (1, 2, 3, "x"))
    path.write_text(path.read_text(encoding="utf-8") + row + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=words) as error:
        read_cxc(path)
    assert "\n" not in str(error.value)


def test_a_file_of_other_ratings_is_refused(tmp_path):
    path = tmp_path / "sts.csv"
    path.write_text("caption1,caption2,agg_score,sampling_method\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"sts.csv, line 1: the columns are .*; valid is caption,image,agg_score"):
        read_cxc(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_cxc(path)


# ---------------------------------------------------------------- merging and counting, on random judgements


def random_case(seed: int) -> tuple[Split, Judgements]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    owners = np.repeat(np.arange(n), 3)
    images, texts = np.arange(n) + 100, rng.permutation(3 * n) + 1000
    embeddings = rng.integers(-2, 3, (n, 4)) + 0.5, rng.integers(-2, 3, (3 * n, 4)) + 0.5  # small integers: ties
    split = Split(*embeddings, np.arange(n)[:, None] == owners, images, texts)

    def some(ids, others):
        chosen = [str(name) for name in ids if rng.random() < 0.7] + ["1"]  # an id that the split does not hold
        return {name: tuple(str(o) for o in rng.permutation(others)[: rng.integers(1, 5)]) for name in chosen}

    return split, Judgements(some(images, [*texts, 7]), some(texts, [*images, 8]))


def published(target: list[str], relevant: set[str]) -> tuple[float, float, float]:
    """R@1, R-precision and mAP@R of one query as ECCV Caption defines them, item by item."""
    shares = []
    for depth in range(1, len(relevant) + 1):
        share = sum(item in relevant for item in target[:depth]) / depth
        shares.append((share, target[depth - 1] in relevant))
    return (
        float(target[0] in relevant),
        shares[-1][0],
        sum(share for share, hit in shares if hit) / len(relevant),
    )


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_judged_queries_have_the_published_metrics(seed):
    split, judgements = random_case(seed)
    for direction, queries, gallery, names, others, of_query in (
        ("image->text", split.image, split.text, split.image_ids, split.text_ids, judgements.images),
        ("text->image", split.text, split.image, split.text_ids, split.image_ids, judgements.texts),
    ):
        held = {name: set(found) & set(others.tolist()) for name, found in of_query.items()}
        wanted = {name: found for name, found in held.items() if name in names and found}
        if not wanted:
            with pytest.raises(InputError, match="no judged query"):
                judged(split, judgements, direction)
            continue
        rows, relevance = judged(split, judgements, direction)
        assert names[rows].tolist() == [name for name in names if name in wanted]
        scores = as_scorer(queries[rows], gallery).scores().numpy()
        metrics = retrieval_metrics(queries[rows], gallery, relevance)
        slow = [
            published(others[np.argsort(-scores[i], kind="stable")].tolist(), wanted[names[row]])
            for i, row in enumerate(rows)
        ]
        found = [metrics[name] for name in ("R@1", "R-precision", "mAP@R")]
        assert found == pytest.approx(np.mean(slow, axis=0).tolist(), abs=1e-9)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_merging_is_the_union_and_merging_twice_changes_nothing(seed):
    split, judgements = random_case(seed)
    images = np.zeros((len(split.image), 2, 2), dtype=np.uint8)
    items = Items("x", "test", images, ["t"] * len(split.text), split.image_ids, split.text_ids, split.relevance)
    merged = merge(items, judgements)
    added = {(image, text) for image, texts in judgements.images.items() for text in texts}
    added |= {(image, text) for text, images_ in judgements.texts.items() for image in images_}
    held = {(i, t) for i, t in added if i in items.image_ids and t in items.text_ids}
    assert pairs_of(merged) == pairs_of(items) | held
    assert pairs_of(merge(merged, judgements)) == pairs_of(merged)
    assert pairs_of(merge(items, Judgements({}, {}))) == pairs_of(items)
