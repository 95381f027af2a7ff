"""Heads: the same bytes whatever shares a batch, resumed runs, pairs and noise, encoders against slow references."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from reprolib.errors import InputError
from reprolib.models import heads
from reprolib.models.corpus import Corpus, Part, load_corpus
from reprolib.models.heads import ENCODERS, PC2, Head, Pairs, Texts, Vocabulary, runs, train
from reprolib.models.losses import LOSSES
from reprolib.ranking import Scorer

WORDS = (
    "red", "green", "blue", "black", "white", "small", "large", "old", "new", "round", "square", "open", "closed",
    "wooden", "metal", "paper", "glass",
)  # fmt: skip
SMALL = Head(dimension=16, batch=16, epochs=2)


def part(name: str, items: int, partners: int, seed: int) -> Part:
    """Return images whose features are what their texts name, each with ``partners`` texts."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(0).normal(size=(len(WORDS), 12))
    chosen = np.array([rng.permutation(len(WORDS))[:4] for _ in range(items)])
    image = axes[chosen].sum(1) + 0.3 * rng.normal(size=(items, 12))
    texts = [
        " ".join(WORDS[w] for w in rng.permutation(chosen[row])[:3]) for row in range(items) for _ in range(partners)
    ]
    relevance = scipy.sparse.csr_array(np.kron(np.eye(items, dtype=bool), np.ones((1, partners), bool)))
    ids = (np.array([f"{name}{row}" for row in range(n)]) for n in (items, items * partners))
    text = np.stack([axes[[WORDS.index(w) for w in t.split()]].sum(0) for t in texts]).astype(np.float32)
    return Part(image.astype(np.float32), texts, text, relevance, *ids)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    whole = part("test", 24, 3, 3)
    return Corpus(
        "made", "axes", part("train", 64, 3, 1), part("validation", 20, 1, 2), whole.thinned(1), whole, "made-1"
    )


def seeded(head: Head, *seeds: int) -> list[Head]:
    return [replace(head, seed=seed) for seed in seeds]


def bytes_of(run: heads.Run) -> list[bytes]:
    return [array.tobytes() for array in vars(run).values()]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_run_gives_the_same_bytes_whatever_shares_its_batch(corpus: Corpus, encoder: str) -> None:
    head = replace(SMALL, encoder=encoder)
    first = train(corpus, seeded(head, 0, 1, 2, 3), together=4, embeddings=True)
    again = train(corpus, seeded(head, 7, 2, 1), together=4, embeddings=True)
    assert bytes_of(first[2]) == bytes_of(again[1]) and bytes_of(first[1]) == bytes_of(again[2])
    assert bytes_of(first[0]) != bytes_of(first[1])
    (alone,) = train(corpus, seeded(head, 2), together=1, embeddings=True)
    for one, other in ((alone.image, first[2].image), (alone.text, first[2].text)):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("loss", [*LOSSES, PC2])
def test_every_loss_learns(corpus: Corpus, loss: str) -> None:
    head = replace(SMALL, loss=loss, epochs=12, dimension=32)
    found = train(corpus, seeded(head, 0, 1, 2), together=3)
    chance = 1 / 24
    assert np.mean([run.test[-1] for run in found]) > 4 * chance
    assert found[0].validation.shape == (4, 2) and found[0].image.shape == (0, 32)


