"""The ledger and the audit as they are committed, and what is refused when one is written."""

from __future__ import annotations

import inspect
import pydoc
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from reprolib.errors import InputError
from reprolib.methods import CATALOGUE
from reprolib.methods.interventions import INTERVENTIONS
from reprolib.study import audit, ledger
from reprolib.study.ledger import Claim, Claimed, Selector
from reprolib.study.margins import margins
from reprolib.study.parameters import read_study, studies
from reprolib.study.records import Record

# every paper of the three studies, and the reproducibility paper
STUDIED = {
    "dbnorm", "invgc", "qb-norm", "csls", "nnn", "dbsn", "cross-the-gap", "isoclip", "mind-the-gap",
    "two-effects-one-trigger", "gr-clip", "fill-the-gap", "where-does-the-improvement-come-from",
}  # fmt: skip
# the sixty papers that the package is to cover, in the order of their list
PAPERS = [
    "persrv", "mmdocir", "where-does-the-improvement-come-from", "mm-embed", "re-ranking-the-context", "kuaipedia",
    "ccrk", "interleaved-document-representation", "inquire", "sift-stickers", "xbt", "magiclens", "mrag-bench",
    "visdom", "beyond-text", "dbnorm", "xrag", "cross-the-gap", "m3el", "grounded-sentence-representations", "vidorag",
    "irra", "mofi", "ragnarok", "mramg-bench", "m-longdoc", "compress-and-align", "dense-retrieval-survey", "dse",
    "multimodal-needle", "visual-haystacks", "spiqa", "pdv", "guing", "omnisearch", "freestyleret", "ptunifier",
    "modict", "sprc", "music-recommendation-for-video", "qilin", "m3docrag", "pc2", "pixel-level-entity-linking",
    "tool-retrieval-query-generation", "feta", "re-imagen", "rora-vlm", "kitten", "mdetr", "cico", "xtr",
    "multihop-rag", "rmr", "invgc", "ram-plus-plus", "videorag", "patchct", "ada-retrieval", "mmtrail",
]  # fmt: skip
# how a sentence may call what its claim's dataset, model or method is by name, where that is not the name itself
CALLED = {
    "inversion": "inver", "inversion-stopped": "inver", "mean-centring": "mean of each modality",
    "finetune": "fine-tun", "csls": "local scaling", "dis": "dynamic inverted softmax", "is": "inverted softmax",
    "dual-is": "inverted softmax", "invgc": "inverse graph convolution", "optimal-transport": "optimal transport",
    "invgc-localadj": "localadj",
}  # fmt: skip
LEANING = re.compile(
    r"^(The same|As (above|before)|So |It |Its |They |Their |This |These |Against |Likewise|Again|Also )"
    r"|\b(too|as well|the latter|the former|as above)[.:]"
)
CLAIM = {
    "id": "tiny-claim", "sentence": "It is better.", "kind": "improvement", "dataset": "coco", "method": "is",
    "reference": "none", "metric": "R@1",
    "claimed": {"value": 37.9, "reference": 30.3, "decimals": 1, "unit": "percent"},
    "where": "table 1", "provenance": "paper", "status": "testable now",
    "test": {"study": "hubness", "select": {"table": "difference", "metric": "R@1 difference", "method": "is"}},
}  # fmt: skip
MAIN = {"table": "main", "metric": "R@1"}
PAPER = {"title": "Tiny", "year": 2024, "venue": "nowhere"}


# --- as committed -------------------------------------------------------------------------------------------


def test_every_paper_has_its_file_and_every_claim_its_place() -> None:
    found = ledger.ledger()
    assert len(set(PAPERS)) == 60 and set(found) >= STUDIED | set(PAPERS)
    claims = ledger.claims()
    assert len(claims) == sum(len(entry.claims) for entry in found.values())
    for name in STUDIED - {"where-does-the-improvement-come-from"}:
        assert any(claim.test for claim in found[name].claims), name
    for claim in claims.values():
        assert claim.sentence.endswith(".") and claim.where
        if claim.provenance == "unverified":
            assert not claim.decisive


def test_every_paper_has_the_status_of_today_with_the_reason() -> None:
    for name, entry in ledger.ledger().items():
        headline, *_ = entry.claims
        assert headline.status in get_args(ledger.Status) and len(headline.sentence.split()) >= 6, name
        assert all(claim.test or len(claim.reason.split()) >= 4 for claim in entry.claims), name


def leans(claim: Claim) -> bool:
    """Return whether a claim's sentence cannot be read without the row before it.

    It leans on words, or it is about a model or method and names neither of them, nor its dataset.
    """
    about = [name.split(",")[0] for name in (claim.dataset, claim.model, claim.method) if name]
    plain = [re.sub(r"[^a-z0-9]", "", text.lower()) for text in (claim.sentence, *(CALLED.get(n, n) for n in about))]
    nameless = bool(claim.model or claim.method) and not any(name in plain[0] for name in plain[1:])
    return nameless or bool(LEANING.search(claim.sentence))


