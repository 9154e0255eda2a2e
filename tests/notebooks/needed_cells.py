"""The cells of a notebook that show a control, and those that they need: a walk backwards over names.

A cell is needed if it binds a name that a needed cell after it reads, or may change such a name's object: by a method
call, as an argument of a call whose result is dropped, or by an assignment to one of its parts.
"""

import ast
import importlib
import inspect

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from ftcourse.explorers import Explorer

PACKAGE = "ftcourse.explorers."
PURE = ("print", "display")  # calls that leave their arguments as they are


def tree_of(cell) -> ast.Module:
    """A code cell's syntax tree; a magic line is a call of `get_ipython()`, as IPython makes it."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def shown_explorer(cell, makers: dict[str, type[Explorer]]) -> type[Explorer] | None:
    """The class of the explorer that a cell makes and shows on its last line."""
    *before, last = tree_of(cell).body or [None]
    if not isinstance(last, ast.Expr) or not isinstance(last.value, ast.Name):
        return None
    for statement in before:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            called = getattr(statement.value.func, "id", None)
            if called in makers and last.value.id in _names(statement, ast.Store):
                return makers[called]
    return None


def explorer_makers(nb) -> dict[str, type[Explorer]]:
    """Imported name -> class of the explorer: the class itself, or a function that returns one."""
    found = {}
    for cell in _code(nb):
        for node in ast.walk(tree_of(cell)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    made = getattr(module, alias.name)
                    made = made if inspect.isclass(made) else inspect.signature(made).return_annotation
                    if inspect.isclass(made) and issubclass(made, Explorer):
                        found[alias.asname or alias.name] = made
    return found


def control_cells(nb) -> dict[str, type[Explorer]]:
    """Id of each cell that shows an explorer -> the explorer's class, in the notebook's order."""
    makers = explorer_makers(nb)
    shown = {cell.id: shown_explorer(cell, makers) for cell in _code(nb)} if makers else {}
    return {id_: made for id_, made in shown.items() if made}


def with_needed_cells(nb, ids) -> nbformat.NotebookNode:
    """A notebook of the cells with these ids and of those that they need, without outputs."""
    needed, wanted = [], set()
    for cell in reversed(_code(nb)):
        tree = tree_of(cell)
        if cell.id in ids or wanted & (_bound(tree) | _changed(tree)):
            needed.append(cell)
            wanted |= _names(tree, ast.Load)
    fresh = [nbformat.v4.new_code_cell(cell.source, id=cell.id) for cell in reversed(needed)]
    return nbformat.v4.new_notebook(cells=fresh, metadata=nb.metadata)


def _code(nb) -> list:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def _names(tree: ast.AST, context: type) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _bound(tree: ast.Module) -> set[str]:
    """Names that a cell gives a new value, wherever in the cell."""
    found = _names(tree, ast.Store)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return found


def _changed(tree: ast.Module) -> set[str]:
    """Names whose objects a cell may change."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            found |= _names(node.value, ast.Load)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Attribute):
                found |= _names(call.func, ast.Load)
            if not (isinstance(call.func, ast.Name) and call.func.id in PURE):
                for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                    found |= _names(argument, ast.Load)
    return found
