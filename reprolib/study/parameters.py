"""A notebook's parameter cell is its schema: parsed, typed, and checked before anything is executed.

The cell tagged ``parameters`` holds one assignment a line, ``name: type = default  # one line of help``,
where the type is ``str``, ``int``, ``float``, ``bool``, ``list[...]`` or ``Literal[...]`` of those, or ``X
| None``. papermill alone would inject a misspelt name and carry on; here an unknown name, a wrong type or
an unknown method is an :class:`~reprolib.errors.InputError` that names the nearest valid one.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from reprolib.errors import InputError, nearest
from reprolib.paths import manifests, notebooks

DIRECTIONS = ("text->image", "image->text")
EMBEDDING_SUFFIXES = (".npz", ".npy", ".safetensors", ".parquet")

_NAMES = {"str": str, "int": int, "float": float, "bool": bool}
_FORM = "must be written `name: type = default  # help`"


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter cell: ``annotation`` is a typing form, ``text`` how the notebook writes it."""

    name: str
    annotation: Any
    text: str
    default: Any
    help: str

    def parse(self, text: str) -> Any:
        """Return the value that a command line's ``text`` stands for: YAML, but text stays text for a str."""
        try:
            value = yaml.load(text, Loader=Yaml)  # a SafeLoader: builds plain values only
        except yaml.YAMLError as error:
            raise InputError(f"parameter {self.name}: {text!r} is not valid YAML") from error
        if isinstance(value, bool | int | float) and self._accepts(text):
            return text
        return [value] if self._accepts([value]) and not self._accepts(value) else value

    def validate(self, value: Any) -> Any:
        """Return ``value`` if it is of the declared type, else raise :class:`InputError`."""
        try:
            return _adapter(self.annotation).validate_python(value)
        except ValidationError as error:
            raise InputError(
                f"parameter {self.name} must be {self.text}, not {value!r} (default: {self.default!r})"
            ) from error

    def _accepts(self, value: Any) -> bool:
        try:
            _adapter(self.annotation).validate_python(value)
        except ValidationError:
            return False
        return True