def test_a_stopped_study_goes_on_and_a_damaged_run_is_trained_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(heads, "TOGETHER", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one batch of runs after the other
    wanted = seeded(SMALL, 0, 1, 2, 3)
    calls: list[int] = []

    def stopping(steps: int) -> None:
        calls.append(steps)
        if len(calls) == 3:  # within the second batch of runs
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs(corpus, wanted, tick=stopping)
    files = sorted((tmp_path / "heads").iterdir())
    assert len(files) == 2
    kept = {path: path.read_bytes() for path in files}
    whole = runs(corpus, wanted, probe=())
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert len(list((tmp_path / "heads").iterdir())) == 4
    monkeypatch.setattr(heads, "train", lambda *a, **k: pytest.fail("nothing is left to train"))
    again = runs(corpus, wanted[::-1])
    assert [bytes_of(run) for run in again] == [bytes_of(run) for run in whole][::-1]
    monkeypatch.undo()
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(heads, "TOGETHER", 2)
    files[0].write_bytes(kept[files[0]][:-3])
    assert bytes_of(runs(corpus, wanted)[0]) == bytes_of(whole[0]) and files[0].read_bytes() == kept[files[0]]


def test_runs_side_by_side_are_those_of_one_thread_and_an_error_ends_all(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "TOGETHER", 2)
    wanted = [*seeded(SMALL, 0, 1, 2), *seeded(replace(SMALL, noise=0.2), 0, 1), *seeded(replace(SMALL, loss=PC2), 5)]
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / str(threads)))
        torch.set_num_threads(threads)
        try:
            found.append([bytes_of(run) for run in runs(corpus, wanted, embeddings=True)])
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[1]
    with pytest.raises(InputError, match="a batch takes 128 items"):
        runs(corpus, [*seeded(replace(SMALL, learning_rate=0.1), 0), replace(SMALL, batch=128)])


def test_the_step_is_that_of_adam_and_leaves_alone_what_the_loss_does_not_depend_on() -> None:
    torch.manual_seed(0)
    values = [torch.randn(3, 4), torch.randn(2, dtype=torch.float64), torch.randn(5)]
    own, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    ours, reference = heads._Adam(own, 0.01), torch.optim.Adam(theirs, lr=0.01)
    for _ in range(4):
        ours.step(own[0].pow(2).sum() + own[1].sin().sum())
        reference.zero_grad()
        (theirs[0].pow(2).sum() + theirs[1].sin().sum()).backward()
        reference.step()
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert own[2].equal(values[2])


