"""The walk from a control back to the cells that it needs, on notebooks whose answer is plain."""

import ast

import nbformat

from ftcourse.explorers.gradient_masks import MaskExplorer
from tests import ROOT

from .needed_cells import SHORTER, UNSEEN, control_cells, tree_of, with_needed_cells

IMPORTS = "import torch\nfrom ftcourse.explorers.gradient_masks import mask_explorer"
SHOW = "explorer = mask_explorer(gradient)\nexplorer"


def notebook(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def kept(*sources):
    """The numbers of the cells that the control of the last one needs, itself left out."""
    nb = notebook(IMPORTS, *sources, SHOW)
    needed = [cell.id for cell in with_needed_cells(nb, control_cells(nb)).cells]
    return [number for number, cell in enumerate(nb.cells) if cell.id in needed][1:-1]


def test_a_control_is_found_where_it_is_shown():
    nb = notebook(IMPORTS, SHOW, "made = mask_explorer(gradient)", "made", "explorer.slider.value = 0.5\nexplorer.seed")
    assert list(control_cells(nb)) == [nb.cells[1].id, nb.cells[3].id]
    assert set(control_cells(nb).values()) == {MaskExplorer}
    assert control_cells(notebook("import torch", "torch")) == {}


def test_what_a_control_reads_is_needed_and_nothing_else():
    assert kept("gradient = torch.ones(3, 3)", "weight = torch.ones(2)") == [1]
    assert kept("size = 3", "gradient = torch.ones(size, size)") == [1, 2]
    assert kept("def made():\n    return torch.ones(side, 3)", "side = 3", "gradient = made()") == [1, 2, 3]


def test_what_a_later_cell_binds_anew_is_not():
    assert kept("gradient = 1", "gradient = torch.ones(3, 3)") == [2]
    assert kept("gradient = torch.ones(3, 3)", "gradient = 2 * gradient") == [1, 2]
    assert kept("gradient = torch.ones(3, 3)", "gradient += 1") == [1, 2]


def test_what_a_cell_may_change_counts():
    assert kept("gradient = torch.ones(3, 3)", "gradient[0] = 2", "print(gradient)") == [1, 2]
    assert kept("gradient = torch.ones(3, 3)", "gradient.mul_(2)", "torch.manual_seed(0)") == [1, 2]
    assert kept("gradient = torch.ones(3, 3)", "torch.nn.init.zeros_(gradient)") == [1, 2]


def test_loop_variables_and_parameters_are_a_cells_own():
    assert kept("row = 7", "gradient = torch.stack([torch.ones(3) for row in range(3)])") == [2]
    assert kept("x = 7", "def double(x):\n    return 2 * x\ngradient = double(torch.ones(3, 3))") == [2]


def test_of_a_needed_cell_what_it_does_besides_is_left_out():
    nb = notebook(IMPORTS, "gradient = torch.ones(3, 3)\nassert slow()\ncheck_shape(gradient)\nother = 1", SHOW)
    (_, cell, _) = with_needed_cells(nb, control_cells(nb)).cells
    assert cell.source == "gradient = torch.ones(3, 3)"


def test_what_no_walk_sees_is_said_in_words_that_a_notebook_has():
    lines = {ast.unparse(statement) for cell in every_code_cell() for statement in tree_of(cell).body}
    assert lines >= {*UNSEEN, *SHORTER}, "needed_cells.py names lines that a notebook no longer has"


def every_code_cell():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        nb = nbformat.read(path, as_version=4)
        yield from (cell for cell in nb.cells if cell.cell_type == "code")


def test_magic_lines_are_no_obstacle():
    assert kept("%%px\nnot_here = 1", "!ls", "gradient = torch.ones(3, 3)") == [3]


def test_cells_keep_their_tags():
    nb = notebook(IMPORTS, "gradient = torch.ones(3, 3)\ngradient.view(2)", SHOW)
    nb.cells[1].metadata["tags"] = ["raises-exception"]
    assert [cell.metadata for cell in with_needed_cells(nb, control_cells(nb)).cells] == [{}, nb.cells[1].metadata, {}]
