"""The checkers of 04_freezing: a solution is right, a stub is not solved yet, a wrong answer gets its hint."""

from ftcourse.exercises.freezing import check_first_two_blocks, check_moment_bytes, check_train_biases

from .shown import checker_tests


def train_biases(model, *, end=True, freeze=True, thaw=True, answer=True, refuse=True):
    for name, parameter in model.named_parameters():
        is_bias = name.endswith(".bias") if end else "bias" in name
        if is_bias and thaw:
            parameter.requires_grad_(True)
        if not is_bias and freeze:
            parameter.requires_grad_(False)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if refuse and not names:
        raise ValueError("no biases")
    return names if answer else None


def assert_biases(model):
    names = train_biases(model, refuse=False)
    assert names
    return names


def freeze_all(model):
    model.requires_grad_(False)
    return []


def moments(parameters, factor=2, size=None):
    return sum(factor * p.numel() * (size or p.element_size()) for p in parameters)


def moment_bytes(model, **options):
    return moments((p for p in model.parameters() if p.requires_grad), **options)


def every_name(model):
    return (p for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad)


EXERCISES = [
    (
        check_first_two_blocks,
        lambda: r"embed_tokens|layers\.[01]\.",
        {
            "blocks 10 and 11 match as well": lambda: r"embed_tokens|layers\.[01]",
            "begin with 1": lambda: r"embed|layers\.(0|1)",
            "the embeddings are missing": lambda: r"layers\.[01]\.",
            "it does not match model.layers.1": lambda: r"embed|layers\.0\.",
            "it also matches": lambda: r"embed|layers\.[012]\.",
            "it also matches model.layers.2.": lambda: r"model\.(embed_tokens|layers)",
            "it also matches lm_head.weight": lambda: r"embed|head|layers\.[01]\.",
            "it matches no name": lambda: r"layer\.0",
            "it matches every name": lambda: ".",
            "no regular expression": lambda: "layers[",
            "a string is wanted": lambda: [0, 1],
        },
    ),
    (
        check_train_biases,
        train_biases,
        {
            "the weights still train": lambda m: train_biases(m, freeze=False),
            "relative_bias.weight is a weight": lambda m: train_biases(m, end=False),
            "norm.bias was frozen before": lambda m: train_biases(m, thaw=False),
            "nothing trains": freeze_all,
            "return the names": lambda m: train_biases(m, answer=False),
            "not AssertionError": assert_biases,
            "raise ValueError": lambda m: train_biases(m, refuse=False),
        },
    ),
    (
        check_moment_bytes,
        moment_bytes,
        {
            "frozen parameters have no moments": lambda m: moments(m.parameters()),
            "two moments": lambda m: moment_bytes(m, factor=1),
            "you count it twice": lambda m: moments(every_name(m)),
            "element_size": lambda m: moment_bytes(m, size=4),
            "those are the numbers": lambda m: moment_bytes(m, size=1),
            "weights or gradients": lambda m: moment_bytes(m, factor=3),
            "a number of bytes": lambda m: "many",
            "expected 3,488 bytes": lambda m: 17,
        },
    ),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    assert check_first_two_blocks(lambda: r"^model\.(embed_tokens|layers\.(0|1)\.)").right
    assert check_train_biases(lambda m: tuple(train_biases(m))).right
    assert check_moment_bytes(lambda m: float(moment_bytes(m))).right
