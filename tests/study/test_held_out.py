"""The finding on strategies whose train loss no longer says how good the model is on other rows."""

from dataclasses import replace

import pytest

from latephase.study.results import held_out_headline, load_results


def with_losses(results, name, losses, epoch=20):
    """The results, where the runs of a strategy from a checkpoint end with these (train, validation) losses."""

    def edited(run):
        if (run.strategy.name, run.checkpoint_epoch) != (name, epoch):
            return run
        train, valid = losses[run.seed]
        row = {**run.evaluations[-1], "train_loss": train, "valid_loss": valid}
        return replace(run, evaluations=(*run.evaluations, row))

    return replace(results, runs=tuple(edited(run) for run in results.runs))


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([(1e-12, 1e-4)] * 3, True),
        ([(1.0, 10.0)] * 3, False),  # the factor itself is not more than the factor
        ([(1.0, 10.1)] * 2 + [(1.0, 1.0)], True),
        ([(1.0, 10.1)] + [(1.0, 1.0)] * 2, False),
        ([(0.0, 1e-4)] * 3, False),  # nothing to divide by
    ],
)
def test_told_where_most_runs_end_above_ten_times_the_train_loss(write_study, losses, told):
    results = load_results(write_study())
    assert held_out_headline(results) == []
    found = held_out_headline(with_losses(results, "hf-64", losses))
    assert len(found) == told
    assert all("“HF, m = 64” (epoch 20)" in finding.text for finding in found)


def test_not_told_of_losses_that_are_not_finite(write_study):
    results = load_results(write_study())
    for losses in ([(float("nan"), 1.0)] * 3, [(1.0, float("inf"))] * 3):
        assert held_out_headline(with_losses(results, "hf-64", losses)) == []
