import base64
import json
import re
import shutil
from pathlib import Path

import matplotlib.figure
import nbformat
import pytest
from bs4 import BeautifulSoup

from reprolib.cli import main
from reprolib.errors import RunError
from reprolib.study import audit, ledger, margins, provenance, records, report
from reprolib.study.hubness import STEPS

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = (
    "<img src='https://example.org/a.png'><script src='https://example.org/a.js'></script>"
    "<link rel='stylesheet' href='https://example.org/a.css'><b onclick='go()'>bold</b>"
    "<p style='background: url(https://example.org/b.png)'>text</p>"
    "<style>@import 'https://example.org/c.css';</style><table class='dataframe'><tr><td>1</td></tr></table>"
)


def row(**changes: object) -> dict[str, object]:
    common = {
        "study": "tiny", "dataset": "glyphs", "model": "glyph-clip", "direction": "text->image", "method": "is",
        "parameters": {"beta": 20.0, "k": None}, "bank": "train, 20 %", "metric": "R@1", "value": 0.506,
        "ci_low": 0.47, "ci_high": 0.54, "n": 1000, "table": "main",
    }  # fmt: skip
    return common | changes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "hubness-glyphs"
    (folder / "figures").mkdir(parents=True)
    cells = [
        nbformat.v4.new_markdown_cell(
            "# Hubness & more\n\nIs $\\beta$ all?\n\n$$\\frac{1}{\\beta} \\log \\sum_j e^{\\beta s_j}$$\n\n"
            "See [a paper](https://arxiv.org/abs/2310.11612).\n\n## Method\n\nBad: $\\frac{1$ and $5.\n\n"
            "![drawn](https://example.org/d.png)"
        ),
        nbformat.v4.new_code_cell(
            "1 + 1",
            outputs=[
                nbformat.v4.new_output("display_data", {"text/html": HOSTILE}),
                nbformat.v4.new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"}),
                nbformat.v4.new_output("display_data", {"application/javascript": "go()", "text/plain": "script"}),
            ],
        ),
        nbformat.v4.new_markdown_cell("## Verdict\n\nIt is *not* all.", metadata={"tags": ["conclusion"]}),
    ]
    matplotlib.figure.Figure((2, 1)).savefig(folder / "figures" / "curve.png")
    matplotlib.figure.Figure((1, 1)).savefig(folder / "figures" / "other.png")
    shown = base64.b64encode((folder / "figures" / "curve.png").read_bytes()).decode()
    bar = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "0 of 52 done"}
    cells[1].outputs += [nbformat.v4.new_output("display_data", data) for data in ({"image/png": shown}, bar)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "01_tiny.ipynb")
    words = {"alt": "R@1 rises & falls.", "caption": "R@1 against <beta>."}
    (folder / "figures" / "curve.json").write_text(json.dumps(words))
    records.save(
        [
            row(),
            row(metric="skewness", value=-2.2, ci_low=None, ci_high=None),
            row(method="none", parameters={}, bank=None, value=None, ci_low=None, ci_high=None),
            row(table="temperature", value=0.999),
            row(table="difference", reference="none", value=-0.02, ci_low=-0.03, ci_high=-0.01, p_holm=0.0001),
            row(table="question", metric="R@1 difference: A - B", value=-0.0001, ci_low=-0.01, p_holm=0.5),
        ],
        folder,
    )
    facts = {
        "study": "tiny", "title": "Hubness & more", "notebook": {"name": "01_tiny.ipynb", "sha256": "c" * 64},
        "parameters": {"methods": ["is"]}, "seeds": {}, "threads": 1, "code": provenance.code(),
        "started": "2026-11-21T10:00:00+00:00", "duration_seconds": 2.5, "peak_memory_bytes": 10**9,
    }  # fmt: skip
    provenance.write(folder, facts)
    return folder


