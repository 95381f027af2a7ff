"""Inversion: the fast path is the plain one, the plain one is the model's own, and no item knows its companions."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.methods import towers
from reprolib.methods.inversion import OTI, OVI, Inversion, oti, ovi, prompt, start
from reprolib.models.training import build_tokenizer

CONTEXT, D = 14, 16
SHORT, SEEN = replace(OTI, steps=8, batch=3), replace(OVI, steps=8, batch=3)
COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
PICTURE = COMMON | {"image_size": 32, "patch_size": 8}
IDS = [f"item {row}" for row in range(5)]


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(["a photo of now", "the letter of a picture"], 600)


def clip(tokenizer, attention="sdpa", legacy=False):
    from transformers import CLIPConfig, CLIPModel

    # the public configuration keeps 2 as the end-of-text id, which means: read at the largest id
    text = COMMON | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    text["eos_token_id"] = 2 if legacy else tokenizer.eos_token_id
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=D, attn_implementation=attention)
    return encoder(CLIPModel(config), tokenizer)


def siglip(tokenizer):
    from transformers import SiglipConfig, SiglipModel

    text = COMMON | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "projection_size": 32}
    torch.manual_seed(0)
    return encoder(SiglipModel(SiglipConfig(text_config=text, vision_config=PICTURE)), tokenizer)


def encoder(model, tokenizer):
    with torch.no_grad():  # random biases and positions: fresh ones are zero or tiny, and would hide what is left out
        for name, weight in model.named_parameters():
            if "bias" in name or "position" in name or "norm" in name:
                weight += 0.2 * torch.randn_like(weight)
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer, identity="tiny")


@pytest.fixture(scope="session")
def tiny(tokenizer):
    return clip(tokenizer)


@pytest.fixture(scope="session")
def tiny_siglip(tokenizer):
    return siglip(tokenizer)


def goals(n=5, d=D, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def quiet(done, total):
    pass


def differ(one, other):
    """Return the largest difference of two inversions, in losses at any step or in features."""
    return max(np.abs(one.losses - other.losses).max(), np.abs(one.features - other.features).max())


# --- the fast path is the plain one ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("template", ["a photo of {}", "the {} of a letter"])
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_oti_fast_equals_plain_at_every_step(tokenizer, tokens, template, dtype):
    small = clip(tokenizer, "eager" if dtype == "float64" else "sdpa", legacy=tokens == 2)
    given = replace(SHORT, tokens=tokens, template=template, dtype=dtype)
    fast = oti(small, goals(), IDS, given, checkpoints=(0, 5), progress=quiet)
    plain = oti(small, goals(), IDS, replace(given, path="plain"), checkpoints=(0, 5), progress=quiet)
    assert (fast.path, plain.path) == ("fast", "plain")
    assert differ(fast, plain) <= 1e-5
    assert fast.losses[-1].mean() < fast.losses[0].mean() - 0.05


@pytest.mark.parametrize("patches", [1, 2, 3, 16])
@pytest.mark.parametrize("name", ["sdpa", "eager", "siglip"])
def test_ovi_fast_equals_plain_at_every_step(tokenizer, tiny_siglip, name, patches):
    small = tiny_siglip if name == "siglip" else clip(tokenizer, name)
    given = replace(SEEN, tokens=patches, dtype="float64" if patches == 3 else "float32")
    wanted = goals(d=32 if name == "siglip" else D)
    fast = ovi(small, wanted, IDS, given, checkpoints=(0, 5), progress=quiet)
    plain = ovi(small, wanted, IDS, replace(given, path="plain"), checkpoints=(0, 5), progress=quiet)
    assert (fast.path, plain.path) == ("fast", "plain")
    assert differ(fast, plain) <= 1e-5
    assert fast.losses[-1].mean() < fast.losses[0].mean() - 0.05


def test_published_number_of_steps(tiny):
    fast = oti(tiny, goals(2), IDS[:2], progress=quiet)
    plain = oti(tiny, goals(2), IDS[:2], replace(OTI, path="plain"), progress=quiet)
    assert fast.losses.shape == (151, 2) and fast.features.shape == (1, 2, D) and fast.tokens.shape == (2, 1, 32)
    assert differ(fast, plain) <= 1e-5


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_gradients_are_equal(tiny, tiny_siglip, tokens, n):
    where = prompt(tiny, replace(OTI, tokens=tokens, template="the {} of a letter"))
    one, other = tiny.model, tiny_siglip.model
    pairs = [
        (D, towers.fast_text(one, where), towers.plain_text(one, where)),
        (D, towers.fast_image(one, tokens), towers.plain_image(one, tokens)),
        (32, towers.fast_image(other, tokens), towers.plain_image(other, tokens)),
    ]
    for d, *both in pairs:
        given = torch.from_numpy(start(replace(OTI, tokens=tokens), IDS * 2, 32)[:n]).requires_grad_()
        direction = torch.from_numpy(goals(n, d))
        fast, plain = (torch.autograd.grad((encode(given) * direction).sum(), given)[0] for encode in both)
        assert fast.abs().max() > 1e-3
        assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()


# --- the plain path is the model's own, and its steps are AdamW's ---


@pytest.mark.parametrize("kind", ["clip", "legacy", "siglip"])
def test_the_feature_is_that_of_the_text_with_the_embedding_overwritten(tokenizer, kind):
    small = siglip(tokenizer) if kind == "siglip" else clip(tokenizer, legacy=kind == "legacy")
    found = oti(small, goals(d=32 if kind == "siglip" else D), IDS, SHORT, progress=quiet)
    assert found.path == ("plain" if kind == "siglip" else "fast")
    text = small.tokenizer("a photo of x", padding="max_length", max_length=CONTEXT, return_tensors="pt")
    (word,) = small.tokenizer("x", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for token, feature in zip(found.tokens, found.features[-1], strict=True):
            small.model.text_model.embeddings.token_embedding.weight[word] = torch.from_numpy(token[0])
            own = small.model.get_text_features(input_ids=text["input_ids"]).pooler_output[0]
            np.testing.assert_allclose(feature, (own / own.norm()).numpy(), atol=1e-5)


def norm(x, module):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + module.eps)
    return x * module.weight.detach().numpy() + module.bias.detach().numpy()


def linear(x, module):
    return x @ module.weight.detach().double().numpy().T + (0 if module.bias is None else module.bias.detach().numpy())


def reference_layers(x, layers, causal):
    """Return what layers make of ``x`` [positions, width], position by position."""
    for layer in layers:
        attention, h = layer.self_attn, norm(x, layer.layer_norm1)
        q, k, v = (linear(h, getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj"))
        mixed = np.zeros_like(x)
        for head in np.split(np.arange(x.shape[1]), attention.num_heads):
            for row in range(len(x)):
                stop = row + 1 if causal else len(x)
                scores = k[:stop, head] @ q[row, head] / np.sqrt(len(head))
                weights = np.exp(scores - scores.max())
                mixed[row, head] = (weights / weights.sum()) @ v[:stop, head]
        x = x + linear(mixed, attention.out_proj)
        h = linear(norm(x, layer.layer_norm2), layer.mlp.fc1)
        x = x + linear(h / (1 + np.exp(-1.702 * h)), layer.mlp.fc2)  # quick_gelu
    return x


def reference_text(model, ids, at, read, token):
    """Return the text feature [d] of ``ids`` with the embedding at one position replaced."""
    tower = model.text_model
    x = tower.embeddings.token_embedding.weight.detach().double().numpy()[ids]
    x[at] = token
    x = x + tower.embeddings.position_embedding.weight.detach().numpy()[: len(ids)]
    x = reference_layers(x, tower.encoder.layers, causal=True)
    return linear(norm(x, tower.final_layer_norm)[read], model.text_projection)


def reference_image(model, grid, patches):
    """Return the image feature [d] of a picture whose embedded patches are ``patches`` [p, width], stretched."""
    tower = model.vision_model
    chosen = [patches[place * len(patches) // grid**2] for place in range(grid**2)]  # the nearest, row after row
    x = np.stack([tower.embeddings.class_embedding.detach().double().numpy(), *chosen])
    x = norm(x + tower.embeddings.position_embedding.weight.detach().numpy(), tower.pre_layrnorm)
    x = reference_layers(x, tower.encoder.layers, causal=False)
    return linear(norm(x[:1], tower.post_layernorm)[0], model.visual_projection)


def reference_inversion(feature, goal, tokens, steps, rate=2e-2, decay=0.01, h=1e-5):
    """Return losses [steps + 1] and tokens of AdamW on 1 - cosine, with gradients by central differences."""

    def loss(tokens):
        found = feature(tokens)
        return 1 - found @ goal / np.linalg.norm(found) / np.linalg.norm(goal)

    losses, first, second = [loss(tokens)], 0.0, 0.0
    for step in range(1, steps + 1):
        gradient = np.zeros_like(tokens)
        for place in np.ndindex(tokens.shape):
            away = np.zeros_like(tokens)
            away[place] = h
            gradient[place] = (loss(tokens + away) - loss(tokens - away)) / (2 * h)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        tokens = tokens * (1 - rate * decay)
        tokens = tokens - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        losses.append(loss(tokens))
    return losses, tokens


def test_oti_against_numpy_with_finite_differences(tiny):
    ids = tiny.tokenizer("a photo of x")["input_ids"]
    at, read = len(ids) - 2, len(ids) - 1
    goal, token = goals(1), start(SHORT, IDS[:1], 32)[0].astype(np.float64)
    losses, token = reference_inversion(lambda t: reference_text(tiny.model, ids, at, read, t[0]), goal[0], token, 3)
    found = oti(tiny, goal, IDS[:1], replace(SHORT, steps=3), progress=quiet)
    np.testing.assert_allclose(found.losses[:, 0], losses, atol=1e-6)
    np.testing.assert_allclose(found.tokens[0], token, atol=1e-6)


def test_ovi_against_numpy_with_finite_differences(tiny):
    given = replace(SEEN, steps=2, tokens=2)
    goal, tokens = goals(1), start(given, IDS[:1], 32)[0].astype(np.float64)
    losses, tokens = reference_inversion(lambda t: reference_image(tiny.model, 4, t), goal[0], tokens, 2)
    for path in ("plain", "fast"):
        found = ovi(tiny, goal, IDS[:1], replace(given, path=path), progress=quiet)
        np.testing.assert_allclose(found.losses[:, 0], losses, atol=1e-6)
        np.testing.assert_allclose(found.tokens[0], tokens, atol=1e-6)


# --- an item's result is its own ---


@settings(max_examples=6)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True), batch=st.integers(1, 6))
def test_neither_companions_nor_batch_size_matter(tiny, rows, batch):
    for run, base in ((oti, SHORT), (ovi, SEEN)):
        whole = run(tiny, goals(), IDS, base, progress=quiet)
        part = run(tiny, goals()[rows], [IDS[row] for row in rows], replace(base, batch=batch), progress=quiet)
        assert np.abs(part.losses - whole.losses[:, rows]).max() <= 1e-5
        assert np.abs(part.features - whole.features[:, rows]).max() <= 1e-5


@settings(max_examples=20)
@given(tokens=st.integers(1, 3), seed=st.integers(0, 9))
def test_the_start_depends_on_seed_and_id_alone(tokens, seed):
    given = Inversion(1, tokens, seed=seed)
    together = start(given, IDS, 8)
    for row, name in enumerate(IDS):
        np.testing.assert_array_equal(start(given, [name], 8)[0], together[row])
    assert len(np.unique(together)) == together.size
    assert not np.isin(start(replace(given, seed=seed + 1), IDS, 8), together).any()


def test_the_start_is_normal_with_the_given_deviation():
    drawn = start(Inversion(1, 4, init_std=0.05), [str(row) for row in range(50)], 100).ravel() / 0.05
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * drawn.size)


def test_length_of_the_features_does_not_matter_and_a_checkpoint_is_a_shorter_run(tiny):
    found = oti(tiny, goals(), IDS, SHORT, checkpoints=(np.int64(6), 0, 6), progress=quiet)
    assert found.steps == (0, 6, 8) and found.features.shape == (3, 5, D)
    for feature, steps in zip(found.features[1:], found.steps[1:], strict=True):
        shorter = oti(tiny, goals() * np.float32(4), IDS, replace(SHORT, steps=steps), progress=quiet)
        np.testing.assert_allclose(shorter.features[-1], feature, atol=1e-6)
    unit = goals() / np.linalg.norm(goals(), axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=2), 1, atol=1e-6)
    for feature, steps in zip(found.features, found.steps, strict=True):
        np.testing.assert_allclose(found.losses[steps], 1 - (feature * unit).sum(1), atol=1e-6)


# --- stopped, resumed, repeated ---


class Stopped(Exception):
    pass


@pytest.mark.parametrize("run", [oti, ovi])
def test_a_stopped_run_goes_on_and_gives_the_same(tiny, tmp_path, run, caplog):
    base = replace(SHORT, steps=6, batch=2)
    whole = run(tiny, goals(), IDS, base, checkpoints=(2,), progress=quiet)

    def stop(done, total):
        assert total == 30
        if done > 12:  # in the second batch
            raise Stopped

    with pytest.raises(Stopped):
        run(tiny, goals(), IDS, base, checkpoints=(2,), cache=tmp_path, progress=stop)
    (first,) = tmp_path.iterdir()
    counted = []
    given = {"checkpoints": (2,), "cache": tmp_path, "progress": lambda *at: counted.append(at)}
    again = run(tiny, goals(), IDS, base, **given)
    assert counted[-1] == (18, 18)  # two of three batches
    assert len(list(tmp_path.iterdir())) == 3
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    mended = run(tiny, goals(), IDS, base, **given)
    assert counted[-1] == (12, 12) and "damaged" in caplog.text
    for other in (again, mended):
        for name in ("features", "losses", "tokens"):
            np.testing.assert_array_equal(getattr(other, name), getattr(whole, name))
    counted.clear()
    assert run(tiny, goals(), IDS, base, **given).seconds == mended.seconds > 0
    assert not counted


@pytest.mark.parametrize("run", [oti, ovi])
def test_who_watches_changes_nothing_and_has_what_was_reached(tiny, run):
    base, seen = replace(SHORT, steps=6, batch=5), []
    whole = run(tiny, goals(), IDS, base, checkpoints=range(7), progress=quiet)

    def watch(step, losses, features):
        seen.append((step, losses.float().numpy().copy(), features.float().numpy().copy()))
        losses.zero_(), features.zero_()  # a watcher may do as it likes with what it is given
        if stop == step:
            raise Stopped

    stop = None
    watched = run(tiny, goals(), IDS, base, checkpoints=range(7), progress=quiet, observe=watch)
    for name in ("features", "losses", "tokens"):
        assert getattr(watched, name).tobytes() == getattr(whole, name).tobytes()
    everything, stop = list(seen), 3
    seen.clear()
    with pytest.raises(Stopped):
        run(tiny, goals(), IDS, base, progress=quiet, observe=watch)
    for found, last in ((everything, 6), (seen, 3)):
        assert [step for step, *_ in found] == list(range(last + 1))
        np.testing.assert_array_equal(np.stack([losses for _, losses, _ in found]), whole.losses[: last + 1])
        np.testing.assert_array_equal(np.stack([features for *_, features in found]), whole.features[: last + 1])


def test_the_cache_knows_every_setting(tiny, tmp_path):
    base = replace(SHORT, steps=1, batch=5)
    changes = {
        "steps": 2, "tokens": 2, "learning_rate": 0.1, "weight_decay": 0.0, "init_std": 0.03, "seed": 1, "batch": 6,
        "template": "{}", "placeholder": "x", "path": "plain", "dtype": "float32",
    }  # fmt: skip
    assert set(changes) == {field.name for field in fields(Inversion)}
    runs = [(tiny, goals(), IDS, base, ()), (tiny, goals(), IDS, base, (0,)), (tiny, goals(seed=1), IDS, base, ())]
    runs += [(tiny, goals(), [*IDS[:4], "other"], base, ())]
    runs += [(SimpleNamespace(**vars(tiny) | {"identity": "other"}), goals(), IDS, base, ())]
    runs += [(tiny, goals(), IDS, replace(base, **{name: value}), ()) for name, value in changes.items()]
    for count, (small, wanted, ids, changed, marks) in enumerate(runs, 1):
        for _ in range(2):
            oti(small, wanted, ids, changed, checkpoints=marks, cache=tmp_path, progress=quiet)
            assert len(list(tmp_path.iterdir())) == count
    ovi(tiny, goals(), IDS, base, cache=tmp_path, progress=quiet)
    assert len(list(tmp_path.iterdir())) == len(runs) + 1


def test_runs_repeat_and_leave_no_trace(tokenizer, capsys):
    small = clip(tokenizer)
    small.model.train()
    small.model.logit_scale.requires_grad_(False)
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in small.model.named_parameters()}
    torch.manual_seed(1)
    one = oti(small, goals(), IDS, SHORT)  # with its bar
    state = torch.get_rng_state()
    with torch.no_grad():
        other = oti(small, goals(), IDS, SHORT, progress=quiet)
    assert torch.equal(state, torch.get_rng_state())
    for name in ("features", "losses", "tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(InputError):
        oti(small, goals(d=D + 1), IDS, SHORT, progress=quiet)
    assert small.model.training
    for name, weight in small.model.named_parameters():
        assert torch.equal(weight, before[name][0]) and weight.requires_grad == before[name][1]
        assert weight.grad is None
    assert "image-steps" in capsys.readouterr().err


# --- refusals ---


@pytest.mark.parametrize(
    ("run", "changes", "words"),
    [
        (oti, {"template": "a photo"}, "has 0 places"),
        (oti, {"template": "{} and {}"}, "has 2 places"),
        (oti, {"tokens": 12}, f"takes .* positions: the model has {CONTEXT}"),
        (oti, {"placeholder": "£"}, "placeholder '£' does not give one token"),
        (oti, {"placeholder": "photo"}, "placeholder 'photo' does not give one token"),
        (oti, {"placeholder": "a"}, "placeholder 'a' does not give one token"),
        (oti, {"placeholder": ""}, "placeholder '' does not give one token"),
        (oti, {"steps": 0}, "steps = 0 is not an integer of at least 1"),
        (oti, {"steps": 1.5}, "steps = 1.5"),
        (ovi, {"tokens": 0}, "tokens = 0"),
        (ovi, {"batch": 0}, "batch = 0"),
        (ovi, {"tokens": 17}, "17 pseudo-patches do not fit: .* 16 places"),
        (ovi, {"learning_rate": float("nan")}, "learning_rate = nan"),
        (ovi, {"weight_decay": -1}, "weight_decay = -1"),
        (ovi, {"seed": -1}, "seed -1"),
        (ovi, {"path": "quick"}, "unknown path 'quick'"),
        (oti, {"dtype": "float16"}, "unknown dtype 'float16'"),
    ],
)
def test_settings_that_are_refused(tiny, run, changes, words):
    with pytest.raises(InputError, match=words):
        run(tiny, goals(), IDS, replace(SHORT, **changes), progress=quiet)


@pytest.mark.parametrize(
    ("wanted", "ids", "words"),
    [
        (goals()[0], IDS, "valid is float"),
        (goals().astype(int), IDS, "valid is float"),
        (goals()[:0], [], "valid is float"),
        (goals(), IDS[:4], "5 features and 4 ids"),
        (goals() * np.array([[1], [1], [np.nan], [1], [1]]), IDS, "'item 2' .row 2. is zero or not finite"),
        (goals() * np.array([[1], [0], [1], [1], [1]]), IDS, "'item 1'"),
        (goals(d=3), IDS, "have 3 dimensions: those of the model 16"),
    ],
)
def test_features_that_are_refused(tiny, wanted, ids, words):
    for run in (oti, ovi):
        with pytest.raises(InputError, match=words):
            run(tiny, wanted, ids, SHORT, progress=quiet)


def test_models_and_checkpoints_that_are_refused(tiny, tiny_siglip):
    for marks in ((-1,), (9,), (2.5,)):
        with pytest.raises(InputError, match="checkpoints are steps from 0 to 8"):
            oti(tiny, goals(), IDS, SHORT, checkpoints=marks, progress=quiet)
    with pytest.raises(InputError, match="no fast path for a siglip_text_model"):
        oti(tiny_siglip, goals(d=32), IDS, replace(SHORT, path="fast"), progress=quiet)
    alone = SimpleNamespace(model=tiny.model.text_model, tokenizer=tiny.tokenizer, identity="one tower")
    for run in (oti, ovi):
        with pytest.raises(InputError, match="no text_model and no vision_model: inversion needs"):
            run(alone, goals(), IDS, SHORT, progress=quiet)


def test_a_text_without_an_end_is_refused(tiny):
    class Endless:
        def __call__(self, *arguments, **options):
            return {"input_ids": tiny.tokenizer(*arguments, add_special_tokens=False)["input_ids"]}

        def pad(self, ids, max_length, **options):
            return {"input_ids": ids["input_ids"] + [0] * (max_length - len(ids["input_ids"]))}

    endless = SimpleNamespace(model=tiny.model, tokenizer=Endless(), identity="endless")
    with pytest.raises(InputError, match="ends no text as the model expects"):
        oti(endless, goals(), IDS, SHORT, progress=quiet)


def test_the_placeholder_is_a_word_that_the_tokenizer_keeps_whole(tiny):
    """This small vocabulary splits the pound sign, as that of glyph-clip does."""
    assert len(tiny.tokenizer("£", add_special_tokens=False)["input_ids"]) == 2
    where = prompt(tiny, replace(OTI, tokens=2, template="a x {}."))  # these two stand in the template
    words = tiny.tokenizer.convert_ids_to_tokens(where.ids)
    assert words[where.first : where.stop] == ["*</w>", "*</w>"]
    assert int(where.ids[where.end]) == tiny.tokenizer.eos_token_id
