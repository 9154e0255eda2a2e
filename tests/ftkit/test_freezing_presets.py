"""Presets against lists of names written out by hand, on four families of models."""

import copy
import warnings

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from ftkit import freezing as presets
from ftkit._modules import layer_lists
from ftkit.freezing import freeze, unfreeze
from ftkit.models import load_base
from ftkit.parameters import count_parameters
from tests.tiny import foreign_model

TIED = "model.embed_tokens.weight"
NORMS = [
    *[
        f"model.layers.{i}.{norm}.weight"
        for i in range(3)
        for norm in ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm")
    ],
    "model.norm.weight",
]


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 20}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=50))


def t5():
    return T5ForConditionalGeneration(T5Config(d_model=16, num_layers=1, vocab_size=50, d_kv=8, num_heads=2, d_ff=20))


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def agree(model, returned, expected):
    assert returned == trainable(model) == expected


def test_biases_only():
    model = load_base()[0]
    names = presets.bitfit(model)
    agree(model, names, [n for n in model.state_dict() if n.endswith(".bias")])
    assert count_parameters(model).trainable == 4 * (5 * 128 + 2 * 320)


def test_biases_of_norms_and_embeddings_count():
    model = bert()
    assert "bert.embeddings.LayerNorm.bias" in presets.bitfit(model)
    assert not [n for n in trainable(model) if "weight" in n]


@pytest.mark.parametrize("make", [foreign_model, t5])
def test_a_model_without_biases_is_refused_and_left_alone(make):
    model = make()
    freeze(model, "q")
    before = trainable(model)
    with pytest.raises(ValueError, match=r"BitFit trains biases, and .* has none"):
        presets.bitfit(model)
    assert trainable(model) == before


def test_norms_only():
    model = foreign_model()
    agree(model, presets.norms_only(model), NORMS)
    model = gpt2()
    assert len(presets.norms_only(model)) == 2 * (2 * 2 + 1)  # gain and bias of each LayerNorm


def test_embeddings_and_norms_of_a_tied_model_train_its_head_and_say_so():
    model = foreign_model()
    with pytest.warns(UserWarning, match="embed_tokens.weight is tied to lm_head.weight"):
        agree(model, presets.embeddings_and_norms(model), [TIED, *NORMS])
    untied = load_base()[0]
    names = presets.embeddings_and_norms(untied)
    assert "lm_head.weight" not in names and len(names) == 1 + 4 * 2 + 1


@pytest.mark.parametrize("n", [0, 2, 3])
def test_freezing_the_first_layers_of_a_tied_model_freezes_its_head(n):
    model = foreign_model()
    with pytest.warns(UserWarning, match="tied"):
        names = presets.freeze_first_layers(model, n)
    first = f"model.layers.{n}.self_attn.q_proj.weight" if n < 3 else "model.norm.weight"
    assert names[0] == first and names[-1] == "model.norm.weight" and names == trainable(model)
    assert len(names) == (3 - n) * 11 + 1


def test_nothing_flows_below_the_first_trainable_layer():
    model = load_base()[0]
    assert "lm_head.weight" in presets.freeze_first_layers(model, 2)
    inputs = []
    model.model.layers[2].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(input_ids=torch.arange(5)[None])
    assert not inputs[0].requires_grad
    presets.freeze_first_layers(model, 1)  # layer 1 trains now, so its output has a gradient
    model(input_ids=torch.arange(5)[None])
    assert inputs[1].requires_grad


def test_first_layers_of_other_families():
    model = bert()
    names = presets.freeze_first_layers(model, 1)
    assert not [n for n in names if "embeddings" in n or "layer.0." in n] and "classifier.bias" in names
    model = gpt2()
    with pytest.warns(UserWarning, match="tied"):
        assert presets.freeze_first_layers(model, 2) == [
            "transformer.ln_f.weight",
            "transformer.ln_f.bias",
        ]


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
BELOW_AND_ABOVE = {  # configuration -> names outside the blocks that freeze with the first block, and that still train
    "bloom": (
        BloomForCausalLM,
        BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=50, tie_word_embeddings=False),
        ["transformer.word_embeddings", "transformer.word_embeddings_layernorm"],
        ["transformer.ln_f", "lm_head"],
    ),
    "opt-350m": (
        OPTForCausalLM,
        OPTConfig(**SIZES, ffn_dim=20, word_embed_proj_dim=8, do_layer_norm_before=False, tie_word_embeddings=False),
        ["model.decoder.embed_tokens", "model.decoder.embed_positions", "model.decoder.project_in"],
        ["model.decoder.project_out", "lm_head"],
    ),
    "electra": (
        ElectraForSequenceClassification,
        ElectraConfig(**SIZES, intermediate_size=20, embedding_size=8),
        ["electra.embeddings", "electra.embeddings_project"],
        ["classifier"],
    ),
    "albert": (  # one block, shared by all layers
        AlbertForSequenceClassification,
        AlbertConfig(**SIZES, intermediate_size=20, embedding_size=8),
        ["albert.embeddings", "albert.encoder.embedding_hidden_mapping_in"],
        ["albert.pooler", "classifier"],
    ),
    "vit": (
        ViTForImageClassification,
        ViTConfig(**SIZES, intermediate_size=20, image_size=16, patch_size=8),
        ["vit.embeddings"],
        ["vit.layernorm", "classifier"],
    ),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        ["resnet.embedder"],
        ["classifier"],
    ),
}


