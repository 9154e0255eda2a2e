"""Experiment trackers: TensorBoard, Weights & Biases, Trackio, through accelerate's writers of each."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def validate_trackers(report_to: str) -> list[str]:
    """The names in --report_to, comma separated. Raises ValueError for one that is unknown or not installed."""
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--report_to {name}: give some of {', '.join(TRACKERS)}, separated by commas")
        if not any(find_spec(package) for package in TRACKERS[name]):
            raise ValueError(
                f"--report_to {name}: {TRACKERS[name][0]} is not installed: pip install {TRACKERS[name][0]}"
            )
    return names


def start_trackers(names: list[str], output: Path, config: dict[str, Any]) -> list:
    """Begin a run named as the output folder with each tracker; TensorBoard writes to OUTPUT/tensorboard."""
    if not names:
        return []
    from accelerate import tracking  # a second to import

    started = []
    for name in names:
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        folder = {"logging_dir": output} if kind.requires_logging_directory else {}
        tracker = kind("tensorboard" if folder else output.name, **folder)
        tracker.main_process_only = False  # only the main process comes here; accelerate would start ranks of its own
        tracker.start()
        tracker.store_init_configuration(config)
        started.append(tracker)
    return started
