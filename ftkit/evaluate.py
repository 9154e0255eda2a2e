"""Generate answers, and measure exact match and stop rate.

Shapes: B prompts in a batch, T tokens (prompts are padded on the left), V vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.chat.rendering import end_of_turn_id

from ._modules import eval_mode

Prompt = str | list[dict[str, str]]  # plain text to complete, or messages that end with the user's turn


@dataclass(frozen=True)
class Answer:
    text: str
    stopped: bool  # by a stop token or a stop string; False where max_new_tokens truncated the answer
    tokens: int  # without the stop token, but with those of a stop string


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's and the model's EOS, and the end-of-turn token."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in (*found, tokenizer.eos_token_id, end_of_turn_id(tokenizer)) if i is not None})


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    stop_strings: Sequence[str] = (),
) -> list[Answer]:
    """Answer prompts greedily in left-padded batches, up to a stop token or stop string; restores the model's mode."""
    if "" in stop_strings:
        raise ValueError("an empty stop string ends every answer at once: leave it out")
    stops = stop_token_ids(model, tokenizer)
    until = {"stop_strings": list(stop_strings), "tokenizer": tokenizer} if stop_strings else {}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    # Sorted by length, because similar lengths need the least padding.
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    answers: dict[int, Answer] = {}
    with eval_mode(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            width = max(len(encoded[i]) for i in rows)
            input_ids = torch.tensor([[pad] * (width - len(encoded[i])) + encoded[i] for i in rows])  # (B, T)
            lengths = torch.tensor([len(encoded[i]) for i in rows])
            attention_mask = (torch.arange(width) >= width - lengths[:, None]).long()  # (B, T)
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=pad,
                **until,
            )[:, width:]
            for i, new in zip(rows, output.tolist(), strict=True):
                cut = next((k for k, token in enumerate(new) if token in stops), None)
                text = tokenizer.decode(new[:cut], skip_special_tokens=True)
                end = min((text.index(stop) for stop in stop_strings if stop in text), default=None)
                if end is not None:  # padding follows the fewest tokens that contain a stop string
                    texts = (tokenizer.decode(new[:k], skip_special_tokens=True) for k in range(len(new) + 1))
                    cut = next(k for k, each in enumerate(texts) if any(stop in each for stop in stop_strings))
                answers[i] = Answer(text[:end].strip(), stopped=cut is not None, tokens=len(new[:cut]))
    return [answers[i] for i in range(len(encoded))]


def stream_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, max_new_tokens: int = 48
) -> Iterator[str]:
    """Yield the greedy answer in pieces of complete characters, special tokens included, up to a stop token.

    It is `generate`'s answer. A model without `past_key_values`, such as Mamba or XLNet, gives it when it is complete.
    """
    stops = stop_token_ids(model, tokenizer)
    input_ids = torch.tensor([encode_prompt(tokenizer, prompt)], device=model.device)  # (1, T)
    generated: list[int] = []
    shown = text = ""
    with eval_mode(model):
        for token in _greedy_tokens(model, input_ids, stops, max_new_tokens):
            if token in stops:
                break
            generated.append(token)
            text = tokenizer.decode(generated)
            if not text.endswith("\ufffd"):  # half of a multi-byte character: wait for the rest
                yield text[len(shown) :]
                shown = text
    if text != shown:
        yield text[len(shown) :]


def _greedy_tokens(
    model: PreTrainedModel, input_ids: torch.Tensor, stops: list[int], max_new_tokens: int
) -> Iterator[int]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # With virtual tokens, the cache would be longer than the text.
    virtual = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    one_by_one = not virtual and "past_key_values" in inspect.signature(inner.forward).parameters
    options = {"do_sample": False, "eos_token_id": stops or None, "pad_token_id": next(iter(stops), 0)}
    options |= {"max_new_tokens": 1 if one_by_one else max_new_tokens, "return_dict_in_generate": True}
    for _ in range(max_new_tokens if one_by_one else 1):
        output = model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **options)
        yield from output.sequences[0, input_ids.shape[1] :].tolist()
        input_ids, options["past_key_values"] = output.sequences, output.past_key_values


def stop_rate(answers: Sequence[Answer]) -> float:
    """The fraction of answers that the model ended with a stop token."""
    return sum(answer.stopped for answer in answers) / len(answers)


def exact_match(answers: Sequence[Answer], references: Sequence[str]) -> float:
    """The fraction of answers that equal their reference, outer white space aside."""
    return sum(a.text == r.strip() for a, r in zip(answers, references, strict=True)) / len(references)
