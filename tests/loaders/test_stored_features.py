"""Stored features and files of one's own: formats, relevance, banks, splits, and what is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from reprolib.errors import InputError
from reprolib.loaders import Replicate, load_features, load_manifest, load_split

RNG = np.random.default_rng(7)
IMAGE = RNG.normal(size=(30, 6)).astype(np.float32)
TEXT = RNG.normal(size=(60, 6)).astype(np.float32)
PAIRS = np.stack([np.arange(60) // 2, np.arange(60)], axis=1)  # two texts an image
DENSE = np.zeros((30, 60), dtype=bool)
DENSE[PAIRS[:, 0], PAIRS[:, 1]] = True
IMAGE_IDS = np.array([f"picture {i}" for i in range(30)])
TEXT_IDS = np.array([f"text {i}" for i in range(60)])
FULL = {"image": IMAGE, "text": TEXT, "image_ids": IMAGE_IDS, "text_ids": TEXT_IDS, "relevance": DENSE}


def npz(folder, **arrays):
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def parquet(folder, rows, **columns):
    """Write ``rows`` of (modality, id, embedding), and further columns."""
    names = ("modality", "id", "embedding")
    table = {name: [row[i] for row in rows] for i, name in enumerate(names)} | columns
    pq.write_table(pa.table(table), folder / "mine.parquet")
    return folder / "mine.parquet"


def rows_of(**sides):
    pairs = {kind: zip(ids, rows.tolist(), strict=True) for kind, (ids, rows) in sides.items()}
    return [(kind, name, row) for kind, side in pairs.items() for name, row in side]


def same(split):
    assert (split.image == IMAGE).all() and (split.text == TEXT).all()
    assert (split.relevance.toarray() == DENSE).all()
    assert split.image_ids.tolist() == IMAGE_IDS.tolist() and split.text_ids.tolist() == TEXT_IDS.tolist()


# ---------------------------------------------------------------- the formats say the same


@pytest.mark.parametrize(
    "relevance",
    [
        {"relevance": DENSE},
        {"relevance": PAIRS},
        {"relevance": PAIRS[::-1].astype(np.uint16)},
        {"relevance_image": PAIRS[:, 0], "relevance_text": PAIRS[:, 1]},
    ],
)
def test_npz_with_every_form_of_relevance(tmp_path, relevance):
    same(load_split(npz(tmp_path, image=IMAGE, text=TEXT, image_ids=IMAGE_IDS, text_ids=TEXT_IDS, **relevance)))


def test_safetensors_with_ids_in_the_metadata(tmp_path):
    ids = {"image_ids": json.dumps(IMAGE_IDS.tolist()), "text_ids": json.dumps(TEXT_IDS.tolist())}
    path = tmp_path / "mine.safetensors"
    save_file({"image": IMAGE, "text": TEXT, "relevance": PAIRS}, path, metadata=ids)
    same(load_split(path))


def test_parquet_with_relevant_on_either_side_or_pair(tmp_path):
    rows = rows_of(image=(IMAGE_IDS, IMAGE), text=(TEXT_IDS, TEXT))
    of_images = [[TEXT_IDS[2 * i], TEXT_IDS[2 * i + 1]] for i in range(30)]
    of_texts = [[IMAGE_IDS[i // 2]] for i in range(60)]
    nothing = pa.array([None] * 30, type=pa.list_(pa.string()))
    same(load_split(parquet(tmp_path, rows, relevant=of_images + [None] * 60)))
    same(load_split(parquet(tmp_path, rows, relevant=nothing.to_pylist() + of_texts)))
    same(load_split(parquet(tmp_path, rows, relevant=of_images + of_texts)))
    same(load_split(parquet(tmp_path, rows, pair=[*range(30), *(i // 2 for i in range(60))])))
    mixed = np.random.default_rng(0).permutation(90)
    shuffled = load_split(
        parquet(tmp_path, [rows[i] for i in mixed], relevant=[(of_images + of_texts)[i] for i in mixed])
    )
    assert shuffled.relevance.nnz == 60 and sorted(shuffled.image_ids) == sorted(IMAGE_IDS)


def test_npy_pairs_row_by_row(tmp_path):
    np.save(tmp_path / "mine.npy", np.stack([IMAGE, TEXT[:30]]))
    split = load_split(tmp_path / "mine.npy")
    assert (split.relevance.toarray() == np.eye(30, dtype=bool)).all()
    assert split.image_ids.tolist() == [str(i) for i in range(30)]


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_precisions_are_cast_and_noted(tmp_path, dtype):
    path = tmp_path / "mine.safetensors"
    tensors = {"image": torch.from_numpy(IMAGE), "text": torch.from_numpy(IMAGE[::-1].copy())}
    save_torch({key: value.to(getattr(torch, dtype)) for key, value in tensors.items()}, path)
    data = load_features(path)
    bank = data.replicates[0].bank
    assert bank.image.dtype == np.float32
    rows = bank.image_ids.astype(int)
    assert (bank.image == tensors["image"].to(getattr(torch, dtype)).float().numpy()[rows]).all()
    assert any(f"image is stored as {dtype}" in note for note in data.notes)


def test_parquet_keeps_half_precision(tmp_path):
    table = {
        "modality": ["image"] * 30 + ["text"] * 30,
        "id": [str(i) for i in range(30)] * 2,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.tile(IMAGE, (2, 1)).astype(np.float16).ravel()), 6),
    }
    pq.write_table(pa.table(table), tmp_path / "mine.parquet")
    assert (load_split(tmp_path / "mine.parquet").image == IMAGE.astype(np.float16)).all()


# ---------------------------------------------------------------- replicates


def test_replicates_are_disjoint_named_and_seeded(tmp_path):
    path = npz(tmp_path, **FULL)
    data = load_features(path, bank_share=0.3, n_splits=3, seed=4)
    assert (data.name, data.licence, data.pictures) == ("mine.npz", "not stated by the file", None)
    assert [r.label for r in data.replicates] == [f"seeded split {i} of 3" for i in (1, 2, 3)]
    for replicate in data.replicates:
        assert replicate.bank_source == "seeded share, 30 % of rows"
        sides = (replicate.bank, replicate.validation, replicate.test)
        assert [len(side.image) for side in sides] == [9, 6, 15] and [len(s.text) for s in sides] == [
            18,
            12,
            30,
        ]
        assert len({name for side in sides for name in side.image_ids}) == 30
        assert len({name for side in sides for name in side.text_ids}) == 60
    again, other = load_features(path, bank_share=0.3, n_splits=3, seed=4), load_features(path, seed=5)
    assert rows(again) == rows(data) != rows(other)
    assert again.identity == data.identity == other.identity


def rows(data):
    return [r.test.image_ids.tolist() for r in data.replicates]


def test_the_first_replicates_do_not_depend_on_how_many_there_are(tmp_path):
    path = npz(tmp_path, **FULL)
    assert rows(load_features(path, n_splits=2)) == rows(load_features(path, n_splits=5))[:2]


def test_bank_sources_keep_the_test_rows_and_are_named(tmp_path):
    path = npz(tmp_path, **FULL)
    train, validation, transductive = (
        load_features(path, bank_source=source, n_splits=1).replicates[0]
        for source in ("train", "validation", "transductive")
    )
    tests = [r.test.image_ids.tolist() for r in (train, validation, transductive)]
    assert tests[0] == tests[1] == tests[2]
    assert "the half that is not tuned on (10 % of rows)" in validation.bank_source
    assert set(validation.bank.image_ids) | set(validation.validation.image_ids) == set(train.validation.image_ids)
    assert not set(validation.bank.image_ids) & set(validation.validation.image_ids)
    assert "transductive" in transductive.bank_source and transductive.bank is transductive.test


def test_a_bank_of_its_own_is_used_whole(tmp_path):
    bank = {"bank_image": IMAGE[:5] * 2, "bank_text": TEXT[:5] * 2}
    data = load_features(npz(tmp_path, **FULL, **bank), n_splits=2)
    for replicate in data.replicates:
        assert (replicate.bank.text == TEXT[:5] * 2).all() and "given in the file" in replicate.bank_source
        assert [len(replicate.validation.image), len(replicate.test.image)] == [6, 24]
    without = load_features(npz(tmp_path, **FULL), n_splits=2)
    assert without.identity != data.identity
    assert not any("transductive" in note for note in data.notes)


def test_a_bank_with_its_own_relevance_and_rows_of_the_test(tmp_path):
    bank = {"bank_image": IMAGE[:4], "bank_text": TEXT[:8], "bank_relevance": PAIRS[:8]}
    data = load_features(npz(tmp_path, **FULL, **bank), n_splits=1)
    assert (data.replicates[0].bank.relevance.toarray() == DENSE[:4, :8]).all()
    assert "4 of 4 bank image rows equal rows that are evaluated" in " ".join(data.notes)


def test_a_bank_in_parquet(tmp_path):
    rows = rows_of(
        image=(IMAGE_IDS, IMAGE),
        text=(TEXT_IDS[:30], TEXT[:30]),
        bank_image=(IMAGE_IDS[:4], IMAGE[:4] * 2),
        bank_text=(TEXT_IDS[:8], TEXT[:8] * 2),
    )
    pair = [*range(30), *range(30), *range(4), *(i // 2 for i in range(8))]
    bank = load_features(parquet(tmp_path, rows, pair=pair)).replicates[0].bank
    assert (bank.image == IMAGE[:4] * 2).all() and (bank.relevance.toarray() == DENSE[:4, :8]).all()


# ---------------------------------------------------------------- manifests


@pytest.mark.parametrize("name", ["coco-clip-500", "videoclip-100-random", "clasp-99"])
def test_feature_datasets_load(name, mirror):
    data = load_features(name, n_splits=2, mirror=mirror.path)
    manifest = load_manifest(name)
    assert (data.name, data.model, data.licence) == (name, manifest.model, "MIT")
    assert all(isinstance(replicate, Replicate) for replicate in data.replicates) and len(data.replicates) == 2
    if mirror.real:
        sizes = [len(split.image) for r in data.replicates for split in (r.bank, r.validation, r.test)]
        assert sum(sizes) == 2 * manifest.counts["images"]


def test_coco_rows_are_named_by_image_id_and_last_caption(mirror):
    split = load_split("coco-clip-500", mirror=mirror.path)
    captions = load_features("coco-clip-500", mirror=mirror.path).captions
    images = ["179765", "190236", "331352"] if mirror.real else ["50", "49", "48"]
    first = "A motorcycle with its brake extended standing outside" if mirror.real else "picture 0, caption 1"
    assert split.image_ids[:3].tolist() == images and captions[split.text_ids[0]] == first
    assert set(split.text_ids) == set(captions)


def test_without_the_optional_captions_rows_have_numbers_and_the_identity_stays(mirror, tmp_path):
    source = mirror.path / "coco-clip-500" / "features_clip.npy"
    target = tmp_path / "bare" / "coco-clip-500" / "features_clip.npy"
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())
    bare = load_features("coco-clip-500", mirror=tmp_path / "bare")
    full = load_features("coco-clip-500", mirror=mirror.path)
    assert bare.identity == full.identity and not bare.captions
    assert any("captions_val2017.json" in note for note in bare.notes)
    assert (bare.replicates[0].test.image == full.replicates[0].test.image).all()
    assert bare.replicates[0].test.image_ids[0].isdigit()


def test_datasets_without_stored_embeddings_say_why():
    for name in ("flickr8k", "emoji"):
        with pytest.raises(InputError, match="raw items, which a model has to encode first"):
            load_features(name)


# ---------------------------------------------------------------- what is refused


def replaced(**changes):
    return {key: value for key, value in (FULL | changes).items() if value is not None}


BAD_ROW = IMAGE.copy()
BAD_ROW[3, 1] = np.nan
REFUSED = {
    "nan": (replaced(image=BAD_ROW), ["image", "row 3", "NaN", "finite"]),
    "zero row": (replaced(text=TEXT * (np.arange(60) != 8)[:, None]), ["text", "row 8", "zeros"]),
    "widths": (replaced(text=TEXT[:, :4]), ["6 columns", "4"]),
    "too few ids": (replaced(image_ids=IMAGE_IDS[:9]), ["image_ids", "9", "30"]),
    "repeated id": (replaced(text_ids=np.array(["same"] * 60)), ["text_ids", "'same'"]),
    "lengths without relevance": (replaced(relevance=None), ["30 image rows", "60 text rows", "relevance"]),
    "empty relevance": (replaced(relevance=np.zeros((30, 60), bool)), ["image row 0", "no text"]),
    "no pairs": (replaced(relevance=PAIRS[:0]), ["image row 0", "and 29 more"]),
    "relevance shape": (replaced(relevance=DENSE.T), ["(60, 30)", "(30, 60)"]),
    "relevance of numbers": (replaced(relevance=DENSE.astype(int)), ["int64", "bool matrix"]),
    "relevance of floats": (replaced(relevance=DENSE.astype(float)), ["float64", "bool matrix"]),
    "pair outside": (
        replaced(relevance=np.vstack([PAIRS, [[30, 0]]])),
        ["pair 60", "image row 30", "0 to 29"],
    ),
    "negative pair": (replaced(relevance=np.vstack([PAIRS, [[0, -1]]])), ["text row -1"]),
    "half a pair list": (replaced(relevance=None, relevance_image=PAIRS[:, 0]), ["relevance_text"]),
    "both forms": (replaced(relevance_image=PAIRS[:, 0], relevance_text=PAIRS[:, 1]), ["either"]),
    "misspelt key": (replaced(relevence=DENSE), ["relevence", "nearest valid", "relevance"]),
    "no text": (replaced(text=None), ["'text'"]),
    "bank of one side": (replaced(bank_text=TEXT), ["'bank_image'"]),
    "bank lengths": (replaced(bank_image=IMAGE, bank_text=TEXT), ["30 image rows", "bank_relevance"]),
    "empty bank": (replaced(bank_image=IMAGE[:0], bank_text=TEXT[:0]), ["bank", "empty"]),
    "bank width": (replaced(bank_image=IMAGE[:, :3], bank_text=TEXT[:30, :3]), ["bank is 3 wide", "6"]),
    "nan in bank": (replaced(bank_image=BAD_ROW, bank_text=TEXT[:30]), ["bank: image", "row 3", "NaN"]),
    "three axes": (replaced(image=IMAGE[None]), ["(1, 30, 6)"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_content_is_refused_in_one_sentence_that_names_the_file(tmp_path, case):
    arrays, words = REFUSED[case]
    refuse(npz(tmp_path, **arrays), words)


def refuse(path, words, **parameters):
    with pytest.raises(InputError) as error:
        load_features(path, **parameters)
    message = str(error.value)
    assert all(word in message for word in [path.name, *words]), message
    assert "\n" not in message


class Trap:
    """What unpickling would run."""

    def __reduce__(self):
        return (pytest.fail, ("a file from outside was unpickled",))


def test_nothing_is_ever_unpickled(tmp_path):
    np.savez(tmp_path / "objects.npz", image=np.array([Trap()] * 3, dtype=object), text=TEXT)
    np.save(tmp_path / "objects.npy", np.array([Trap()] * 2, dtype=object))
    for name in ("objects.npz", "objects.npy"):
        refuse(tmp_path / name, ["never unpickled"])
    for name in ("pickled.npz", "pickled.npy", "pickled.safetensors", "pickled.parquet"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refuse(tmp_path / name, ["truncated, corrupted or not a"])


def test_truncated_and_corrupted_files(tmp_path):
    np.save(tmp_path / "mine.npy", np.stack([IMAGE, TEXT[:30]]))
    save_file({"image": IMAGE, "text": TEXT, "relevance": PAIRS}, tmp_path / "mine.safetensors")
    parquet(tmp_path, rows_of(image=(IMAGE_IDS, IMAGE), text=(TEXT_IDS[:30], TEXT[:30])))
    npz(tmp_path, **FULL)
    for name in ("mine.npz", "mine.npy", "mine.safetensors", "mine.parquet"):
        whole = (tmp_path / name).read_bytes()
        for content in (whole[: len(whole) // 2], whole[:7], b"", bytes(len(whole))):
            (tmp_path / name).write_bytes(content)
            refuse(tmp_path / name, ["truncated, corrupted or not a"])
    flipped = bytearray(npz(tmp_path, **FULL).read_bytes())
    flipped[400] ^= 1  # within the first member: the archive's checksum notices
    (tmp_path / "mine.npz").write_bytes(flipped)
    refuse(tmp_path / "mine.npz", ["truncated, corrupted"])


def test_files_of_the_wrong_kind(tmp_path):
    np.save(tmp_path / "flat.npy", IMAGE)
    refuse(tmp_path / "flat.npy", ["(30, 6)", "(2, n, d)"])
    (tmp_path / "flat.npy").rename(tmp_path / "flat.npz")
    refuse(tmp_path / "flat.npz", ["single array"])
    (tmp_path / "mine.csv").write_text("a,b")
    refuse(tmp_path / "mine.csv", ["'.csv'", ".npz, .npy, .safetensors, .parquet"])
    refuse(tmp_path / "none.npz", ["no such file"])
    (tmp_path / "folder.npz").mkdir()
    refuse(tmp_path / "folder.npz", ["no such file"])


def test_wrong_parquet(tmp_path):
    good = rows_of(image=(IMAGE_IDS[:4], IMAGE[:4]), text=(TEXT_IDS[:4], TEXT[:4]))
    refuse(parquet(tmp_path, [("sound", *row[1:]) for row in good]), ["row 0", "'sound'", "bank_text"])
    refuse(parquet(tmp_path, [*good[:7], ("text", "text 3", [1.0])]), ["row 7", "1 numbers", "6"])
    refuse(parquet(tmp_path, [*good[:7], ("text", "text 3", None)]), ["row 7", "0 numbers"])
    refuse(parquet(tmp_path, [*good[:7], ("text", "text 0", good[7][2])]), ["'text 0'"])
    refuse(parquet(tmp_path, good, relevant=[["text 9"]] * 8), ["'text 9'", "no text row"])
    refuse(parquet(tmp_path, good, colour=[1] * 8), ["colour", "modality, id, embedding"])
    for lone in ([0, 1, 2, 3, 0, 1, 2, 9], [0, 1, 2, None, 0, 1, 2, None]):
        refuse(parquet(tmp_path, good, pair=lone), ["image row 3", "no text"])
    pq.write_table(pa.table({"modality": ["image"], "id": ["a"], "embedding": ["words"]}), tmp_path / "mine.parquet")
    refuse(tmp_path / "mine.parquet", [])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"bank_share": 0}, ["bank_share 0"]),
        ({"validation_share": 1.5}, ["validation_share 1.5"]),
        ({"bank_share": 0.6, "validation_share": 0.4}, ["no rows to test on"]),
        ({"bank_source": "trian"}, ["unknown bank source 'trian'; nearest valid: train"]),
        ({"n_splits": 0}, ["n_splits 0"]),
        ({"seed": -1}, ["seed -1"]),
        ({"bank_share": 0.001}, ["one part would be empty"]),
    ],
)
def test_wrong_parameters(tmp_path, parameters, words):
    with pytest.raises(InputError) as error:
        load_features(npz(tmp_path, **FULL), **parameters)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_unknown_name_gets_the_nearest_dataset():
    with pytest.raises(InputError, match="nearest valid: videoclip-100"):
        load_features("videoclip")
