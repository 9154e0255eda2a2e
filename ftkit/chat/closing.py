"""What closes an assistant's turn, and so what a model has to say in order to stop."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .render import Rendered, Renderer, own_template

QUESTION, ANSWER = "What is 6 times 7?", "It is forty-two."
SECOND_QUESTION, SECOND_ANSWER = "And 6 times 8?", "That is forty-eight."
# What the checks let a template write: four turns whose texts occur nowhere else.
CHAT = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": SECOND_QUESTION},
    {"role": "assistant", "content": SECOND_ANSWER},
]


@dataclass(frozen=True)
class Closing:
    """What a template writes after an answer, up to the next turn's text: the tokens that are not white space."""

    text: str
    positions: list[int]  # of all of them
    marks: list[int]  # positions of those that the tokenizer has as special or added tokens


def find_closing(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered, answer: str, until: str | None = None
) -> Closing:
    """What follows `answer`, up to the text `until` (default: to the end)."""
    start = rendered.text.rindex(answer) + len(answer)
    end = rendered.text.index(until, start) if until else len(rendered.text)
    positions = [
        i for i, (a, b) in enumerate(rendered.spans) if start <= a < end and rendered.text[a:b].strip()
    ]
    own = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    marks = [i for i in positions if rendered.input_ids[i] in own]
    return Closing(rendered.text[start:end], positions, marks)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> set[int]:
    """The tokens at which generate() stops: the tokenizer's EOS and the model's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {i for i in (*listed, tokenizer.eos_token_id) if i is not None}


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that closes an answer in the tokenizer's chat template; None where there is none.

    A model tuned on the template must learn to say this token in order to stop. Where several tokens close the
    answer, the one that is EOS counts, else the first.
    """
    template = own_template(tokenizer)
    if template is None:
        return None
    try:
        rendered = Renderer(tokenizer, template).rendered(CHAT[:2])
        closing = find_closing(tokenizer, rendered, ANSWER)
    except ValueError:  # the template fails, or leaves out the answer
        return None
    marks = [rendered.input_ids[i] for i in closing.marks]
    return next((i for i in marks if i == tokenizer.eos_token_id), marks[0] if marks else None)
