"""Show the tokens of a conversation with their role, and whether they are in the loss and attended to."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftkit.conversations.rendering import Messages, content_text
from ftkit.loss import IGNORE_INDEX

from .rendering import Rendered, find_training_template, render

# Light tints of the Okabe-Ito palette under black text (contrast above 10:1); the role is written beside each.
TINTS = {
    "system": "#f6dcec",
    "developer": "#f6dcec",
    "user": "#d3e9f8",
    "assistant": "#c9ecdf",
    "tool": "#fbe6bf",
    "template": "#eeeeee",
    "padding": "#ffffff",
    "text": "#ffffff",
}
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})
LEGEND = (
    "Each box is a token; · is a space, ⏎ a line break, ⇥ a tab. ‹…› is a special token. "
    "A thick green underline and “in loss” mean: the loss includes it. "
    "A dashed box and “not attended” mean: hidden by the attention mask."
)


@dataclass(frozen=True)
class Token:
    token_id: int
    text: str
    role: str  # a key of TINTS; "template" is what the template writes around the messages
    in_loss: bool  # its label is not IGNORE_INDEX
    attended: bool
    special: bool

    @property
    def label(self) -> str:
        states = ["in loss"] * self.in_loss + ["not attended"] * (not self.attended)
        return ", ".join([self.role, *states])


@dataclass(frozen=True, repr=False)
class TokenView:
    """The tokens, shown as HTML in a notebook and as plain text elsewhere."""

    tokens: list[Token]

    def __repr__(self) -> str:
        return "\n".join(f"[{label}] {' '.join(map(_display_text, run))}" for label, run in self._runs())

    def terminal(self, colour: bool) -> str:
        """As text; with `colour`, tokens in the loss are green and the roles' names dim, by ANSI codes."""
        if not colour:
            return repr(self)
        lines = []
        for label, run in self._runs():
            text = " ".join(map(_display_text, run))
            lines.append(f"\033[2m[{label}]\033[0m " + (f"\033[1;32m{text}\033[0m" if run[0].in_loss else text))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        runs = "".join(_run_html(label, run) for label, run in self._runs())
        in_loss = sum(token.in_loss for token in self.tokens)
        title = f"{len(self.tokens)} tokens, {in_loss} of them in the loss"
        return (
            '<section aria-label="Tokens by role" style="line-height: 2.2; max-width: 60em">'
            f'<p style="line-height: 1.4"><strong>{title}.</strong> {html.escape(LEGEND)}</p>'
            f'<ol style="list-style: none; margin: 0; padding: 0">{runs}</ol></section>'
        )

    def _runs(self) -> list[tuple[str, list[Token]]]:
        """Consecutive tokens with the same role and masks."""
        return [(label, list(run)) for label, run in groupby(self.tokens, key=lambda token: token.label)]


def token_view(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    row: Mapping[str, Any] | None = None,
    *,
    tools: list | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> TokenView:
    """Show a conversation as the training template renders it.

    Args:
        messages: the conversation, from which the roles come.
        row: optional example made of it: `input_ids`, `labels`, `attention_mask` (lists or tensors of T tokens),
            possibly truncated or padded.
        tools, chat_template_kwargs: for the template.

    Raises TemplateFailed, and ValueError for a tokenizer without a template.
    """
    template = find_training_template(tokenizer)[0]
    if template is None:
        raise ValueError("the tokenizer has no chat template: set tokenizer.chat_template first")
    rendered = render(template, messages, tools, **(chat_template_kwargs or {}))
    roles = _roles(rendered, messages)
    if row is None:
        return TokenView(_tokens(tokenizer, rendered.input_ids, rendered.loss_mask, None, roles))
    columns = {key: getattr(value, "tolist", lambda v=value: v)() for key, value in row.items()}
    ids, mask = columns["input_ids"], columns.get("attention_mask")
    labels = columns.get("labels", [IGNORE_INDEX] * len(ids))
    start = mask.index(1) if mask and 1 in mask else 0  # pads on the left
    in_loss = [label != IGNORE_INDEX for label in labels]
    placed = ["text"] * start + roles + ["text"] * len(ids)
    same = ids[start : start + len(roles)] == rendered.input_ids[: len(ids) - start]
    return TokenView(_tokens(tokenizer, ids, in_loss, mask, placed if same else ["text"] * len(ids)))


def mask_text(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, list[int]], limit: int = 800) -> str:
    """The text of a tokenised example, with what is in the loss between ⟦ and ⟧; long parts are shortened."""
    parts, pairs = [], zip(example["input_ids"], example["labels"], strict=True)
    for in_loss, run in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
        text = tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False)
        if len(text) > limit:
            text = f"{text[: limit // 2]} … {text[-limit // 2 :]}"
        parts.append(f"⟦{text}⟧" if in_loss else text)
    return "".join(parts)


def _tokens(tokenizer, ids, in_loss, mask, roles) -> list[Token]:
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    tokens = []
    for i, token_id in enumerate(ids):
        attended = mask is None or bool(mask[i])
        role = roles[i] if attended else "padding"
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if "\ufffd" in text:  # part of a character: the vocabulary's own name of it
            text = tokenizer.convert_ids_to_tokens(token_id)
        tokens.append(Token(token_id, text, role, in_loss[i], attended, token_id in special))
    return tokens


def _roles(rendered: Rendered, messages: Messages) -> list[str]:
    """The role of the message whose text each token overlaps, else "template"."""
    spans, start = [], 0
    for message in messages:
        content = content_text(message)
        for expected in (content, content.strip()):
            if expected and (at := rendered.text.find(expected, start)) >= 0:
                start = at + len(expected)
                spans.append((at, start, message["role"]))
                break
    return [next((role for a, b, role in spans if start < b and a < end), "template") for start, end in rendered.spans]


def _display_text(token: Token) -> str:
    text = token.text.translate(VISIBLE)
    return f"‹{text}›" if token.special else text


def _run_html(label: str, run: list[Token]) -> str:
    boxes = "".join(_box_html(token) for token in run)
    style = "font: italic 0.75em sans-serif; margin-right: 0.4em; white-space: nowrap"
    tag = f'<span style="{style}">{html.escape(label)}:</span>'
    return f'<li style="display: inline; margin-right: 0.8em">{tag}{boxes}</li>'


def _box_html(token: Token) -> str:
    style = {
        "background": TINTS.get(token.role, TINTS["text"]),
        "color": "#000000",
        "font-family": "monospace",
        "display": "inline-block",  # a long run may go on in the next line
        "line-height": "1.4",
        "padding": "0.1em 0.2em",
        "margin": "0 1px",
        "border": f"1px {'solid' if token.attended else 'dashed'} #888888",
    }
    if token.in_loss:
        style["border-bottom"] = "4px solid #007a5a"
    if token.special:
        style["font-weight"] = "bold"
    css = "; ".join(f"{name}: {value}" for name, value in style.items())
    box = f'<span style="{css}" title="id {token.token_id}">{html.escape(_display_text(token))}</span>'
    return box + "<br>" * token.text.endswith("\n")
