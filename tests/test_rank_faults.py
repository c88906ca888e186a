"""Whatever happens to one rank, all end with an error that names it, or go on right; none waits for ever."""

import random

import pytest

from rank_faults import DEADLY, KINDS, Fault
from rank_verdicts import WRONG, drawn, performed

pytestmark = pytest.mark.xdist_group("rank_faults")


def test_what_one_of_two_ranks_meets_reaches_the_other(tmp_path):
    faults = [Fault(kind, 0, 2, "adam_qlr", 1, 0.4) for kind in ("raise", "nan", "option")]
    faults += [Fault(kind, 1, 2, "adam_qlr", 0) for kind in ("dtype", "model")]
    faults.append(Fault("kill", 1, 2, "adam_qlr", 1, 0.7))
    outcomes = [outcome for _, outcome, _ in performed(faults, tmp_path)]
    assert outcomes == ["told, and went on"] * 3 + ["told"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5])
def test_random_faults_at_random_moments(count, tmp_path):
    faults = drawn(2 * len(KINDS), random.Random(count), counts=(count,))
    found = [(outcome, fault, place) for fault, outcome, place in performed(faults, tmp_path)]
    outcomes = [outcome for outcome, *_ in found]
    assert len(outcomes) == len(faults)
    assert not [each for each in found if each[0].startswith(WRONG)]
    assert outcomes.count("went on") <= len(faults) // 3
    assert sum(fault.kind in DEADLY for fault in faults) == 4
