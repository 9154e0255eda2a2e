"""The rules of the chat checks, and findings that follow them. Their texts are in rules.yaml, beside this file."""

from pathlib import Path
from typing import NamedTuple

import yaml

from ftkit.findings import Finding


class Rule(NamedTuple):
    severity: str  # one of ftkit.findings.SEVERITIES
    why: str
    remedy: str


_TEXTS = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8"))
RULES = {code: Rule(**texts) for code, texts in _TEXTS.items()}


def finding(code: str, observed: str) -> Finding:
    """The finding of a rule: `observed` is what this tokenizer, template, model or data shows."""
    rule = RULES[code]
    return Finding(rule.severity, code, observed, rule.why, rule.remedy)