def test_page_loads_nothing_and_is_described(run: Path, tmp_path: Path) -> None:
    again = run.with_name("hubness-again")
    again.mkdir()
    for path in run.rglob("*"):
        if path.is_file():
            target = again / path.relative_to(run)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    (run.parent / ".failed").mkdir()
    runs = report.find_runs(run.parent)
    assert [path.name for path in runs] == ["hubness-again", "hubness-glyphs"]
    out = report.build(runs, tmp_path / "report" / "index.html")
    text = out.read_text(encoding="utf-8")
    page = BeautifulSoup(text, "html.parser")

    (script,) = page.find_all("script")  # the page's own; those of notebooks are taken out
    assert not script.attrs and "go()" not in text and not re.search(r"https?:|import|fetch|eval", script.get_text())
    assert not page.find_all(["link", "iframe"])
    assert not re.search(r"@import|url\(", "".join(tag.get_text() for tag in page.find_all("style")))
    for tag in page.find_all(True):
        addresses = {name: str(value) for name, value in tag.attrs.items() if "//" in str(value)}
        allowed = {"href"} if tag.name == "a" else {"xmlns"} if tag.name == "math" else set()
        loaded = {name for name, value in addresses.items() if not value.startswith("data:")} - allowed
        assert not loaded, (tag.name, addresses)
        assert not any(name.startswith("on") for name in tag.attrs)
    pictures = page.find_all("img")
    assert len(pictures) == 6 and all(picture["alt"] for picture in pictures)
    curve = page.find(id="run-1-figure-curve")  # shown once, where the notebook shows it
    assert curve.find_parent("div", class_="notebook") and curve.img["alt"] == "R@1 rises & falls."
    assert curve.figcaption.get_text() == "R@1 against <beta>." and "0 of 52 done" not in text
    assert page.find(id="run-1-figure-other").find_parent("div", class_="notebook") is None
    identifiers = [tag["id"] for tag in page.find_all(id=True)]
    assert len(identifiers) == len(set(identifiers))
    assert all(page.find(id=link["href"][1:]) for link in page.find_all("a", href=re.compile("^#")))
    assert len(page.find_all("h1")) == 1
    assert page.find("math") and "\\frac{1}" not in page.get_text()
    assert len(text) - len(report.build([], tmp_path / "none.html").read_text(encoding="utf-8")) < 200_000
    assert report.build(runs, tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_page_says_what_was_found(run: Path, tmp_path: Path) -> None:
    page = BeautifulSoup(report.build([run], tmp_path / "index.html").read_text(), "html.parser")
    question, main, difference = (
        [[cell.get_text(" ") for cell in line.find_all(["th", "td"])] for line in table.find_all("tr")]
        for table in page.select("article > .scroll > table")
    )
    assert question[1] == ["A - B", "0.0 −1.0 to 54.0", "0.500"]
    assert main[0] == ["method", "settings", "R@1, %", "skewness"]
    assert main[1] == ["is", "beta 20", "50.6 47.0 to 54.0", "−2.20"]
    assert main[2] == ["none", "", "–", ""]
    assert difference[1] == ["is", "−2.0 −3.0 to −1.0", "< 0.001"]
    article = page.find("article").get_text(" ", strip=True)
    assert "bank: train, 20 %" in article and "99.9" not in article
    assert article.index("all?") < article.index("It is not all.") < article.index("Results")
    assert "R@1 against <beta>." in article


def test_page_holds_every_claim_and_every_finding(run: Path, tmp_path: Path) -> None:
    page = BeautifulSoup(report.build([run], tmp_path / "index.html").read_text(), "html.parser")
    sections = [part.get("id") or part.h2["id"] for part in page.main.find_all(["section", "article"], recursive=False)]
    assert sections == ["board", "runs-title", "run-1", "audit", "environment", "floors"]
    board = page.find(id="board").get_text(" ", strip=True)
    assert all(f"{name}: {claim.where}" in board for name, claim in ledger.claims().items())
    assert "These runs do not record the margins that they were made under: hubness-glyphs." in board
    findings = [row.th.contents[0] for row in page.find(id="audit").tbody.find_all("tr")]
    assert findings == [finding.title for finding in audit.findings().values()]
    assert all(filter["hidden"] == "" for filter in page.select(".filter"))  # of no use without the script
    environment = page.find(id="environment").get_text(" ", strip=True)
    assert "Python 3." in environment and "nbformat" in environment
    floors = page.find(id="floors").get_text(" ", strip=True)
    assert margins.margins_hash() in floors and all(metric in floors for metric in margins.margins().floors)


def test_a_verdict_leads_to_its_run(run: Path, tmp_path: Path) -> None:
    tested = row(study="hubness", dataset="glyphs", method="is", metric="R@1 difference", table="difference",
                 reference="none", value=0.03, ci_low=0.01, ci_high=0.05, p_holm=0.01)  # fmt: skip
    records.save([tested], run)
    page = BeautifulSoup(report.build([run], tmp_path / "index.html").read_text(), "html.parser")
    rows = page.find("table", attrs={"aria-label": "Claims with a verdict"}).tbody.find_all("tr")
    (line,) = (line for line in rows if "dbnorm-coco-is:" in line.get_text())
    assert line.find(class_="verdict").get_text() == "→ transfers" and line.a["href"] == "#run-1"
    assert "+3.0 points" in line.get_text() and "1.0 to 5.0" in line.get_text()


def test_the_question_is_answered_above_the_claims(run: Path, tmp_path: Path) -> None:
    assert not BeautifulSoup(report.build([run], tmp_path / "none.html").read_text(), "html.parser").find(id="answer")
    records.save(
        [
            row(study="hubness", table="question", metric=f"R@1 difference: {one} - {other}", value=0.002,
                ci_low=-0.001, ci_high=0.003)
            for one, other in STEPS
        ],
        run,
    )  # fmt: skip
    page = BeautifulSoup(report.build([run], tmp_path / "index.html").read_text(), "html.parser")
    heading = page.find(id="answer")
    (line,) = heading.find_next("table").tbody.find_all("tr")
    assert heading.find_next_sibling("h3").get_text() == "Every claim with its verdict"
    assert "Of 1 searches: yes in 0, no in 1, open in 0." in heading.find_next("p").get_text()
    assert line.b.get_text() == "no" and "0.2" in line.get_text() and "−0.1 to 0.3" in line.get_text()
    assert line.a["href"] == "#run-1"


def test_intra_modal_results_are_told_by_grouping(run: Path, tmp_path: Path) -> None:
    common = {"study": "intra-modal-inversion", "direction": "image->image", "bank": None}
    tested = {"table": "difference", "metric": "mAP difference", "method": "inversion", "reference": "none"}
    asked = {"table": "question", "method": "inversion", "reference": "pca"}
    found = []
    for place, grouping in enumerate(("script", "kind")):
        given = common | {"parameters": {"grouping": grouping}}
        found += [
            row(**given | {"metric": "mAP", "value": 0.25 + 0.5 * place, "method": "none"}),
            row(**given | {"metric": "hub share", "method": "none"}),
            row(**given | tested | {"value": -0.01 * (place + 1), "ci_low": -0.05, "ci_high": 0.05}),
            row(**given | asked | {"metric": "mAP difference", "value": 0.02}),
        ]
    records.save(found, run)
    page = BeautifulSoup(report.build([run], tmp_path / "index.html").read_text(), "html.parser")
    question, main, difference = (
        [[cell.find(string=True) or "" for cell in line.find_all(["th", "td"])] for line in table.find_all("tr")]
        for table in page.select("article > .scroll > table")
    )
    assert question[0] == ["comparison", "image → image, points", "p"]
    assert [line[:2] for line in question[1:]] == [
        [f"inversion - pca, same {name}", "2.0"] for name in ("script", "kind")
    ]
    assert main == [
        ["method", "settings", "mAP, %"],
        ["none", "grouping script", "25.0"],
        ["none", "grouping kind", "75.0"],
    ]
    assert [line[:2] for line in difference[1:]] == [
        ["inversion, same script", "−1.0"],
        ["inversion, same kind", "−2.0"],
    ]


def test_printing_goes_through_chromium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, out = tmp_path / "index.html", tmp_path / "report" / "index.pdf"
    page.write_text("<p>page")
    browser = tmp_path / "chromium"
    monkeypatch.setattr(report.shutil, "which", lambda name: str(browser) if name == "chromium" else None)
    script = '#!/bin/sh\nfor a; do case $a in --print-to-pdf=*) cat "${a#--print-to-pdf=}.in" >/dev/null 2>&1; '
    browser.write_text(script + 'echo "$*" > "${a#--print-to-pdf=}";; esac; done\n')
    browser.chmod(0o700)
    assert report.print_pdf(page, out) == out
    assert out.read_text().split()[-1] == page.as_uri() and [path.name for path in out.parent.iterdir()] == [
        "index.pdf"
    ]
    browser.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(RunError, match="did not print"):
        report.print_pdf(page, out)
    monkeypatch.setattr(report.shutil, "which", lambda name: None)
    with pytest.raises(RunError, match=r"no Chromium is installed .* open .*index\.html and print it"):
        report.print_pdf(page, out)


def test_the_command_builds_and_prints(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pdf = tmp_path / "index.html", tmp_path / "index.pdf"
    monkeypatch.setattr(report, "print_pdf", lambda page, to: Path(shutil.copyfile(page, to)))
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), "--out", str(out), "--pdf", str(pdf)])
    assert not stop.value.code and out.is_file() and pdf.read_bytes() == out.read_bytes()
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [str(out), str(pdf)]


def test_unfinished_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(RunError, match="not a finished run"):
        report.build([tmp_path / "half"], tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()
