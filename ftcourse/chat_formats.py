"""Three formats that published chat models read, rewritten as short templates: ChatML, Llama 3, and Qwen3's.

They have no {% generation %} markers, like most published templates. On conversations without tools they write what
the templates in TRL write (tests/ftcourse/test_chat_formats.py); of the tools' description the wording is shorter.
"""

import copy
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

CHATML = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Reasoning is written in answers after the last question only: that of earlier turns is dropped from the history.
THINKING = """\
{%- if tools %}
    {{- '<|im_start|>system\\nYou may call these tools.\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(question=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- set last.question = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' }}
        {%- if m.role == 'assistant' and loop.index0 > last.question and (loop.last or m.reasoning_content) %}
            {{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- m.content or '' }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n' if m.content or not loop.first else '' }}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


class ChatFormat(NamedTuple):
    template: str
    tokens: tuple[str, ...]  # single tokens of its own; the last one ends a turn


THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
FORMATS = {
    "ChatML": ChatFormat(CHATML, ("<|im_start|>", "<|im_end|>")),
    "Llama 3": ChatFormat(LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "Qwen3 style": ChatFormat(THINKING, (*THINK, "<|im_start|>", "<|im_end|>")),
}


def in_format(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with a format of FORMATS: its template, its tokens, and its end of turn as EOS."""
    made = copy.deepcopy(tokenizer)
    template, tokens = FORMATS[name]
    made.add_special_tokens({"additional_special_tokens": list(tokens), "eos_token": tokens[-1]}, False)
    made.chat_template = template
    return made
