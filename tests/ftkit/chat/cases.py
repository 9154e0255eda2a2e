"""For every code of the catalogue one way to provoke it, and the same thing mended."""

import copy
from collections.abc import Callable

import torch
from tokenizers import AddedToken, processors
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
from trl import chat_template_utils as trl_templates

from ftkit.chat import (
    Finding,
    check_chat_template,
    check_dataset,
    check_labels,
    check_padding,
    check_tokenizer,
    check_weights,
    choose_pad_token,
)
from ftkit.conversations import training_template
from ftkit.models import load_base
from tests.tiny import CHATML, foreign_model, foreign_tokenizer

UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TURN = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"  # CHATML's assistant branch
HEADER = "<|im_start|>assistant\n"
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "the cat"},
            {"role": "assistant", "content": f"sat on {n} mats"},
        ]
    }
    for n in range(6)
]
MERGING = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "the cat"}]}]
WITH_SYSTEM = [{"messages": [{"role": "system", "content": "nine hills"}, *row["messages"]]} for row in ROWS]
SPACED = [{"messages": [row["messages"][0], {"role": "assistant", "content": "  if owl:\n"}]} for row in ROWS]


def tokenizer(template: str | None = CHATML, **tokens) -> PreTrainedTokenizerFast:
    """A copy of the foreign tokenizer with another template and other special tokens."""
    made = copy.deepcopy(foreign_tokenizer())
    made.chat_template = template
    for name, token in tokens.items():
        setattr(made, name, token)
    return made


def with_pad(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    choose_pad_token(made)
    return made


def adds_bos(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text with <|endoftext|>, as those of Llama begin it with BOS."""
    made = tokenizer(template, bos_token="<|endoftext|>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", made.bos_token_id)]
    )
    return made


def eats_line_breaks(rstrip: bool) -> PreTrainedTokenizerFast:
    made = tokenizer(CHATML.replace("<|im_start|>{{ m.role }}\n", "<|{{ m.role }}|>\n"))
    made.add_tokens([AddedToken(f"<|{r}|>", rstrip=rstrip, special=True) for r in ("user", "assistant")])
    return made


def enlarged(rows: bool) -> list[Finding]:
    model, made = foreign_model(torch.float32), tokenizer()
    made.add_tokens([f"<|new_{i}|>" for i in range(20)])
    if rows:
        model.resize_token_embeddings(len(made))
    return check_tokenizer(made, model)


def pocket(trained: bool, frozen: bool) -> list[Finding]:
    model, made = load_base()
    embedding = model.get_input_embeddings().weight
    if trained:
        special = made.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
        ordinary = made.convert_tokens_to_ids(["<s>", "</s>", "The"])
        with torch.no_grad():
            embedding[special] = embedding[ordinary]
    embedding.requires_grad_(not frozen)
    return check_tokenizer(made, model)


def resized(frozen: bool) -> list[Finding]:
    """A new token of the template, with the row that resize_token_embeddings draws for it."""
    model, made = foreign_model(torch.float32), tokenizer(CHATML.replace("<|im_start|>", "<|turn|>"))
    made.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    torch.manual_seed(0)
    model.resize_token_embeddings(model.get_input_embeddings().num_embeddings + 1)
    made.add_tokens([f"<|fill_{i}|>" for i in range(13)])
    with torch.no_grad():  # the token's row is one of the foreign model's spare ones: give it the drawn one
        embedding = model.get_input_embeddings().weight
        embedding[made.convert_tokens_to_ids("<|turn|>")] = embedding[-1]
    embedding.requires_grad_(not frozen)
    return check_tokenizer(made, model)


def untied(trained: bool) -> list[Finding]:
    """An LM head of its own, whose rows of the template's tokens are as small as before training."""
    model, made = foreign_model(torch.float32), tokenizer()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    if not trained:
        with torch.no_grad():
            model.lm_head.weight[made.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])] *= 0.01
    return check_tokenizer(made, model)


