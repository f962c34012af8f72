"""Render tutorials to executed notebooks beside their sources: `make notebooks`.

Without arguments all of them are rendered, else the sources that are named.
"""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIALS = Path(__file__).parents[1] / "tutorials"
HINT = """\
*Made from `{source}` by `make notebooks`. To run this notebook outside of the
project's folder, as in Colab, first install the project from its source:
`%pip install git+URL`, with the URL of its repository.*"""


def unexecuted(source: Path) -> NotebookNode:
    """The notebook that a py:percent source describes, the same at every call."""
    cells = jupytext.read(source).cells
    hint = nbformat.v4.new_markdown_cell(HINT.format(source=source.name))
    hint.metadata.tags = ["remove-cell"]  # The site leaves it out.
    cells.insert(1, hint)
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def render(source: Path) -> None:
    """Execute a source and write its notebook."""
    notebook = unexecuted(source)
    client = NotebookClient(
        notebook,
        timeout=600,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(source.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}  # The rest changes with the machine.
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def main() -> None:
    # Progress bars are off, so nothing is missing without tqdm's widgets.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    for source in map(Path, sys.argv[1:] or sorted(TUTORIALS.glob("*.py"))):
        print(source, flush=True)
        render(source)


if __name__ == "__main__":
    main()