@settings(max_examples=40)
@given(seed=st.integers(0, 999), partners=st.sampled_from([1, 3]), levels=st.sampled_from([1, 2, 50]))
def test_recall_is_that_of_canonical_scores_with_ties_by_index(seed: int, partners: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    image, text = (  # rows that repeat, or differ by less than a float32 product tells
        torch.from_numpy((rng.integers(levels, size=(n, 1)) * 1e-7 + rng.integers(-2, 3, size=(n, 8))) / 7).float()
        for n in (12, 12 * partners)
    )
    relevance = part("a", 12, partners, 0).relevance
    scores = Scorer(image, text).canonical(slice(0, 12)).numpy()
    first, second = scores.argmax(1), scores.argmax(0)
    slow = [
        np.mean([relevance[i, first[i]] for i in range(12)]),
        np.mean([relevance[i, j] for j, i in enumerate(second)]),
    ]
    assert heads.recall(image, text, relevance) == pytest.approx(slow, abs=1e-12)


def test_the_key_of_a_run_holds_all_that_decides_it(corpus: Corpus) -> None:
    paths = {
        heads._path(*arguments)
        for arguments in (
            (corpus, SMALL, "cpu", False, ()),
            (replace(corpus, identity="made-2"), SMALL, "cpu", False, ()),
            (corpus, replace(SMALL, noise=0.1), "cpu", False, ()),
            (corpus, SMALL, "cuda:0", False, ()),
            (corpus, SMALL, "cpu", True, ()),
            (corpus, SMALL, "cpu", False, ("red",)),
        )
    }
    assert len(paths) == 6


# --- pairs --------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 999), noise=st.sampled_from([0.0, 0.2, 0.6]), flipped=st.booleans())
def test_noise_moves_a_share_of_partners_and_keeps_every_one(seed: int, noise: float, flipped: bool) -> None:
    clean = part("a", 30, 3, 0)
    if flipped:
        clean = Part(clean.text, None, clean.image, clean.relevance.T.tocsr(), clean.text_ids, clean.image_ids)
    pairs = Pairs(clean, replace(SMALL, noise=noise, seed=seed))
    right = [bool(clean.relevance[i, t]) for i, t in zip(pairs.image, pairs.text, strict=True)]
    assert pairs.mismatched.tolist() == [not r for r in right]
    still = Pairs(clean, replace(SMALL, seed=seed))
    assert (pairs.image != still.image).sum() + (pairs.text != still.text).sum() == round(noise * 90)
    assert not still.mismatched.any() and pairs.mismatched.mean() >= 0.7 * noise
    assert sorted(pairs.text if not flipped else pairs.image) == list(range(90))
    assert pairs.by_text == flipped and len(np.unique(pairs.owner)) == 30


@settings(max_examples=20)
@given(seed=st.integers(0, 999), partners=st.sampled_from([1, 2, 4]))
def test_an_epoch_visits_items_evenly_with_partners_of_their_own(seed: int, partners: int) -> None:
    pairs = Pairs(part("a", 32, 3, 0), replace(SMALL, seed=seed))
    drawn = pairs.epoch(2 * partners, 16, partners)  # every item once
    blocks = drawn.reshape(-1, partners)
    assert (pairs.owner[blocks] == pairs.owner[blocks[:, :1]]).all()
    assert sorted(pairs.owner[blocks[:, 0]]) == list(range(32))
    assert all(len(set(block)) == min(3, partners) for block in blocks.tolist())
    for step in [*drawn, *pairs.epoch(7, 12, 1)]:  # the second does not divide the items
        assert len(set(pairs.owner[step])) == len(step) // (partners if len(step) == 16 else 1)


def test_filtering_drops_mismatched_pairs_and_a_random_share_does_not(corpus: Corpus) -> None:
    head = replace(SMALL, noise=0.3, keep=0.6, epochs=10, dimension=32)
    some = tuple(seeded(head, 0, 1))
    for selection, fewer in (("score", True), ("random", False)):
        chosen = [replace(one, selection=selection) for one in some]
        kept = heads._kept(corpus, tuple(chosen), "cpu", lambda steps: None)
        wrong = [Pairs(corpus.train, one).mismatched for one in some]
        assert [len(rows) for rows in kept] == [round(0.6 * 192)] * 2
        share = np.mean([w[rows].mean() for w, rows in zip(wrong, kept, strict=True)])
        assert (share < 0.15) == fewer
    assert heads._kept(corpus, tuple(seeded(SMALL, 0)), "cpu", lambda steps: None) == [None]


def test_the_mixture_separates_low_from_high() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 0.02, 80), rng.normal(0.9, 0.05, 40)])
    low = heads.low_component(values)
    assert (low[:80] > 0.5).all() and (low[80:] < 0.5).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 999), apart=st.sampled_from([0.2, 1.0, 3.0]))
