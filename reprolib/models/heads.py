"""Small two-tower heads on frozen features, many runs at once: one training loop for every loss and text encoder.

Parameters carry a leading axis of runs [r, ...], so that the runs of a configuration share every operation. The last
digits of a batched product depend on r. Runs are therefore always trained ``together`` in the same number, the last
one being repeated where there are fewer: a run gives the same bytes whatever seeds share its batch (on one machine,
with one number of threads), and agrees with a run trained alone within rounding (tier C). Batches of runs are trained
side by side, one in a thread.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import svds
from torch import Tensor

from reprolib import paths
from reprolib.errors import InputError, nearest
from reprolib.loaders.store import digest, read_arrays, write_arrays
from reprolib.models.corpus import Corpus, Part
from reprolib.models.losses import MARGIN, TEMPERATURE, Batch, hinges, loss_named
from reprolib.ranking import Scorer

TOGETHER = 10
ENCODERS = ("linear", "mlp", "gru", "transformer", "frozen")
INITIALISATIONS = ("random", "svd")
NORMALISATIONS = ("none", "l2", "standard")
SELECTIONS = ("score", "random")
PC2 = "pc2"
VOCABULARY = 2047  # n-grams, words or characters at most, the most frequent ones; with the unknown one, 2048
LONGEST = {"words": 24, "characters": 64}  # tokens that a sequence encoder reads
HIDDEN = 128
CLASSES = 128  # pseudo-classes of PC2 (proj_dim of its release)
_STEPS = 64  # whose texts are gathered at once
_VERSION = 2  # of the training, in the key of the cache
DIRECTIONS = ("image->text", "text->image")


@dataclass(frozen=True)
class Head:
    """One run: all of it decides the result.

    ``hard_from`` is the epoch from which the hardest negative counts alone, ``noise`` the share of training pairs that
    are mismatched, ``keep`` the share of pairs that are trained on, by the ``selection`` of the highest alignment
    "score" of a first training on all pairs, or at "random". ``epochs`` counts visits of every item with one partner;
    a loss that takes K partners has as many steps and pairs, and so visits a K-th of the items in an epoch.
    """

    loss: str = "infonce"
    encoder: str = "linear"
    tokens: str = "words"
    dimension: int = 64
    batch: int = 128
    learning_rate: float = 1e-2
    epochs: int = 8
    hard_from: int = 0
    initialisation: str = "random"
    normalisation: str = "l2"
    noise: float = 0.0
    keep: float = 1.0
    selection: str = "score"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid in (
            ("encoder", ENCODERS), ("tokens", tuple(LONGEST)), ("initialisation", INITIALISATIONS),
            ("normalisation", NORMALISATIONS), ("selection", SELECTIONS),
        ):  # fmt: skip
            if getattr(self, name) not in valid:
                raise nearest(str(getattr(self, name)), valid, name)
        if self.loss != PC2:
            loss_named(self.loss)
        if min(self.dimension, self.epochs) < 1 or self.batch < 8 or self.batch % 4 or self.dimension % 16:
            raise InputError(
                f"dimension {self.dimension}, batch {self.batch}, epochs {self.epochs}: valid is a dimension divisible "
                "by 16, a batch of at least 8 pairs divisible by 4, and at least 1 epoch"
            )
        if not (0 <= self.noise < 1 and 0 < self.keep <= 1 and self.learning_rate > 0 and self.seed >= 0):
            raise InputError(
                f"noise {self.noise}, keep {self.keep}, learning_rate {self.learning_rate}, seed {self.seed}: valid is "
                "a noise of at least 0 and below 1, keep above 0 and at most 1, a positive rate, a seed from 0 upwards"
            )


@dataclass(frozen=True, eq=False)
class Run:
    """What a run leaves: R@1 at each checkpoint and, where asked for, the final embeddings.

    ``validation`` and ``test`` float64 [checkpoints, 2], directions as in ``DIRECTIONS``; ``image``, ``text`` unit
    rows of the whole test part and ``probe`` of further sentences, float32, empty unless asked for.
    """

    validation: np.ndarray
    test: np.ndarray
    image: np.ndarray
    text: np.ndarray
    probe: np.ndarray


# --- texts as numbers ---------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.lower())


def grams(text: str) -> list[str]:
    """Return the words of a text and the trigrams of its characters within words (" ab", "abc", "bc ")."""
    found = words(text)
    return found + [f" {word} "[i : i + 3] for word in found for i in range(len(word))]


SPLITTERS: Mapping[str, Callable[[str], list[str]]] = {
    "grams": grams, "words": words, "characters": lambda text: list(text.lower()),
}  # fmt: skip


class Vocabulary:
    """The most frequent tokens of some texts; number 0 is every other token, and padding."""

    def __init__(self, texts: Iterable[str], kind: str) -> None:
        self.kind, self.split = kind, SPLITTERS[kind]
        counts = Counter(token for text in texts for token in self.split(text))
        kept = sorted(counts, key=lambda token: (-counts[token], token))[:VOCABULARY]
        self.number = {token: place for place, token in enumerate(kept, 1)}
        self.size = -(-(len(kept) + 1) // 16) * 16  # whole vectors of the processor, see the head of the module

    def numbers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the known tokens of every text as numbers from 1; [0] for a text without any."""
        return [[self.number[t] for t in self.split(text) if t in self.number] or [0] for text in texts]

    def bag(self, texts: Sequence[str]) -> scipy.sparse.csr_array:
        """Return how often each token stands in each text, float64 CSR [texts, size]."""
        rows = self.numbers(texts)
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        flat = np.concatenate(rows).astype(np.int64)
        return scipy.sparse.csr_array((np.ones(len(flat)), (owner, flat)), shape=(len(rows), self.size))