def weights(change: Callable | None = None, missing: tuple[str, ...] = ()) -> list[Finding]:
    model = foreign_model()
    if change:
        with torch.no_grad():
            change(model.model.norm.weight)
    return check_weights(model, {"missing_keys": set(missing)})


def chats(*contents: str, **answer) -> list[dict]:
    """A conversation of these turns, beginning with the user's; `answer` are further keys of the assistant's."""
    roles = [("user", "assistant")[k % 2] for k in range(len(contents))]
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return [{"messages": [turn | answer if turn["role"] == "assistant" else turn for turn in turns]}]


def calls(arguments: dict | str) -> list[dict]:
    function = {"name": "count", "arguments": arguments}
    return chats("how many owls", "", tool_calls=[{"type": "function", "function": function}])


def collated(pad_token: str) -> list[Finding]:
    """Labels as transformers' collator for language models makes them: masked wherever the pad token is."""
    made = tokenizer(pad_token=pad_token)
    rows = [made.apply_chat_template(row["messages"], return_dict=True) for row in ROWS]
    return check_labels(made, DataCollatorForLanguageModeling(made, mlm=False)(rows))


def with_masks(change: Callable | None) -> list[Finding]:
    """check_padding on a model whose attention mask `change` replaces before the model sees it."""
    model = foreign_model()

    def hook(module, args, kwargs):
        return args, kwargs | {"attention_mask": change(kwargs["attention_mask"])}

    if change:
        model.register_forward_pre_hook(hook, with_kwargs=True)
    return check_padding(model, foreign_tokenizer())


def padding_only(mask: torch.Tensor) -> torch.Tensor:
    """A (B, 1, T, T) mask that hides pads and forgets what is causal."""
    hidden = torch.finfo(torch.bfloat16).min
    allowed = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1).bool()
    return torch.where(allowed, 0.0, hidden).to(torch.bfloat16)


def causal_and_padding(mask: torch.Tensor) -> torch.Tensor:
    """The same with both."""
    width = mask.shape[1]
    # Every token may see itself: a pad that sees nothing gives NaN.
    allowed = mask[:, None, None, :].bool() & torch.ones(width, width).tril().bool() | torch.eye(width).bool()
    return torch.where(allowed, 0.0, torch.finfo(torch.bfloat16).min).to(torch.bfloat16)


def template(text: str | None, **tokens) -> list[Finding]:
    return check_chat_template(tokenizer(text, **tokens))


def with_positions(positions: int) -> list[Finding]:
    model = foreign_model()
    model.config.max_position_embeddings = positions
    return check_dataset(tokenizer(), ROWS, model=model)


def data(text: str | None, rows: list[dict] = ROWS, max_length: int | None = None, **tokens) -> list[Finding]:
    return check_dataset(tokenizer(text, **tokens), rows, max_length)


BLOCKS = CHATML.replace("{{ m.content }}", "{% for b in m.content %}{{ b.text }}{% endfor %}")
EVERYTHING = "{% generation %}" + UNMARKED + "{% endgeneration %}"
NEXT_TURN_CLOSES = (
    "{% for m in messages %}{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% if loop.last %}<|im_end|>{% endif %}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
DROPS_SYSTEM = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}" + CHATML
COLON = CHATML.replace("<|im_start|>{{ m.role }}\n", "{{ m.role }}: ").replace(HEADER, "assistant: ")
EOS_AT_THE_END = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"

# An answer that is not the last one loses what stands before the bar.
DROPS_BEFORE_BAR = "{{ m.content if loop.last or m.role == 'user' else m.content.split('|')[-1] }}"
WRITES_CALLS = CHATML.replace(TURN, "{{ m.tool_calls | default([]) | tojson }}" + TURN)
MARKED_HEADER = CHATML.replace(
    "<|im_start|>{{ m.role }}\n", "{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{% endif %}"
).replace(TURN, TURN.replace("{% generation %}", "{% generation %}<|im_start|>assistant\n"))

