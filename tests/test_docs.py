"""What the guides and the questions name exists: commands, paths, functions and names in code."""

import ast
import importlib
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from reprolib import explore
from reprolib.explore.common import chosen
from reprolib.explore.inversion import State
from reprolib.loaders import features
from reprolib.paths import root
from reprolib.study.parameters import studies
from tests import test_readme as readme

PAGES = sorted([*(root() / "docs" / "guides").glob("*.md"), root() / "docs" / "faq.md"])
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
PROSE = {name: re.sub(r"```.*?```", "", text, flags=re.S) for name, text in TEXTS.items()}
SPANS = sorted(
    {(name, " ".join(span.split())) for name, text in PROSE.items() for span in re.findall(r"`([^`]+)`", text)}
)
BLOCKS = [(name, *block) for name, text in TEXTS.items() for block in re.findall(r"```(\w+)\n(.*?)```", text, re.S)]
LINES = [(name, line) for name, kind, block in BLOCKS if kind == "bash" for line in block.strip().splitlines()]
PYTHON = [(name, block) for name, kind, block in BLOCKS if kind == "python"]
COMMANDS = ("reprolib ", "make ", "pytest ", "-p ")
ELSEWHERE = ("--", "pip ", "distributed.")  # options, and names of other tools
MADE = ("runs/", "report/", "jobs/", "logs/", "~/")  # folders that only runs make, and a user's own
EXAMPLES = {"NAME": "glyphs", "PAPER": "csls", "STUDY": "hubness"}


def named(text: str) -> str:
    """Return a text with examples for what a reader fills in."""
    return re.sub("|".join(EXAMPLES), lambda found: EXAMPLES[found[0]], text)


@lru_cache
def words() -> frozenset[str]:
    """Return every word of the sources, the manifests, the notebooks and the set-up."""
    files = [path for folder, kind in (("reprolib", "py"), ("data_manifests", "yaml"), ("notebooks", "ipynb"))
             for path in (root() / folder).rglob(f"*.{kind}")]  # fmt: skip
    texts = [path.read_text(encoding="utf-8") for path in (*files, root() / "Makefile")]
    return frozenset(word for text in texts for form in (r"\w+", r"[\w@.-]*\w") for word in re.findall(form, text))


def is_path(span: str) -> bool:
    return "/" in span and " " not in span


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_of_a_block_is_one_that_exists(page: str, line: str, tmp_path: Path) -> None:
    readme.test_every_command_is_one_that_exists(line.split("  #")[0], tmp_path)


@pytest.mark.parametrize(("page", "span"), [each for each in SPANS if each[1].startswith(COMMANDS)])
def test_every_command_in_the_text_is_one_that_exists(page: str, span: str, tmp_path: Path) -> None:
    command = named(f"reprolib run hubness {span}" if span.startswith("-p ") else span)
    if command == "reprolib run glyphs":  # the name of a study, not of a data set
        command = "reprolib run hubness"
    if command.startswith("pytest "):
        assert (root() / command.split()[1]).is_file()
    else:
        readme.test_every_command_is_one_that_exists(command, tmp_path)


@pytest.mark.parametrize(("page", "span"), [each for each in SPANS if is_path(each[1])])
def test_every_path_is_there(page: str, span: str) -> None:
    path = named(span)
    if path.startswith("runs/interactive-"):
        assert path.removeprefix("runs/interactive-") in studies()
    elif not path.startswith(MADE):
        assert (root() / path).exists()


@pytest.mark.parametrize(("page", "span"), [each for each in SPANS if each[1].startswith(("reprolib.", "explore."))])
def test_every_function_is_there(page: str, span: str) -> None:
    parts = span.split("(")[0].split(".")
    if parts[0] == "explore":
        parts.insert(0, "reprolib")
    if "(" in span:
        assert callable(getattr(importlib.import_module(".".join(parts[:-1])), parts[-1]))
    else:
        assert span in words() or importlib.import_module(span)


def test_every_name_is_one_of_the_project() -> None:
    known, unknown = words() | set(features._KEYS), []
    for page, span in SPANS:
        if span.startswith((*COMMANDS, *ELSEWHERE, "reprolib.", "explore.")) or is_path(span):
            continue
        names = re.findall(r"[\w@.-]*\w", re.sub(r"\(.*\)", "", span.split("#")[0]))
        unknown += [
            f"{page}: {name} in `{span}`" for name in names if not known.intersection((name, name.split(".")[-1]))
        ]
    assert not unknown


def test_the_keys_of_a_file_of_embeddings_are_those_that_are_read(tmp_path: Path) -> None:
    keys = set(re.findall(r"`(\w+)`", TEXTS["own_embeddings_or_model"].split("Embeddings need not")[0]))
    source = ast.parse(Path(features.__file__).read_text(encoding="utf-8"))
    read = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert keys <= read | set(features._KEYS) and {"image", "text", "relevance", "bank_relevance"} <= keys


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_every_example_runs(page: str, block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", image=rng.normal(size=(80, 8)), text=rng.normal(size=(80, 8)))
    asked: dict[str, tuple[str, dict]] = {}

    def small(name: str, make: Callable[..., object]) -> Callable[..., object]:
        def few(data: str, **state: object) -> object:
            asked[name] = data, state
            return make(tmp_path / "own.npz", **state)  # the same on few made-up pairs

        return few

    for name in ("hubs", "gap"):
        monkeypatch.setattr(explore, name, small(name, getattr(explore, name)))
    monkeypatch.setattr(explore, "inversion", lambda data, **state: asked.update(inversion=(data, state)))
    monkeypatch.setattr(explore, "runs", lambda: asked.update(runs=("glyphs", {})))
    exec(compile(block, page, "exec"), {})
    assert set(asked) == set(re.findall(r"explore\.(\w+)", block))
    assert {data for data, _ in asked.values()} == {"glyphs"}
    assert chosen(State(), asked["inversion"][1]) != State()  # which takes its time to run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_part_of_a_claim_and_of_a_manifest_is_one_of_the_schema() -> None:
    from reprolib.loaders.manifest import Manifest
    from reprolib.study.ledger import Claim

    for page, schema in (("adding_a_claim", Claim), ("adding_a_dataset", Manifest)):
        numbered = re.findall(r"^\d\. (.+?)(?=^\d\. |\n\n)", TEXTS[page], re.S | re.M)
        first = [re.findall(r"`(\w+)`", item)[0] for item in numbered]
        assert first and set(first) <= set(schema.model_fields), (page, first)
