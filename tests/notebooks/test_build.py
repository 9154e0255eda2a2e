"""The notebook build: stub, hint and solution from one source; the same bytes twice; red where it must be."""

import base64
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_output
from nbval.plugin import get_sanitize_patterns

import build
import stable

pytestmark = pytest.mark.thorough

EXERCISE = '''\
# %% [markdown]
# # A title

# %% tags=["exercise"]
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


### BEGIN SOLUTION
four = double(2)
### END SOLUTION
"Right" if double(2) == 4 else "Not solved yet"
'''
HINT = """
# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Add x to itself.
# </details>
"""
REST = """
# %% tags=["raises-exception"]
1 / 0

# %% tags=["nbval-ignore-output"]
print("the end")
"""
# Everything that varies from run to run, all at once.
RESTLESS = """\
# %%
import sys, tempfile, time, warnings
import ipywidgets
from tqdm.auto import tqdm
print(object(), tempfile.mktemp(), f"{time.perf_counter():.2f} s")
print("late", file=sys.stderr)
print("on")
warnings.warn("a warning prints the cell's file")

# %%
for _ in tqdm(range(3)):
    time.sleep(0.01)
ipywidgets.FloatSlider(description="reserve_p")

# %% tags=["raises-exception"]
tempfile.NamedTemporaryFile(mode="nonsense")
"""


@pytest.fixture
def course(tmp_path):
    """A folder with source/ in it; call it with a text to write that as the source of 90_tiny."""
    (tmp_path / "source").mkdir()

    def write(text, name="90_tiny"):
        (tmp_path / "source" / f"{name}.py").write_text(text.lstrip())
        return tmp_path / "source" / f"{name}.py", tmp_path / f"{name}.ipynb"

    write.folder = tmp_path
    write.run = lambda *arguments: build.main([*arguments, "--folder", str(tmp_path)])
    return write


def test_stub_replaces_each_block_at_its_indentation_and_folds_the_solution_below_the_hint(course):
    source, _ = course(EXERCISE + HINT + REST)
    cells = build.stub(build.read_source(source)).cells
    assert [c.metadata.get("tags", []) for c in cells] == [
        [], ["exercise"], ["hint"], ["solution"], ["raises-exception"], ["nbval-ignore-output"],
    ]  # fmt: skip
    assert cells[1].source == (
        'def double(x):\n    """Twice x."""\n    ...  # your code here\n\n\n...  # your code here\n'
        '"Right" if double(2) == 4 else "Not solved yet"'
    )
    code = re.fullmatch(
        r"<details><summary>Solution</summary>\n\n```python\n(.*)\n```\n\n</details>", cells[3].source, re.S
    )[1]
    scope = {}
    exec(code, scope)
    assert scope["double"](21) == 42
    assert "SOLUTION" not in code


def test_solution_follows_the_exercise_where_there_is_no_hint_and_at_the_very_end(course):
    for text in (EXERCISE + REST, EXERCISE):
        cells = build.stub(build.read_source(course(text)[0])).cells
        assert cells[2].metadata.tags == ["solution"]


def test_solved_variant_keeps_the_code_drops_the_markers_and_adds_no_cell(course):
    nb = build.read_source(course(EXERCISE + HINT + REST)[0])
    before = nbformat.writes(nb)
    solved = build.solve(nb)
    assert len(solved.cells) == 5
    assert solved.cells[1].source == EXERCISE.partition('tags=["exercise"]\n')[2].strip().replace(
        "    ### BEGIN SOLUTION\n", ""
    ).replace("    ### END SOLUTION\n", "").replace("### BEGIN SOLUTION\n", "").replace("### END SOLUTION\n", "")
    assert nbformat.writes(nb) == before  # neither variant changes what it is made from


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (EXERCISE.replace("    ### END SOLUTION\n", ""), "without its END"),
        (EXERCISE.replace("    ### BEGIN SOLUTION\n", ""), "without its END"),
        (EXERCISE.replace(' tags=["exercise"]', ""), "not tagged"),
        ('# %% tags=["exercise"]\nx = 1\n', "without a solution"),
        (REST + HINT, "follows no exercise"),
        (HINT, "follows no exercise"),
        ("# %%\n\n# %%\nx = 1\n", "empty code cell"),
    ],
)
def test_a_source_that_breaks_a_rule_is_refused(course, text, rule):
    source, _ = course(text)
    with pytest.raises(build.BuildError, match=rule) as error:
        build.read_source(source)
    assert "90_tiny.py, cell" in str(error.value)


