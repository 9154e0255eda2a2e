"""Child-tuning (Xu et al., EMNLP 2021): each step uses a masked gradient."""

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
