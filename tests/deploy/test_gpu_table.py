"""The table of GPUs on RunPod's page: no number of it is typed."""

import importlib.util
import re

import pytest

from tests import ROOT

spec = importlib.util.spec_from_file_location("gpu_table", ROOT / "deploy/runpod/gpu_table.py")
gpu_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_table)


def test_the_page_shows_what_the_script_computes():
    page = gpu_table.PAGE.read_text(encoding="utf-8")
    assert gpu_table.BLOCK.search(page)[0] == f"{gpu_table.BLOCK.search(page)[1]}{gpu_table.table()}", (
        "python deploy/runpod/gpu_table.py writes it"
    )


def test_a_peak_gets_the_smallest_gpu_with_a_tenth_to_spare():
    assert gpu_table.cell(int(0.9 * 24 * gpu_table.GIB)) == "22 GiB → **24**"
    assert gpu_table.cell(int(0.91 * 24 * gpu_table.GIB)) == "22 GiB → **32**"
    assert gpu_table.cell(500 * gpu_table.GIB) == "500 GiB → no GPU" and gpu_table.cell(None) == "–"


def test_the_states_of_full_fine_tuning_are_four_floats_a_weight_at_least():
    """Weights, gradients and two moments in float32, over the GPUs: from the published size, not from the planner."""
    weights = 8_030_261_248  # Llama 3 8B
    for gpus in (4, 8):
        assert gpu_table.peak_bytes("llama-3-8b", "", gpus) > 16 * weights / gpus


def test_a_method_that_the_program_does_not_shard_has_no_number():
    assert gpu_table.peak_bytes("llama-3-8b", "--method lora --load_in_4bit", 2) is None
    with pytest.raises(ValueError, match="hay"):
        gpu_table.peak_bytes("llama-3-8b", "--hay", 1)


def test_writing_replaces_the_block_alone(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- gpus: written by gpu_table.py -->\nold\n<!-- end of gpus -->\nb\n")
    monkeypatch.setattr(gpu_table, "table", lambda: "new\n")
    gpu_table.write(page)
    assert re.sub(r"<!--.*?-->", "", page.read_text()) == "a\n\nnew\n\nb\n"