def test_ids_are_unique_and_change_only_with_their_cell(course):
    first = [c.id for c in build.stub(build.read_source(course(EXERCISE + REST + REST)[0])).cells]
    inserted = EXERCISE + "\n# %%\nx = 1\n" + REST + REST
    second = [c.id for c in build.stub(build.read_source(course(inserted)[0])).cells]
    assert len(set(first)) == len(first)
    assert set(second) > set(first)


def test_two_builds_give_the_same_bytes_and_nothing_of_this_machine(course):
    source, target = course(EXERCISE + RESTLESS + REST)
    build.build(source, target)
    first = target.read_bytes()
    build.build(source, target)
    assert target.read_bytes() == first
    text = first.decode()
    for trace in (
        tempfile.gettempdir(),
        sys.prefix,
        "widget-view",
        '"widgets":',
        "0x7",
        "ipykernel_",
    ):
        assert trace not in text
    nb = nbformat.reads(text, as_version=4)
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert all(set(c.metadata) <= {"tags"} for c in nb.cells)
    assert [(o.name, o.text) for o in code[1].outputs] == [
        ("stdout", "<object object at 0xADDR> TMP #.# s\non\n"),
        ("stderr", "late\nCELL:7: UserWarning: a warning prints the cell's file\n"
         "  warnings.warn(\"a warning prints the cell's file\")\n"),
    ]  # fmt: skip


def test_a_run_that_is_not_normalised_is_not_stable(course):
    """The mutation of the test above: what the build takes out is in there, and differs between runs."""
    nb = build.stub(build.read_source(course(RESTLESS)[0]))
    runs = [nbformat.writes(build.execute(nbformat.from_dict(nb), course.folder)) for _ in range(2)]
    assert runs[0] != runs[1]
    assert tempfile.gettempdir() in runs[0]
    assert "widget-view" in runs[0]


def test_streams_are_merged_as_a_terminal_would_show_them():
    def out(text, name):
        return new_output("stream", name=name, text=text)

    picture = new_output("display_data", {"text/plain": "picture"})
    parts = [("a", "stdout"), (" 0%\r", "stderr"), ("b\n", "stdout"), ("90% [2 s left]\r100%         \n", "stderr")]
    merged = stable.merge_streams([*(out(*part) for part in parts), picture, out("c", "stdout")])
    assert [o.get("text", "picture") for o in merged] == ["ab\n", "100%\n", "picture", "c"]


SAMPLES = {
    "warning in /tmp/ipykernel_12/345.py:3": "warning in CELL:3",
    "/home/ada/x/.venv/lib/python3.11/site-packages/torch/a.py:1": "site-packages/torch/a.py:1",
    "File ~/venv/lib/python3.12/site-packages/trl/b.py": "File site-packages/trl/b.py",
    "/usr/lib/python3.11/json/decoder.py": "python/json/decoder.py",
    f"{stable.ROOT}/data/almanac.json": "data/almanac.json",
    f"in {stable.ROOT}": "in REPOSITORY",
    "/tmp/tmpab12cd/model": "TMP/model",
    "<object at 0x7f12ab34cd56>": "<object at 0xADDR>",
    "trained in 12.34 s, 1.5 ms a step": "trained in #.# s, #.# ms a step",
    "1,234.5 tokens/s": "# tokens/s",
    "100%|##| 60/60 [00:07<00:00,  8.22it/s]": "100%|##| 60/60 [TIME]",
    "W1121 02:19:02.123000 1234 torch/run.py]": "W torch/run.py]",
    "torch 2.13.0+cu130": "torch 2.13.0",
    # what is to be compared is not masked
    "loss 0.123, 3 steps, p = 0.33": "loss 0.123, 3 steps, p = 0.33",
    "96 examples, 10 epochs, 4 s a run": "96 examples, 10 epochs, 4 s a run",
    "M 1.5 2 L 3.25 4 z": "M 1.5 2 L 3.25 4 z",
    "0xff": "0xff",
}


