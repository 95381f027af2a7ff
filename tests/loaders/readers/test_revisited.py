"""The reader of Revisited Oxford and Paris, on miniatures in the layout of revisitop, against slow loops."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reprolib.errors import InputError
from reprolib.loaders import load_manifest
from reprolib.loaders.readers import groups_of, load_items, search_of
from reprolib.loaders.readers.classes import in_part
from reprolib.loaders.readers.revisited import read_truth

# rows count from 1, as in the file; the queries 0, 1 and 3 share images, 2 and 4 stand alone, 4 has no positive
OXFORD = {
    "queries": ["all_souls_000013", "oxford_002416", "bodleian_000107", "all_souls_000026", "keble_000055"],
    "images": [
        "all_souls_000000",
        "all_souls_000001",
        "bodleian_000003",
        "oxford_000001",
        "keble_000001",
        "x_1",
        "x_2",
    ],
    "easy": [[1], [1, 2], [3], [], []],
    "hard": [[2], [], [], [2, 4], []],
    "junk": [[3, 4], [6], [], [1], [5]],
}
PARIS = {
    "queries": [f"paris_{place}_00000{i}" for place in ("defense", "eiffel", "louvre", "museum") for i in range(2)],
    "images": [f"paris_{place}_00001{i}" for place in ("defense", "eiffel", "louvre", "museum") for i in range(3)]
    + [f"paris_general_{i:06d}" for i in range(20)],
    "easy": [[1 + 3 * (q // 2)] for q in range(8)],
    "hard": [[2 + 3 * (q // 2)] for q in range(8)],
    "junk": [[3 + 3 * (q // 2), 20] for q in range(8)],
}
PROTOCOL = {  # positives and what is left out: Radenovic et al., CVPR 2018, section 4
    "easy": (["easy"], ["hard", "junk"]),
    "medium": (["easy", "hard"], ["junk"]),
    "hard": (["hard"], ["easy", "junk"]),
}
SIZE = (10, 8)


def write_truth(path: Path, truth: dict, boxes: list | None = None) -> None:
    """Write the file as MATLAB saves it: cells of names, and a struct array with a matrix in every field."""
    gnd = np.empty((1, len(truth["queries"])), dtype=[(key, object) for key in ("bbx", "easy", "hard", "junk")])
    for q in range(len(truth["queries"])):
        gnd[0, q]["bbx"] = np.array([boxes[q] if boxes else [1.0, 2.0, 5.4, 6.0]])
        for kind in ("easy", "hard", "junk"):
            gnd[0, q][kind] = np.array([truth[kind][q]], dtype=float).reshape(1, -1)
    cells = {
        key: np.array(truth[name], dtype=object)[None] for key, name in (("imlist", "images"), ("qimlist", "queries"))
    }
    scipy.io.savemat(path, cells | {"gnd": gnd})


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    for name, truth in (("roxford", OXFORD), ("rparis", PARIS)):
        folder = tmp_path / "mirror" / load_manifest(name).place
        # Paris unpacks to a folder for each landmark, Oxford is flat
        (folder / "jpg" / "nested").mkdir(parents=True)
        for number, image in enumerate(truth["queries"] + truth["images"]):
            pixels = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
            pixels[..., 0], pixels[..., 1] = np.mgrid[: SIZE[1], : SIZE[0]]
            pixels[..., 2] = number
            under = "jpg/nested" if name == "rparis" else "jpg"
            Image.fromarray(pixels).save(folder / under / f"{image}.jpg", format="PNG")
        write_truth(folder / load_manifest(name).options["ground_truth"], truth)
    return tmp_path / "mirror"


def named(search, items, matrix, query: str) -> set[str]:
    """Return the names that a row of a matrix marks."""
    row = [items.image_ids[r] for r in search.queries].index(query)
    return {str(items.image_ids[search.gallery[column]]) for column in matrix.toarray()[row].nonzero()[0]}


def test_the_test_split_is_queries_and_all_other_images(mirror):
    items = load_items("roxford", "test")
    assert items.image_ids.tolist() == OXFORD["queries"] + OXFORD["images"]
    search = search_of("roxford", items, "image")
    assert search.queries.tolist() == list(range(5)) and search.gallery.tolist() == list(range(5, 12))
    assert search_of("roxford", items, "text") is None


def test_easy_medium_and_hard_are_judged_as_published(mirror):
    items = load_items("roxford", "test")
    search = search_of("roxford", items, "image")
    assert list(search.relevance) == list(search.junk) == list(PROTOCOL)
    for level, sides in PROTOCOL.items():
        for matrices, kinds in zip((search.relevance, search.junk), sides, strict=True):
            assert matrices[level].dtype == bool and matrices[level].shape == (5, 7)
            for q, query in enumerate(OXFORD["queries"]):
                expected = {OXFORD["images"][row - 1] for kind in kinds for row in OXFORD[kind][q]}
                assert named(search, items, matrices[level], query) == expected
    # a query without a positive has an empty row: in "hard" that is query 1, and query 4 everywhere
    assert np.diff(search.relevance["hard"].indptr).tolist() == [1, 0, 0, 2, 0]


def test_queries_are_cut_to_their_boxes_and_the_other_images_are_not(mirror, monkeypatch):
    items = load_items("roxford", "test")
    cut = items.images[2]  # the box 1, 2, 5.4, 6: columns 1 to 4, rows 2 to 5
    assert cut.shape == (4, 4, 3) and (cut[..., 2] == 2).all()
    np.testing.assert_array_equal(cut[..., 0], np.mgrid[2:6, 1:5][0])
    np.testing.assert_array_equal(cut[..., 1], np.mgrid[2:6, 1:5][1])
    assert items.images[5].shape == (8, 10, 3)
    manifest = load_manifest("roxford")
    whole = manifest.model_copy(update={"options": manifest.options | {"crop": False}})
    monkeypatch.setattr("reprolib.loaders.readers.load_manifest", lambda name: whole)
    uncut = load_items("roxford", "test")
    assert uncut.images[2].shape == (8, 10, 3) and uncut.images.digest() != items.images.digest()


def test_texts_name_the_landmark_that_queries_share(mirror):
    items = load_items("roxford", "test")
    texts = dict(zip(items.text_ids.tolist(), items.texts, strict=True))
    assert texts == {
        "all_souls_000013": "a photo of all souls.",  # oxford is what the whole set was searched with
        "bodleian_000107": "a photo of bodleian.",
        "keble_000055": "a photo of keble.",
        "other": "a photo of a landmark.",
    }
    own = {
        image: {str(items.text_ids[column]) for column in row.nonzero()[0]}
        for image, row in zip(items.image_ids.tolist(), items.relevance.toarray(), strict=True)
    }
    souls = {"all_souls_000013"}
    assert [own[name] for name in OXFORD["queries"]] == [souls, souls, {"bodleian_000107"}, souls, {"keble_000055"}]
    assert [own[name] for name in OXFORD["images"]] == [
        *(souls, souls, {"bodleian_000107"}, souls),
        *({"other"}, {"other"}, {"other"}),  # junk shows too little of a landmark to count
    ]
    images, texts = groups_of("roxford", items)["item"]
    assert images[0] == images[1] == images[3] == images[5] and images[0] != images[2]


def test_train_and_validation_are_halves_of_the_sister_set(mirror):
    parts = {split: load_items("roxford", split) for split in ("train", "validation")}
    names = {split: set(items.image_ids.tolist()) for split, items in parts.items()}
    assert names["train"] | names["validation"] == {*PARIS["queries"], *PARIS["images"]}
    assert not names["train"] & names["validation"] and all(names.values())
    for split, items in parts.items():
        assert items.name == "roxford"
        for landmark in range(4):
            first = PARIS["queries"][2 * landmark]
            one = {
                *PARIS["queries"][2 * landmark : 2 * landmark + 2],
                *PARIS["images"][3 * landmark : 3 * landmark + 2],
            }
            assert one <= names[split] if in_part(first, split, 0.5) else not one & names[split]
        search = search_of("roxford", items, "image")
        queries = [name for name in PARIS["queries"] if name in names[split]]
        images = [name for name in PARIS["images"] if name in names[split]]
        assert [items.image_ids[row] for row in search.queries] == queries and queries
        assert [items.image_ids[row] for row in search.gallery] == images
        for query in queries:
            q = PARIS["queries"].index(query)
            junk = {PARIS["images"][row - 1] for row in PARIS["junk"][q]} & names[split]
            assert named(search, items, search.junk["medium"], query) == junk
            assert len(named(search, items, search.relevance["medium"], query)) == 2


@settings(max_examples=40)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from(["easy", "hard", "junk", ""]), min_size=n, max_size=n), min_size=1)
    )
)
def test_any_judgements_are_read_as_they_were_written(tmp_path_factory, kinds):
    truth = {"queries": [f"q_{q}" for q in range(len(kinds))], "images": [f"i_{i}" for i in range(len(kinds[0]))]}
    for kind in ("easy", "hard", "junk"):
        truth[kind] = [[column + 1 for column, found in enumerate(row) if found == kind] for row in kinds]
    path = tmp_path_factory.mktemp("any") / "gnd.mat"
    boxes = [[q, 1.5, q + 2, 3] for q in range(len(kinds))]
    write_truth(path, truth, boxes)
    read = read_truth(path)
    assert (read.queries, read.images) == (truth["queries"], truth["images"])
    np.testing.assert_array_equal(read.boxes, boxes)
    for kind, matrix in read.judged.items():
        assert matrix.toarray().tolist() == [[found == kind for found in row] for row in kinds]
    # of one landmark: reached by steps from query to query over an image that shows both
    shown = [{c for c, found in enumerate(row) if found in ("easy", "hard")} for row in kinds]
    for q, first in enumerate(read.landmarks()):
        reached, seen = {q}, set(shown[q])
        while grown := {r for r in range(len(kinds)) if r not in reached and shown[r] & seen}:
            reached |= grown
            seen |= set().union(*(shown[r] for r in grown))
        assert first == min(reached)


def test_one_query_and_one_image_are_enough(tmp_path):
    write_truth(tmp_path / "gnd.mat", {"queries": ["q"], "images": ["i"], "easy": [[1]], "hard": [[]], "junk": [[]]})
    truth = read_truth(tmp_path / "gnd.mat")
    assert truth.judged["easy"].toarray().tolist() == [[True]] and truth.queries == ["q"] and truth.images == ["i"]


def test_an_image_that_is_not_there_is_named(mirror):
    next(mirror.rglob("keble_000001.jpg")).unlink()
    with pytest.raises(InputError, match=r"gnd_roxford5k\.mat names keble_000001\.jpg, which is not in"):
        load_items("roxford", "test")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemError('the pickle was read')",))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), ["not a MATLAB file of version 5"]),
        (lambda path: path.write_bytes(b""), ["not a MATLAB file of version 5"]),
        (lambda path: scipy.io.savemat(path, {"imlist": ["a"], "qimlist": ["b"]}), ["no variable 'gnd'"]),
        (lambda path: scipy.io.savemat(path, {"imlist": ["a"], "qimlist": ["b"], "gnd": 3.0}), ["each of 1 queries"]),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), ["not a MATLAB file of version 5, or is not whole"]),
        (
            lambda path: write_truth(path, OXFORD | {"easy": [[8], [], [], [], []]}),
            ["all_souls_000013", "easy", "1 to 7"],
        ),
        (lambda path: write_truth(path, OXFORD | {"junk": [[], [], [0], [], []]}), ["bodleian_000107", "junk"]),
        (lambda path: write_truth(path, OXFORD, [[1.0, 2.0, 3.0]] * 5), ["all_souls_000013", "3 numbers", "four"]),
    ],
)
def test_a_bad_ground_truth_is_refused_and_nothing_is_unpickled(mirror, write, words):
    path = next(mirror.rglob("gnd_roxford5k.mat"))
    write(path)
    with pytest.raises(InputError) as error:
        load_items("roxford", "test")
    assert all(word in str(error.value) for word in ["gnd_roxford5k.mat", *words]), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "images"), [("roxford", 4993), ("rparis", 6322)])
def test_counts_are_the_published_ones(name, images):
    """70 queries and as many other images: README.md of Tarekbouamer/visloc_retrieval."""
    assert load_manifest(name).counts["test_images"] == images + 70
