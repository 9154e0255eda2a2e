"""docs/teaching.md: its plans add up and respect what notebooks need, and what it quotes is what the checkers say."""

import argparse
import ast
import importlib
import re
import shlex

import pytest

from ftcourse import cli
from ftcourse.contents import NEEDS, START, minutes_of, read_notebooks
from ftcourse.machine import CORES, DISK_BYTES, GIB, MEMORY_BYTES
from ftcourse.solved import list_exercises
from tests import ROOT

TEXT = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
PLANS = ("Half a day", "One day", "Two days")
LONGEST = 105  # minutes without a break
OURS = ("notebooks", "progress", "slides", "handout", "lab", "machine")


def cells(line):
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def rows(text, head):
    """The rows of the first table that begins with this column, as lists of cells."""
    table = re.search(rf"^\| {head} \|.*\n\|[ |-]+\n((?:\|.*\n)+)", text, re.M)
    return [cells(line) for line in table[1].splitlines()]


def plan(text, name):
    """(minutes that its heading states, its rows)."""
    section = re.search(rf"^### {name}: (\d+) hours \((\d+) minutes\)\n(.*?)(?=^##)", text, re.M | re.S)
    assert int(section[1]) * 60 == int(section[2])
    return int(section[2]), rows(section[3], "from")


def notebook_of(row):
    found = re.match(r"\[(\w+)\]\(\.\./notebooks/(\w+)\.ipynb\)$", row[2])
    assert found is None or found[1] == found[2]
    return found and found[1]


def faults(text, name):
    """What is wrong with a plan: a sentence each."""
    stated, steps = plan(text, name)
    times = {row["notebook"]: minutes_of(row["time"]) for row in read_notebooks()}
    intro = (ROOT / "notebooks" / "source" / f"{START}.py").read_text(encoding="utf-8")
    times[START] = minutes_of(re.search(r"\*\*Time:\*\* (.*)", intro)[1])
    done, at, unbroken = set(), 0, 0
    for row in steps:
        start, minutes, what, say = row
        if start != f"{at // 60}:{at % 60:02}":
            yield f"{what} starts at {start}, and the rows before it end at {at // 60}:{at % 60:02}"
        at += int(minutes)
        unbroken = 0 if what in ("Break", "Lunch") or what.startswith("Second day") else unbroken + int(minutes)
        if unbroken > LONGEST:
            yield f"{unbroken} minutes without a break at {what}"
        if what not in ("Break", "Lunch") and not say:
            yield f"nothing to say at {what}"
        if notebook := notebook_of(row):
            if int(minutes) != times[notebook]:
                yield f"{notebook} takes {times[notebook]} minutes, and the plan gives it {minutes}"
            gaps = set(re.findall(r"\*\*Gap:\*\* (\w+)", say))
            if (absent := set(NEEDS.get(notebook, ())) - done) != gaps:
                yield f"{notebook} lacks {sorted(absent)}, and the plan says {sorted(gaps)}"
            done.add(notebook)
    if at != stated:
        yield f"its rows take {at} minutes, and it states {stated}"


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_adds_up_and_brings_each_notebook_after_what_it_needs(name):
    assert list(faults(TEXT, name)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("| 0:10 | 35 |", "| 0:10 | 30 |", "00_start_here takes 35 minutes, and the plan gives it 30"),
        ("| 0:45 | 10 | Break | |\n", "", "starts at 0:55, and the rows before it end at 0:45"),
        ("240 minutes", "300 minutes", None),
        ("| 3:50 | 10 |", "| 3:50 | 20 |", "its rows take 250 minutes, and it states 240"),
        (
            "[05_chat_templates](../notebooks/05_chat_templates",
            "[16_fsdp_fine_tune](../notebooks/16_fsdp_fine_tune",
            "16_fsdp_fine_tune lacks",
        ),
        ("Faults here", "**Gap:** 02_child_tuning. Faults here", "the plan says ['02_child_tuning']"),
        ("| 1:55 | 15 | Break | |", "| 1:55 | 15 | Talk | about it |", "minutes without a break"),
    ],
)
def test_each_fault_of_a_plan_is_seen(old, new, said):
    assert TEXT.count(old) >= 1
    changed = TEXT.replace(old, new, 1)
    if said is None:
        with pytest.raises(AssertionError):
            plan(changed, PLANS[0])
    else:
        assert any(said in fault for fault in faults(changed, PLANS[0]))


def messages(module):
    """What a checker's module can say, as one text: its strings, with "…" for what is filled in."""
    path = ROOT / "ftcourse" / "exercises" / f"{module}.py"
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


def misquoted(text):
    """(exercise, sentence) of the table that its checker does not say, or that is about no exercise."""
    modules = {f"{ex.notebook.partition('_')[0]} {ex.name}": ex.key.partition(".")[0] for ex in list_exercises()}
    return [
        (exercise, said)
        for exercise, said, helps in rows(text, "exercise")
        if exercise not in modules or said not in messages(modules[exercise]) or not helps
    ]


def test_where_people_get_stuck_is_quoted_from_the_checkers_of_every_notebook():
    assert misquoted(TEXT) == []
    assert {row[0].split()[0] for row in rows(TEXT, "exercise")} == {
        e.notebook.partition("_")[0] for e in list_exercises()
    }
    assert misquoted(TEXT.replace("| 00 one step |", "| 00 two steps |"))
    assert misquoted(TEXT.replace("walks uphill: the", "walks uphill: a"))


def unknown_flags(text):
    """(command, flag) for each flag of `ftkit` commands in the page that their parsers do not have."""
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
    lines = [re.sub(r"\s#.*", "", line) for line in shell.splitlines()] + re.findall(r"`(ftkit [^`\n]+)`", text)
    wrong = []
    for line in lines:
        if (found := re.match(r"ftkit ([a-z]+)\b", line)) and found[1] in OURS:
            known = flags_of(found[1])
            wrong += [(found[1], word) for word in shlex.split(line) if word.startswith("--") and word not in known]
    return wrong


def flags_of(command):
    seen = []
    real = argparse.ArgumentParser.parse_known_args

    def catch(parser, *_):
        seen.extend(flag for action in parser._actions for flag in action.option_strings)
        raise SystemExit

    argparse.ArgumentParser.parse_known_args = catch
    try:
        importlib.import_module(cli.COMMANDS[command][0]).main([])
    except SystemExit:
        pass
    finally:
        argparse.ArgumentParser.parse_known_args = real
    return seen


def test_the_flags_of_its_commands_exist():
    assert unknown_flags(TEXT) == []
    assert unknown_flags("`ftkit notebooks --hay`") == [("notebooks", "--hay")]
    assert unknown_flags("```bash\nftkit progress --colect x  # y\n```\n") == [("progress", "--colect")]


def test_the_machine_that_it_asks_for_is_the_one_that_is_checked():
    table = dict(rows(TEXT, "what"))
    assert table["processor"].startswith(f"{CORES} cores")
    assert table["memory"].startswith(f"{MEMORY_BYTES // GIB} GiB") and table["disk"].startswith(
        f"{DISK_BYTES // GIB} GiB"
    )
