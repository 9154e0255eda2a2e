"""The token view under three controls: which conversation, written by which tokenizer, cut off where."""

import html
from collections.abc import Mapping

import ipywidgets
from transformers import PreTrainedTokenizerBase

from ftkit.chat.dataset import check_dataset
from ftkit.chat.rendering import find_training_template, render
from ftkit.chat.template import check_chat_template
from ftkit.chat.token_view import token_view
from ftkit.chat.tokenizer import check_tokenizer
from ftkit.conversations.rendering import Messages, own_template
from ftkit.findings import Finding, sort_findings
from ftkit.loss import IGNORE_INDEX

from . import Explorer

SIGNS = {"error": "✘", "warning": "▲", "note": "○"}  # severity in a sign and a word: no colour is needed


class ChatExplorer(Explorer):
    """Menus of tokenizers and conversations and a slider for the maximal length, over tokens and findings.

    `tokenizers` and `conversations` (lists of messages) go by the names that the menus show. A tokenizer may be
    faulty, but must have a chat template. Attributes: `tokenizer_menu`, `conversation_menu` and
    `length_slider`, the controls; `findings`, those that are shown. Raises ValueError where there is
    nothing to choose from, or a tokenizer without a template.
    """

    hint = "choose others"

    def __init__(self, tokenizers: Mapping[str, PreTrainedTokenizerBase], conversations: Mapping[str, Messages]):
        if not tokenizers or not conversations:
            raise ValueError("give at least one tokenizer and one conversation, each by a name")
        if without := [name for name, made in tokenizers.items() if own_template(made) is None]:
            raise ValueError(f"{without[0]!r} has no chat template: set its tokenizer.chat_template first")
        self.tokenizers, self.conversations = tokenizers, conversations
        self.tokenizer_menu = ipywidgets.Dropdown(options=list(tokenizers), description="tokenizer")
        self.conversation_menu = ipywidgets.Dropdown(options=list(conversations), description="conversation")
        longest = max(len(self._row(t, c)[0]) for t in tokenizers.values() for c in conversations.values())
        most = max(longest, 4)
        self.length_slider = ipywidgets.IntSlider(value=most, min=4, max=most, description="max_length")
        super().__init__(self.tokenizer_menu, self.conversation_menu, self.length_slider)

    def state(self) -> str:
        shown = f"{self.tokenizer_menu.value!r}, {self.conversation_menu.value!r}"
        return f"{shown}, max_length={self.length_slider.value}"

    def _row(self, tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[int]]:
        """Tokens and labels."""
        rendered = render(find_training_template(tokenizer)[0], messages)
        kept = zip(rendered.input_ids, rendered.loss_mask, strict=True)
        return rendered.input_ids, [token if learnt else IGNORE_INDEX for token, learnt in kept]

    def draw(self) -> str:
        tokenizer = self.tokenizers[self.tokenizer_menu.value]
        messages = self.conversations[self.conversation_menu.value]
        length = self.length_slider.value
        ids, labels = self._row(tokenizer, messages)
        found = check_tokenizer(tokenizer) + check_chat_template(tokenizer)
        found += check_dataset(tokenizer, [{"messages": messages}], length)
        first: dict[str, Finding] = {}  # each code once, as first observed
        for finding in found:
            first.setdefault(finding.code, finding)
        self.findings = sort_findings(first.values())
        view = token_view(tokenizer, messages, {"input_ids": ids[:length], "labels": labels[:length]})
        codes = [finding.code for finding in self.findings]
        self.caption = f"{self.state()}: {', '.join(codes) or 'no findings'}."
        return findings_page(self.findings) + view._repr_html_()


def findings_page(findings: list[Finding]) -> str:
    """The findings as a list in HTML: severity, code, what was seen, and the remedy."""
    if not findings:
        return "<p><strong>No findings.</strong></p>"
    items = "".join(
        f"<li>{SIGNS[f.severity]} <strong>{f.severity}: {f.code}</strong>: {html.escape(f.observed)}.<br>"
        f"<em>{html.escape(f.remedy)}</em></li>"
        for f in findings
    )
    style = "list-style: none; margin: 0.5em 0; padding: 0; line-height: 1.4; max-width: 60em"
    return f'<ul aria-label="Findings" style="{style}">{items}</ul>'
