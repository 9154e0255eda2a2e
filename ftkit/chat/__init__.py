"""Preflight for chat fine-tuning: what is wrong with tokenizer, chat template, data and masks, as values.

    findings = check_chat_template(tokenizer) + check_dataset(tokenizer, conversations, max_length=512)
    print(report_text(findings))

`python -m ftkit.chat MODEL DATA.jsonl` runs every check.
"""

from .catalogue import KINDS
from .closing import turn_end
from .dataset import check_dataset
from .findings import Finding, as_records, codes, has_errors, report_text
from .kind import SEVERITIES, Kind
from .labels import check_labels
from .pad_token import PadToken, choose_pad_token
from .padding import check_padding
from .template import check_chat_template
from .token_view import Token, TokenView, token_view
from .tokenizer import check_tokenizer, untrained_rows

__all__ = [
    "KINDS",
    "SEVERITIES",
    "Finding",
    "Kind",
    "PadToken",
    "Token",
    "TokenView",
    "as_records",
    "check_chat_template",
    "check_dataset",
    "check_labels",
    "check_padding",
    "check_tokenizer",
    "choose_pad_token",
    "codes",
    "has_errors",
    "report_text",
    "token_view",
    "turn_end",
    "untrained_rows",
]
