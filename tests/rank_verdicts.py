"""What must come of what happens to one rank, on all; faults drawn at random, performed and judged."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rank_cases import OPTIMIZERS, SHARES
from rank_faults import DEADLY, KINDS, LASTING, PATIENT, STEPS, TIMEOUTS, Fault, run_faults, undisturbed

WRONG = "wrong"


def judged(fault: Fault, found: list[dict[str, Any] | None], wanted: list[Tensor]) -> str:
    """What came of a fault, in a word.

    Args:
        fault: it.
        found: what each rank said; None of one that was killed.
        wanted: parameters after each step, of ranks to whom nothing happens.

    Raises:
        AssertionError: it is not what must come of it.
    """
    others = [each for rank, each in enumerate(found) if rank != fault.rank and each is not None]
    assert len(others) == fault.count - 1, "a rank has no result to whom nothing happened"
    victim = found[fault.rank]
    for each in found:
        if each is not None:
            assert each["restored"] or fault.kind == "kill", "a step that failed has moved the parameters"
            for vector, expected in zip(each["parameters"], wanted, strict=False):
                assert torch.equal(vector, expected), "the steps are not the undisturbed ones"
    if fault.kind in DEADLY:
        return _judged_dead(fault, victim, others)
    assert victim is not None
    said = [each["messages"] for each in others]
    if fault.kind == "late" or (fault.kind in ("raise", "interrupt") and not victim["place"]):
        assert not any([*said, victim["messages"]])
    else:
        _check_messages(fault, victim["messages"], said)
    if fault.kind in LASTING:
        return "told"
    assert all(len(each["parameters"]) == STEPS for each in [victim, *others]), "not all steps were taken"
    return "told, and went on" if victim["messages"] else "went on"


def _check_messages(fault: Fault, own: list[str], others: list[list[str]]) -> None:
    assert [len(each) for each in (own, *others)] == [1] * fault.count, (own, others)
    named = {
        "option": "ValueError: 'lr", "dtype": "ValueError: '0.weight' differs between ranks",
        "model": "ValueError: '0.weight' differs between ranks", "optimizer": "ValueError: 'optimizer' differs",
    }  # fmt: skip
    if fault.kind in named:
        assert all(each == own for each in others), "the messages differ"
        assert own[0].startswith(named[fault.kind]), own
        assert f"rank {fault.rank}: " in own[0], own
        return
    raised = {"raise": "OSError: the disk is gone", "interrupt": "KeyboardInterrupt: ", "nan": "ValueError: inputs of"}
    assert own[0].startswith(raised[fault.kind]), own
    for (text,) in others:
        if fault.kind == "nan":
            assert f"another rank holds values that are not finite (rank {fault.rank} of the group: inputs of" in text
        else:
            assert text.startswith(f"RankError: rank {fault.rank} failed: {own[0]}"), text


def _judged_dead(fault: Fault, victim: dict[str, Any] | None, others: list[dict[str, Any]]) -> str:
    limit = TIMEOUTS[fault.kind]
    if victim is not None and not victim["messages"]:
        assert not any(each["messages"] for each in others), "told of what did not happen"
        return "went on"
    for each in others if victim is None else [victim, *others]:
        if not each["messages"]:  # it was done before the other was missed
            assert len(each["parameters"]) == STEPS, "it has neither taken its steps nor said why"
            continue
        assert len(each["messages"]) == 1, each["messages"]
        text = each["messages"][0]
        assert text.startswith("RankError: this rank ("), text
        assert "cannot reach the others" in text, text
        assert each["seconds"] < 3 * limit + 30, f"it took {each['seconds']:.0f} s"
    taken = {len(each["parameters"]) for each in others}
    assert max(taken) - min(taken) <= 1, "ranks are more than a step apart"
    return "told" if len(taken) == 1 else "told, a step apart"


def drawn(number: int, draw: random.Random, counts: tuple[int, ...] = (2, 3, 5)) -> list[Fault]:
    """So many faults, all kinds by turns, at random ranks and moments, of random optimizers."""
    faults = []
    for index in range(number):
        kind = KINDS[index % len(KINDS)]
        count = counts[(index // len(KINDS)) % len(counts)]
        at_once = kind in LASTING
        having = [rank for rank, rows in enumerate(SHARES[count]) if kind != "nan" or rows.stop > rows.start]
        name = draw.choice([name for name in OPTIMIZERS if not (kind == "optimizer" and name == "adam_qlr")])
        step = 0 if at_once else draw.randrange(1, STEPS)
        faults.append(Fault(kind, draw.choice(having), count, name, step, draw.random()))
    return faults


def performed(faults: list[Fault], folder: Path) -> Iterator[tuple[Fault, str, str]]:
    """Let faults happen; each with what came of it, which begins with `WRONG` where it must not, and where it struck.

    Raises:
        AssertionError: ranks hang to whom nothing happened that ends their group.
    """
    for count in sorted({fault.count for fault in faults}):
        mine = [fault for fault in faults if fault.count == count]
        wanted = undisturbed(count, list(dict.fromkeys(fault.optimizer for fault in mine)), folder)
        harmless = [fault for fault in mine if fault.kind not in DEADLY]
        found = run_faults(harmless, folder, PATIENT)[0] if harmless else []
        for fault, each in zip(harmless, found, strict=True):
            yield fault, _judged(fault, each, wanted), _place(each[fault.rank])
        for fault in (fault for fault in mine if fault.kind in DEADLY):
            try:
                each = run_faults([fault], folder, TIMEOUTS[fault.kind])[0][0]
            except AssertionError as error:
                yield fault, f"{WRONG}: {error}", ""
                continue
            yield fault, _judged(fault, each, wanted), _place(each[fault.rank])


def _judged(fault: Fault, found: list[Any], wanted: dict[str, list[Tensor]]) -> str:
    try:
        return judged(fault, found, wanted[fault.optimizer])
    except AssertionError as error:
        return f"{WRONG}: {error}"


def _place(victim: dict[str, Any] | None) -> str:
    return "" if victim is None else victim["place"]