def test_every_claim_stands_alone() -> None:
    claims = ledger.claims()
    assert [name for name, claim in claims.items() if leans(claim)] == []
    sentences = [claim.sentence for claim in claims.values()]
    assert len(set(sentences)) == len(sentences)
    for sentence in (
        "The same for CLIP L/14.", "So does its local form.", "It exceeds VLM2Vec.", "Optimal transport lowers it too.",
        "Against no correction: CLIP B/16.", "Recall rises.",
    ):  # fmt: skip
        assert leans(Claim.model_validate(CLAIM | {"sentence": sentence})), sentence
    assert not leans(Claim.model_validate(CLAIM | {"sentence": "Inverted softmax raises recall."}))


def test_what_is_tested_can_be_tested() -> None:
    limits, notebooks = margins(), studies()
    for claim in ledger.claims().values():
        if claim.test:
            limits.floor(claim.metric)
            assert limits.floor(claim.test.select.metric) == limits.floor(claim.metric), claim.id
            if claim.test.study in notebooks:
                read_study(notebooks[claim.test.study]).resolve(claim.test.parameters)
    recorded = {name for name, path in notebooks.items() if read_study(path).results and not name.startswith("train-")}
    assert recorded <= set(ledger.STUDIES), "a study whose records no claim may name"


def test_the_audit_holds_the_findings_and_their_switches_exist() -> None:
    found = audit.findings()
    papers = {finding.paper for finding in found.values()}
    assert {"dbnorm", "qb-norm", "invgc", "nnn", "dbsn", "cross-the-gap", "mind-the-gap"} <= papers
    assert sum(finding.effect is not None for finding in found.values()) >= 15
    for finding in found.values():
        if finding.effect and finding.effect.study == "paper-versus-code":
            assert finding.switch and finding.effect.select.parameters == {"finding": finding.id}
        if finding.switch:
            function = pydoc.locate(finding.switch.call)
            assert callable(function), finding.id
            for arguments in (finding.switch.paper, finding.switch.released):
                chosen = dict(arguments)
                name = chosen.pop("name", finding.switch.method)
                known = set(inspect.signature(function).parameters)
                if name is not None:
                    catalogue = INTERVENTIONS if "interventions" in finding.switch.call else CATALOGUE
                    known |= set(catalogue[name].parameters)
                assert set(chosen) <= known, f"{finding.id}: {chosen}"
            assert finding.switch.paper != finding.switch.released


def test_the_text_is_about_the_papers_alone() -> None:
    unfit = re.compile(r"(?i)\bto.?do\b|(?<![\w.:/])/[a-z]+/|\bissue #?\d")  # unfinished, a machine's path, a tracker
    for path in [*(ledger.manifests() / "claims").glob("*.yaml"), *(ledger.manifests() / "audit").glob("*.yaml")]:
        assert not unfit.search(path.read_text(encoding="utf-8")), path.name


# --- as refused ---------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes one file of the ledger (or text as it is) and reads the whole ledger."""
    (tmp_path / "claims").mkdir()
    monkeypatch.setattr(ledger, "manifests", lambda: tmp_path)
    monkeypatch.setattr("reprolib.study.parameters.manifests", lambda: tmp_path)

    def written(content: object, name: str = "tiny") -> dict[str, ledger.Entry]:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (tmp_path / "claims" / f"{name}.yaml").write_text(text, encoding="utf-8")
        return ledger.ledger()

    return written


