"""A whole study of a physics-informed problem, by each kind that takes all of its data at once."""

import pytest
from small_studies import first_order, performed, rows_of, study_of

LBFGS = {"history_size": 100, "line_search_fn": "strong_wolfe", "tolerance_grad": 0, "tolerance_change": 0}
STRATEGIES = [
    first_order("one_minus_sqrt", name="adam", optimizer="adam", lr=0.01),
    first_order("lawa", optimizer="adamw", window=2),
    first_order("ema", optimizer="muon", horizon=0.2),
    {"kind": "gauss_newton", "name": "gn", "label": "GN"},
    {"kind": "self_scaled_broyden", "name": "ssb", "label": "SSB"},
    {"kind": "lbfgs", "name": "lbfgs", "label": "L-BFGS", "options": LBFGS | {"max_iter": 20}},
    {
        "kind": "chain",
        "name": "chain",
        "label": "Adam, L-BFGS",
        "parts": [
            {"until": 0.5, "strategy": first_order(name="first", optimizer="adam", lr=0.01)},
            {"until": 1.0, "strategy": {"kind": "lbfgs", "name": "then", "label": "then", "options": LBFGS}},
        ],
    },
]


@pytest.mark.slow
def test_every_kind_goes_on_from_a_checkpoint_and_writes_rows(tmp_path, monkeypatch):
    where = {"problem": "pinn_convection", "problem_options": {"width": 8}}
    when = {"training": {"epochs": 3, "lr": 0.01}, "checkpoints": [3], "budget": {"unit": "steps", "amount": 8}}
    assert performed(study_of(*STRATEGIES, **where, **when), tmp_path / "study", monkeypatch) == []
    found = rows_of(tmp_path / "study")
    assert len(found) == 2 * len(STRATEGIES)
    ends = {}
    for name, rows in found.items():
        evaluations = [row for row in rows if row["event"] == "evaluation"]
        assert [row["step"] for row in evaluations] == [0, 2, 4, 6, 8]
        ends[name] = [row["train_loss"] for row in evaluations]
        assert ends[name][-1] < ends[name][0]
    assert len({losses[0] for losses in ends.values()}) == 1  # all from the checkpoint
    for name in ("gn", "ssb", "lbfgs"):  # all of the data, nothing drawn: what the seed is does not matter
        assert len({tuple(losses) for run, losses in ends.items() if f"_{name}_" in run}) == 1
    best = {name: min(losses) for name, losses in ends.items()}
    assert best["checkpoint-0003_gn_seed-0"] < best["checkpoint-0003_adam_seed-0"]
