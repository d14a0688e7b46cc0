"""The notebook of the documentation runs, and shows what it showed when it was committed."""

import pathlib

import nbclient
import nbformat

TOUR = pathlib.Path(__file__).parents[2] / "docs" / "tour.ipynb"


def _shown(notebook):
    """The kinds of pictures and the text that each cell shows."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    # Only one of people's two pictures is committed. Text may come in any number of pieces.
    return [
        (
            sorted({kind for out in outputs for kind in out.get("data", {})} - {"image/png"}),
            "".join(out.get("text", "") for out in outputs),
        )
        for outputs in cells
    ]


def test_the_tour_runs_and_shows_what_it_did(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    committed = nbformat.read(TOUR, as_version=4)
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert _shown(notebook) == _shown(committed)
    kinds = [kind for kinds, _ in _shown(notebook) for kind in kinds]
    assert kinds.count("image/jpeg") >= 7 and "image/gif" in kinds and "text/html" in kinds
    assert TOUR.stat().st_size < 2**20  # small pictures only: everybody clones them
