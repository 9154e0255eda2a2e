"""Checkers for 15_checkpoints_and_faults: which checkpoint is complete, and whether a resume goes on exactly."""

from . import WrongAnswer, checker, require_answer

WHOLE = {"__0_0.distcp": 900, "__1_0.distcp": 800, ".metadata": 50}


def _folder(**changes: int | None) -> dict:
    """A folder as the exercise sees it: sizes when written, and sizes found now (None: the file is gone)."""
    found = {name: changes.get(name.strip("._").partition(".")[0], size) for name, size in WHOLE.items()}
    return {"written": dict(WHOLE), "found": {name: size for name, size in found.items() if size is not None}}


@checker
def check_newest_whole(newest_whole) -> str:
    """Check `newest_whole(folders)`: {name: {"written": {file: bytes}, "found": {file: bytes}}} to a name or None."""
    whole, short, gone = _folder(), _folder(**{"1_0": 17}), _folder(**{"0_0": None})
    unfinished = {"written": None, "found": {"__0_0.distcp": 900}}
    cases = [
        ({"step-000004": whole, "step-000008": whole}, "step-000008", "take the newest whole one."),
        (
            {"step-000010": whole, "step-000009": whole},
            "step-000010",
            "10 is newer than 9: the order is that of steps.",
        ),
        (
            {"step-000004": whole, "step-000008.incomplete": unfinished},
            "step-000004",
            "a folder that still has its temporary name was never finished.",
        ),
        (
            {"step-000004": whole, "step-000008.incomplete": whole},
            "step-000004",
            "a folder that still has its temporary name was never finished, even when all files look right.",
        ),
        (
            {"step-000004": whole, "step-000008": short},
            "step-000004",
            "a file of step-000008 is short: compare sizes.",
        ),
        (
            {"step-000004": whole, "step-000008": gone},
            "step-000004",
            "a file of step-000008 is gone: it is not whole.",
        ),
        ({"step-000004": short}, None, "where none is whole, return None."),
        ({}, None, "an empty folder has no checkpoint: return None."),
    ]
    seen = []
    for folders, expected, hint in cases:
        name = newest_whole({name: dict(folder) for name, folder in folders.items()})
        if name is ...:
            require_answer(name)
        seen.append(name)
        if name != expected and any(each is not None for each in seen):
            raise WrongAnswer(f"of {list(folders)} you choose {name}: {hint}")
    if all(name is None for name in seen):
        require_answer(None)
    return "finished by its name, whole by its sizes, newest by its step; and None where there is none."


State = dict  # what a trainer's checkpoint holds
STEPS = 8


class ToyTrainer:
    """A linear regression with momentum, shuffled examples, dropout and a falling learning rate; `forgets` one state.

    `train(state, steps)` goes on from `state` (None: from the start) and returns the losses of its steps and the state
    that a checkpoint would hold.
    """

    PARTS = ("momentum", "data position", "random state", "schedule")

    def __init__(self, forgets: str = ""):
        self.forgets = forgets

    def __call__(self, state: State | None, steps: int) -> tuple[list[float], State]:
        import torch

        start = torch.Generator().manual_seed(0)
        inputs, target = torch.randn(32, 6, generator=start), torch.randn(6, generator=start)
        order = torch.randperm(32, generator=start)
        now = {"weights": torch.zeros(6), "momentum": torch.zeros(6), "data position": 0, "schedule": 0}
        now["random state"] = torch.Generator().manual_seed(1).get_state()
        if state is not None:
            now |= {name: value for name, value in state.items() if name != self.forgets}
        now = {name: value.clone() if hasattr(value, "clone") else value for name, value in now.items()}
        noise = torch.Generator()
        noise.set_state(now["random state"])
        losses = []
        for _ in range(steps):
            rows = inputs[order[torch.arange(now["data position"], now["data position"] + 4) % 32]]
            kept = (torch.rand(4, 6, generator=noise) < 0.9) / 0.9
            error = (rows * kept) @ now["weights"] - rows @ target
            losses.append(float(error.square().mean()))
            now["momentum"].mul_(0.9).add_((rows * kept).T @ error / 4)
            now["weights"].sub_(0.1 * 0.7 ** max(0, now["schedule"] - 4) * now["momentum"])
            now["data position"] += 4
            now["schedule"] += 1
        now["random state"] = noise.get_state()
        return losses, now


TRAINERS = {  # a remembers everything
    "a": ToyTrainer(),
    **dict(zip("bcde", map(ToyTrainer, ToyTrainer.PARTS), strict=True)),
}


def first_difference(train, stop: int) -> int | None:
    """The first step, counted from 1, whose loss differs after a resume at `stop`; None where all agree."""
    straight, _ = train(None, STEPS)
    first, state = train(None, stop)
    resumed = first + train(state, STEPS - stop)[0]
    return next((n for n, (a, b) in enumerate(zip(straight, resumed, strict=True), 1) if a != b), None)


@checker
def check_resume_test(resume_test) -> str:
    """Check `resume_test(train, steps, stop)`: the first step whose loss differs after a resume, or None."""
    found = {}
    for name, train in TRAINERS.items():
        for stop in (3, 6):
            answer = resume_test(train, STEPS, stop)
            if answer is ...:
                require_answer(answer)
            found[name, stop] = answer
    if all(answer is None for answer in found.values()):
        require_answer(None)
    for (name, stop), answer in found.items():
        expected = first_difference(TRAINERS[name], stop)
        if answer == expected:
            continue
        what = f"trainer {name}, stopped after step {stop}"
        if expected is None:
            raise WrongAnswer(f"{what}, resumes exactly, and you report step {answer}: compare the same steps.")
        if answer is None:
            raise WrongAnswer(
                f"{what}: you find no difference, and the losses differ from step {expected} on. Compare every step "
                "after the resume with a run that was never stopped, exactly."
            )
        if answer == expected - stop:
            raise WrongAnswer(f"{what}: steps count from the start of the run, not from the resume: {expected}.")
        if answer == expected - 1:
            raise WrongAnswer(f"{what}: steps count from 1, as in metrics.jsonl: {expected}, not {answer}.")
        raise WrongAnswer(f"{what}: the first step that differs is {expected}, not {answer}.")
    named = ", ".join(f"{name} forgets its {train.forgets}" for name, train in TRAINERS.items() if train.forgets)
    return f"a resumes exactly; {named}."
