"""The parts of a Llama: counted by name, equal to the formula, drawn with their counts."""

import matplotlib
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

matplotlib.use("agg")

from ftcourse.model_picture import GROUPS, PARTS, count_groups, count_parts, plot_model, plot_shares, short
from ftcourse.plots import figure_svg

SIZES = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def llama(**changes):
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**{**SIZES, **HEADS, "tie_word_embeddings": False, **changes}))


def test_counts_are_those_of_the_formula():
    counts, (v, d, f, n) = count_parts(llama()), SIZES.values()
    key_value = d * d * HEADS["num_key_value_heads"] // HEADS["num_attention_heads"]
    assert counts == {
        "embedding": v * d,
        "norm before attention": n * d,
        "q_proj": n * d * d,
        "k_proj": n * key_value,
        "v_proj": n * key_value,
        "o_proj": n * d * d,
        "norm before MLP": n * d,
        "gate_proj": n * d * f,
        "up_proj": n * d * f,
        "down_proj": n * f * d,
        "final norm": d,
        "LM head": v * d,
    }
    assert list(counts) == list(PARTS)
    groups = count_groups(counts)
    assert list(groups) == list(GROUPS) and sum(groups.values()) == sum(counts.values())
    assert groups["MLP"] == 3 * n * d * f


def test_biases_belong_to_their_part():
    more = count_parts(llama(attention_bias=True))["q_proj"] - count_parts(llama())["q_proj"]
    assert more == SIZES["num_hidden_layers"] * SIZES["hidden_size"]


def test_other_designs_and_tied_heads_are_refused():
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match=r"transformer\.wte.*no part of a Llama"):
        count_parts(other)
    with pytest.raises(ValueError, match=r"no LM head.*tied"):
        count_parts(llama(tie_word_embeddings=True))
    extra = llama()
    extra.model.adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="adapter"):
        count_parts(extra)


@pytest.mark.parametrize(
    ("count", "said"),
    [(512, "512"), (1_022_080, "1.02 M"), (66_048, "66.0 k"), (131_072, "131 k"), (8_030_261_248, "8.03 B")],
)
def test_counts_in_three_digits(count, said):
    assert short(count) == said


def test_pictures_show_the_counts_and_shares_and_are_the_same_bytes_twice():
    models = {"small": count_parts(llama()), "wide": count_parts(llama(hidden_size=16))}
    ax = plot_model(models, {"small": 3, "wide": 3})
    said = {text.get_text() for text in ax.texts}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "blocks: × 3 / × 3"} <= said
    total = sum(models["small"].values())
    assert f"small\n{short(total)} parameters" in said and f"{400}   {400 / total:>5.1%}" in said  # the embedding
    assert figure_svg(ax.figure) == figure_svg(plot_model(models, {"small": 3, "wide": 3}).figure)
    bars = plot_shares(models)
    widths = [patch.get_width() for patch in bars.patches]
    assert sum(widths[::2]) == pytest.approx(1) and sum(widths[1::2]) == pytest.approx(1)
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in bars.patches}) == len(GROUPS)
