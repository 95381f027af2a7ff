"""The claims ledger: what papers claim, as data. YAML, validated, one file per paper in ``data_manifests/claims``.

A claim says in our own words what is claimed, with which numbers, where it stands, and how far the source was checked;
and either which study tests it, or why none can today.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from reprolib.errors import InputError, nearest
from reprolib.paths import manifests
from reprolib.study.parameters import manifest_names
from reprolib.study.records import Record

# paper: read there, or on its poster; code: in the authors' repository; secondary: quoted by others, plausible;
# issue: a thread of the repository; measured: by this project; unverified: recalled, and never decides a verdict
Provenance = Literal["paper", "code", "secondary", "abstract", "issue", "measured", "unverified"]
Status = Literal["testable now", "needs data", "needs a generator", "out of scope"]
Direction = Record.model_fields["direction"].annotation
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
# those whose records are tested
STUDIES = ("hubness", "modality-gap", "intra-modal-inversion", "paper-versus-code", "training-variance")
_SCALE = {"percent": 0.01, "fraction": 1.0, "number": 1.0}


class Strict(BaseModel):
    """A part of a YAML file: unknown fields are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=Strict)


def read(path: Path, model: type[M]) -> M:
    """Return the YAML file at ``path`` as ``model``; InputError names the file, and the line or field at fault."""
    return _read(path, model, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _read(path: Path, model: type[M], mtime_ns: int) -> M:
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path.name}{where}: this is not valid YAML") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: this is not UTF-8 text") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole file"
        raise InputError(f"{path.name}, field {field}: {first['msg'].removeprefix('Value error, ')}") from error


class Code(Strict):
    """The released code; ``commit`` None where it was not recorded which one was read."""

    repository: str
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")


class Paper(Strict):
    """A paper; ``title`` may be the short one it is known by. ``unverified`` lists the fields that were not checked."""

    title: str
    year: int
    venue: str | None
    arxiv: str | None = Field(None, pattern=r"^\d{4}\.\d{5}$")
    code: Code | None = None
    unverified: list[Literal["title", "year", "venue", "arxiv", "code"]] = []


class Claimed(Strict):
    """The claimed numbers as printed: ``value``, of the method, with ``decimals`` places, in ``unit``.

    ``reference`` is what the reference method is claimed to reach. An improvement without it states the difference
    itself in ``value``.
    """

    value: FiniteFloat
    reference: FiniteFloat | None = None
    decimals: int = Field(ge=0, le=6)
    unit: Literal["percent", "fraction", "number"]

    @property
    def effect(self) -> float:
        """The claimed value, or the difference to the reference, in the unit of the records."""
        return (self.value - (self.reference or 0.0)) * _SCALE[self.unit]

    @property
    def rounding(self) -> float:
        """How far rounding may have moved ``effect``: half a unit of the last place, for each number in it."""
        return (1 if self.reference is None else 2) * 0.5 * 10.0**-self.decimals * _SCALE[self.unit]


class Selector(Strict):
    """Which records of a study: every field that is given must be equal, and ``parameters`` be among the record's.

    ``direction: none`` takes records that have no direction. ``weights`` takes those of a trained model, or those that
    were measured at random initialisation. Records with a transductive bank count only where ``transductive``.
    """

    table: str
    metric: str
    method: str | None = None
    reference: str | None = None
    direction: Direction | Literal["none"] = None
    parameters: dict[str, Any] = {}
    weights: Literal["trained", "random"] = "trained"
    transductive: bool = False

    def picks(self, record: Record) -> bool:
        """Return whether ``record`` is one of those."""
        names = ("table", "metric", "method", "reference", "direction")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        found = {name: getattr(record, name) for name in names} | {"direction": record.direction or "none"}
        return (
            all(found[name] == value for name, value in given.items())
            and all(name in record.parameters and record.parameters[name] == v for name, v in self.parameters.items())
            and ("random weights" in (record.model or "")) == (self.weights == "random")
            and (self.transductive or "transductive" not in (record.bank or ""))
        )


def _methods(study: str) -> list[str]:
    """Return the methods that records of a study may name; empty where it has no catalogue of its own."""
    from reprolib.methods import catalogue  # these import torch: only when a method's name is to be checked
    from reprolib.methods.interventions import INTERVENTIONS
    from reprolib.methods.intra_modal import CONTROLS
    from reprolib.study.intra_modal_inversion import INVERSIONS

    names = {"hubness": catalogue(), "modality-gap": INTERVENTIONS, "intra-modal-inversion": (*INVERSIONS, *CONTROLS)}
    return list(names.get(study, ()))


