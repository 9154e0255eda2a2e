"""LoRA on ranks: flags, adapters that begin the same everywhere, and names of parameters and files belong together."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftkit.adapters.saving import base_name
from ftkit.finetune.config import Config, validate
from ftkit.finetune.lora import attach_lora, attach_trained_adapters, lora_options, reset_adapters, validate_lora
from tests.tiny import foreign_model, foreign_tokenizer, save_foreign

OPTIONS = {"r": 4, "lora_alpha": 8.0, "target_modules": "all-linear"}
# On every kind of parameter that trains.
WIDE = OPTIONS | {
    "target_modules": ["q_proj", "embed_tokens", "lm_head"],
    "use_dora": True,
    "modules_to_save": ["norm"],
}
ROWS = OPTIONS | {"trainable_token_indices": [5, 9], "modules_to_save": ["lm_head", "layers.1.mlp.up_proj"]}


def untied_model(dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(foreign_tokenizer()) + 13, **sizes, tie_word_embeddings=False)
    return LlamaForCausalLM(config).to(dtype)


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def options_of(**settings):
    return lora_options(Config(output="x", method="lora", **settings))


def test_adapters_depend_on_seed_and_name_alone():
    models = [attach_lora(untied_model(), **WIDE) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(id(model) % 1000)  # what else was drawn before does not matter
        reset_adapters(model, seed)
    one, same, other = map(adapters, models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    firsts = [name for name in one if "lora_A" in name or "lora_embedding_B" in name]
    assert all(not torch.equal(one[name], other[name]) for name in firsts)
    assert len({one[name].flatten()[0].item() for name in firsts}) == len(firsts)
    for name in firsts:
        if "lora_A" in name:
            bound = one[name].shape[1] ** -0.5
            assert one[name].abs().max() <= bound and one[name].abs().max() > 0.8 * bound
        else:  # an embedding's factor that is not zero
            assert one[name].std() == pytest.approx(1, rel=0.15)
    zeros = [name for name in one if "lora_B" in name or "lora_embedding_A" in name]
    assert len(zeros) == len(firsts) and all(one[name].eq(0).all() for name in zeros)


def test_magnitudes_and_token_rows_start_at_the_base():
    """As PEFT computes them where the base is loaded before LoRA is attached."""
    for options in (WIDE, ROWS):
        theirs, ours = (attach_lora(untied_model(torch.float32), **options) for _ in range(2))
        started = [name for name in adapters(ours) if "magnitude" in name or "tokens_delta" in name]
        with torch.no_grad():
            for name in started:
                ours.get_parameter(name).fill_(9.0)
            for name, buffer in ours.named_buffers():
                buffer.fill_(9.0) if "tokens_original" in name else None
        reset_adapters(ours, 0)
        assert started
        for name in started:
            torch.testing.assert_close(adapters(ours)[name], adapters(theirs)[name])
        assert not any(buffer.eq(9.0).any() for name, buffer in ours.named_buffers() if "tokens_original" in name)


@pytest.mark.parametrize("options", [WIDE, ROWS], ids=["wide", "rows"])
def test_base_in_bfloat16_what_trains_and_buffers_in_float32(options):
    model = attach_lora(untied_model(torch.float32), torch.bfloat16, **options)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    frequencies = [b for name, b in model.named_buffers() if name.endswith("inv_freq")]
    assert frequencies and all(b.dtype == torch.float32 for b in frequencies)


@pytest.mark.parametrize("options", [OPTIONS, WIDE, ROWS], ids=["plain", "wide", "rows"])
def test_names_in_files_are_those_of_the_base(options):
    model = attach_lora(untied_model(), **options)
    names = {name: base_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    assert {name for name in names.values() if name} == set(untied_model().state_dict())
    own = {name for name, base in names.items() if base is None}
    assert own == {name for name in adapters(model) if "modules_to_save" not in name}


@pytest.mark.parametrize("options", [OPTIONS, WIDE, ROWS], ids=["plain", "wide", "rows"])
def test_trained_adapters_come_back_and_missing_ones_are_named(options):
    model = attach_lora(untied_model(torch.float32), **options)
    reset_adapters(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    trained = adapters(model)
    ids = torch.arange(3, 11).view(1, 8)
    again = attach_trained_adapters(untied_model(torch.float32), trained, **options)
    assert torch.equal(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    trained.pop(next(iter(trained)))
    with pytest.raises(RuntimeError, match="adapters and model differ in"):
        attach_trained_adapters(untied_model(torch.float32), trained, **options)


def test_a_tied_matrix_gets_no_lora_because_its_merge_would_change_both_uses():
    for pattern in (["q_proj", "lm_head"], ".*(q_proj|embed_tokens)"):
        with pytest.raises(ValueError, match="are tied, so that merging it would change both"):
            attach_lora(foreign_model(), **OPTIONS | {"target_modules": pattern})


@pytest.mark.parametrize("given", ["modules_to_save", "trainable_token_indices"])
def test_a_tied_embedding_trains_on_one_process_only(given):
    options = options_of(**{given: "lm_head" if given == "modules_to_save" else "5"})
    validate_lora(foreign_model(), 1, options)
    with pytest.raises(ValueError, match=f"--{given} trains an embedding that is tied .* does not run on 2 ranks"):
        validate_lora(foreign_model(), 2, options)
    validate_lora(untied_model(), 2, options)


def test_names_separated_by_commas_and_regular_expressions():
    assert options_of()["target_modules"] == "all-linear"
    assert options_of(target_modules="q_proj,v_proj")["target_modules"] == ["q_proj", "v_proj"]
    assert options_of(target_modules="q_proj")["target_modules"] == ["q_proj"]
    assert options_of(target_modules=".*(q|v)_proj")["target_modules"] == ".*(q|v)_proj"
    assert options_of(modules_to_save="norm, lm_head")["modules_to_save"] == ["norm", "lm_head"]
    assert options_of()["modules_to_save"] is None and options_of()["trainable_token_indices"] is None


def test_tokens_are_ids_or_texts_of_one_token(tmp_path):
    source, tokenizer = str(save_foreign(tmp_path / "qwen")), foreign_tokenizer()
    ids = options_of(model=source, trainable_token_indices="<|im_end|>,7,<|im_start|>,7")["trainable_token_indices"]
    assert ids == sorted([7, *tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])])
    with pytest.raises(
        ValueError, match=r"'zebra' is \d tokens of the model's tokenizer: give tokens of its vocabulary"
    ):
        options_of(model=source, trainable_token_indices="zebra")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_dropout": 1.0}, "--lora_dropout is 1.0: give a probability from 0 to below 1"),
        ({"loraplus_lr_ratio": 0.5}, "--loraplus_lr_ratio is 0.5: give 1 or more"),
        ({"neftune_noise_alpha": -1.0, "method": "full"}, "--neftune_noise_alpha is -1.0: give 0 or more"),
        ({"use_dora": True, "method": "full"}, "--use_dora is LoRA's: give --method lora"),
        ({"modules_to_save": "norm", "method": "full"}, "--modules_to_save is LoRA's"),
    ],
)
def test_impossible_flags_are_named(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        validate(Config(output=str(tmp_path / "new"), **{"method": "lora"} | settings))
