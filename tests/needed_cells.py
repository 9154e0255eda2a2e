"""Which code cells of a notebook its exercises need: those that define what they use, and what those use in turn.

The solved variant of a notebook differs from the shipped one in its exercises only, and the shipped one runs whole
under nbval. So of the solved variant it is enough to run these.
"""

import symtable

from build import tagged
from IPython.core.inputtransformer2 import TransformerManager


def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell uses and those that it binds; `a.b = c` and `a[0] = c` only use `a`."""
    used, bound = set(), set()

    def visit(table, top):
        for symbol in table.get_symbols():
            if top or symbol.is_global():
                if symbol.is_referenced():
                    used.add(symbol.get_name())
                if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                    bound.add(symbol.get_name())
        for child in table.get_children():
            visit(child, top=False)

    visit(symtable.symtable(TransformerManager().transform_cell(source), "cell", "exec"), top=True)
    return used, bound


def needed(cells: list) -> list:
    """Of a notebook's cells the exercises and the code cells that they need, in their order."""
    wanted, kept = set(), []
    for cell in reversed(cells):
        if cell.cell_type != "code":
            continue
        used, bound = names(cell.source)
        if tagged(cell, "exercise") or bound & wanted:
            wanted |= used
            kept.append(cell)
    return kept[::-1]