def test_the_mixture_is_that_of_scikit_learn_from_the_best_division(seed: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 60), rng.normal(apart, 0.5, 30)])
    x = (values - values.min()) / np.ptp(values)
    divisions = [x > cut for cut in np.sort(x)[:-1]]
    high = min(divisions, key=lambda d: x[d].var() * d.sum() + x[~d].var() * (~d).sum())
    groups = [x[~high], x[high]]
    mixture = GaussianMixture(
        2, max_iter=10, tol=1e-2, reg_covar=5e-4, weights_init=[len(g) / len(x) for g in groups],
        means_init=[[g.mean()] for g in groups], precisions_init=[[[1 / (g.var() + 5e-4)]] for g in groups],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture.fit(x[:, None])
    exact = mixture.predict_proba(x[:, None])[:, mixture.means_[:, 0].argmin()]
    np.testing.assert_allclose(heads.low_component(values), exact, atol=1e-6)


def test_equal_values_are_all_of_the_lower_component() -> None:
    assert heads.low_component(np.full(5, 0.3)).tolist() == [1] * 5


def slow_pc2(
    image: np.ndarray, text: np.ndarray, classes: np.ndarray, clean: np.ndarray, label: np.ndarray, epoch: int
) -> float:
    """Return the loss of PC2 for one batch, pair by pair; from epoch 2 on, texts are lent."""
    n, s = len(image), image @ text.T
    soft = 0.2 * (10**label - 1) / 9

    def hinge(i: int, j: int, row: bool, scores: np.ndarray, margin: float) -> float:
        return max(0.0, margin + (scores[i, j] if row else scores[j, i]) - scores[i, i])

    def hardest(scores: np.ndarray, margins: np.ndarray, negative) -> float:
        total = 0.0
        for i in range(n):
            for row in (True, False):
                costs = [hinge(i, j, row, scores, margins[i]) for j in range(n) if negative(i, j)]
                total += max(costs, default=0.0)
        return total

    if epoch == 0:
        each = [
            sum(hinge(i, j, row, s, 0.2) for j in range(n) for row in (True, False) if j != i) / n for i in range(n)
        ]
        value = sum(sorted(each)[: n // 2])
    else:
        value = hardest(s, soft, lambda i, j: i != j and clean[i] and clean[j])
    shares = [np.exp(row) / np.exp(row).sum() for row in image @ classes]
    good = [i for i in range(n) if clean[i]]
    for i in good:
        own = int((text[i] @ classes).argmax())
        value -= (np.log(shares[i][own]) - (shares[i] * np.log(shares[i])).sum()) / len(good)
    if epoch >= 2:
        near = [max(good, key=lambda j, i=i: cosine(shares[i], shares[j])) for i in range(n)]
        alike = np.array([cosine(shares[i], shares[near[i]]) for i in range(n)])
        margins = 0.2 * (10 ** (alike * (alike >= 0.5)) - 1) / 9
        lent = image @ text[near].T
        value += hardest(lent, margins, lambda i, j: not clean[i] and not clean[j] and near[i] != near[j])
    return value


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_loss_of_pc2_is_its_loop(epoch: int) -> None:
    rng = np.random.default_rng(epoch)
    image, text = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in rng.normal(size=(2, 2, 8, 5)))
    classes = 3 * rng.normal(size=(2, 5, 6))
    training = SimpleNamespace(
        runs=torch.arange(2)[:, None], image_of=torch.zeros(2, 8), device="cpu", head=SimpleNamespace(epochs=4),
        p={"classes": torch.from_numpy(classes)},
    )  # fmt: skip
    robust = heads._PC2(training)
    robust.clean = torch.from_numpy(rng.random((2, 8)) < 0.6)
    robust.label = torch.from_numpy(rng.random((2, 8)))
    step = torch.arange(8).expand(2, 8)
    found = robust.loss(torch.from_numpy(image), torch.from_numpy(text), step, epoch)
    for run in range(2):
        state = (robust.clean[run].numpy(), robust.label[run].numpy())
        assert float(found[run]) == pytest.approx(slow_pc2(image[run], text[run], classes[run], *state, epoch))


# --- texts --------------------------------------------------------------------------------------------------


def test_bags_are_means_of_the_vectors_of_known_grams() -> None:
    texts = ["red green", "green", "purple!"]
    vocabulary = Vocabulary(texts[:2], "grams")
    inputs = Texts(vocabulary, texts, None, "cpu")
    table = torch.randn(2, vocabulary.size, 16, generator=torch.Generator().manual_seed(0))
    (batch,) = inputs.batches(torch.tensor([[[0, 1, 2], [2, 1, 0]]]))
    found = heads._bags(table, batch)
    for run, rows in enumerate(([0, 1, 2], [2, 1, 0])):
        for place, row in enumerate(rows):
            known = [vocabulary.number[g] for g in heads.grams(texts[row]) if g in vocabulary.number] or [0]
            torch.testing.assert_close(found[run, place], table[run, known].mean(0))
    assert heads.grams("Red ox") == ["red", "ox", " re", "red", "ed ", " ox", "ox "]


def test_the_gru_is_that_of_torch_and_padding_changes_no_sequence_encoder() -> None:
    torch.manual_seed(0)
    reference = torch.nn.GRU(16, 16, batch_first=True)
    p = {
        "input": reference.weight_ih_l0.T[None], "state": reference.weight_hh_l0.T[None],
        "input bias": reference.bias_ih_l0[None, None], "state bias": reference.bias_hh_l0[None, None],
    }  # fmt: skip
    x, lengths = torch.randn(3, 7, 16), [7, 4, 1]
    inside = torch.arange(7) < torch.tensor(lengths)[:, None]
    found = heads._gru(p, x[None], inside[None])[0]
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row], reference(x[row : row + 1, :length])[1][0, 0], atol=1e-6, rtol=1e-5)
    head = replace(SMALL, encoder="transformer")
    own = heads.initial([head], 12, 32, None, "cpu")
    both = heads._transformer(own, x[None], inside[None])[0]
    for row, length in enumerate(lengths):
        alone = heads._transformer(own, x[None, row : row + 1, :length], inside[None, row : row + 1, :length])[0, 0]
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=1e-4)