@pytest.mark.parametrize("text", SAMPLES)
def test_tokens(text):
    token = SAMPLES[text]
    assert stable.normalise_text(text) == token
    assert stable.normalise_text(token) == token  # so that nbval leaves a stored token as it is


def test_a_stored_picture_takes_no_time_to_look_through():
    """A pattern that begins at any character tries each of them, and looks ahead over all of the rest."""
    start = time.process_time()
    picture = base64.b64encode(random.Random(0).randbytes(40_000)).decode()
    assert stable.normalise_text(picture) == picture
    assert time.process_time() - start < 2  # hours, if it is tried at each


def test_a_path_that_only_looks_like_this_checkout_is_not_taken_for_it():
    assert "REPOSITORY" not in stable.normalise_text(f"{stable.ROOT}-old")
    assert stable.normalise_text(f"/mnt{stable.ROOT}/data") != "/mntdata"


def test_a_control_is_kept_as_an_image_and_a_picture_keeps_its_words():
    svg = '<svg role="img" aria-label="3.2 s a step"><text>3.2 s</text></svg>'
    control = {stable.WIDGET_VIEW: {"model_id": "a"}, "text/plain": "a", "image/svg+xml": svg}
    mixed = {stable.WIDGET_VIEW: {"model_id": "b"}, "text/plain": "b", "text/html": f"<p>{svg}</p>"}
    plain = {"text/plain": "took 3.2 s", "text/html": "<b>3.2 s</b>"}
    cells = [new_code_cell("x", outputs=[new_output("display_data", data)]) for data in (control, mixed, plain)]
    shown = [cell.outputs[0].data for cell in stable.normalise(nbformat.v4.new_notebook(cells=cells)).cells]
    assert shown[0]["image/svg+xml"] == svg and shown[0]["text/html"].startswith('<img alt="3.2 s a step" ')
    assert shown[1]["text/html"].startswith('<p><img alt="3.2 s a step" ') and "<svg" not in shown[1]["text/html"]
    assert all(stable.WIDGET_VIEW not in data for data in shown)
    assert shown[2] == {"text/plain": "took #.# s", "text/html": "<b>#.# s</b>"}


def test_a_path_in_colour_is_a_path():
    coloured = f"\x1b[32m{stable.ROOT}/ftkit/batching.py:3\x1b[39m"
    assert str(stable.ROOT) not in stable.normalise_text(coloured)


def test_nbval_reads_the_table_as_the_build_does():
    table = get_sanitize_patterns(stable.SANITIZE.read_text())
    assert len(table) > 8
    assert stable.replacements()[-len(table) :] == table


def test_kernels_get_nothing_of_the_users_settings(monkeypatch):
    for name in ("FTKIT_MODEL", "PYTEST_CURRENT_TEST", "IPYTHONDIR", "MPLBACKEND"):
        monkeypatch.setenv(name, "the user's")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("PROCESSOR", raising=False)
    stable.kernel_environment.cache_clear()
    env = stable.kernel_environment()
    stable.kernel_environment.cache_clear()
    assert "the user's" not in env.values()
    assert env["OMP_NUM_THREADS"] == env["HF_HUB_OFFLINE"] == "1"
    if sys.prefix != sys.base_prefix:
        assert str(Path(sys.prefix) / "bin") not in env["PATH"].split(":")


@pytest.mark.parametrize(("processor", "capability"), [("avx2", "AVX2"), ("sse4", "DEFAULT")])
def test_another_processor_is_another_set_of_kernels(monkeypatch, processor, capability):
    monkeypatch.setenv("PROCESSOR", processor)
    code = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | stable.fixed(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-2:] == [capability, "1"] or platform.machine() != "x86_64"