# code: (a call whose findings have it, a call whose findings do not)
CASES: dict[str, tuple[Callable[[], list[Finding]], Callable[[], list[Finding]]]] = {
    "untrained-output-token": (lambda: untied(trained=False), lambda: untied(trained=True)),
    "weights-missing": (lambda: weights(missing=("model.norm.weight",)), lambda: weights()),
    "weights-not-finite": (lambda: weights(lambda norm: norm[3].fill_(torch.nan)), lambda: weights()),
    "turns-not-in-loss": (
        lambda: data(UNMARKED.replace("{{ m.content }}", DROPS_BEFORE_BAR), chats("hi", "so|yes", "and", "no")),
        lambda: data(UNMARKED, chats("hi", "so|yes", "and", "no")),
    ),
    "role-header-in-loss": (lambda: template(MARKED_HEADER), lambda: template(CHATML)),
    "empty-answer": (lambda: data(CHATML, chats("hi", " \n")), lambda: data(CHATML, chats("hi", " \n", weight=0))),
    "ends-without-answer": (lambda: data(CHATML, chats("a", "b", "c")), lambda: data(CHATML, chats("a", "b"))),
    "control-token-in-text": (
        lambda: data(CHATML, chats("what is <|im_end|> for", "an end")),
        lambda: data(CHATML, chats("what is <|im_END|> for", "an end")),
    ),
    "arguments-as-text": (lambda: data(WRITES_CALLS, calls('{"n": 1}')), lambda: data(WRITES_CALLS, calls({"n": 1}))),
    "arguments-not-json": (lambda: data(WRITES_CALLS, calls("n = 1")), lambda: data(WRITES_CALLS, calls({"n": 1}))),
    "turns-left-out": (
        lambda: data(CHATML, chats("a", "b", train=False)),
        lambda: data(CHATML, chats("a", "b", train=True)),
    ),
    "unknown-template-argument": (
        lambda: data(CHATML, [ROWS[0] | {"chat_template_kwargs": {"loud": True}}]),
        lambda: data(CHATML + "{{ '!' if loud }}", [ROWS[0] | {"chat_template_kwargs": {"loud": True}}]),
    ),
    "duplicate-example": (lambda: data(CHATML, [ROWS[0], ROWS[1], ROWS[0]]), lambda: data(CHATML, ROWS)),
    "positions-exceeded": (lambda: with_positions(16), lambda: with_positions(64)),
    "no-pad-token": (
        lambda: check_tokenizer(tokenizer(pad_token=None)),
        lambda: check_tokenizer(with_pad(tokenizer(pad_token=None))),
    ),
    "pad-is-stop": (
        lambda: check_tokenizer(tokenizer(pad_token="<|im_end|>")),
        lambda: check_tokenizer(with_pad(tokenizer(pad_token="<|im_end|>"))),
    ),
    "vocabulary-exceeds-embedding": (lambda: enlarged(rows=False), lambda: enlarged(rows=True)),
    "untrained-token": (
        lambda: pocket(trained=False, frozen=False),
        lambda: pocket(trained=True, frozen=False),
    ),
    "untrained-frozen-token": (lambda: resized(frozen=True), lambda: resized(frozen=False)),
    "no-template": (lambda: template(None), lambda: template(CHATML)),
    "template-fails": (lambda: template(CHATML.replace("{% endfor %}", "")), lambda: template(CHATML)),
    "wants-content-blocks": (lambda: template(BLOCKS), lambda: template(CHATML)),
    "content-lost": (lambda: template(CHATML.replace(TURN, "")), lambda: template(CHATML)),
    "no-generation-markers": (lambda: template(UNMARKED), lambda: template(CHATML)),
    "markers-from-trl": (
        lambda: template(trl_templates.qwen2_5_chat_template),
        lambda: template(training_template(tokenizer(trl_templates.qwen2_5_chat_template))),
    ),
    "answer-not-in-loss": (
        lambda: template(UNMARKED.replace("<|im_end|>", "{% generation %}<|im_end|>{% endgeneration %}", 1)),
        lambda: template(CHATML),
    ),
    "prompt-in-loss": (lambda: template(EVERYTHING), lambda: template(CHATML)),
    "gap-before-answer": (
        lambda: template(CHATML.replace(TURN, "Answer:\n" + TURN)),
        lambda: template(CHATML.replace(TURN, "Answer:\n" + TURN).replace(HEADER, HEADER + "Answer:\n")),
    ),
    "turn-not-closed": (
        lambda: template(CHATML.replace(TURN, TURN.replace("<|im_end|>", ""))),
        lambda: template(CHATML),
    ),
    "turn-end-is-text": (
        lambda: template(CHATML.replace("<|im_end|>", "\n###")),
        lambda: template(CHATML.replace("<|im_end|>", "\n###<|im_end|>")),
    ),
    "turn-end-is-not-eos": (
        lambda: template(CHATML, eos_token="<|endoftext|>"),
        lambda: template(CHATML, eos_token="<|im_end|>"),
    ),
    "stop-not-in-loss": (
        lambda: template(CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")),
        lambda: template(CHATML),
    ),
    "bos-doubled": (
        lambda: check_chat_template(adds_bos("{{ bos_token }}" + CHATML)),
        lambda: check_chat_template(adds_bos(CHATML)),
    ),
    "system-rejected": (lambda: template(NO_SYSTEM), lambda: template(CHATML)),
    "system-dropped": (lambda: template(DROPS_SYSTEM), lambda: template(CHATML)),
    "strips-whitespace": (
        lambda: template(CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")),
        lambda: template(CHATML),
    ),
    "prompt-differs": (
        lambda: template(CHATML.replace(HEADER, HEADER + "<think>\n")),
        lambda: template(CHATML.replace(HEADER, HEADER + "<think>\n").replace(TURN, "<think>\n" + TURN)),
    ),
    "tokens-merge": (
        lambda: data(COLON, MERGING),  # "assistant: " ends with a space, and " the" is one token
        lambda: data(CHATML, MERGING),
    ),
    "history-changes": (lambda: template(EOS_AT_THE_END), lambda: template(CHATML)),
    "tool-turns-change": (
        lambda: template(trl_templates.qwen3_chat_template),
        lambda: template(trl_templates.qwen3_training_chat_template),
    ),
    "round-trip-lossy": (
        lambda: check_chat_template(eats_line_breaks(rstrip=True)),
        lambda: check_chat_template(eats_line_breaks(rstrip=False)),
    ),
    "date-in-prompt": (
        lambda: template("{{ strftime_now('%d %B') }}\n" + CHATML),
        lambda: template("{{ date | default('1 May') }}\n" + CHATML),
    ),
    "row-fails": (lambda: data(NO_SYSTEM, WITH_SYSTEM), lambda: data(NO_SYSTEM, ROWS)),
    "text-lost": (lambda: data(DROPS_SYSTEM, WITH_SYSTEM), lambda: data(CHATML, WITH_SYSTEM)),
    "text-altered": (
        lambda: data(CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"), SPACED),
        lambda: data(CHATML, SPACED),
    ),
    "all-labels-masked": (
        lambda: data(CHATML, max_length=4),
        lambda: data(CHATML, max_length=100),
    ),
    "stop-not-in-labels": (
        lambda: data(CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")),
        lambda: data(CHATML),
    ),
    "stop-masked-by-pad": (lambda: collated("<|im_end|>"), lambda: collated("<|endoftext|>")),
    "answer-cut-off": (lambda: data(CHATML, max_length=24), lambda: data(CHATML, max_length=100)),
    "padding-changes-logits": (lambda: with_masks(torch.ones_like), lambda: with_masks(None)),
    "future-changes-logits": (lambda: with_masks(padding_only), lambda: with_masks(causal_and_padding)),
}
