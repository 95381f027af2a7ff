"""What all tests share: repeatable hypothesis runs, and notebooks made on the spot."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

RECORD = (
    "from reprolib.study import records\n"
    "_ = records.save([dict(study='tiny', dataset='none', model=None, direction='text->image', method='is', "
    "parameters={'beta': 20.0}, bank='train, 20 %', metric='R@1', value=0.5, ci_low=0.4, ci_high=0.6, n=3)])"
)


@pytest.fixture
def make_notebook(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a notebook of code cells, with a parameter cell and a title."""

    def make(*code: str, parameters: str = "", title: str = "A tiny study", name: str = "01_tiny.ipynb") -> Path:
        notebook = nbformat.v4.new_notebook()
        notebook.cells.append(nbformat.v4.new_markdown_cell(f"# {title}\n\nWhat is $x^2$?"))
        if parameters:
            cell = nbformat.v4.new_code_cell(parameters)
            cell.metadata["tags"] = ["parameters"]
            notebook.cells.append(cell)
        notebook.cells += [nbformat.v4.new_code_cell(source) for source in code]
        path = tmp_path / name
        nbformat.write(notebook, path)
        return path

    return make