def test_no_processor_runs_what_was_compiled_for_another(monkeypatch):
    caches = []
    for processor in stable.PROCESSORS:
        monkeypatch.setenv("PROCESSOR", processor)
        caches.append(stable.fixed()["TORCHINDUCTOR_CACHE_DIR"])
    assert len(set(caches)) == len(stable.PROCESSORS)


def test_an_unknown_processor_is_refused(monkeypatch):
    monkeypatch.delenv("PROCESSOR", raising=False)
    assert stable.fixed()["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("PROCESSOR", "two-threads")
    assert stable.fixed()["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("PROCESSOR", "avx-7")
    with pytest.raises(ValueError, match="give one of native, avx2, sse4, two-threads"):
        stable.fixed()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("# %%\nundefined_name\n", "NameError"),
        ("# %%\nimport os; os._exit(1)\n", "killed the kernel"),
        ('# %% tags=["raises-exception"]\nfine = 1\n', "raised nothing"),
    ],
)
def test_a_failing_cell_stops_the_build_and_leaves_the_old_notebook(course, capsys, broken, reason):
    _, target = course("# %%\n1\n\n" + broken)
    target.write_text("the old one")
    assert course.run("90_tiny") == 1
    message = capsys.readouterr().err
    assert "90_tiny.py, cell 1" in message
    assert broken.splitlines()[1] in message
    assert reason in message
    assert target.read_text() == "the old one"
    assert not list(course.folder.glob("*.draft"))


def test_check_is_red_after_any_change_and_a_plain_build_mends_it(course, capsys):
    base = EXERCISE + REST
    course(base)
    assert course.run("--check") == 1  # not built yet
    assert course.run() == 0
    assert course.run("--check") == 0
    for changed in (
        base.replace("A title", "Another title"),
        base.replace("2 * x", "x + x"),  # the solution: seen in the folded cell alone
        base.replace("nbval-ignore-output", "slow"),
        base + "\n# %%\nx = 1\n",
        EXERCISE,
    ):
        course(changed)
        assert course.run("--check") == 1, changed
    capsys.readouterr()
    assert course.run() == 0
    assert course.run() == 0
    assert re.fullmatch(r"90_tiny: built in \d+\.\d s\n90_tiny: unchanged\n", capsys.readouterr().out)
    assert course.run("--check") == 0


def test_check_is_red_for_a_notebook_changed_by_hand(course):
    source, target = course("# %%\n1\n\n# %%\n2\n")
    course.run()
    whole = nbformat.read(target, as_version=4)
    for damage in (
        lambda nb: nb.cells[1].update(source="3"),
        lambda nb: nb.cells[1].update(execution_count=7),
        lambda nb: nb.cells[1].update(execution_count=None),
        lambda nb: nb.cells[1].metadata.update(tags=["nbval-skip"]),
        lambda nb: nb.cells.pop(),
    ):
        nb = nbformat.from_dict(whole)
        damage(nb)
        nbformat.write(nb, target)
        assert build.differences(source, target)
    nbformat.write(whole, target)
    assert not build.differences(source, target)
    nbformat.write(whole, course.folder / "91_orphan.ipynb")
    assert course.run("--check") == 1


def test_command_line_says_what_it_does_and_refuses_an_unknown_name(course):
    script = Path(build.__file__)
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in shown for option in ("--all", "--check", "NN_topic"))
    course(REST)
    refused = subprocess.run(
        [sys.executable, script, "17_nothing", "--folder", course.folder], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "there are 90_tiny" in refused.stderr


def test_jupytext_reads_back_what_the_build_wrote(course):
    """Whoever opens the notebook with jupytext gets the learner's variant, tags included."""
    source, target = course(EXERCISE + HINT + REST)
    build.build(source, target)
    text = jupytext.writes(jupytext.read(target), fmt="py:percent")
    assert '# %% tags=["exercise"]' in text
    assert "# your code here" in text
