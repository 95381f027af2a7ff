"""Split, Replicate, EmbeddingData, Items: what they accept, what they refuse and how they say so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from reprolib.errors import InputError
from reprolib.loaders import EmbeddingData, Items, Replicate, Split, identity_of


def parts(**changes):
    """Three images, five texts: texts 0, 1 of image 0, texts 2, 3 of image 1, texts 3, 4 of image 2."""
    rng = np.random.default_rng(0)
    relevance = np.zeros((3, 5), dtype=bool)
    relevance[[0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 3, 4]] = True
    values = {
        "image": rng.normal(size=(3, 4)).astype(np.float32),
        "text": rng.normal(size=(5, 4)).astype(np.float32),
        "relevance": relevance,
        "image_ids": np.array(["a", "b", "c"]),
        "text_ids": np.array(["v", "w", "x", "y", "z"]),
    }
    return values | changes


def changed(values, index, value):
    values = values.copy()
    values[index] = value
    return values


def test_a_split_keeps_what_is_stored_and_settles_types():
    given = parts()
    split = Split(**parts(image=given["image"].astype(np.float64), image_ids=[7, 8, 9]))
    assert split.image.dtype == np.float32 and split.relevance.dtype == bool
    assert (split.image == given["image"]).all()
    assert split.image_ids.tolist() == ["7", "8", "9"]
    assert isinstance(split.relevance, sparse.csr_array) and split.relevance.has_sorted_indices
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.image = given["image"]


def test_explicit_zeros_and_repeats_do_not_count_as_relevance():
    rows, columns = [0, 0, 1, 1, 2, 2, 0], [0, 1, 2, 3, 3, 4, 0]
    split = Split(**parts(relevance=sparse.coo_array((np.ones(7, dtype=bool), (rows, columns)), shape=(3, 5))))
    assert split.relevance.nnz == 6
    zeros = sparse.csr_array((np.array([True] * 6 + [False]), ([*rows[:6], 2], [*columns[:6], 0])), shape=(3, 5))
    assert Split(**parts(relevance=zeros)).relevance.nnz == 6


GIVEN = parts()
REFUSED = {
    "NaN": (
        {"image": changed(GIVEN["image"], (1, 2), np.nan)},
        ["image", "row 1", "NaN or infinity", "finite"],
    ),
    "infinity": ({"text": changed(GIVEN["text"], (4, 0), np.inf)}, ["text", "row 4", "NaN or infinity"]),
    "overflow": (
        {"text": changed(GIVEN["text"].astype(float), (0, 0), 1e300)},
        ["text", "row 0", "infinity"],
    ),
    "zero row": ({"image": changed(GIVEN["image"], 2, 0)}, ["image", "row 2", "zeros only", "non-zero"]),
    "several": ({"text": changed(GIVEN["text"], [1, 3], 0)}, ["text", "row 1", "and 1 more"]),
    "width": ({"text": GIVEN["text"][:, :3]}, ["4 columns", "3", "same width"]),
    "integers": ({"image": np.ones((3, 4), dtype=int)}, ["image", "int64", "floating-point"]),
    "vector": ({"image": GIVEN["image"][0]}, ["image", "(4,)", "[n, d]"]),
    "no rows": ({"image": GIVEN["image"][:0]}, ["image", "empty"]),
    "ids: number": ({"image_ids": ["a", "b"]}, ["image_ids", "2", "3", "one id"]),
    "ids: repeated": ({"text_ids": list("vwxvz")}, ["text_ids", "row 3", "'v'", "different id"]),
    "ids: type": ({"text_ids": np.ones(5)}, ["text_ids", "float64", "strings"]),
    "relevance: shape": ({"relevance": np.ones((5, 3), dtype=bool)}, ["(5, 3)", "(3, 5)"]),
    "no positive text": (
        {"relevance": changed(GIVEN["relevance"], 1, False)},
        ["image row 1", "'b'", "no text"],
    ),
    "no positive image": (
        {"relevance": changed(GIVEN["relevance"], (slice(None), 4), False)},
        ["text row 4", "'z'", "no image"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_split_refuses_in_one_sentence(case):
    changes, words = REFUSED[case]
    with pytest.raises(InputError) as error:
        Split(**parts(**changes))
    message = str(error.value)
    assert all(word in message for word in [*words, "valid"]), message
    assert "\n" not in message and not message.endswith(".")


def test_take_keeps_the_order_of_images_and_the_texts_that_belong():
    split = Split(**parts())
    taken = split.take([2, 0])
    assert taken.image_ids.tolist() == ["c", "a"] and taken.text_ids.tolist() == ["v", "w", "y", "z"]
    assert (taken.image == split.image[[2, 0]]).all() and (taken.text == split.text[[0, 1, 3, 4]]).all()
    assert taken.relevance.toarray().astype(int).tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("images", [[], [3], [-1], [0.5], [0, 0]])
def test_take_refuses_indices_that_are_not_images(images):
    with pytest.raises(InputError):
        Split(**parts()).take(np.array(images))


def test_components_join_what_shares_a_text_and_nothing_else():
    images, texts = Split(**parts()).components()
    assert images.dtype == np.int64
    assert images[1] == images[2] != images[0]
    assert texts.tolist() == images[[0, 0, 1, 1, 2]].tolist()


def test_identity_sees_every_part_and_no_accident_of_storage():
    split = Split(**parts())
    reference = identity_of(split)
    assert len(reference) == 64 and reference == identity_of(Split(**parts()))
    wide = parts(image_ids=np.array(["a", "b", "c"], dtype="U40"), relevance=sparse.coo_array(GIVEN["relevance"]))
    assert identity_of(Split(**wide)) == reference
    assert identity_of(Split(**parts(image=np.asfortranarray(GIVEN["image"])))) == reference
    others = [
        {"image": changed(GIVEN["image"], (0, 0), 0.5)},
        {"text_ids": list("vwxyq")},
        {"relevance": changed(GIVEN["relevance"], (0, 4), True)},
    ]
    found = {identity_of(Split(**parts(**change))) for change in others} | {
        identity_of(split, split),
        reference,
    }
    assert len(found) == 5


def test_a_replicate_has_one_width_and_data_at_least_one_replicate():
    split = Split(**parts())
    narrow = Split(**parts(image=GIVEN["image"][:, :3], text=GIVEN["text"][:, :3]))
    with pytest.raises(InputError, match="differ in width"):
        Replicate(narrow, split, split, "official split", "train, 20 %")
    with pytest.raises(InputError, match="no replicate"):
        EmbeddingData("name", "model", identity_of(split), (), (), "MIT")


def test_items_check_pictures_and_texts():
    given = {key: parts()[key] for key in ("image_ids", "text_ids", "relevance")}
    grey = np.zeros((3, 8, 8), dtype=np.uint8)
    texts = ["one", "two", "three", "four", "five"]
    items = Items("glyphs", "test", grey, texts, **given)
    assert items.components()[0].tolist() == Split(**parts()).components()[0].tolist()
    assert identity_of(items) != identity_of(Items("glyphs", "test", grey + 1, texts, **given))
    assert Items("x", "test", np.zeros((3, 8, 8, 3), dtype=np.uint8), texts, **given).images.shape == (
        3,
        8,
        8,
        3,
    )
    with pytest.raises(InputError, match="uint8"):
        Items("x", "test", grey.astype(np.float32), texts, **given)
    with pytest.raises(InputError, match=r"row 1.*blank"):
        Items("x", "test", grey, ["one", " ", "three", "four", "five"], **given)
    with pytest.raises(InputError, match="text_ids name 5 rows"):
        Items("x", "test", grey, texts[:4], **given)