class Check(Strict):
    """What tests a claim: a study, the parameters to run it with (its defaults where not given), and its records."""

    study: str
    parameters: dict[str, Any] = {}
    select: Selector

    @model_validator(mode="after")
    def _known(self) -> Check:
        if self.study not in STUDIES:
            raise nearest(self.study, STUDIES, "study")
        valid = _methods(self.study)
        for name in (self.select.method, self.select.reference):
            if valid and name is not None and name not in valid:
                raise nearest(name, valid, "method")
        return self


class Claim(Strict):
    """One claim.

    ``kind``: "value" (a number is reached), "improvement" (a method exceeds ``reference`` by a number), "direction"
    (it exceeds it, no number), "property" (a quantity lies above or below ``bound``). ``expect`` says which side is
    claimed; for the other kinds the bound is 0. ``dataset`` and ``model`` are the paper's, by the name of the manifest
    where there is one; records of any other dataset or model test whether the direction transfers.
    """

    id: Name
    sentence: str
    kind: Literal["value", "improvement", "direction", "property"]
    dataset: str | None = None
    split: str | None = None
    model: str | None = None
    method: str | None = None
    parameters: dict[str, Any] = {}
    reference: str | None = None
    direction: Direction = None
    metric: str | None = None
    claimed: Claimed | None = None
    expect: Literal["higher", "lower"] = "higher"
    bound: FiniteFloat | None = None
    where: str
    provenance: Provenance
    status: Status
    reason: str | None = None
    test: Check | None = None

    @property
    def decisive(self) -> bool:
        """Whether there are claimed numbers that may decide a verdict: never unverified ones."""
        return self.claimed is not None and self.provenance != "unverified"

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        if self.kind in ("value", "improvement") and self.claimed is None:
            raise ValueError(
                f"claim {self.id}: kind {self.kind!r} needs claimed numbers; without them it is a direction"
            )
        if (
            self.kind == "improvement"
            and self.claimed.effect
            and (self.claimed.effect > 0) != (self.expect == "higher")
        ):
            raise ValueError(f"claim {self.id}: the claimed numbers are not {self.expect} than those of the reference")
        if (self.test is not None) != (self.status == "testable now"):
            raise ValueError(f"claim {self.id}: status 'testable now' and a test go together")
        if self.test is None and not self.reason:
            raise ValueError(f"claim {self.id}: status {self.status!r} needs a reason")
        if self.test is not None and (self.bound is not None) != (self.kind == "property"):
            raise ValueError(f"claim {self.id}: a property, and only a property, is tested against a bound")
        if self.test is not None and self.metric is None:
            raise ValueError(f"claim {self.id}: a claim that is tested names its metric")
        return self


class Entry(Strict):
    """What the ledger holds about one paper."""

    paper: Paper
    claims: list[Claim] = Field(min_length=1)


def entry(name: str) -> Entry:
    """Return the ledger's entry for the paper ``name``.

    Raises InputError with the nearest names if there is none, or naming file and field if it is not valid.
    """
    if name not in manifest_names("claims"):
        raise nearest(name, manifest_names("claims"), "paper")
    path = manifests() / "claims" / f"{name}.yaml"
    found = read(path, Entry)
    for claim in found.claims:
        if not claim.id.startswith(f"{name}-"):
            raise InputError(f"{path.name}: claim {claim.id} must begin with {name}-, as the file is called")
    ids = [claim.id for claim in found.claims]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise InputError(f"{path.name}: claim {twice[0]} occurs twice; every id must be unique")
    return found


def ledger() -> dict[str, Entry]:
    """Return every entry by the name of its paper, sorted by name. Ids of claims are unique over all of them."""
    entries = {name: entry(name) for name in manifest_names("claims")}
    owner: dict[str, str] = {}
    for name, found in entries.items():
        for claim in found.claims:
            if claim.id in owner:
                raise InputError(f"claim {claim.id} occurs in {owner[claim.id]}.yaml and in {name}.yaml")
            owner[claim.id] = name
    return entries


def claims() -> dict[str, Claim]:
    """Return every claim of the ledger by its id."""
    return {claim.id: claim for found in ledger().values() for claim in found.claims}
