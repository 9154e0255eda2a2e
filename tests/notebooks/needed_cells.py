"""What shows a notebook's controls, and the statements that they need: a walk backwards over names.

A statement is needed if it binds a name that a needed one after it reads, or may change such a name's object: by a
method call, as an argument of a call whose result is dropped, or by an assignment to one of its parts. What changes an
object under another name is not seen; `UNSEEN` has it. Assertions and printing are never needed.
"""

import ast
import importlib
import inspect

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from ftcourse.explorers import Explorer

PACKAGE = "ftcourse.explorers."
PURE = ("print", "display", "check_", "plot_", "show")  # such calls leave their arguments as they are
# Notebook 08 trains `model` under the name `trainer`, and 09 `tuned` under `task` and `optimizer`.
UNSEEN = ("_ = trainer.train()", "losses = train(task, optimizer, 'full fine-tune')")
SHORTER = {"MAX_STEPS = 48": "MAX_STEPS = 12"}  # enough of a training for a control over its answers


def tree_of(cell) -> ast.Module:
    """A code cell's syntax tree; a magic line is a call of `get_ipython()`, as IPython makes it."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def explorer_makers(nb) -> dict[str, type[Explorer]]:
    """Imported name -> class of the explorer: the class itself, or a function that returns one."""
    found = {}
    for cell in _code(nb):
        for node in ast.walk(tree_of(cell)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    made = getattr(module, alias.name)
                    if inspect.isfunction(made):
                        made = inspect.signature(made).return_annotation
                    if inspect.isclass(made) and issubclass(made, Explorer):
                        found[alias.asname or alias.name] = made
    return found


def control_cells(nb) -> dict[str, type[Explorer]]:
    """Id of each cell that shows an explorer on its last line -> the explorer's class, in the notebook's order."""
    makers, made, shown = explorer_makers(nb), {}, {}
    for cell in _code(nb) if makers else []:
        body = tree_of(cell).body
        for statement in body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                called = getattr(statement.value.func, "id", None)
                made |= dict.fromkeys(_names(statement, ast.Store), makers.get(called))
        last = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
        if isinstance(last, ast.Name) and made.get(last.id):
            shown[cell.id] = made[last.id]
    return shown


def with_needed_cells(nb, ids) -> nbformat.NotebookNode:
    """A notebook of what shows the controls of the cells with these ids and of what they need, without outputs."""
    cells = [(cell, tree_of(cell).body) for cell in _code(nb)]
    while cells and cells[-1][0].id not in ids:
        cells.pop()
    shown = [body[-1] for cell, body in cells if cell.id in ids]
    statements = [statement for _, body in cells for statement in body]
    called: set[str] = set()  # names that needed functions read when they are called, after later statements
    while True:
        needed = _walk(statements, shown, called)
        functions = [node for each in needed for node in ast.walk(each) if isinstance(node, ast.FunctionDef)]
        found = set().union(*(_names(function, ast.Load) - _own(function) for function in functions))
        if found <= called:
            break
        called |= found
    fresh = []
    for cell, body in cells:
        lines = [ast.unparse(statement) for statement in body if statement in needed]
        if source := "\n".join(SHORTER.get(line, line) for line in lines):
            # With its tags: JupyterLab goes on after an error that a cell is tagged for.
            fresh.append(nbformat.v4.new_code_cell(source, id=cell.id, metadata=cell.metadata))
    return nbformat.v4.new_notebook(cells=fresh, metadata=nb.metadata)


def _walk(statements: list[ast.stmt], shown: list[ast.stmt], called: set[str]) -> list[ast.stmt]:
    """The needed statements, last first, if also the names in `called` are read at the end."""
    imported = {name for statement in statements for node in ast.walk(statement) for name in _imported(node)}
    needed, wanted = [], called - imported
    for statement in reversed(statements):
        tree = ast.Module([statement], [])
        made = _names(tree, ast.Store) | _defined(tree) | _changed(tree) - imported
        if statement in shown or wanted & made or ast.unparse(statement) in UNSEEN:
            needed.append(statement)
            wanted = wanted - _rebound(tree) | _read(tree)
    return needed


def _code(nb) -> list:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def _names(tree: ast.AST, context: type) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _imported(node: ast.AST) -> set[str]:
    aliases = node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
    return {(alias.asname or alias.name).partition(".")[0] for alias in aliases}


def _defined(tree: ast.AST) -> set[str]:
    """Names of functions, classes and imports."""
    nodes = list(ast.walk(tree))
    named = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return named.union(*map(_imported, nodes))


def _rebound(tree: ast.Module) -> set[str]:
    """Names whose earlier values nothing later sees, because a statement itself binds them."""
    plain = [statement for statement in tree.body if isinstance(statement, ast.Assign)]
    parts = [part for statement in plain for target in statement.targets for part in ast.walk(target)]
    return _defined(tree) | {
        part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    }


def _read(tree: ast.Module) -> set[str]:
    """Names that statements read before they bind them."""
    found, bound = set(), set()
    for statement in tree.body:
        own = _own(statement)
        read = _names(statement, ast.Load)
        read |= _names(statement.target, ast.Store) if isinstance(statement, ast.AugAssign) else set()
        found |= read - own - bound
        bound |= _names(statement, ast.Store) | _defined(statement)
    return found


def _own(statement: ast.stmt) -> set[str]:
    """Names that a statement binds before it reads them: parameters, loop variables, a function's variables."""
    own = {node.arg for node in ast.walk(statement) if isinstance(node, ast.arg)}
    for node in ast.walk(statement):
        if isinstance(node, ast.comprehension):
            own |= _names(node.target, ast.Store)
    return own if isinstance(statement, ast.Assign | ast.AugAssign) else own | _names(statement, ast.Store)


def _changed(tree: ast.Module) -> set[str]:
    """Names whose objects a statement may change."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            found |= _names(node.value, ast.Load)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Attribute):
                found |= _names(call.func, ast.Load)
            if not (isinstance(call.func, ast.Name) and call.func.id.startswith(PURE)):
                for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                    found |= _names(argument, ast.Load)
    return found