class Yaml(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-3 is a number, and only true and false are booleans ("no" is a word)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class-level table
        first: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    # Strict: "3" is no int and 1 is no bool; whole numbers still pass as floats. NaN and infinity never pass.
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def _annotation(node: ast.expr, line: str) -> Any:
    """Return the typing form of an annotation's syntax tree, without evaluating any code."""
    match node:
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Constant(value=None):
            return None
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return list[_annotation(inner, line)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            options = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return Literal[tuple(ast.literal_eval(option) for option in options)]  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _annotation(left, line) | _annotation(right, line)
    supported = "str, int, float, bool, list[...], Literal[...] or X | None"
    raise InputError(f"parameter line `{line}` has an unsupported type; use {supported}")


def parse_cell(source: str) -> dict[str, Parameter]:
    """Return the parameters that the source of a parameter cell declares, in its order.

    Comment lines, a docstring and imports may stand in the cell; every other line declares one parameter.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"the parameter cell is not valid Python: {error.msg}, line {error.lineno}") from error
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    parameters: dict[str, Parameter] = {}
    for statement in tree.body:
        line = ast.unparse(statement)
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                continue
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                try:
                    default = ast.literal_eval(value)
                except ValueError as error:
                    raise InputError(f"parameter line `{line}` has a default that is not a literal") from error
                text = ast.unparse(statement.annotation)
                note = comments.get(statement.lineno, "") or comments.get(statement.end_lineno or 0, "")
                parameter = Parameter(name, _annotation(statement.annotation, line), text, default, note)
                parameter.validate(default)
                parameters[name] = parameter
            case _:
                raise InputError(f"parameter line `{line}` {_FORM}")
    return parameters


@dataclass(frozen=True)
class Study:
    """A notebook as the runner sees it: ``name`` for the command line, ``title`` for people."""

    name: str
    path: Path
    title: str
    parameters: Mapping[str, Parameter]
    results: bool  # whether a run must leave results.json

    def resolve(self, values: Mapping[str, Any], *, texts: bool = False) -> dict[str, Any]:
        """Return every parameter of the study, checked: ``values`` where given, else the notebook's defaults.

        With ``texts`` the values are command-line texts, read as YAML. Raises :class:`InputError`.
        """
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in self.parameters:
                raise nearest(name, self.parameters, "parameter")
            parameter = self.parameters[name]
            given[name] = parameter.validate(parameter.parse(value) if texts else value)
        return check({name: given.get(name, p.default) for name, p in self.parameters.items()})


def read_study(path: Path) -> Study:
    """Read the notebook at ``path``; :class:`InputError` if it is none or its parameter cell is wrong."""
    name, metadata, cells = _read(path)
    headings = (re.search(r"^# (.+)$", text, re.M) for kind, text, _ in cells if kind == "markdown")
    title = next((heading[1].strip() for heading in headings if heading), path.stem)
    declared = [text for _, text, tags in cells if "parameters" in tags]
    try:
        parameters = parse_cell(declared[0]) if declared else {}
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    body = "\n".join(text for kind, text, tags in cells if kind == "code" and "parameters" not in tags)
    for parameter in parameters:
        if not re.search(rf"\b({parameter}|locals|globals)\b", body):
            raise InputError(f"{path.name} declares the parameter {parameter}, but no cell uses it")
    return Study(name, path.resolve(), title, parameters, bool(metadata.get("results", True)))


def _read(path: Path) -> tuple[str, Mapping[str, Any], list[tuple[str, str, list[str]]]]:
    """Return a notebook's study name, its ``reprolib`` metadata, and (type, source, tags) of its cells."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        metadata = notebook.get("metadata", {}).get("reprolib", {})
        cells = [
            (cell["cell_type"], "".join(cell["source"]), cell.get("metadata", {}).get("tags", []))
            for cell in notebook["cells"]
        ]
    except FileNotFoundError as error:
        raise InputError(f"no notebook {path}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a readable notebook: {error}") from error
    return metadata.get("study") or re.sub(r"^\d+_", "", path.stem).replace("_", "-"), metadata, cells


def studies() -> dict[str, Path]:
    """Return the notebooks that ship with reprolib by study name, in reading order.

    The name is the notebook's metadata ``reprolib.study``, or its file name: 01_two_words.ipynb is two-words.
    """
    return {_read(path)[0]: path for path in sorted(notebooks().glob("[0-9]*.ipynb"))}


def find_study(name: str) -> Study:
    """Return the study called ``name``, or the one in the notebook at the path ``name``."""
    if name.endswith(".ipynb"):
        return read_study(Path(name).expanduser())
    available = studies()
    if name not in available:
        raise nearest(name, available, "study")
    return read_study(available[name])


# --- what a value must mean, by parameter name ------------------------------------------------------------


def manifest_names(kind: str) -> list[str]:
    """Return the names of the manifests of a kind, ``datasets`` or ``models``: their files' stems, sorted."""
    return sorted(path.stem for path in (manifests() / kind).glob("*.yaml"))


def _one_of(kind: str, valid: Callable[[], Iterable[str]]) -> Callable[[str, Any], Any]:
    def checked(name: str, value: Any) -> Any:
        names = list(valid())
        for item in value if isinstance(value, list) else [value]:
            if item not in names:
                raise nearest(str(item), names, kind)
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise InputError(f"parameter {name} must name at least one {kind}, each once, not {value!r}")
        return value

    return checked


_known_dataset = _one_of("dataset", lambda: manifest_names("datasets"))


def _methods() -> Iterable[str]:
    from reprolib.methods import catalogue  # imports torch: only when a method's name is to be checked

    return catalogue()


def _interventions() -> Iterable[str]:
    from reprolib.methods.interventions import INTERVENTIONS

    return INTERVENTIONS


def _controls() -> Iterable[str]:
    from reprolib.methods.intra_modal import CONTROLS

    return CONTROLS


def _model(name: str, value: str) -> str:
    known = manifest_names("models")
    if value in known or ("/" in value and not value.startswith((".", "/", "~")) and not Path(value).exists()):
        return value  # a manifest's name, or a hub identifier such as openai/clip-vit-base-patch32
    if (folder := Path(value).expanduser()).is_dir():
        return str(folder.resolve())
    raise nearest(value, known, "model")


def _embeddings(name: str, value: str) -> str:
    path = Path(value).expanduser().resolve()
    if path.suffix not in EMBEDDING_SUFFIXES:
        raise InputError(f"parameter {name}: {value} must end in {', '.join(EMBEDDING_SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"parameter {name}: no file {path}")
    return str(path)


def _dataset_or_file(name: str, value: str) -> str:
    return _embeddings(name, value) if Path(value).suffix else CHECKS["dataset"](name, value)


def _dataset(name: str, value: str) -> str:
    names = manifest_names("datasets")
    if value not in names:
        from reprolib.loaders.readers.folder import is_folder_of_images

        if is_folder_of_images(value):
            return str(Path(value).expanduser().resolve())
    return _known_dataset(name, value)


def _datasets(name: str, value: list[str]) -> list[str]:
    return _known_dataset(name, value) if value else value


def _folder(name: str, value: str) -> str:
    path = Path(value).expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"parameter {name}: no folder {path}")
    return str(path)


def _device(name: str, value: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", value):
        raise InputError(f"parameter {name} must be cpu, cuda, cuda:N or mps, not {value!r}")
    return value


def _within(low: float, high: float, *, above: bool = False) -> Callable[[str, Any], Any]:
    def checked(name: str, value: Any) -> Any:
        for number in value if isinstance(value, list) else [value]:
            if not (low < number if above else low <= number) or number > high:
                limits = f"greater than {low:g}" if above else f"at least {low:g}"
                ceiling = "" if high == float("inf") else f" and at most {high:g}"
                raise InputError(f"parameter {name} must be {limits}{ceiling}, not {number!r}")
        return value

    return checked


_ANY = float("inf")
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "dataset": _dataset,
    "model": _model,
    "embeddings": _embeddings,
    "other_bank": _dataset_or_file,
    "mirror": _folder,
    "method": _one_of("method", _methods),
    "methods": _one_of("method", _methods),
    "interventions": _one_of("intervention", _interventions),
    "feature_sets": _datasets,
    "direction": _one_of("direction", lambda: DIRECTIONS),
    "directions": _one_of("direction", lambda: DIRECTIONS),
    "device": _device,
    "seed": _within(0, 2**32 - 1),
    "k": _within(1, _ANY),
    "bank_share": _within(0, 1, above=True),
    "validation_share": _within(0, 1, above=True),
    "bank_sizes": _within(0, 1, above=True),
    "gallery_sizes": _within(0, 1, above=True),
    "betas": _within(0, _ANY, above=True),
    "gallery_betas": _within(0, _ANY),
    "temperature": _within(0, _ANY, above=True),
    "temperatures": _within(0, _ANY, above=True),
    "n_random": _within(0, _ANY),
    "n_seeds": _within(1, _ANY),
    "n_halves": _within(2, _ANY),
    "n_pairs": _within(3, _ANY),
    "steps": _within(1, _ANY),
    "tasks": _one_of("task", lambda: ("image->image", "text->text")),
    "controls": _one_of("control", _controls),
    "taus": _within(0, _ANY, above=True),
    "narrow_share": _within(0, 1, above=True),
    "train_share": _within(0, 1, above=True),
    **dict.fromkeys(("oti_steps", "ovi_steps", "longest", "checkpoints", "tokens", "patches"), _within(1, _ANY)),
    **dict.fromkeys(("n_images", "n_texts", "n_curve", "n_narrow", "n_inverted"), _within(1, _ANY)),
    "n_splits": _within(1, _ANY),
    "n_bootstrap": _within(1, _ANY),
    "n_permutations": _within(1, _ANY),
}


def check(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with names checked and paths made absolute (relative to the working directory).

    A dataset, model, method or direction that does not exist, a device or a number out of range raises
    :class:`InputError` with the nearest valid names; None and parameters not in :data:`CHECKS` pass. The
    runner calls this before anything is executed, and a notebook calls it again for whoever edits it by
    hand.
    """
    return {
        name: CHECKS[name](name, value) if name in CHECKS and value is not None else value
        for name, value in parameters.items()
    }
