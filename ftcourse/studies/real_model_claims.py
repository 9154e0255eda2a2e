"""What the study of a real model says about claims on child-tuning and fixed masks: one ledger row each."""

from ftcourse.claims import Ledger
from ftcourse.intervals import Interval

from .mask_claims import no_worse
from .masks import WORTHWHILE
from .real_model import ADAMW, CONTROL, FISHER, FREE, LORA, MAGNITUDE, RANDOM, SEEDS, RealStudy

SNIPS = "SNIPS calls, 48 steps, each at its best learning rate, percentage points of exact calls: "


def add_real_child_tuning_claims(ledger: Ledger, study: RealStudy) -> None:
    """The claims about child-tuning's two modes. Raises ValueError where their runs are missing."""
    early, end = study.gain((FREE,), (ADAMW,), "loss", 0), study.gain((FREE,), (ADAMW,))
    _add(
        ledger,
        study,
        "on a published model, too, child-tuning lags, then exceeds",
        "Wright 2022, transformer_central and its video on child-tuning under FSDP",
        end if early.low > 0 else early,
        f"{SNIPS}F {end.points}; its loss after a quarter of the run {nats(early)}",
    )
    driven = study.gain((FISHER,), (ADAMW,))
    against = study.gain((FREE,), (CONTROL,))
    _add(
        ledger,
        study,
        "on a published model, too, task-free child-tuning generalises better than AdamW",
        "Xu et al. 2021; Wright 2022",
        end,
        f"{SNIPS}F {end.points}; F against its control {against.points}",
    )
    _add(
        ledger,
        study,
        "on a published model, too, task-driven child-tuning generalises better than AdamW",
        "Xu et al. 2021",
        driven,
        f"{SNIPS}D 0.1 {driven.points}",
    )


def add_real_mask_claims(ledger: Ledger, study: RealStudy) -> None:
    """The claims about fixed masks chosen otherwise. Raises ValueError where their runs are missing."""
    for claim, source, one in (
        ("on a published model, too, a fixed random mask matches LoRA", "Xu and Zhang 2024, Random Masking", RANDOM),
        ("on a published model, too, training the largest weights matches LoRA", "Super-Tuning 2026", MAGNITUDE),
    ):
        gain = study.gain((one,), (LORA,))
        _add(ledger, study, claim, source, no_worse(gain), f"{SNIPS}{one} of 10 % against LoRA {gain.points}", 0.0)


def nats(found: Interval) -> str:
    """A difference of losses."""
    return f"{found.mean:+.3f} nats ({found.low:+.3f} to {found.high:+.3f})"


def _add(
    ledger, study: RealStudy, claim: str, source: str, held: Interval, measured: str, worthwhile=WORTHWHILE
) -> None:
    ledger.add(claim, source, held, measured, model=study.model(), seeds=len(SEEDS), worthwhile=worthwhile)
