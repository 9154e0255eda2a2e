"""Prepare a tokenizer for chat fine-tuning (chat template, pad token) and check its tokens and their embeddings."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.conversations.rendering import CHAT, ChatTemplate, TemplateFailed, own_template
from ftkit.findings import Finding

from .findings import finding
from .rendering import end_of_turn_id, stop_ids, tokens

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# ChatML as in Qwen and many other models, with generation markers.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def add_chat_template(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Set up ChatML and return how many of its two tokens are new.

    `<|im_end|>` becomes EOS, so generation stops at the end of a turn. The embedding is resized where needed; the new
    rows have to be trained. Raises ValueError for a tokenizer that has a template already.
    """
    if tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path} has a chat template: use it, or set tokenizer.chat_template = None first"
        )
    added = tokenizer.add_special_tokens({"additional_special_tokens": [TURN_START], "eos_token": TURN_END}, False)
    tokenizer.chat_template = CHATML
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return added


NEW_PAD = "<|pad|>"


@dataclass(frozen=True)
class PadToken:
    token: str
    token_id: int
    origin: str  # "defined" (the tokenizer's own), "unk" or "new"
    new_rows: int  # embedding rows that the model got for it


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> PadToken:
    """Set a pad token: the one that is defined, else the unknown token, else a new one.

    A token that ends an answer (EOS or the end-of-turn token) is never used. Updates the tokenizer, the pad token id
    in both of the model's configs and, for a new token, the embedding: save both afterwards. Without a model, a new
    token may lack an embedding row, which `check_tokenizer(tokenizer, model)` reports.
    """
    stops = stop_ids(tokenizer, model) | {end_of_turn_id(tokenizer)}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in stops:
        origin = "defined"
    elif tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in stops:
        origin = "unk"
        tokenizer.pad_token = tokenizer.unk_token
    else:
        origin = "new"
        tokenizer.add_special_tokens({"pad_token": NEW_PAD})
    new_rows = 0
    if model is not None:
        rows = model.get_input_embeddings().weight.shape[0]
        if tokenizer.pad_token_id >= rows:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1)
            new_rows = model.get_input_embeddings().weight.shape[0] - rows
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        if model.can_generate():
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    return PadToken(tokenizer.pad_token, tokenizer.pad_token_id, origin, new_rows)


# Of pocket-base's embedding rows, those never trained have a fifth of the median norm, those trained about all of it.
SMALL_NORM = 0.4
# transformers initialises new rows around the mean row, with 1e-5 of the spread.
NEAR_MEAN = 0.05


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> list[Finding]:
    """Check the pad token and, with a `model`, whether the template's tokens have trained embeddings."""
    found = _check_pad(tokenizer, model)
    if model is None:
        return found
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    if outside := [token for token, i in vocabulary.items() if i >= rows]:
        observed = (
            f"{rows} embedding rows, but {max(outside, key=vocabulary.get)!r} is token {max(vocabulary.values())}"
        )
        found.append(finding("vocabulary-exceeds-embedding", observed))
    return found + _check_untrained(tokenizer, model)


def _check_pad(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None) -> list[Finding]:
    if tokenizer.pad_token_id is None:
        return [finding("no-pad-token", "tokenizer.pad_token is None")]
    if tokenizer.pad_token_id in stop_ids(tokenizer, model) | {end_of_turn_id(tokenizer)}:
        return [finding("pad-is-stop", f"{tokenizer.pad_token!r} is the pad token and ends answers")]
    return []


def _check_untrained(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Finding]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found, used = [], template_tokens(tokenizer)

    def names(weight: torch.Tensor) -> str:
        untrained = untrained_rows(weight)
        rows = [i for i in used if i < len(untrained) and untrained[i]]
        return ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(rows))

    if said := names(embedding.weight):
        if any(parameter.requires_grad for parameter in embedding.parameters()):
            found.append(finding("untrained-token", f"the embedding rows of {said} look untrained"))
        else:
            observed = f"the embedding rows of {said} look untrained, and are frozen"
            found.append(finding("untrained-frozen-token", observed))
    untied = head is not None and getattr(head, "weight", None) is not embedding.weight
    if untied and (said := names(head.weight)):
        found.append(finding("untrained-output-token", f"the rows of the LM head for {said} look untrained"))
    return found


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special and added tokens that the chat template writes, in order."""
    template = own_template(tokenizer)
    if template is None:
        return []
    own = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    try:
        ids = tokens(ChatTemplate(tokenizer, template), CHAT)
    except TemplateFailed:
        return []
    return [i for i in dict.fromkeys(ids) if i in own]


@torch.no_grad()
def untrained_rows(embedding: torch.Tensor) -> torch.Tensor:
    """Guess which rows of a (V, D) embedding are untrained: bool, (V,).

    Their norm is far below the median, since initial scales are small, or they lie at the mean of all rows, where
    `resize_token_embeddings` puts new ones. None is found in a model that is not trained at all.
    """
    rows = embedding.detach().float()
    norms = rows.norm(dim=1)
    from_mean = (rows - rows.mean(dim=0)).norm(dim=1)
    return (norms < SMALL_NORM * norms.median()) | (from_mean < NEAR_MEAN * from_mean.median())
