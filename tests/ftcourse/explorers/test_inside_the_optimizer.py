"""Pictures of 02b: masks on shards against the unsharded mask, and what the other figures say."""

import pytest
import torch

from ftcourse.explorers.inside_the_optimizer import (
    SIDE,
    hashed_mask,
    plot_moved,
    plot_step_times,
    shard_explorer,
    shard_rows,
    stateful_mask,
)


@pytest.mark.parametrize("ranks", range(1, 7))
def test_shards_are_those_of_torch_and_hold_every_row_once(ranks):
    rows = [shard_rows(rank, ranks) for rank in range(ranks)]
    assert [part.stop - part.start for part in rows if part.stop > part.start] == [
        len(part) for part in torch.arange(SIDE).chunk(ranks)
    ]
    assert [row for part in rows for row in range(SIDE)[part]] == list(range(SIDE))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_hashed_masks_do_not_depend_on_the_ranks_and_stateful_ones_do(ranks):
    assert torch.equal(hashed_mask(ranks), hashed_mask(1))
    assert not torch.equal(stateful_mask(ranks), stateful_mask(1))
    first = shard_rows(0, ranks)
    assert torch.equal(stateful_mask(ranks)[first], stateful_mask(1)[first])  # its fault begins with rank 1


def test_the_explorer_counts_what_it_draws():
    explorer = shard_explorer()
    explorer.slider.value = 1
    assert explorer.differing == (0, 0) and explorer.caption.startswith("1 rank:")
    explorer.slider.value = 4
    assert explorer.differing == (int((stateful_mask(4) != stateful_mask(1)).sum()), 0)
    assert f"{explorer.differing[0]} with seeded generators and 0 with hashed" in explorer.caption
    assert "image/svg+xml" in explorer._repr_mimebundle_()


def test_moved_shares_and_step_times_are_labelled():
    ax = plot_moved({1: 0.3, 2: 0.513, 3: 0.6}, 0.3)
    assert [text.get_text() for text in ax.texts] == ["30 %", "51 %"]
    ax = plot_step_times({"AdamW, fused": [0.001, 0.002, 0.004], "ours, task-free": [0.01]})
    assert [text.get_text() for text in ax.texts] == ["2 ms", "10 ms"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["AdamW, fused", "ChildTuningAdamW, F"]
