"""The rules of anatomy.py: a notebook that keeps them all, and one mutation of it for each rule."""

import copy

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

import build

from . import anatomy

SOURCE = """\
# %% [markdown]
# # Doubling
# You will be able to double. **Prerequisites:** none. **Hardware:** any. **Time:** 5 minutes.

# %%
import sys

if "google.colab" in sys.modules:
    %pip install -q trl

# %%
assert 1 + 1 == 2
print(2)

# %% tags=["raises-exception"]
with expected_error(ZeroDivisionError):
    1 / 0

# %% [markdown]
# ## Exercise 1
# Difficulty 1 of 5, 3 minutes.

# %% tags=["exercise"]
### BEGIN SOLUTION
x = 2
### END SOLUTION
check(x)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>Two.</details>

# %% [markdown]
# ## Exercise 2
# Difficulty 2 of 5, 3 minutes.

# %% tags=["exercise"]
### BEGIN SOLUTION
y = 2
### END SOLUTION
check(y)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>Two.</details>

# %% [markdown]
# ## Recap
# - Twice two is four.
#
# ## What transfers
# Twice two, at any size.
#
# ## Numbers to take away
# - 4
#
# ### Recall
# 1. a?
# 2. b?
# 3. c?
# 4. d?
# 5. e?
#
# ### Sources
# - [Here](https://example.org)
#
# ### Next
# Tripling, in `02_tripling`; [back to the start](good.ipynb).
"""


@pytest.fixture
def good(tmp_path):
    (tmp_path / "good.py").write_text(SOURCE)
    (tmp_path / "good.ipynb").touch()
    nb = build.stub(build.read_source(tmp_path / "good.py"))
    for cell in nb.cells:
        if build.tagged(cell, "exercise"):
            cell.outputs = [new_output("execute_result", {"text/plain": "Not solved yet: replace the …"})]
    nb.cells[2].outputs = [new_output("stream", text="2\n")]
    return nb


def replace(old, new):
    def mutate(nb):
        assert any(old in cell.source for cell in nb.cells)
        for cell in nb.cells:
            cell.source = cell.source.replace(old, new)

    return mutate


def append(cell):
    return lambda nb: nb.cells.insert(3, copy.deepcopy(cell))


def shows(text, mime="text/plain"):
    return append(new_code_cell("x", outputs=[new_output("display_data", {mime: text})]))


def code(source, **tags):
    return append(new_code_cell(source, metadata=tags))


IMAGE = '<img alt="training loss from 3 to 0.5 over 40 steps" src="data:,">'


def picture(data):
    return append(new_code_cell("x", outputs=[new_output("display_data", data)]))


