"""A strategy of every kind on the small noisy problem, and what a run of it evaluates."""

import torch
from small_studies import custom, first_order, hessian_free

from latephase.problems import get
from latephase.records.files import read_journal
from latephase.study.performing import active_run
from latephase.study.performing import run as run_module
from latephase.study.performing.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.performing.evaluate import Evaluator
from latephase.study.performing.run import perform_run
from latephase.study.performing.runs import Conditions, RunKey
from latephase.study.strategies import StrategyContext

OWN_BATCH = hessian_free(name="own-batch", evaluation_batch_size=0)
QLR = {"label": "qlr", "batch_size": 48, "options": {"lr_clip": 0.1}}
CHAIN = {
    "kind": "chain",
    "name": "chain",
    "label": "chain",
    "parts": [
        {"until": 0.25, "strategy": first_order("averaging")},
        {"until": 0.5, "strategy": hessian_free()},
        {"until": 1.0, "strategy": first_order("cosine")},
    ],
}
TABLES = [
    *(first_order(schedule) for schedule in ("constant", "tenth", "cosine", "plateau", "averaging")),
    first_order(name="adam", optimizer="adam", lr=0.01),
    hessian_free(),
    OWN_BATCH,
    hessian_free(name="part", curvature_batch_size=8),
    hessian_free(name="layers", blocks="layerwise"),
    hessian_free(name="late", preset="late_phase", options={}),
    hessian_free(name="all-rows", batch_size=None, evaluation_batch_size=None),
    {"kind": "adamqlr", "name": "adamqlr", **QLR},
    {"kind": "sgdqlr", "name": "sgdqlr", **QLR},
    {"kind": "lbfgs", "name": "lbfgs", "label": "lbfgs", "batch_size": 48, "options": {"max_iter": 3}},
    {"kind": "lbfgs", "name": "lbfgs-all", "label": "lbfgs", "options": {"max_iter": 3}},
    CHAIN,
    custom("Plain"),
]
for each in TABLES:
    for key in [key for key, value in each.items() if value is None]:
        del each[key]


def context_at(study, trained, problem="small_problems:noisy", seed=7, **options):
    """A fresh context at the checkpoint of epoch 3, with momentum in its optimizer's state."""
    found = get(problem, **options)
    checkpoint = load_checkpoint(checkpoint_path(trained, 3))
    if problem != "small_problems:noisy" or options:
        checkpoint |= {"model": found.model().state_dict(), "optimizer": None}
    data = found.load()
    return StrategyContext(found, data, found.model(), study.training, checkpoint, seed, budget=(8.0, "steps"))


def strategy_named(study, name):
    return next(strategy for strategy in study.strategies if strategy.name == name)


def bits(tree):
    if isinstance(tree, torch.Tensor):
        return bytes(tree.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    return [bits(value) for value in tree] if isinstance(tree, list) else tree


def run_states(study, trained, tmp_path, strategy, monkeypatch, evaluations, amount=8):
    """The states that a run evaluates, bit for bit, by step, and its rows."""
    states = []

    class Recorder(Evaluator):
        def __call__(self, state):
            states.append(bits(state))
            return super().__call__(state)

    monkeypatch.setattr(run_module, "Evaluator", Recorder)
    changed = study.model_copy(update={"evaluations": evaluations})
    directory = tmp_path / f"{strategy.name}-{evaluations}-{active_run.WARM_UP_STEPS}"
    directory.mkdir()
    (directory / "training").symlink_to(trained / "training")
    key = RunKey(3, strategy, 0)
    assert perform_run(Conditions(directory, changed, amount, 0.5, {}), key) == "finished"
    rows = [r for r in read_journal(directory / "runs" / key.run_id / "rows.jsonl") if r["event"] == "evaluation"]
    assert [row["step"] for row in rows] == [amount * i // evaluations for i in range(evaluations + 1)]
    return dict(zip([row["step"] for row in rows], states, strict=True)), rows