class Texts:
    """Texts as an encoder takes them: weights of n-grams, sequences of tokens, or frozen features."""

    def __init__(self, vocabulary: Vocabulary | None, texts: Sequence[str], features: Any, device: str) -> None:
        self.device = device
        if vocabulary is None:
            self.features = torch.as_tensor(features, device=device)
        elif vocabulary.kind == "grams":
            bag = vocabulary.bag(texts)
            self.bag = (bag / bag.sum(1)[:, None]).tocsr().astype(np.float32)
        else:
            rows = vocabulary.numbers(texts)
            longest = min(LONGEST[vocabulary.kind], max(map(len, rows)))
            self.tokens = torch.zeros(len(rows), longest, dtype=torch.int64, device=device)
            for place, row in enumerate(rows):
                self.tokens[place, : len(row)] = torch.as_tensor(row[:longest])
            self.lengths = torch.as_tensor([min(len(row), longest) for row in rows], device=device)

    def batches(self, rows: Tensor) -> Iterable[Any]:
        """Return what ``embed_texts`` takes for each of s steps, from rows int64 [s, r, b] of texts.

        Bags are gathered for all steps at once: a matrix for each step, [r b, r v] for vocabularies of v.
        """
        if not hasattr(self, "bag"):
            return rows
        s, r, b = rows.shape
        chosen = self.bag[rows.flatten().cpu().numpy()]
        shift = self.bag.shape[1] * np.arange(s * r, dtype=np.int32)
        column = chosen.indices + np.repeat(shift, np.diff(chosen.indptr[::b]))
        return _sums(column, chosen.indptr, chosen.data, s, r * self.bag.shape[1], self.device)


Sums = tuple[Tensor, Tensor, Tensor]  # of rows of a table: which ones, where each sum starts, and their weights


