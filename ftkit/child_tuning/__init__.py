"""Child-tuning: fine-tuning in which every step learns from a part of the gradient only."""

from .fisher import fisher_information, fisher_mask, load_masks, save_masks, top_fraction_masks
from .masks import gradient_mask
from .optimizer import ChildTuningAdamW

__all__ = [
    "ChildTuningAdamW",
    "fisher_information",
    "fisher_mask",
    "gradient_mask",
    "load_masks",
    "save_masks",
    "top_fraction_masks",
]
