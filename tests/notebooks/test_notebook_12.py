"""What notebook 12 and 11 advise can be typed: every flag that their text names is one of the programs'."""

import re
from dataclasses import fields

import pytest

import build
from ftkit.finetune.config import Config
from ftkit.memory.__main__ import make_parser

from .test_notebooks import source

OF_FINETUNE = {field.name for field in fields(Config)}
OF_MEMORY = {flag.removeprefix("--") for action in make_parser()._actions for flag in action.option_strings}
OF_OTHERS = {"help"}


def flags_named(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--(\w+)", text))


@pytest.mark.parametrize("name", ["11_speed_ups", "12_memory"])
def test_every_flag_that_a_notebook_names_exists(name):
    cells = build.read_source(source(name)).cells
    named = flags_named("\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    assert len(named) >= 4 and not named - OF_FINETUNE - OF_MEMORY - OF_OTHERS, named


def test_each_change_of_the_table_is_a_flag_of_the_program():
    cells = build.read_source(source("12_memory")).cells
    (table,) = [cell.source for cell in cells if "| change | flag | costs |" in cell.source]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    for row in rows:
        named = flags_named(row)
        assert named <= OF_FINETUNE and (named or "fused" in row), row


def test_a_flag_that_does_not_exist_would_show():
    assert flags_named("`--fused_adamw` and `--mesh 1,2,1`") - OF_FINETUNE == {"fused_adamw"}
