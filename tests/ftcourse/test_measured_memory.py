"""What a measurement keeps of several steps. That it equals the estimate is tested in tests/ftkit/memory."""

from ftcourse.measured_memory import lowest_peaks


def test_a_buffer_that_is_held_too_long_in_one_step_does_not_count():
    usual = ({"forward": 10, "backward": 30, "end": 4}, {"forward": {"weights": 10}, "backward": {"weights": 30}})
    held = ({"forward": 10, "backward": 33, "end": 4}, {"forward": {"weights": 10}, "backward": {"communication": 33}})
    for steps in ([held, usual], [usual, held], [usual]):
        assert lowest_peaks(steps) == ({"forward": 10, "backward": 30}, usual[1])
    assert lowest_peaks([held]) == ({"forward": 10, "backward": 33}, held[1]), "what every step holds does count"
