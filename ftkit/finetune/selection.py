"""Which checkpoint of a run is the best one by its evaluation loss, and whether to stop early."""

import math
from dataclasses import asdict, dataclass


@dataclass
class Selection:
    """The best evaluation so far, and how many came after it; every rank holds the same."""

    keep_best: bool  # keep the best checkpoint, and export that one
    patience: int  # evaluations in a row without improvement after which the run stops; 0: never
    best_step: int = 0
    best_loss: float = math.inf
    worse: int = 0  # evaluations since the best one

    def update(self, step: int, eval_loss: float) -> None:
        if eval_loss < self.best_loss:
            self.best_step, self.best_loss, self.worse = step, eval_loss, 0
        else:
            self.worse += 1

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.worse

    @property
    def kept_step(self) -> int | None:
        """The step whose checkpoint must be kept."""
        return self.best_step if self.keep_best and self.best_step else None

    def state_dict(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name in ("best_step", "best_loss", "worse")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best_step, self.best_loss, self.worse = state["best_step"], state["best_loss"], state["worse"]
