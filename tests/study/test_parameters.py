from pathlib import Path

import pytest

from reprolib.errors import InputError
from reprolib.study.parameters import check, find_study, manifest_names, parse_cell, read_study

CELL = """
from typing import Literal

# where the data comes from
dataset: str = "glyphs"  # a dataset's name, or "a # b"
model: str | None = None  # a model's name
methods: list[str] = [
    "none", "is",
]  # corrections to compare
betas: list[float] = [1, 10.5]  # grid
k: int = 10
share: float = 0.2  # share = part of the rows
mode: Literal["paper", "code"] = "paper"
fast: bool = False
"""


def test_cell_is_the_schema() -> None:
    parameters = parse_cell(CELL)
    assert list(parameters) == ["dataset", "model", "methods", "betas", "k", "share", "mode", "fast"]
    assert parameters["methods"].default == ["none", "is"]
    assert parameters["methods"].help == "corrections to compare"
    assert parameters["dataset"].help == 'a dataset\'s name, or "a # b"'
    assert parameters["share"].help == "share = part of the rows"
    assert parameters["mode"].text == "Literal['paper', 'code']"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("methods", "[is, dis]", ["is", "dis"]),
        ("methods", "is", ["is"]),
        ("methods", "[none]", ["none"]),
        ("betas", "[1e-3, 2, .5]", [1e-3, 2, 0.5]),
        ("share", "1e-3", 1e-3),
        ("share", "1", 1),
        ("k", "7", 7),
        ("dataset", "123", "123"),
        ("dataset", "no", "no"),
        ("model", "null", None),
        ("model", "1.5", "1.5"),
        ("mode", "code", "code"),
        ("fast", "true", True),
    ],
)
def test_texts_are_read_by_type(name: str, text: str, value: object) -> None:
    parameter = parse_cell(CELL)[name]
    assert parameter.validate(parameter.parse(text)) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("k", "ten"),
        ("k", "1.0"),
        ("k", "true"),
        ("k", "null"),
        ("share", ".nan"),
        ("share", "yes"),
        ("methods", "[1]"),
        ("methods", "{a: 1}"),
        ("mode", "papr"),
        ("fast", "no"),
        ("fast", "1"),
        ("dataset", "[a]"),
        ("betas", "[1, x]"),
        ("betas", "[1,"),
    ],
)
def test_wrong_types_are_named(name: str, text: str) -> None:
    parameter = parse_cell(CELL)[name]
    with pytest.raises(InputError, match=f"parameter {name}"):
        parameter.validate(parameter.parse(text))


@pytest.mark.parametrize(
    "line",
    [
        "k = 10",
        "k: int",
        "a = b = 1",
        "k: int = 2 + n",
        "k: dict[str, int] = {}",
        "k: int = 'ten'",
        "k: np.ndarray = None",
        "print(1)",
        "k: int = (",
    ],
)
def test_lines_that_are_no_parameter(line: str) -> None:
    with pytest.raises(InputError):
        parse_cell(line)


def test_unknown_and_unused_parameters(make_notebook) -> None:
    study = read_study(make_notebook("size", parameters="size: int = 3  # how many"))
    assert (study.name, study.title) == ("tiny", "A tiny study")
    assert study.resolve({"size": 4}) == {"size": 4}
    assert study.resolve({}) == {"size": 3}
    with pytest.raises(InputError, match="unknown parameter 'sise'; nearest valid: size"):
        study.resolve({"sise": 4})
    with pytest.raises(InputError, match="size must be int, not '4'"):
        study.resolve({"size": "4"})
    with pytest.raises(InputError, match="declares the parameter size, but no cell uses it"):
        read_study(make_notebook("1", parameters="size: int = 3"))


def test_not_a_notebook(tmp_path: Path) -> None:
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{}")
    for name in (str(broken), str(tmp_path / "absent.ipynb"), "no-such-study"):
        with pytest.raises(InputError):
            find_study(name)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dataset", "glyfs", "nearest valid: glyphs"),
        ("methods", ["is", "dual_is"], "unknown method 'dual_is'; nearest valid: .*dual-is"),
        ("methods", [], "at least one"),
        ("methods", ["is", "is"], "each once"),
        ("directions", ["text->imag"], "nearest valid: text->image"),
        ("model", "no-such-model", "unknown model"),
        ("device", "gpu", "cpu, cuda"),
        ("seed", -1, "at least 0"),
        ("k", 0, "at least 1"),
        ("other_bank", "glyfs", "nearest valid: glyphs"),
        ("other_bank", "absent.npy", "no file"),
        ("betas", [1.0, 0.0], "greater than 0"),
        ("bank_share", 0.0, "greater than 0"),
        ("bank_share", 1.5, "at most 1"),
        ("embeddings", "absent.npz", "no file"),
        ("embeddings", "features.pkl", "must end in"),
    ],
)
def test_meaning_is_checked(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check({name: value})


def test_what_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").touch()
    (tmp_path / "weights").mkdir()
    checked = check(
        {
            "dataset": manifest_names("datasets")[0],
            "methods": ["none", "is"],
            "model": "weights",
            "embeddings": "mine.npz",
            "device": "cuda:1",
            "k": None,
            "anything": "else",
        }
    )
    assert checked["embeddings"] == str(tmp_path / "mine.npz")
    assert checked["model"] == str(tmp_path / "weights")
    assert check({"model": "openai/clip-vit-base-patch32"}) == {"model": "openai/clip-vit-base-patch32"}


def test_a_folder_of_images_is_a_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "captions.csv").write_text("image,caption\na.png,a small a\n")
    assert check({"dataset": str(folder)}) == {"dataset": str(folder)}
    with pytest.raises(InputError, match="nearest valid: glyphs"):
        check({"dataset": "glyph"})
