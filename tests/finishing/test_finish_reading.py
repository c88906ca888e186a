"""Training data as it is given: rows, dicts and loaders, in whatever sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tasks import plain
from torch import nn

from latephase import Objective, Wants
from latephase.finishing.reading import rows_of
from latephase.finishing.source import Batches, Rows, as_batch, in_common, row_count, taken

FEW = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 40)


def numbered(count, first=0):
    """Rows whose first feature is their number, so that they can be told apart in what is drawn."""
    inputs = torch.zeros(count, 4)
    inputs[:, 0] = torch.arange(first, first + count)
    return inputs, torch.arange(first, first + count) % 3


def objective(batch):
    return Objective(plain(), nn.CrossEntropyLoss(), batch)


def numbers(drawn):
    return [int(n) for chunk in drawn.chunks for n in chunk.inputs[:, 0]]


@given(sizes.filter(lambda n: n > 1), sizes, st.integers(0, 39), st.integers(0, 9), st.integers(0, 300))
@FEW
def test_rows_that_judge_are_none_of_those_judged(count, rows, evaluation, seed, step):
    evaluation = min(evaluation, count - 1)
    source = Rows(objective(numbered(count)), numbered(count), 5, seed)
    own, judging = source.draw(Wants(rows, evaluation), step)
    again, _ = source.draw(Wants(rows, evaluation), step)
    assert numbers(own) == numbers(again)
    assert len(set(numbers(own))) == len(numbers(own)) == min(rows, count - evaluation)
    if evaluation:
        assert judging is not None
        assert len(set(numbers(judging))) == evaluation
        assert not set(numbers(judging)) & set(numbers(own))
    else:
        assert judging is None


@given(st.integers(4, 40), st.integers(1, 4))
@FEW
def test_an_epoch_has_every_row_at_most_once(count, rows):
    source = Rows(objective(numbered(count)), numbered(count), rows, 0)
    epoch = [n for step in range(count // rows) for n in numbers(source.draw(Wants(rows), step)[0])]
    assert len(set(epoch)) == len(epoch) == count // rows * rows


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=8))
@FEW
def test_a_loader_gives_at_least_what_is_wanted_in_its_order(lengths, wanted):
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    batches = [numbered(length, start) for length, start in zip(lengths, starts, strict=True)]
    source = Batches(batches, objective, torch.device("cpu"))
    assert source.batch == lengths[0]
    whole = list(range(sum(lengths)))
    seen = []
    for step, rows in enumerate(wanted):
        drawn = numbers(source.draw(Wants(rows), step)[0])
        assert rows <= len(drawn) < rows + max(lengths)
        seen += drawn
    assert seen == (whole * (len(seen) // len(whole) + 1))[: len(seen)]


def test_a_loader_that_cannot_be_begun_anew_runs_dry():
    source = Batches(iter([numbered(3), numbered(3, 3)]), objective, torch.device("cpu"))
    assert numbers(source.draw(Wants(5), 0)[0]) == list(range(6))
    with pytest.raises(StopIteration):
        source.draw(Wants(1), 1)


trees = st.recursive(st.sampled_from(["rows", "other", 3, None]), lambda t: st.lists(t, max_size=3) | st.dictionaries(
    st.sampled_from("abc"), t, max_size=2), max_leaves=5)  # fmt: skip


@given(trees, sizes, st.data())
@FEW
def test_rows_are_taken_of_every_tensor_that_has_them_and_of_nothing_else(tree, count, data):
    def fill(node):
        if isinstance(node, list):
            return [fill(each) for each in node]
        if isinstance(node, dict):
            return {key: fill(each) for key, each in node.items()}
        return {"rows": torch.arange(count), "other": torch.zeros(count + 1, 2)}.get(node, node)

    batch = (torch.arange(count), fill(tree))
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=5)), dtype=torch.long)
    found = taken(batch, chosen)
    assert torch.equal(found[0], chosen)
    leaves = torch.utils._pytree.tree_leaves(found[1])
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            assert torch.equal(leaf, chosen) or leaf.shape == (count + 1, 2)
    assert row_count(batch) == count


@given(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=3), st.just({"x": 1})))
@FEW
def test_whatever_is_no_batch_is_refused_in_words(given):
    if isinstance(given, list) and len(given) == 2:
        return  # a pair, whatever is in it
    with pytest.raises(TypeError, match=r"a batch must be \(inputs, targets\)"):
        as_batch(given)


x, y = numbered(6)
labelled = {"ids": x, "labels": y}
FORMS = {
    "a pair": ((x, y), True),
    "a list of two tensors": ([x, y], True),
    "two inputs": (((x, x), y), True),
    "inputs by name": (({"a": x}, y), True),
    "a dict with labels": (labelled, True),
    "two batches": ([(x, y), (x, y)], False),
    "two dicts": ([labelled, labelled], False),
    "three batches": ([(x, y)] * 3, False),
    "an iterator": (iter([(x, y)]), False),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_loaders_are_told_apart(form):
    data, is_rows = FORMS[form]
    found = rows_of(data, "data")
    assert (found is not None) == is_rows
    if found is not None:
        assert row_count(found[0]) == row_count(found[1]) == 6


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.lists(st.integers(0, 12), min_size=1, max_size=12))
@FEW
def test_rows_in_common_are_counted_as_python_counts_them(one, other):
    def batch(values):
        return torch.tensor(values, dtype=torch.float32)[:, None], None

    assert in_common(batch(one), batch(other)) == sum(each in other for each in one)