def test_latent_vectors_are_those_of_the_singular_value_decomposition() -> None:
    texts = part("a", 30, 2, 0).texts
    vocabulary = Vocabulary(texts, "words")
    table = heads.latent_table(vocabulary, texts, 16)
    bag = np.log1p(vocabulary.bag(texts).toarray())
    weighted = bag * np.log((1 + len(texts)) / (1 + (bag > 0).sum(0)))
    _, values, vectors = np.linalg.svd(weighted, full_matrices=False)
    exact = vectors[:16].T * values[:16]
    exact *= 0.1 / np.sqrt(3) / np.sqrt((exact**2).mean())
    np.testing.assert_allclose(table @ table.T, exact @ exact.T, atol=1e-4)


# --- corpora ------------------------------------------------------------------------------------------------


def test_parts_are_thinned_and_divided_by_item() -> None:
    whole = part("a", 10, 3, 0)
    one = whole.thinned(2)
    assert one.relevance.shape == (10, 20) and one.text_ids.tolist() == [
        f"a{3 * i + k}" for i in range(10) for k in (0, 1)
    ]
    assert (one.relevance.toarray() == np.kron(np.eye(10), np.ones((1, 2)))).all()
    folds = whole.folds(5)
    assert [fold.relevance.shape for fold in folds] == [(2, 6)] * 5
    assert [name for fold in folds for name in fold.text_ids] == whole.text_ids.tolist()
    flipped = Part(whole.text, None, whole.image, whole.relevance.T.tocsr(), whole.text_ids, whole.image_ids)
    assert flipped.thinned(1).relevance.shape == (10, 10) and flipped.folds(2)[0].relevance.shape == (15, 5)


def test_a_file_of_ones_own_trains_heads_on_both_features(tmp_path: Path) -> None:
    own = part("a", 100, 1, 0)
    np.savez(tmp_path / "own.npz", image=own.image, text=own.text)
    corpus = load_corpus("glyphs", embeddings=tmp_path / "own.npz")
    sizes = [len(getattr(corpus, name).image) for name in ("train", "validation", "test")]
    assert sizes == [60, 20, 20] and corpus.train.texts is None
    found = train(corpus, seeded(replace(SMALL, encoder="frozen", epochs=20), 0, 1), together=2)
    assert found[0].test[-1].mean() > 0.3
    with pytest.raises(InputError, match="'frozen'"):
        train(corpus, [SMALL], together=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "infonse"}, "infonce"), ({"encoder": "lstm"}, "encoder"), ({"dimension": 20}, "divisible by 16"),
        ({"batch": 6}, "at least 8"), ({"noise": 1.0}, "below 1"), ({"keep": 0.0}, "above 0"),
        ({"normalisation": "L2"}, "normalisation"),
    ],
)  # fmt: skip
def test_a_head_that_is_not_valid_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_different_configurations_do_not_train_together(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="more than their seeds"):
        train(corpus, [SMALL, replace(SMALL, noise=0.1)])
    with pytest.raises(InputError, match="a batch takes 128 items, but training has 64"):
        train(corpus, [replace(SMALL, batch=128)], together=1)
    with pytest.raises(InputError, match="kind of features"):
        load_corpus("glyphs", features="pixel")