def _sums(
    column: np.ndarray, start: np.ndarray, weight: np.ndarray, steps: int, size: int, device: str
) -> list[tuple[Sums, Sums]]:
    """Return each block of a block-diagonal CSR matrix of ``steps`` blocks with ``size`` columns, and its transpose."""
    matrix = scipy.sparse.csr_array((weight, column, start), shape=(len(start) - 1, steps * size))

    def blocks(whole: scipy.sparse.csr_array) -> list[Sums]:
        rows, columns = (n // steps for n in whole.shape)
        ends = whole.indptr[::rows]
        inside = whole.indices - np.repeat(columns * np.arange(steps, dtype=np.int32), np.diff(ends))
        index, weight = (torch.as_tensor(part, device=device) for part in (inside, whole.data))
        starts = torch.as_tensor(whole.indptr[:-1].reshape(steps, rows) - ends[:-1, None], device=device)
        return [(index[a:b], at, weight[a:b]) for a, b, at in zip(ends[:-1], ends[1:], starts, strict=True)]

    return list(zip(blocks(matrix), blocks(matrix.T.tocsr()), strict=True))


class _Product(torch.autograd.Function):
    """Sums of rows of a table; the gradient is such a sum as well, so that both add in a fixed order."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, sums: Sums, transposed: Sums) -> Tensor:
        ctx.transposed = transposed
        return _summed(table, sums)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _summed(gradient.contiguous(), ctx.transposed), None, None


def _summed(table: Tensor, sums: Sums) -> Tensor:
    index, start, weight = sums
    return F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight)


def _bags(table: Tensor, batch: tuple[Sums, Sums]) -> Tensor:
    """Return the mean of the vectors ``table`` [r, v, d] of the n-grams of the texts of a batch, [r, b, d]."""
    return _Product.apply(table.flatten(0, 1), *batch).view(len(table), -1, table.shape[2])


def _sequences(table: Tensor, texts: Texts, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors [r, b, l, d] of the tokens, and which of them stand within their text, bool [r, b, l]."""
    r, v, d = table.shape
    longest = int(texts.lengths[rows].max())
    tokens = texts.tokens[rows][:, :, :longest]
    inside = torch.arange(longest, device=rows.device) < texts.lengths[rows][:, :, None]
    column = (tokens + v * torch.arange(r, device=rows.device)[:, None, None]).flatten().cpu().numpy().astype(np.int32)
    start, ones = np.arange(len(column) + 1, dtype=np.int32), np.ones(len(column), dtype=np.float32)
    (batch,) = _sums(column, start, ones, 1, r * v, texts.device)
    return _bags(table, batch).view(*tokens.shape, d), inside


def _gru(p: Mapping[str, Tensor], x: Tensor, inside: Tensor) -> Tensor:
    """Return the last state [r, b, d] of a GRU (Cho et al. 2014), as the text tower of VSE++ reads it."""
    r, b, longest, _ = x.shape
    gates = (x.flatten(1, 2) @ p["input"] + p["input bias"]).view(r, b, longest, -1)
    state = torch.zeros(r, b, p["state"].shape[1], device=x.device)
    for t in range(longest):
        here, before = gates[:, :, t].chunk(3, -1), (state @ p["state"] + p["state bias"]).chunk(3, -1)
        reset, update = (torch.sigmoid(one + other) for one, other in zip(here[:2], before[:2], strict=True))
        new = torch.tanh(here[2] + reset * before[2])
        state = torch.where(inside[:, :, t, None], new + update * (state - new), state)
    return state


def _transformer(p: Mapping[str, Tensor], x: Tensor, inside: Tensor) -> Tensor:
    """Return the mean output [r, b, e] of one pre-norm block with four attention heads over the tokens."""
    r, b, longest, e = x.shape
    x = x + p["position"][:, None, :longest]
    q, k, v = ((F.layer_norm(x, (e,)).flatten(1, 2) @ p["attention"]).view(r, b, longest, 3, 4, e // 4)).unbind(3)
    mask = inside[:, :, None, None, :]
    found = F.scaled_dot_product_attention(*(part.transpose(2, 3) for part in (q, k, v)), attn_mask=mask)
    x = x + (found.transpose(2, 3).reshape(r, b * longest, e) @ p["attention out"]).view(x.shape)
    wide = torch.relu(F.layer_norm(x, (e,)).flatten(1, 2) @ p["wide"])
    x = x + (wide @ p["narrow"]).view(x.shape)
    return (x * inside[..., None]).sum(2) / inside.sum(2, keepdim=True)


# --- parameters ---------------------------------------------------------------------------------------------


def shapes(head: Head, image: int, text: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """Return shape and bound of the uniform initialisation of every parameter of one run.

    ``image`` is the width of the image features, ``text`` that of the text features or the size of the vocabulary.
    Matrices have Xavier's bound, token tables 0.1 (as in VSE++), biases 0.
    """
    d = head.dimension

    def matrix(rows: int, columns: int) -> tuple[tuple[int, ...], float]:
        return (rows, columns), math.sqrt(6 / (rows + columns))

    wide = HIDDEN if head.encoder == "mlp" else d
    found = {"image": matrix(image, wide), "image bias": ((1, wide), 0.0)}
    if head.encoder == "frozen":
        found |= {"text": matrix(text, d)}
    else:
        found |= {"table": ((text, wide), 0.1)}
    if head.encoder == "mlp":
        found |= {"image out": matrix(wide, d), "table bias": ((1, wide), 0.0), "text": matrix(wide, d)}
    elif head.encoder == "gru":
        found |= {"input": matrix(d, 3 * d), "state": matrix(d, 3 * d)}
        found |= {"input bias": ((1, 3 * d), 0.0), "state bias": ((1, 3 * d), 0.0)}
    elif head.encoder == "transformer":
        found |= {"position": ((LONGEST[head.tokens], d), 0.1), "attention": matrix(d, 3 * d)}
        found |= {"attention out": matrix(d, d), "wide": matrix(d, 2 * d), "narrow": matrix(2 * d, d)}
        found |= {"text": matrix(d, d)}
    if head.loss == PC2:
        found |= {"classes": matrix(d, CLASSES)}
    return found


def initial(heads: Sequence[Head], image: int, text: int, table: np.ndarray | None, device: str) -> dict[str, Tensor]:
    """Return the parameters [r, ...] of some runs, each drawn from its own seed; ``table`` replaces the token table."""
    drawn: dict[str, list[Tensor]] = {}
    for head in heads:
        generator = torch.Generator().manual_seed(head.seed)
        for name, (shape, bound) in shapes(head, image, text).items():
            drawn.setdefault(name, []).append((2 * torch.rand(shape, generator=generator) - 1) * bound)
    if table is not None:
        drawn["table"] = [torch.as_tensor(table, dtype=torch.float32)] * len(heads)
    found = {name: torch.stack(values) for name, values in drawn.items()}
    # the learnt scale is kept in float64: its exponential is then the same wherever it stands in a vector
    found["scale"] = torch.full((len(heads), 1, 1), -math.log(TEMPERATURE), dtype=torch.float64)
    return {name: value.to(device).requires_grad_() for name, value in found.items()}


def latent_table(vocabulary: Vocabulary, texts: Sequence[str], width: int) -> np.ndarray:
    """Return token vectors float32 [size, width] learnt from texts alone: latent semantic analysis.

    Right singular vectors times singular values of the bags with logarithmic counts and inverse document frequencies
    (Deerwester et al. 1990), scaled to the root mean square of the random table.
    """
    bag = vocabulary.bag(texts)
    bag.data = np.log1p(bag.data)
    frequency = np.bincount(bag.indices, minlength=bag.shape[1])
    weighted = bag @ scipy.sparse.diags_array(np.log((1 + len(texts)) / (1 + frequency)))
    rank = min(width, min(bag.shape) - 1)
    _, values, vectors = svds(weighted, rank, v0=np.ones(min(bag.shape)))
    table = np.zeros((bag.shape[1], width), dtype=np.float32)
    table[:, :rank] = vectors.T * values
    return table * (0.1 / math.sqrt(3)) / np.sqrt((table**2).mean())


def embed_images(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return unit embeddings [r, b, d] of image features [r, b, w], or [b, w] for all runs alike."""
    x = x @ p["image"] + p["image bias"]
    if "image out" in p:
        x = torch.relu(x) @ p["image out"]
    return F.normalize(x, dim=-1)


def embed_texts(head: Head, p: Mapping[str, Tensor], texts: Texts, batch: Any) -> Tensor:
    """Return unit embeddings [r, b, d] of a batch of ``texts.batches``."""
    if head.encoder == "frozen":
        x = texts.features[batch] @ p["text"]
    elif head.encoder in ("gru", "transformer"):
        x, inside = _sequences(p["table"], texts, batch)
        x = _gru(p, x, inside) if head.encoder == "gru" else _transformer(p, x, inside) @ p["text"]
    else:
        x = _bags(p["table"], batch)
        if head.encoder == "mlp":
            x = torch.relu(x + p["table bias"]) @ p["text"]
    return F.normalize(x, dim=-1)


# --- training pairs -----------------------------------------------------------------------------------------


class Pairs:
    """The training pairs of one run: for pair i an ``image`` and a ``text`` row, and the item that owns it.

    Items are the side with fewer rows; with ``noise``, a share of the pairs exchange their partners in a circle.
    """

    def __init__(self, part: Part, head: Head, kept: np.ndarray | None = None) -> None:
        rng = np.random.default_rng([head.seed, 1])
        image, text = (axis.astype(np.int64) for axis in part.relevance.nonzero())
        self.by_text = part.relevance.shape[1] < part.relevance.shape[0]
        self.owner, partner = (text, image.copy()) if self.by_text else (image, text.copy())
        wrong = rng.permutation(len(partner))[: round(head.noise * len(partner))]
        partner[wrong] = partner[np.roll(wrong, 1)]
        self.image, self.text = (partner, self.owner) if self.by_text else (self.owner, partner)
        self._part = part
        usable = np.arange(len(partner)) if kept is None else kept
        self._order = usable[np.argsort(self.owner[usable], kind="stable")]
        self._items, self._start, self._count = np.unique(
            self.owner[self._order], return_index=True, return_counts=True
        )
        self._rng = np.random.default_rng([head.seed, 2])

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def mismatched(self) -> np.ndarray:
        """Which pairs are not relevant, bool [pairs]."""
        return ~np.asarray(self._part.relevance[self.image, self.text]).ravel()

    def epoch(self, steps: int, batch: int, partners: int) -> np.ndarray:
        """Return pairs int64 [steps, batch]: items in random order, each with ``partners`` of its pairs in a row.

        No item stands twice in a batch. Raises InputError where there are fewer items than a batch takes.
        """
        size = batch // partners
        whole = len(self._items) // size * size
        if not whole:
            raise InputError(
                f"a batch takes {size} items, but training has {len(self._items)}: valid is a smaller batch"
            )
        turns = [self._rng.permutation(len(self._items))[:whole] for _ in range(-(-steps * size // whole))]
        item = np.concatenate(turns)[: steps * size]
        first = self._rng.integers(self._count[item])
        place = (first[:, None] + np.arange(partners)) % self._count[item][:, None]
        return self._order[self._start[item][:, None] + place].reshape(steps, batch)


@lru_cache(maxsize=16)  # image and text features of four parts under two normalisations
def _features(part: Part, train: Part, side: str, normalisation: str, device: str) -> Tensor:
    """Return the features of one ``side`` of a part, float32; runs that train side by side share them."""
    found, of = getattr(part, side), getattr(train, side)
    if normalisation == "l2":
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    elif normalisation == "standard":
        found = (found - of.mean(0)) / np.maximum(of.std(0), 1e-6)
    return torch.as_tensor(found.astype(np.float32), device=device)


@lru_cache(maxsize=8)
def _vocabulary(part: Part, kind: str) -> Vocabulary:
    return Vocabulary(part.texts, kind)


@lru_cache(maxsize=16)
def _texts(vocabulary: Vocabulary, part: Part, device: str) -> Texts:
    return Texts(vocabulary, part.texts, None, device)


@lru_cache(maxsize=8)
def _latent(part: Part, kind: str, width: int) -> np.ndarray:
    return latent_table(_vocabulary(part, kind), part.texts, width)


class _Training:
    """Everything that the runs of one configuration share while they are trained, and the parameters of all."""

    def __init__(self, corpus: Corpus, heads: Sequence[Head], device: str) -> None:
        self.corpus, self.heads, self.head, self.device = corpus, heads, heads[0], device
        head, train = heads[0], corpus.train
        self.vocabulary = None
        kind = head.tokens if head.encoder in ("gru", "transformer") else "grams"
        if head.encoder != "frozen":
            if train.texts is None:
                raise InputError(f"{corpus.name} holds no texts: valid is the encoder 'frozen', not {head.encoder!r}")
            self.vocabulary = _vocabulary(train, kind)
        elif train.text is None:
            raise InputError(f"{corpus.name} holds no text features: the encoder 'frozen' is not valid for it")
        self.images, self.texts = self.inputs(train)
        width = train.text.shape[1] if self.vocabulary is None else self.vocabulary.size
        table = None
        if head.initialisation == "svd" and self.vocabulary is not None:
            table = _latent(train, kind, HIDDEN if head.encoder == "mlp" else head.dimension)
        self.p = initial(heads, train.image.shape[1], width, table, device)
        self.runs = torch.arange(len(heads), device=device)[:, None]

    def inputs(self, part: Part) -> tuple[Tensor, Texts]:
        image, text = (
            partial(_features, part, self.corpus.train, side, self.head.normalisation, self.device)
            for side in ("image", "text")
        )
        if self.vocabulary is not None:
            return image(), _texts(self.vocabulary, part, self.device)
        return image(), Texts(None, (), text(), self.device)

    def every_text(self, texts: Texts, count: int) -> Tensor:
        """Return the embeddings [r, count, d] of all texts."""
        rows = torch.arange(count, device=self.device).expand(1, len(self.heads), -1)
        parts = [batch for part in rows.split(1024, dim=2) for batch in texts.batches(part)]
        return torch.cat([embed_texts(self.head, self.p, texts, batch) for batch in parts], dim=1)

    @torch.no_grad()
    def embed(self, part: Part, inputs: tuple[Tensor, Texts]) -> tuple[Tensor, Tensor]:
        """Return the embeddings [r, n, d] of all images and [r, m, d] of all texts of a part."""
        return embed_images(self.p, inputs[0]), self.every_text(inputs[1], part.relevance.shape[1])

    @torch.no_grad()
    def all_pairs(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings [r, pairs, d] of the images and of the texts of all training pairs."""
        image, text = self.embed(self.corpus.train, (self.images, self.texts))
        sides = ((image, self.image_of), (text, self.text_of))
        return tuple(torch.stack([x[rows] for x, rows in zip(*side, strict=True)]) for side in sides)

    def batches(self, drawn: np.ndarray) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Yield for every step of ``drawn`` int64 [steps, r, b] its pairs and the embeddings of their two sides."""
        for pairs in torch.as_tensor(drawn, device=self.device).split(_STEPS):
            images, texts = self.image_of[self.runs, pairs], self.texts.batches(self.text_of[self.runs, pairs])
            for step, image, text in zip(pairs, images, texts, strict=True):
                features = self.images.index_select(0, image.flatten()).view(*image.shape, -1)
                yield step, embed_images(self.p, features), embed_texts(self.head, self.p, self.texts, text)

    def fit(
        self, kept: Sequence[np.ndarray | None], checkpoint: Callable[[], None], tick: Callable[[int], None]
    ) -> None:
        """Train all runs; ``kept`` names the pairs of each that are used, None for all of them."""
        head, p = self.head, self.p
        pairs = [Pairs(self.corpus.train, one, keep) for one, keep in zip(self.heads, kept, strict=True)]
        self.image_of, self.text_of = (
            torch.as_tensor(np.stack([getattr(one, side) for one in pairs]), device=self.device)
            for side in ("image", "text")
        )
        robust = _PC2(self) if head.loss == PC2 else None
        loss = None if robust else loss_named(head.loss)
        partners = loss.partners if loss else 1
        steps = max(1, min(self.corpus.train.relevance.shape) // head.batch)
        optimiser = _Adam(p.values(), head.learning_rate)
        due = set(checkpoints(head))
        for epoch in range(head.epochs):
            if robust:
                robust.split(epoch)
            drawn = np.stack([one.epoch(steps, head.batch, partners) for one in pairs], axis=1)
            for step, image, text in self.batches(drawn):
                if robust:
                    value = robust.loss(image, text, step, epoch)
                else:
                    rows, columns = (text, image) if pairs[0].by_text else (image, text)
                    scale = p["scale"].clamp(max=math.log(100)).exp().float()
                    value = loss.value(Batch(rows, columns, scale, partners, epoch >= head.hard_from))
                optimiser.step(value.sum())
            tick(steps * len(set(self.heads)))
            if epoch + 1 in due:
                checkpoint()


class _Adam:
    """Adam (Kingma and Ba, ICLR 2015) by torch's fused step. ``torch.optim`` loads a compiler first: seconds of it."""

    def __init__(self, parameters: Iterable[Tensor], rate: float) -> None:
        self.rate, self.parameters = rate, list(parameters)
        self.mean, self.square = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.count = torch.zeros((), device=self.parameters[0].device)

    def step(self, loss: Tensor) -> None:
        """Take a step down the gradient of ``loss``; a parameter that it does not depend on stays as it is."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.count += 1
        with torch.no_grad():
            for kind in dict.fromkeys(p.dtype for p in self.parameters):  # the step takes one type at a time
                some = [
                    of for of in zip(self.parameters, gradients, self.mean, self.square, strict=True)
                    if of[0].dtype == kind and of[1] is not None
                ]  # fmt: skip
                if some:
                    torch._fused_adam_(
                        *map(list, zip(*some, strict=True)), [], [self.count] * len(some), lr=self.rate, beta1=0.9,
                        beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
                    )  # fmt: skip


def checkpoints(head: Head, count: int = 4) -> list[int]:
    """Return the epochs after which a run is evaluated: ``count`` evenly spaced ones, the last among them."""
    return sorted({max(1, round(head.epochs * (i + 1) / count)) for i in range(count)})


class _PC2:
    """Training on mismatched pairs after PC2 (ACM MM 2024; alipay/PC2-NoiseofWeb, pc2/model.py and co_train.py).

    The first epoch counts the half of a batch with the smallest hinges. Then, before every epoch, a two-component
    mixture splits the pairs by their loss. Clean ones have a soft margin, 0.2 (10^label - 1) / 9, and train the
    pseudo-classes; the label joins the probability of being clean with that of a steady pseudo-class distribution
    (oscillation: divergence from the last one). From half of the epochs on, a pair that is not clean takes the text
    of the clean pair in the batch whose image is nearest in pseudo-class, with that similarity as label (0 below
    0.5). The release trains two networks that split the pairs for each other. Nothing above needs the second one, so
    here is one: what co-teaching adds is not part of what is compared.
    """

    def __init__(self, training: _Training) -> None:
        self.training = training
        r, pairs = training.image_of.shape
        self.clean = torch.ones(r, pairs, dtype=torch.bool, device=training.device)
        self.label = torch.ones(r, pairs, device=training.device)
        self.last: list[Tensor] = []

    def classes(self, image: Tensor) -> Tensor:
        return image @ self.training.p["classes"]

    @torch.no_grad()
    def split(self, epoch: int) -> None:
        """Find the clean pairs and their labels."""
        if epoch == 0:
            return
        training, count = self.training, self.clean.shape[1]
        image, text = training.all_pairs()
        last, self.last = self.last, []
        for run, head in enumerate(training.heads):
            now = (image[run] @ training.p["classes"][run]).log_softmax(-1)
            self.last.append(now)
            order = torch.as_tensor(np.random.default_rng([head.seed, 3, epoch]).permutation(count), device=now.device)
            loss = torch.empty(count, device=now.device)
            whole = count // head.batch * head.batch
            for part in filter(len, (order[:whole], order[whole:])):
                size = min(head.batch, len(part))
                rows, columns = (x[run, part].view(-1, size, x.shape[2]) for x in (image, text))
                loss[part] = _mean_hinges(rows @ columns.transpose(1, 2)).flatten()
            good = low_component(loss.double().cpu().numpy())
            label = good * (good > 0.5)
            if last:
                still = low_component((now.exp() * (now - last[run])).sum(-1).double().cpu().numpy())
                label = label + (1 - good) * still * (still > 0.5)
            self.clean[run] = torch.as_tensor(good > 0.5)
            self.label[run] = torch.as_tensor(label, dtype=torch.float32)

    def loss(self, image: Tensor, text: Tensor, step: Tensor, epoch: int) -> Tensor:
        """Return the loss [r] of a batch."""
        runs = self.training.runs
        clean, label = self.clean[runs, step], self.label[runs, step]
        scores, other = image @ text.transpose(1, 2), ~torch.eye(step.shape[1], dtype=torch.bool, device=step.device)
        if epoch == 0:
            each = _mean_hinges(scores)
            value = each.topk(step.shape[1] // 2, dim=1, largest=False).values.sum(1)
        else:
            both = clean[:, :, None] & clean[:, None, :] & other
            value = hinges(scores, both, MARGIN * _soft(label), hardest=True)
        logits, pseudo = self.classes(image), self.classes(text).argmax(-1, keepdim=True)
        log, weight = logits.log_softmax(-1), clean / clean.sum(1, keepdim=True).clamp(min=1)
        entropy = -(log.exp() * log).sum(-1)
        value = value - (log.gather(-1, pseudo)[..., 0] * weight).sum(1) - (entropy * weight).sum(1)
        if epoch >= max(1, self.training.head.epochs // 2):
            share = F.normalize(log.detach().exp(), dim=-1)
            near = (share @ share.transpose(1, 2)).masked_fill(~clean[:, None, :], -1)
            similar, lender = near.max(2)
            lent = text.gather(1, lender[:, :, None].expand(-1, -1, text.shape[2]))
            both = ~clean[:, :, None] & ~clean[:, None, :] & (lender[:, :, None] != lender[:, None, :])
            margin = MARGIN * _soft(similar * (similar >= 0.5))
            value = value + hinges(image @ lent.transpose(1, 2), both, margin, hardest=True)
        return value


def _soft(label: Tensor) -> Tensor:
    return (10**label - 1) / 9


def _mean_hinges(scores: Tensor) -> Tensor:
    """Return the hinge loss of every pair [r, n], the mean over a batch in each direction, both added."""
    own = scores.diagonal(dim1=1, dim2=2) - MARGIN
    off = ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    rows, columns = ((scores - o).clamp(min=0) * off for o in (own[:, :, None], own[:, None, :]))
    return rows.mean(2) + columns.mean(1)


def low_component(values: np.ndarray) -> np.ndarray:
    """Return for each value [n] the probability of the lower component of a two-component Gaussian mixture.

    Values are scaled to [0, 1] first; settings as released (pc2/co_train.py): ten iterations at most, until the mean
    log likelihood gains less than 0.01, 5e-4 added to the variances. It starts from the best division in two (least
    squares), which the k-means of the release searches for. Ones if all values are equal.
    """
    if not np.ptp(values) > 0:
        return np.ones(len(values))
    x = (values - values.min()) / np.ptp(values)
    ordered, n = np.sort(x), len(x)
    below, size = ordered.cumsum()[:-1], np.arange(1, n)
    between = below**2 / size + (ordered.sum() - below) ** 2 / (n - size)
    high, before = (x > ordered[between.argmax()]).astype(float), -np.inf
    for _ in range(10):
        parameters = _maximised(x, high)
        high, now = _expected(x, *parameters)
        if abs(now - before) < 1e-2:
            break
        before = now
    mean, *rest = _maximised(x, high)
    high, _ = _expected(x, mean, *rest)
    return 1 - high if mean[0] < mean[1] else high


def _maximised(x: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, variance and share of both components, float64 [2], from the probabilities of the second."""
    weight = np.stack([1 - high, high])
    total = weight.sum(1)
    mean = (weight * x).sum(1) / total
    variance = (weight * (x - mean[:, None]) ** 2).sum(1) / total + 5e-4
    return mean, variance, total / len(x)


def _expected(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the probability of the second component for each value, and the mean log likelihood."""
    constant = np.log(share) - 0.5 * np.log(2 * np.pi * variance)
    log = constant[:, None] - 0.5 * (x - mean[:, None]) ** 2 / variance[:, None]
    both = np.logaddexp(*log)
    return np.exp(log[1] - both), float(both.mean())


# --- runs ---------------------------------------------------------------------------------------------------


def recall(image: Tensor, text: Tensor, relevance: scipy.sparse.csr_array) -> list[float]:
    """Return R@1 of unit rows ``image`` [n, d] and ``text`` [m, d] from canonical scores, as ``DIRECTIONS``."""
    scorer = Scorer(image, text)
    scores, error = scorer.block(slice(0, len(image))), scorer.error_bound()
    pair = [torch.as_tensor(axis.astype(np.int64), device=scores.device) for axis in relevance.nonzero()]
    own = scorer.pairs(*pair)
    scores[tuple(pair)] = -torch.inf
    found = []
    for axis, line in ((1, pair[0]), (0, pair[1])):
        rival = scores.amax(axis)
        ahead = torch.full_like(rival, -torch.inf).scatter_reduce(0, line, own, "amax") - rival
        hit = ahead > error
        for place in (ahead.abs() <= error).nonzero().flatten().tolist():  # too close for a float32 product
            others = torch.arange(scores.shape[axis], device=scores.device)
            both = (torch.full_like(others, place), others)
            first = scorer.pairs(*(both if axis else both[::-1])).cpu().numpy().argmax()
            hit[place] = bool(relevance[(place, first) if axis else (first, place)])
        found.append(float(hit.double().mean()))
    return found


def alignment(training: _Training) -> np.ndarray:
    """Return the cosine of every training pair under each run, float32 [r, pairs]."""
    image, text = training.all_pairs()
    return (image * text).sum(-1).cpu().numpy()


def train(
    corpus: Corpus,
    heads: Sequence[Head],
    *,
    device: str = "cpu",
    together: int = TOGETHER,
    embeddings: bool = False,
    probe: Sequence[str] = (),
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Run]:
    """Train heads that differ in nothing but their seeds, ``together`` at a time, and return their runs.

    ``embeddings`` keeps those of the whole test part, ``probe`` are sentences to embed. ``tick`` receives the number
    of training steps that were taken, counted per run. Raises InputError for heads that differ otherwise, and for an
    encoder that the corpus has no input for.
    """
    if len({replace(head, seed=0) for head in heads}) > 1:
        raise InputError("heads that are trained together differ in more than their seeds; valid is one configuration")
    found: list[Run] = []
    for start in range(0, len(heads), together):
        some = list(heads[start : start + together])
        full = some + some[-1:] * (together - len(some))
        found += _train(corpus, full, device, embeddings, probe, tick)[: len(some)]
    return found


def _train(
    corpus: Corpus, heads: list[Head], device: str, embeddings: bool, probe: Sequence[str], tick: Callable[[int], None]
) -> list[Run]:
    head, kept = heads[0], _kept(corpus, tuple(heads), device, tick)
    training = _Training(corpus, heads, device)
    parts = {name: (getattr(corpus, name), training.inputs(getattr(corpus, name))) for name in ("validation", "test")}
    curves: dict[str, list[list[list[float]]]] = {name: [] for name in parts}

    def checkpoint() -> None:
        for name, (part, inputs) in parts.items():
            both = zip(*training.embed(part, inputs), strict=True)
            curves[name].append([recall(image, text, part.relevance) for image, text in both])

    training.fit(kept, checkpoint, tick)
    nothing = np.zeros((len(heads), 0, head.dimension), dtype=np.float32)
    image = text = sentences = nothing
    with torch.no_grad():
        if embeddings:
            whole = training.embed(corpus.whole, training.inputs(corpus.whole))
            image, text = (side.cpu().numpy() for side in whole)
        if probe and training.vocabulary is not None:
            texts = Texts(training.vocabulary, probe, None, device)
            sentences = training.every_text(texts, len(probe)).cpu().numpy()
    validation, test = (np.array(curves[name]).transpose(1, 0, 2) for name in parts)
    return [Run(*arrays) for arrays in zip(validation, test, image, text, sentences, strict=True)]


def _kept(corpus: Corpus, heads: tuple[Head, ...], device: str, tick: Callable[[int], None]) -> list[np.ndarray | None]:
    """Return the training pairs that each run uses, None for all."""
    if heads[0].keep == 1:
        return [None] * len(heads)
    if heads[0].selection == "random":
        count = len(Pairs(corpus.train, heads[0]))
        order = [np.random.default_rng([head.seed, 4]).permutation(count) for head in heads]
    else:
        first = tuple(replace(head, keep=1.0) for head in heads)
        order = np.argsort(-_scores(corpus, first, device), axis=1, kind="stable")
    return [
        np.sort(row[: max(head.batch, round(head.keep * len(row)))]) for head, row in zip(heads, order, strict=True)
    ]


@lru_cache(maxsize=1)  # the shares that are kept follow one another
def _scores(corpus: Corpus, heads: tuple[Head, ...], device: str) -> np.ndarray:
    training = _Training(corpus, heads, device)
    training.fit([None] * len(heads), lambda: None, lambda steps: None)
    return alignment(training)


def runs(
    corpus: Corpus,
    heads: Sequence[Head],
    *,
    device: str = "cpu",
    embeddings: bool = False,
    probe: Sequence[str] = (),
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Run]:
    """Return the runs of any heads, in their order; each is trained once and kept in the cache.

    The key of a run is the sha256 over the head, the corpus, the device and what is kept: a study that was stopped
    goes on where it stood. Other arguments and errors as ``train``.
    """
    paths_of = {head: _path(corpus, head, device, embeddings, probe) for head in heads}
    found = {head: run for head, path in paths_of.items() if (run := _read(path))}
    groups: dict[Head, list[Head]] = {}
    for head in dict.fromkeys(heads):
        if head in found:
            tick(steps_of(corpus, head))
        else:
            groups.setdefault(replace(head, seed=0), []).append(head)
    together = [group[at : at + TOGETHER] for group in groups.values() for at in range(0, len(group), TOGETHER)]
    together.sort(key=lambda some: some[0].loss != PC2 and some[0].keep == 1)  # the longest first
    guard, stopped = Lock(), Event()

    def counted(steps: int) -> None:
        with guard:
            if stopped.is_set():
                raise CancelledError
            tick(steps)

    def one(some: list[Head]) -> None:
        made = train(corpus, some, device=device, embeddings=embeddings, probe=probe, tick=counted)
        for head, run in zip(some, made, strict=True):
            write_arrays(paths_of[head], {entry.name: getattr(run, entry.name) for entry in fields(Run)})
            found[head] = run

    # Small operations: threads that share each of them mostly wait, so every batch of runs has one to itself.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads if device == "cpu" else 1)
    try:
        for done in as_completed([pool.submit(one, some) for some in together]):
            done.result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return [found[head] for head in heads]


def steps_of(corpus: Corpus, head: Head) -> int:
    """Return how many training steps a run of ``head`` takes."""
    return head.epochs * max(1, min(corpus.train.relevance.shape) // head.batch)


def _path(corpus: Corpus, head: Head, device: str, embeddings: bool, probe: Sequence[str]) -> Path:
    kind = device.split(":")[0]
    key = digest(_VERSION, TOGETHER, asdict(head), corpus.identity, kind, embeddings, list(probe))
    return paths.cache() / "heads" / f"{key}.safetensors"


def _read(path: Path) -> Run | None:
    arrays = read_arrays(path)
    return Run(**arrays) if arrays else None
