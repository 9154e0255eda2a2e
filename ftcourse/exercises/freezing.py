"""Checkers for 04_freezing: a pattern of names, BitFit by hand, and the bytes of AdamW's moments."""

import re

import torch
from torch import nn

from . import WrongAnswer, checker, match_known_mistake, require_answer

KINDS = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")


@checker
def check_first_two_blocks(pattern) -> str:
    """Check `pattern()`: a regular expression for the embeddings and blocks 0 and 1 of a model of twelve."""
    names = [f"model.layers.{i}.{kind}.{own}" for i in range(12) for kind in KINDS for own in ("weight", "bias")]
    names = ["model.embed_tokens.weight", *names, "model.norm.weight", "lm_head.weight"]
    wanted = {name for name in names if re.match(r"model\.(embed_tokens|layers\.[01])\.", name)}
    text = require_answer(pattern())
    if not isinstance(text, str):
        raise WrongAnswer(f"a string is wanted, and your code returns a {type(text).__name__}.")
    try:
        found = {name for name in names if re.search(text, name)}
    except re.error as error:
        raise WrongAnswer(f"that is no regular expression: {error}.") from None
    if not found:
        raise WrongAnswer("it matches no name; they look like model.layers.0.mlp.up_proj.weight.")
    if found == set(names):
        raise WrongAnswer("it matches every name: nothing would be left to train.")
    strangers = [name for name in names if name in found - wanted]
    if strangers and all(re.match(r"model\.layers\.1[01]\.", name) for name in strangers):
        raise WrongAnswer(
            "blocks 10 and 11 match as well, for their numbers begin with 1: end the number with an escaped dot."
        )
    if strangers:
        raise WrongAnswer(f"it also matches {strangers[0]}.")
    if "model.embed_tokens.weight" not in found:
        raise WrongAnswer("the embeddings are missing: alternatives are joined by |.")
    if wanted - found:
        raise WrongAnswer(f"it does not match {min(wanted - found)}.")
    return f"{len(found)} of {len(names)} names: the embeddings and blocks 0 and 1, not blocks 10 and 11."


class _Small(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.relative_bias = nn.Embedding(4, 3)  # has "bias" in its name, and is none
        self.first = nn.Linear(3, 5, bias=bias)
        self.norm = nn.LayerNorm(5, bias=bias)
        self.last = nn.Linear(5, 2, bias=bias)


@checker
def check_train_biases(train_biases) -> str:
    """Check `train_biases(model)`: only parameters whose name ends in bias train; none is a ValueError."""
    model = _Small(bias=True)
    model.norm.bias.requires_grad_(False)  # as an earlier choice left it
    wanted = ["first.bias", "norm.bias", "last.bias"]
    answer = train_biases(model)
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if "first.weight" in trains and "norm.bias" not in trains:  # nothing was touched
        require_answer(answer)
    if "first.weight" in trains:
        raise WrongAnswer("the weights still train: set requires_grad to False where the name is no bias.")
    if not trains:
        raise WrongAnswer("nothing trains: set requires_grad to True where the name is a bias.")
    if "relative_bias.weight" in trains:
        raise WrongAnswer("relative_bias.weight is a weight: look at the end of the name.")
    if trains != wanted and set(trains) < set(wanted):
        raise WrongAnswer(f"{min(set(wanted) - set(trains))} was frozen before, and it should train: set it to True.")
    if trains != wanted:
        raise WrongAnswer(f"these should train: {', '.join(wanted)}; and these do: {', '.join(trains)}.")
    if answer is None or list(answer) != wanted:
        raise WrongAnswer("return the names that train, in the model's order.")
    without = _Small(bias=False)
    try:
        train_biases(without)
    except ValueError:
        return "three biases train; a model without any is refused."
    except Exception as error:
        raise WrongAnswer(f"a model without biases wants a ValueError, not {type(error).__name__}.") from None
    raise WrongAnswer("a model without biases would train nothing, and nobody would know: raise ValueError.")


@checker
def check_moment_bytes(moment_bytes) -> str:
    """Check `moment_bytes(model)`: AdamW's two moments, in each trainable parameter's own dtype."""
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(50, 8),
            "body": nn.Linear(8, 8, dtype=torch.bfloat16),
            "frozen": nn.Linear(8, 100),
            "head": nn.Linear(8, 50, bias=False),
        }
    )
    model["head"].weight = model["table"].weight  # tied
    model["frozen"].requires_grad_(False)
    table, body, frozen = 50 * 8 * 4, (8 * 8 + 8) * 2, (8 * 100 + 100) * 4
    right = 2 * (table + body)
    answer = require_answer(moment_bytes(model))
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise WrongAnswer(f"a number of bytes is wanted, and your code returns a {type(answer).__name__}.")
    mistakes = {
        2 * (table + body + frozen): "frozen parameters have no moments: count those that require a gradient.",
        table + body: "AdamW keeps two moments of each parameter.",
        2 * (2 * table + body): "the tied table is one tensor, and you count it twice.",
        2 * (table + 2 * body): "not every dtype has 4 bytes: ask the parameter with element_size().",
        right / 4: "those are parameters: multiply by the bytes of each.",
        2 * (50 * 8 + 8 * 8 + 8): "those are the numbers of the moments: multiply by the bytes of each.",
        3 * (table + body): "weights or gradients are in it: count the two moments only.",
    }
    match_known_mistake(float(answer), mistakes)
    if answer != right:
        raise WrongAnswer(f"expected {right:,} bytes for the checker's model, and yours is {answer:,}.")
    return f"{right:,} bytes: two moments of each trainable parameter, the tied one once."
