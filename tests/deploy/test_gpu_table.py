"""The table of GPUs on RunPod's page: no number of it is typed."""

import importlib.util
import random
import re

import pytest

from tests import ROOT

spec = importlib.util.spec_from_file_location("gpu_table", ROOT / "deploy/runpod/gpu_table.py")
gpu_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_table)


def rows():
    """(name of a model, name of a method) -> cells, as the page shows them."""
    block = gpu_table.BLOCK.search(gpu_table.PAGE.read_text(encoding="utf-8"))[0]
    lines = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| Llama")]
    return {tuple(line[:2]): line[2:] for line in lines}


def test_the_page_shows_what_the_script_computes():
    """One cell, drawn anew each time: all of them take a minute."""
    shown = rows()
    assert list(shown) == [(name, method) for name in gpu_table.MODELS.values() for method in gpu_table.METHODS]
    method, column = random.choice(list(gpu_table.METHODS)), random.randrange(len(gpu_table.COUNTS))
    peak = gpu_table.peak_bytes("llama-3-8b", gpu_table.METHODS[method], gpu_table.COUNTS[column])
    computed = gpu_table.cell(peak)
    assert shown["Llama 3 8B", method][column] == computed, "python deploy/runpod/gpu_table.py writes it"
    assert gpu_table.cell((peak or 0) + 2 * gpu_table.GIB) != computed


def test_a_peak_gets_the_smallest_gpu_with_a_tenth_to_spare():
    assert gpu_table.cell(int(0.9 * 24 * gpu_table.GIB)) == "22 GiB → **24**"
    assert gpu_table.cell(int(0.91 * 24 * gpu_table.GIB)) == "22 GiB → **32**"
    assert gpu_table.cell(500 * gpu_table.GIB) == "500 GiB → no GPU" and gpu_table.cell(None) == "–"


def test_the_states_of_full_fine_tuning_are_four_floats_a_weight_at_least():
    """Weights, gradients and two moments in float32, over the GPUs: from the published size, not from the planner."""
    weights = 8_030_261_248  # Llama 3 8B
    for gpus, shown in zip(gpu_table.COUNTS, rows()["Llama 3 8B", "all weights, AdamW"], strict=True):
        assert int(shown.split()[0]) > 0.95 * 16 * weights / gpus / gpu_table.GIB


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