def test_a_valid_entry(write) -> None:
    entry = write({"paper": PAPER, "claims": [CLAIM]})["tiny"]
    assert entry.claims[0].claimed.effect == pytest.approx(0.076)
    assert entry.paper.code is None and entry.claims[0].expect == "higher"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "improvment"}, r"tiny\.yaml, field claims\.0\.kind"),
        ({"sentense": "x"}, r"field claims\.0\.sentense"),
        ({"provenance": "memory"}, r"field claims\.0\.provenance"),
        ({"direction": "text->video"}, r"field claims\.0\.direction"),
        ({"claimed": None}, "kind 'improvement' needs claimed numbers"),
        ({"claimed": {"value": 1.0, "decimals": 1, "unit": "points"}}, r"claimed\.unit"),
        ({"claimed": {"value": float("nan"), "decimals": 1, "unit": "percent"}}, r"claimed\.value"),
        ({"expect": "lower"}, "the claimed numbers are not lower"),
        ({"status": "needs data"}, "'testable now' and a test go together"),
        ({"status": "needs data", "test": None}, "needs a reason"),
        ({"bound": 0.5}, "only a property, is tested against a bound"),
        ({"kind": "property", "claimed": None}, "only a property, is tested against a bound"),
        ({"metric": None}, "names its metric"),
        ({"id": "Tiny claim"}, r"field claims\.0\.id"),
        ({"id": "other-claim"}, "claim other-claim must begin with tiny-"),
        ({"test": CLAIM["test"] | {"study": "hubnes"}}, "unknown study 'hubnes'; nearest valid: hubness"),
        ({"test": {"study": "hubness", "select": MAIN | {"method": "nnnn"}}}, "nearest valid: nnn"),
        ({"test": {"study": "modality-gap", "select": MAIN | {"method": "shif"}}}, "nearest valid: shift"),
        ({"test": {"study": "intra-modal-inversion", "select": MAIN | {"reference": "isclip"}}}, "isoclip"),
        ({"test": {"study": "hubness", "select": MAIN | {"metrics": "R@1"}}}, r"select\.metrics"),
    ],
)  # fmt: skip
def test_wrong_claims_are_named(write, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write({"paper": PAPER, "claims": [CLAIM | change]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("paper: [", r"tiny\.yaml, line 1: this is not valid YAML"),
        ("", r"tiny\.yaml, field the whole file"),
        ({"paper": PAPER, "claims": []}, "field claims"),
        ({"paper": PAPER, "claims": [CLAIM, CLAIM]}, "claim tiny-claim occurs twice"),
        ({"paper": PAPER | {"arxiv": "2310.1"}, "claims": [CLAIM]}, r"field paper\.arxiv"),
        ({"paper": PAPER | {"code": {"repository": "x", "commit": "main"}}, "claims": [CLAIM]}, r"paper\.code\.commit"),
    ],
)
def test_wrong_files_are_named(write, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(content)


def test_ids_are_unique_over_papers(write) -> None:
    write({"paper": PAPER, "claims": [CLAIM | {"id": "tiny-er-claim"}]})
    with pytest.raises(InputError, match=r"claim tiny-er-claim occurs in tiny\.yaml and in tiny-er\.yaml"):
        write({"paper": PAPER, "claims": [CLAIM | {"id": "tiny-er-claim"}]}, "tiny-er")
    with pytest.raises(InputError, match="unknown paper 'tinny'; nearest valid: tiny"):
        ledger.entry("tinny")


def test_rounding_is_half_a_unit_of_each_number() -> None:
    one = Claimed(value=37.93, decimals=2, unit="percent")
    both = Claimed(value=37.93, reference=30.31, decimals=2, unit="percent")
    assert (one.effect, one.rounding) == (pytest.approx(0.3793), pytest.approx(0.00005))
    assert (both.effect, both.rounding) == (pytest.approx(0.0762), pytest.approx(0.0001))
    assert Claimed(value=9.5, reference=59.8, decimals=1, unit="number").effect == pytest.approx(-50.3)


ROW = {
    "study": "modality-gap", "dataset": "glyphs", "model": "glyph-clip", "direction": None, "method": "shift",
    "parameters": {"lam": 0.5, "tau": 0.01}, "bank": "none", "metric": "InfoNCE difference", "value": 0.1, "table": "t",
    "reference": "none",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "row", "picked"),
    [
        ({}, {}, True),
        ({"parameters": {"lam": 0.5}}, {}, True),
        ({"parameters": {"lam": 1.0}}, {}, False),
        ({"parameters": {"k": 1}}, {}, False),
        ({"method": "none"}, {}, False),
        ({"reference": "none"}, {}, True),
        ({"direction": "none"}, {}, True),
        ({"direction": "none"}, {"direction": "text->image"}, False),
        ({"direction": "text->image"}, {}, False),
        ({}, {"direction": "text->image"}, True),
        ({}, {"model": "glyph-clip, random weights"}, False),
        ({"weights": "random"}, {"model": "glyph-clip, random weights"}, True),
        ({"weights": "random"}, {"model": None}, False),
        ({}, {"bank": "transductive: the pairs themselves"}, False),
        ({"transductive": True}, {"bank": "transductive: the pairs themselves"}, True),
        ({}, {"table": "other"}, False),
    ],
)
def test_selectors(given: dict, row: dict, picked: bool) -> None:
    selector = Selector.model_validate({"table": "t", "metric": "InfoNCE difference"} | given)
    assert selector.picks(Record.model_validate(ROW | row)) is picked


def test_findings_are_refused_in_words(tmp_path: Path) -> None:
    finding = {
        "id": "tiny", "paper": "dbnorm", "title": "t", "paper_says": "p", "code_does": "c", "provenance": "code",
        "place": {"repository": "r"},
    }  # fmt: skip
    for change, message in (
        ({}, "or a reason why it is not"),
        ({"reason": "r", "effect": CLAIM["test"]}, "or a reason why it is not"),
        ({"reason": "r", "paper": "dbnrm"}, "nearest valid: dbnorm"),
        ({"reason": "r", "place": {"repository": "r", "lines": "66 to 67"}}, r"field place\.lines"),
        ({"reason": "r", "switch": {"call": "os.remove", "paper": {}, "released": {}}}, r"field switch\.call"),
    ):
        path = tmp_path / f"tiny-{message[:5]}-{len(change)}.yaml"
        path.write_text(yaml.safe_dump(finding | change))
        with pytest.raises(InputError, match=message):
            ledger.read(path, audit.Finding)
    with pytest.raises(InputError, match="unknown finding 'dbnorm-no-dat'; nearest valid: dbnorm-no-data"):
        audit.finding("dbnorm-no-dat")


def test_a_claim_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Claim.model_validate(CLAIM).id = "x"
