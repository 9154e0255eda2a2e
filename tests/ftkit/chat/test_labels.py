"""Tokenised rows: counted against labels made by hand."""

import pytest
import torch

from ftkit.chat import check_labels, finding_codes
from ftkit.loss import IGNORE_INDEX

from .cases import tokenizer

MADE = tokenizer()
END, PAD = MADE.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
M = IGNORE_INDEX
GOOD = {"input_ids": [10, 11, 12, END], "labels": [M, M, 12, END]}
EMPTY = {"input_ids": [10, 11, 12, END], "labels": [M] * 4}
ENDLESS = {"input_ids": [10, 11, 12, END], "labels": [M, M, 12, M]}


def test_good_rows_have_no_findings():
    assert check_labels(MADE, [GOOD, GOOD]) == []


@pytest.mark.parametrize(("row", "code"), [(EMPTY, "all-labels-masked"), (ENDLESS, "stop-not-in-labels")])
def test_bad_rows_are_counted_and_the_first_is_named(row, code):
    (found,) = check_labels(MADE, [GOOD, row, GOOD, row])
    assert found.code == code
    assert found.observed.startswith("2 of 4 examples (first: 2)")


def test_the_end_that_a_collator_masked_is_told_from_the_one_never_marked():
    padded = tokenizer(pad_token="<|im_end|>")
    assert finding_codes(check_labels(padded, [ENDLESS])) == ["stop-masked-by-pad"]
    assert finding_codes(check_labels(MADE, [ENDLESS])) == ["stop-not-in-labels"]
    line_break = {"input_ids": [10, 11, 12, END, 13], "labels": [M, M, 12, M, 13]}  # as ChatML writes, and unpadded
    assert finding_codes(check_labels(padded, [line_break])) == ["stop-masked-by-pad"]
    cut = {"input_ids": [10, END, 11, 12], "labels": [M, M, 11, 12]}  # the question's end is not the answer's
    assert finding_codes(check_labels(padded, [cut])) == ["stop-not-in-labels"]


def test_a_batch_of_tensors_is_the_same_as_its_rows():
    batch = {
        "input_ids": torch.tensor([GOOD["input_ids"] + [PAD], EMPTY["input_ids"] + [PAD]]),
        "labels": torch.tensor([GOOD["labels"] + [M], EMPTY["labels"] + [M]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 2),
    }
    rows = [{k: v[i] for k, v in batch.items()} for i in range(2)]
    assert check_labels(MADE, batch) == check_labels(MADE, rows) == check_labels(MADE, [GOOD, EMPTY])


def test_bos_twice():
    made = tokenizer(bos_token="<|endoftext|>")
    (found,) = check_labels(made, [{"input_ids": [PAD, PAD, 12, END], "labels": [M, M, 12, END]}])
    assert found.code == "bos-doubled"


def test_no_rows_and_rows_of_something_else_are_refused():
    with pytest.raises(ValueError, match="give at least one"):
        check_labels(MADE, [])
    with pytest.raises(ValueError, match="use check_dataset"):
        check_labels(MADE, [{"messages": []}])
