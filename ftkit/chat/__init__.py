"""Checks before chat fine-tuning: tokenizer, chat template, data, loss mask and attention mask.

    findings = check_chat_template(tokenizer) + check_dataset(tokenizer, conversations, max_length=512)
    print(report_text(findings))

`python -m ftkit.chat MODEL DATA.jsonl` runs every check.
"""

from ftkit.findings import SEVERITIES, Finding, as_records, finding_codes, has_errors, report_text

from .attention import check_padding
from .dataset import Examined, check_dataset, examine, length_quantiles, max_positions
from .findings import RULES, Rule
from .labels import check_labels
from .rendering import end_of_turn_id
from .template import check_chat_template
from .token_view import Token, TokenView, mask_text, token_view
from .tokenizer import PadToken, add_chat_template, check_tokenizer, choose_pad_token, untrained_rows
from .weights import check_weights

__all__ = [
    "RULES",
    "SEVERITIES",
    "Examined",
    "Finding",
    "PadToken",
    "Rule",
    "Token",
    "TokenView",
    "add_chat_template",
    "as_records",
    "check_chat_template",
    "check_dataset",
    "check_labels",
    "check_padding",
    "check_tokenizer",
    "check_weights",
    "choose_pad_token",
    "end_of_turn_id",
    "examine",
    "finding_codes",
    "has_errors",
    "length_quantiles",
    "mask_text",
    "max_positions",
    "report_text",
    "token_view",
    "untrained_rows",
]