MUTATIONS = {
    "open with a title": replace("# Doubling", "Doubling"),
    "You will be able to": replace("You will be able to", "You will"),
    "Prerequisites": replace("Prerequisites", "Before"),
    "Hardware": replace("Hardware", "Machine"),
    "does not say: minutes": replace("5 minutes", "a while"),
    "not a set-up cell": replace('"google.colab" in sys.modules', "False"),
    "changes sys.path": code("sys.path.insert(0, '..')"),
    "a killed kernel leaves behind": code("process = subprocess.Popen([sys.executable, 'x.py'])"),
    "what an interrupt ends": code("pool = ThreadPoolExecutor()"),
    "outside the Colab guard": code("%pip install trl"),
    "outside the Colab guard: !pip": code('if "google.colab" in sys.modules:\n    x = 1\n!pip install trl'),
    "what Colab carries": replace("install -q trl", "install -q trl torch"),
    "a name that anybody may register": replace("install -q trl", "install -q trl 'ftkit[lab]'"),
    "uses _modules, which is private": code("from ftkit._modules import decoder_layers"),
    "uses _units, which is private": code("%%px\nfrom ftcourse.fsdp_steps import (\n    wrap,\n    _units,\n)"),
    "uses _compat, which is private": code("import ftkit\nftkit._compat.fake_ranks(2)"),
    "31 lines of code": code("x = 1\n" * 31),
    "over 12 lines": lambda nb: [code("x = 1\n" * 13)(nb) for _ in range(3)],
    "106 characters, so it scrolls": code("#" * 106),
    "91 words of prose": append(new_markdown_cell("word " * 91)),
    "over 60 words": lambda nb: [append(new_markdown_cell("word " * 61))(nb) for _ in range(3)],
    "hides from the tests": code("x = 1", tags=["nbval-skip"]),
    "cell 3 hides from": code("# NBVAL_SKIP\nx = 1"),
    "an output of": shows("x" * (anatomy.OUTPUT_BYTES + 1)),
    "bytes long": lambda nb: [shows("x" * 120_000)(nb) for _ in range(10)],
    "a control without a picture": shows("MaskExplorer(seed=0): run the cell to move it"),
    "draws a PNG": shows("aGVsbG8=", "image/png"),
    "path of one machine": shows("saved to /home/ada/model"),
    "path of one machine: '/home/ada/x": shows("in \x1b[32m/home/ada/x.py\x1b[39m"),
    "path of one machine: '/site": shows("in /x/lib/python3.11/site-packages/torch"),
    "a secret": code("token = 'hf_" + "a" * 30 + "'"),
    "shows without alternative text": picture({"image/svg+xml": "<svg></svg>"}),
    "an SVG inside of HTML": picture({"text/html": "<b>a</b><svg></svg>"}),
    "alternative text is ''": picture({"text/html": "<img src='data:,'>"}),
    "alternative text is 'figure'": picture({"text/html": '<img alt="figure" src="data:,">'}),
    "which is not there": replace("good.ipynb", "02_tripling.ipynb"),
    "breaks nothing": lambda nb: nb.cells.pop(3),
    "ends Run All": replace("with expected_error(ZeroDivisionError):\n    1 / 0", "1 / 0"),
    "asserts nothing": replace("assert 1 + 1 == 2", "1 + 1"),
    "no test compares": lambda nb: nb.cells.append(
        new_code_cell("1", metadata={"tags": ["nbval-ignore-output"]}, outputs=[new_output("stream", text="1")])
    ),
    "has 1 exercises": lambda nb: nb.cells.__delitem__(slice(8, 12)),
    "no hint and solution": lambda nb: nb.cells.pop(6),
    "does not say: difficulty": replace("Difficulty 2 of 5", "Easy"),
    "does not say: minute": replace("2 of 5, 3 minutes", "2 of 5"),
    "judged ['Right']": lambda nb: nb.cells[5].outputs[0].data.update({"text/plain": "Right: well done"}),
    "no verdict on the stub": lambda nb: nb.cells[5].update(outputs=[]),
    "headed Recap": replace("Recap", "The end"),
    "headed Recall": replace("Recall", "Questions"),
    "headed Sources": replace("Sources", "Papers"),
    "headed Next": replace("### Next", "### Then"),
    "asks 4 recall": replace("5. e?", ""),
    "headed What transfers": replace("## What transfers", "## Elsewhere"),
    "headed Numbers to take away": replace("Numbers to take away", "Numbers"),
    "where a learner wants a number": append(
        new_code_cell("x", outputs=[new_output("stream", text="stops: 97%\nstops early: True\n")])
    ),
}
LESSON = list(MUTATIONS)[list(MUTATIONS).index("breaks nothing") :]


def test_a_good_notebook_breaks_no_rule(good, tmp_path):
    assert anatomy.violations(good, tmp_path) == []


@pytest.mark.parametrize("rule", MUTATIONS)
def test_each_rule_is_red_for_its_mutation(good, tmp_path, rule):
    MUTATIONS[rule](good)
    found = anatomy.violations(good, tmp_path)
    assert any(rule in sentence for sentence in found), found
    assert any(rule in s for s in anatomy.violations(good, tmp_path, is_map=True)) == (rule not in LESSON)


def test_hidden_code_may_be_longer_and_a_control_may_have_its_picture(good, tmp_path):
    for _ in range(3):
        code("x = 1\n" * 40, tags=["hide-input"])(good)
    data = {"text/plain": "MaskExplorer(seed=0): run the cell to move it", "text/html": IMAGE}
    append(new_code_cell("x", outputs=[new_output("display_data", data)]))(good)
    assert anatomy.violations(good, tmp_path) == []


def test_names_with_underscores_within_and_those_of_python_are_public(good, tmp_path):
    code("from ftkit.memory import (\n    MemoryPlan,\n    estimate_memory,\n)\n_ = ftkit.__version__")(good)
    code("from ftkit import load_base\n_x, is_norm = 1, 2\nfrom torch import _foreach_add")(good)
    assert anatomy.violations(good, tmp_path) == []


def test_lists_tables_formulas_and_code_are_not_prose():
    text = "# A heading\n- an item\n1. one\n| a | b |\n$$x + y$$\n```python\nx = 1\n```\nthree $x + y$ words here"
    assert anatomy.prose_words(text) == 3


@pytest.mark.parametrize(
    ("output", "headlines"),
    [
        (new_output("execute_result", {"text/plain": "Right: yes", "text/html": "x"}), ["Right"]),
        (new_output("stream", text="hello\nNot yet: you summed\n"), ["Not yet"]),
        (new_output("stream", text="Righteous. All Right\n"), []),
    ],
)
def test_verdicts(output, headlines):
    assert anatomy.verdicts(nbformat.from_dict({"outputs": [output]})) == headlines
