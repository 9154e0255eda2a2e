"""Counts against a formula and against the file that the model saves."""

import torch
from safetensors.torch import load_file
from torch import nn

from ftkit.parameters import count_parameters, parameter_table
from tests.tiny import foreign_model, save_foreign


def test_count_of_an_mlp_by_formula():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    model[0].weight.requires_grad_(False)
    count = count_parameters(model)
    assert (count.total, count.trainable, count.bytes) == (3 * 5 + 5 + 5 * 2, 5 + 5 * 2, 4 * 30)
    assert count.local == count.total and count.on_meta == ()


def test_tied_weights_count_once(tmp_path):
    model = foreign_model()
    saved = load_file(save_foreign(tmp_path) / "model.safetensors")
    count = count_parameters(model)
    assert count.total == sum(t.numel() for t in saved.values())
    assert count.bytes == sum(t.numel() * t.element_size() for t in saved.values()) == 2 * count.total
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())  # untied: its rows count again
    assert count_parameters(model).total == count.total + model.lm_head.weight.numel()


def test_parameters_on_meta_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    count = count_parameters(model)
    assert count.on_meta == ("1.weight", "1.bias") and "2 on meta (1.weight, 1.bias)" in str(count)


def test_table_rows_add_up_and_show():
    model = foreign_model(torch.float32)
    table = parameter_table(model, depth=3)
    *groups, (last, total) = list(table)
    assert last == "total" and total == count_parameters(model)
    assert sum(count.total for _, count in groups) == total.total
    assert {"model.embed_tokens", "model.layers.0", "model.norm"} <= table.rows.keys()
    assert f"{total.total:,}" in str(table) and f"{total.total:,}" in table._repr_html_()
