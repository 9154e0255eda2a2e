"""One address and one version give every other address; links become absolute in prose and in nothing else."""

import sys
import types
from email.message import Message

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import build
import hosted
from ftcourse import addresses
from ftcourse.addresses import Published, absolute_links, notebook_address
from ftcourse.contents import notebook_table

PUBLIC = Published("https://github.com/someone/ftkit.git", "1.2.0")
NOWHERE = Published("https://repository.invalid/ftkit.git", "1.2.0")
ON_COLAB = "https://colab.research.google.com/github/someone/ftkit/blob/v1.2.0-colab/notebooks/01_x.ipynb"


def test_addresses_of_a_version():
    assert PUBLIC.is_public and PUBLIC.on_github and not NOWHERE.is_public and not NOWHERE.on_github
    assert not Published("../ftkit", "1").is_public
    assert PUBLIC.file("docs/a.md") == "https://github.com/someone/ftkit/blob/v1.2.0/docs/a.md"
    assert PUBLIC.file("docs/a.svg") == "https://github.com/someone/ftkit/raw/v1.2.0/docs/a.svg"
    assert PUBLIC.colab("01_x") == ON_COLAB == PUBLIC.anywhere("notebooks/01_x.ipynb")
    assert PUBLIC.anywhere("docs/a.md") == PUBLIC.file("docs/a.md")
    with pytest.raises(ValueError, match="github"):
        NOWHERE.colab("01_x")


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("[a](x.ipynb)", "[a](<notebooks/x.ipynb>)"),
        ("[`a`](../docs/c.md#d) and ![e](f.svg)", "[`a`](<docs/c.md>#d) and ![e](<notebooks/f.svg>)"),
        ('<a href="x.ipynb">x</a>', '<a href="<notebooks/x.ipynb>">x</a>'),
        ("[a](https://b.org) [c](#d) [e](mailto:f@g.h)", None),
        ("`a[0](b)` and\n\n```python\na[0](b)\n```\n", None),
    ],
)
def test_links_become_absolute(text, absolute):
    assert absolute_links(text, "notebooks", lambda path: f"<{path}>") == (absolute or text)


@pytest.fixture
def public(monkeypatch):
    monkeypatch.setattr(hosted, "read_project", lambda root: PUBLIC)


def test_the_variant_for_colab_has_no_relative_link_and_no_badge(public):
    table = new_output("display_data", data={"text/html": '<a href="01_x.ipynb">1</a>', "text/plain": "1"})
    head = new_markdown_cell("# 00 · A\n\n[next](01_x.ipynb), [ledger](../docs/claims.md)")
    nb = new_notebook(cells=[head, new_code_cell("a[0](b)", outputs=[table])])
    hosted.add_badge(nb, "01_x")
    assert nb.cells[0].source.endswith(f"\n\n[Open in Colab]({ON_COLAB})")
    before = nbformat.writes(nb)
    variant = hosted.for_colab(nb)
    text, code = variant.cells
    assert text.source == f"# 00 · A\n\n[next]({ON_COLAB}), [ledger]({PUBLIC.file('docs/claims.md')})"
    assert code.source == "a[0](b)" and code.outputs[0].data["text/html"] == f'<a href="{ON_COLAB}">1</a>'
    assert nbformat.writes(nb) == before


def test_there_is_no_badge_and_no_variant_before_publication(monkeypatch):
    monkeypatch.setattr(hosted, "read_project", lambda root: NOWHERE)
    nb = new_notebook(cells=[new_markdown_cell("# 00 · A")])
    hosted.add_badge(nb, "00_a")
    assert nb.cells[0].source == "# 00 · A"
    with pytest.raises(ValueError, match="github"):
        hosted.for_colab(new_notebook(cells=[new_markdown_cell("[a](b.ipynb)")]))


def test_links_in_tables_lead_to_colab_there_and_beside_the_notebook_elsewhere(monkeypatch):
    installed = Message()
    installed["Version"], installed["Project-URL"] = PUBLIC.version, f"Repository, {PUBLIC.repository}"
    monkeypatch.setattr(addresses.metadata, "metadata", lambda name: installed)
    assert notebook_address("01_x") == "01_x.ipynb"
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert notebook_address("01_x") == ON_COLAB
    assert 'href="https://colab.research.google.com/' in notebook_table()._repr_html_()
    del installed["Project-URL"]
    assert notebook_address("01_x") == "01_x.ipynb"


def test_a_stamp_changes_text_and_the_set_up_cell_and_keeps_outputs():
    def notebook(*sources):
        cells = [new_markdown_cell(sources[0]), new_code_cell(sources[1]), new_code_cell(sources[2])]
        return build.with_ids(new_notebook(cells=cells))

    built = notebook("# A", "import sys", "print(1)")
    built.cells[2].outputs = [new_output("stream", text="1\n")]
    wanted = notebook("# B", "import os, sys", "print(1)")
    assert hosted.stamp(built, wanted)
    assert [cell.source for cell in built.cells] == ["# B", "import os, sys", "print(1)"]
    assert [cell.id for cell in built.cells] == [cell.id for cell in wanted.cells]
    assert built.cells[2].outputs[0].text == "1\n"
    for other in (notebook("# B", "import os, sys", "print(2)"), new_notebook(cells=wanted.cells[:2])):
        before = nbformat.writes(built)
        assert not hosted.stamp(built, other) and nbformat.writes(built) == before
