import pytest

from latephase.bench.timing import DROPPED, interleave, summarize


class Machine:
    """A clock that candidates advance, and what they were called."""

    def __init__(self):
        self.now = 0.0
        self.calls: list[str] = []
        self.waits = 0

    def candidate(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds

        return run

    def wait(self) -> None:
        self.waits += 1

    def clock(self) -> float:
        return self.now


def test_rounds_rotate_and_the_first_do_not_count():
    machine = Machine()
    candidates = {name: machine.candidate(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    times = interleave(candidates, 3, machine.wait, machine.clock)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}
    rounds = ["".join(machine.calls[i : i + 3]) for i in range(0, len(machine.calls), 3)]
    assert rounds == ["bca", "cab", "abc", "bca", "cab"]
    assert len(rounds) == DROPPED + 3
    assert machine.waits == 2 * len(machine.calls)


def test_slow_first_calls_are_dropped():
    machine = Machine()

    def warming_up() -> None:
        machine.now += 100.0 if machine.calls.count("x") < DROPPED else 1.0
        machine.calls.append("x")

    assert interleave({"x": warming_up}, 2, clock=machine.clock) == {"x": [1.0, 1.0]}


def test_ratios_are_taken_within_a_round():
    # The machine slows down tenfold half-way: the ratio stays 2.
    cell = summarize([2.0, 4.0, 20.0, 40.0], [1.0, 2.0, 10.0, 20.0])
    assert cell == {"seconds": 12.0, "ratio": 2.0, "quartiles": [2.0, 2.0]}


def test_median_and_quartiles():
    cell = summarize([5.0, 1.0, 3.0, 2.0, 4.0], [1.0] * 5)
    assert cell == {"seconds": 3.0, "ratio": 3.0, "quartiles": [2.0, 4.0]}
    assert summarize([3.0], [2.0]) == {"seconds": 3.0, "ratio": 1.5, "quartiles": [1.5, 1.5]}


def test_seconds_of_differences_may_be_negative():
    cell = summarize([-1.0, 1.0], [1.0, 1.0])
    assert cell["ratio"] == pytest.approx(0.0)
