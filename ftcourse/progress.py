"""Progress of a transformers Trainer in a notebook: one bar, and one line for each evaluation.

Trainer's own notebook callback redraws an HTML table, which differs from run to run and cannot be compared.
"""

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .bars import Bar


class OneBar(TrainerCallback):
    """Keeps every logged row in `metrics` (`step`, `loss`, `eval_loss`, `lr`), ready for `plots.plot_loss`."""

    def __init__(self):
        self.metrics: list[dict[str, float]] = []
        self.bar = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.is_world_process_zero:
            self.bar = Bar(total=state.max_steps, desc="fine-tune", unit="steps")

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        names = {"loss": "loss", "eval_loss": "eval_loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
        row = {names[name]: value for name, value in (logs or {}).items() if name in names}
        if self.bar is None or not row:
            return
        self.metrics.append({"step": state.global_step, **row})
        if "eval_loss" in row:
            self.bar.write(f"step {state.global_step:5}  eval_loss {row['eval_loss']:.3f}")
        else:
            self.bar.set_postfix(loss=f"{row['loss']:.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


def one_bar(trainer: Trainer) -> OneBar:
    """Put a `OneBar` in the place of the progress callbacks that `trainer` came with; returns it."""
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, PrinterCallback | ProgressCallback) or "Notebook" in type(callback).__name__:
            trainer.remove_callback(callback)
    bar = OneBar()
    trainer.add_callback(bar)
    return bar