@pytest.mark.parametrize("name", BELOW_AND_ABOVE)
def test_all_that_feeds_the_first_trainable_block_is_frozen(name):
    kind, config, below, above = BELOW_AND_ABOVE[name]
    model = kind(config).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    presets.freeze_first_layers(model, 1)
    ((blocks, _),) = layer_lists(model).items()

    def outside(names) -> set[str]:
        return {n for n in names if not n.startswith(f"{blocks}.")}

    def parts(prefixes: list[str]) -> set[str]:
        return {n for n, _ in model.named_parameters() if n.startswith(tuple(f"{p}." for p in prefixes))}

    assert outside(trainable(model)) == parts(above)
    assert outside(dict(model.named_parameters())) == parts(above) | parts(below)
    assert not [n for n in trainable(model) if n.startswith(f"{blocks}.0.")]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())  # batch norms, too
    presets.freeze_first_layers(model, 0)
    assert outside(trainable(model)) == parts(above)


def test_a_model_of_neither_tokens_nor_images_needs_inputs():
    class Signals(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = torch.nn.Linear(3, 4), torch.nn.ModuleList([torch.nn.Linear(4, 4)] * 1)

        def forward(self, signal):
            return self.blocks[0](self.stem(signal))

    model = Signals()
    model.stem.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"forward pass of Signals .*give `inputs`"):
        presets.freeze_first_layers(model, 0)
    assert trainable(model) == ["stem.weight", "blocks.0.weight", "blocks.0.bias"]  # as it was
    names = presets.freeze_first_layers(model, 0, inputs={"signal": torch.ones(2, 3)})
    agree(model, names, ["blocks.0.weight", "blocks.0.bias"])


def test_a_parameter_that_a_block_is_given_feeds_it():
    class Prompted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt, self.unused = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

        def forward(self, input_ids):
            return self.blocks[0](self.prompt)

    assert presets.freeze_first_layers(Prompted(), 0) == ["unused", "blocks.0.weight", "blocks.0.bias"]


def test_what_the_class_freezes_stays_frozen():
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
    sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 20, "vocab_size": 50}
    sizes |= {"num_mel_bins": 8, "max_source_positions": 30}
    sizes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes))
    sinusoids = "model.encoder.embed_positions.weight"
    freeze(model, "fc1|positions")
    presets.everything(model)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [sinusoids]
    names = presets.embeddings_and_norms(model.model.encoder)
    assert names and "embed_positions.weight" not in names
    assert unfreeze(model, "encoder.embed_positions") == [sinusoids]  # asked for by name


@pytest.mark.parametrize("n", [-1, 4])
def test_more_layers_than_there_are(n):
    with pytest.raises(ValueError, match=f"n is {n}, and model.layers has 3 blocks: give 0 to 3"):
        presets.freeze_first_layers(foreign_model(), n)


def test_two_lists_of_blocks_are_refused():
    with pytest.raises(ValueError, match=r"has encoder\.block, decoder\.block: name what should train"):
        presets.freeze_first_layers(t5(), 1)


def test_head_only():
    model = load_base()[0]
    agree(model, presets.head_only(model), ["lm_head.weight"])
    model = bert()
    agree(model, presets.head_only(model), ["classifier.weight", "classifier.bias"])
    model = foreign_model()
    with pytest.warns(UserWarning, match=r"lm_head.weight is tied to model.embed_tokens.weight"):
        agree(model, presets.head_only(model), [TIED])
    with pytest.raises(ValueError, match="LlamaModel is no base model with a head on top"):
        presets.head_only(load_base()[0].model)


@pytest.mark.parametrize("make", [lambda: load_base()[0], foreign_model, gpt2, bert])
def test_added_layers_change_nothing_until_they_train(make):
    model = make().eval()
    ids = torch.arange(6).reshape(2, 3)
    before, names_before = model(input_ids=ids).logits, list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the tie of the head is not concerned
        names = presets.add_layers(model, hidden_size=7)
    assert len(names) == 4 and all(".added." in n for n in names) and names == trainable(model)
    assert set(names_before) < set(model.state_dict())
    assert torch.equal(model(input_ids=ids).logits, before)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.ones_(parameter)
    assert not torch.equal(model(input_ids=ids).logits, before)


def test_added_layers_learn_and_can_be_copied():
    model = foreign_model(torch.float32)
    presets.add_layers(model)
    twin, ids = copy.deepcopy(model), torch.arange(6).reshape(2, 3)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == trainable(model)
    torch.nn.init.ones_(twin.lm_head.added[2].bias)  # the twin's hook reads the twin's layers
    assert twin(input_ids=ids, labels=ids).loss != loss
    assert model(input_ids=ids, labels=ids).loss == loss
    with pytest.raises(ValueError, match="added before"):
        presets.add_layers(model)


def test_a_fresh_head_is_frozen_until_it_is_named():
    model = bert()
    presets.norms_only(model)
    assert not model.classifier.weight.requires_grad
    assert unfreeze(model, "classifier") == ["classifier.weight", "classifier.bias"]


def test_presets_forget_what_was_frozen_before():
    model = load_base()[0]
    presets.bitfit(model)
    presets.head_only(model)
    assert trainable(model) == ["lm_head.weight"]
    presets.everything(model)
    assert count_parameters(model).trainable == count_parameters(model).total
