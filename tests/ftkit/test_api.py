"""`import ftkit`: cheap, and with every name that it promises."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ftkit
from tests import warm


def test_every_name_is_there_and_listed():
    assert len(ftkit.__all__) == 28
    for name in ftkit.__all__:
        assert getattr(ftkit, name) is getattr(importlib.import_module(f"ftkit.{ftkit._MODULE_OF[name]}"), name)
    assert set(ftkit.__all__) <= set(dir(ftkit))


def test_editors_see_the_same_names_as_the_interpreter():
    for node in ast.parse(Path(ftkit.__file__).read_text()).body:
        if isinstance(node, ast.If):
            seen = {statement.module: tuple(alias.name for alias in statement.names) for statement in node.body}
    assert seen == ftkit._MODULES


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'lode_base'"):
        _ = ftkit.lode_base


@pytest.mark.parametrize("module", ["ftkit", "ftcourse.cli", "ftcourse.copying", "ftcourse.lab"])
def test_importing_it_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'ipywidgets'}} & set(sys.modules)))"
    assert subprocess.run([warm.COLD, "-c", code], check=False).returncode == 0
    control = code.replace(f"import sys, {module}", f"import sys, {module}, transformers")
    assert subprocess.run([sys.executable, "-c", control], check=False).returncode == 1
