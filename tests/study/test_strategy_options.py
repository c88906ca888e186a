"""Options of first-order strategies, presets, batches of epochs, and weights of each seed's own."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from every_kind import context_at, strategy_named
from small_problems import noisy
from small_studies import custom, first_order, hessian_free, performed, rows_of, study_of

from latephase import Objective
from latephase.optim import KFAC, AdamQLR, DecreasingLoss, Fixed, LevenbergMarquardt
from latephase.problems import get
from latephase.records.drawing import house_style
from latephase.study.config import ConfigError
from latephase.study.page.figures import build
from latephase.study.page.paths import _points, rosenbrock
from latephase.study.performing.identity import identity_of
from latephase.study.performing.train import train
from latephase.study.results.load import load_results
from latephase.study.strategies import StrategyContext, copied, start_strategy

HEAVY = {"momentum": 0.8, "weight_decay": 0.01, "nesterov": True}


def qlr(name="qlr", kind="adamqlr", **changes):
    return {"kind": kind, "name": name, "label": name} | changes


STRATEGIES = (
    first_order(name="heavy", optimizer="sgd", lr=0.03, batch_size=40, options=HEAVY),
    first_order(name="large-eps", optimizer="adam", lr=0.02, options={"eps": 0.1, "betas": [0.8, 0.9]}),
    qlr(batch_size=30),
    qlr("undamped", preset="undamped", batch_size=30, options={"lr_clip": 0.1}),
    qlr("all-rows"),
)


@pytest.fixture(scope="module")
def study():
    return study_of(*STRATEGIES, seeds=[0])


@pytest.fixture(scope="module")
def context_of(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study)
    return lambda: context_at(study, directory)


@pytest.mark.parametrize(("name", "size"), [("heavy", 40), ("large-eps", None)])
def test_a_first_order_strategy_is_torchs_optimizer_with_its_options(study, context_of, name, size):
    context = context_of()
    strategy = start_strategy(strategy_named(study, name), context)
    for i in range(6):
        strategy.step(i / 6)
    found, by_hand = copied(strategy.held()), context_of()
    by_hand.model.load_state_dict(by_hand.checkpoint["model"])
    torch.manual_seed(by_hand.seed)
    parameters = by_hand.model.train().parameters()
    options = STRATEGIES[name != "heavy"]["options"]
    make = torch.optim.SGD if name == "heavy" else torch.optim.Adam
    optimizer = make(parameters, lr=strategy.lr, **options)
    batches = by_hand.epochs(size)
    for _ in range(6):
        optimizer.step(next(batches)[0])
    expected = by_hand.model.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_size_of_a_batch_is_the_strategys_own(context_of):
    context = context_of()
    sizes = [next(context.epochs(size))[1] for size in (40, None)]
    assert sizes == [40, context.training.batch_size]


def test_quadratic_rates_see_every_row_once_in_an_epoch(study, context_of, monkeypatch):
    seen = []
    objective = StrategyContext.objective

    def spied(self, rows, random):
        seen.append(rows)
        return objective(self, rows, random)

    monkeypatch.setattr(StrategyContext, "objective", spied)
    context = context_of()
    strategy = start_strategy(strategy_named(study, "qlr"), context)
    for _ in range(context.rows // 30):
        strategy.step(0.0)
    rows = torch.cat(seen)
    assert len(rows) == len(rows.unique()) == context.rows - context.rows % 30
    seen.clear()
    start_strategy(strategy_named(study, "all-rows"), context).step(0.0)
    assert seen == [None]


FLOOR, TUNED = (1e-8, math.inf), (0.95, 1.0526)


@pytest.mark.parametrize(("preset", "damping", "others"), [
    ("default", LevenbergMarquardt(1e-3, factors=(0.5, 2.0), range=FLOOR, model="damped"), {}),
    ("untuned", LevenbergMarquardt(1e-3, factors=(0.5, 2.0), range=FLOOR, model="damped"), {}),
    ("tuned", LevenbergMarquardt(1.0, factors=TUNED, range=FLOOR, model="damped"), {}),
    (
        "untuned_clipped",
        LevenbergMarquardt(1e-3, factors=(0.5, 2.0), range=FLOOR, model="damped"),
        {"lr_clip": 0.1},
    ),
    ("undamped", Fixed(0.0), {}),
    ("hessian", LevenbergMarquardt(1.0, factors=TUNED, range=FLOOR, model="damped"), {"curvature": "hessian"}),
    ("hessian_untuned", DecreasingLoss(1e-4, factors=(0.75, 2.0)), {"curvature": "absolute_hessian"}),
    ("amplified", DecreasingLoss(1.0, factors=(0.9, 2.0)), {"amplification": 0.5}),
])  # fmt: skip
def test_the_settings_of_the_paper_are_presets(preset, damping, others):
    """Clarke and Hernandez-Lobato (2024), their ablations among them; options stand in place of a preset's."""
    torch.manual_seed(0)
    model, data = torch.nn.Linear(4, 3), (torch.randn(20, 4), torch.arange(20) % 3)
    optimizer = study_of(qlr(preset=preset)).strategies[0].made(model.parameters())
    assert type(optimizer) is AdamQLR
    wanted = {"curvature": "ggn", "damping": damping, "lr_clip": None, "amplification": 1.0} | others
    assert {name: optimizer.param_groups[0][name] for name in wanted} == wanted
    losses = [float(optimizer.step(Objective(model, torch.nn.CrossEntropyLoss(), data))) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    changed = study_of(qlr(preset=preset, options={"damping": 0.5, "eps": 1e-7})).strategies[0]
    group = changed.made(model.parameters()).param_groups[0]
    name = "value" if isinstance(damping, Fixed) else "initial"
    assert (group["damping"], group["eps"]) == (damping.changed(**{name: 0.5}), 1e-7)


def test_presets_are_those_of_the_optimizers(study, context_of):
    made = start_strategy(strategy_named(study, "undamped"), context_of())._optimizer
    expected = AdamQLR([torch.zeros(1, requires_grad=True)], damping=Fixed(0.0), lr_clip=0.1)
    names = ("damping", "lr_clip", "curvature")
    assert [made.param_groups[0][name] for name in names] == [expected.param_groups[0][name] for name in names]
    fixed = study_of(qlr(kind="kfac", preset="unadaptive")).strategies[0].made([torch.zeros(1, requires_grad=True)])
    expected = KFAC.unadaptive([torch.zeros(1, requires_grad=True)])
    assert {k: v for k, v in fixed.param_groups[0].items() if k != "params"} == {
        k: v for k, v in expected.param_groups[0].items() if k != "params"
    }


@pytest.mark.parametrize(("strategy", "said"), [
    (first_order(options={"momentum": 0.9}), "options go with a fresh optimizer"),
    (first_order(optimizer="sgd", options={"lr": 0.1}), "give lr beside the options"),
    (first_order(optimizer="adam", options={"momentum": 0.9}), "'momentum' is no option of Adam"),
    (first_order(optimizer="sgd", options={"momentun": 0.9}), "did you mean 'momentum'"),
    (first_order(optimizer="sgd", options={"momentum": -1.0}), "Invalid momentum value"),
    (first_order(optimizer="adam", options={"betas": 0.9}), "options: Adam does not take them"),
    (first_order(optimizer="sgd", options={"momentum": "0.9"}), "options: SGD does not take them"),
    (first_order(batch_size=10_000), "exceeds the"),
    (qlr(preset="undamed"), "no 'undamed' .did you mean 'undamped'"),
    (qlr(kind="sgdqlr", preset="undamped"), "SGDQLR has no 'undamped'; known: default"),
    (qlr(preset="step"), "AdamQLR has no 'step'"),
    (qlr(options={"damping_factors": [0.5, 2.0]}), r"options.damping_factors is damping.factors = \[0.5, 2.0\]"),
    (qlr(options={"damping_rule": "decreasing_loss"}), 'damping_rule is damping.kind = "decreasing_loss"'),
    (qlr(kind="sgdqlr", options={"absolute_curvature": True}), 'absolute_curvature is curvature="absolute_hessian"'),
    (qlr(options={"lr_ema": 0.5}), "options.lr_ema is there no more; nothing takes its place"),
])  # fmt: skip
def test_what_is_wrong_is_named(strategy, said):
    with pytest.raises(ConfigError, match=said):
        study_of(strategy)


def test_nesterov_may_have_the_momentum_of_the_training():
    study = study_of(first_order(optimizer="sgd", options={"nesterov": True}), training={"epochs": 4, "momentum": 0.5})
    assert study.strategies[0].options == {"nesterov": True}


def test_fresh_weights_need_the_initialisation():
    with pytest.raises(ConfigError, match=r"only runs from epoch 0 can have them"):
        study_of(fresh_weights=True)


def test_weights_of_each_seeds_own(tmp_path, monkeypatch):
    changes = {"checkpoints": [0, 1], "seeds": [3, 4], "fresh_weights": True}
    study = study_of(first_order(optimizer="sgd"), hessian_free(), **changes)
    assert performed(study, tmp_path / "study", monkeypatch) == []
    starts = {name: rows[0]["train_loss"] for name, rows in rows_of(tmp_path / "study").items()}
    assert len({value for name, value in starts.items() if "0001" in name}) == 1
    by_seed = [
        {value for name, value in starts.items() if "0000" in name and f"seed-{seed}" in name} for seed in (3, 4)
    ]
    assert [len(values) for values in by_seed] == [1, 1]
    assert by_seed[0] != by_seed[1]
    torch.manual_seed(4)
    model, problem = noisy().model().eval(), noisy()
    loss = problem.objective(model, problem.batch(problem.load().train)).value()
    assert float(loss) == pytest.approx(by_seed[1].pop(), rel=1e-5)  # summed by other parts, in float32
    results = load_results(tmp_path / "study")
    mean = sum(value for name, value in starts.items() if "0000" in name) / 4
    assert results.checkpoint(0)["train_loss"] == pytest.approx(mean)
    assert results.checkpoint(1)["train_loss"] != pytest.approx(mean)
    bare = [dataclasses.replace(run, evaluations=()) for run in results.runs[:2]]  # of seeds 3 and 4, from epoch 0
    others = [starts[f"checkpoint-0000_hf_seed-{seed}"] for seed in (3, 4)]
    assert [results.start(run)["train_loss"] for run in bare] == others


def test_warnings_of_a_run_are_in_its_folder(tmp_path, monkeypatch, capfd):
    study = study_of(custom("Warns"), checkpoints=[1], seeds=[0])
    assert performed(study, tmp_path / "study", monkeypatch) == []
    (path,) = tmp_path.glob("study/runs/*/warnings.txt")
    said = path.read_text(encoding="utf-8").splitlines()
    assert said[0] == "RuntimeWarning: careful at 0"
    assert len(set(said)) == len(said) == 8  # eight steps; the warm-up's are all at 0, and shown once
    assert "careful" not in capfd.readouterr().err


def test_fresh_weights_are_a_part_of_what_a_run_is(tmp_path, monkeypatch):
    plain = {"checkpoints": [0], "seeds": [0]}
    studies = [study_of(first_order(), **plain), study_of(first_order(), **plain, fresh_weights=True)]
    assert len({identity_of(study, study.strategies[0], 0, 0, 8.0) for study in studies}) == 2
    assert performed(study_of(first_order(optimizer="sgd"), **plain), tmp_path / "study", monkeypatch) == []
    fresh = study_of(first_order(optimizer="sgd"), **plain, fresh_weights=True)
    with pytest.raises(ConfigError, match="fresh_weights"):
        performed(fresh, tmp_path / "study", monkeypatch)


def test_paths_of_two_parameters_are_logged_and_drawn(tmp_path, monkeypatch):
    changes = {"problem": "rosenbrock", "checkpoints": [0], "seeds": [0], "training": {"epochs": 1}}
    strategies = (
        first_order(optimizer="sgd", lr=1e-3),
        qlr(preset="hessian"),
        first_order(name="far", label="far", lr=10.0),
    )
    study = study_of(*strategies, **changes)
    assert performed(study, tmp_path / "study", monkeypatch) == []
    rows = rows_of(tmp_path / "study")["checkpoint-0000_constant_seed-0"]
    points = [row["point"] for row in rows if row["event"] == "evaluation"]
    assert points[0] == [1.0, -1.0]
    assert points[-1][1] > -1.0
    results = load_results(tmp_path / "study")
    with house_style():
        figures = dict(build(results))
    panels = figures["paths-0000"].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["constant", "qlr", "far"]
    assert all(axes.collections for axes in panels)  # contours
    drawn = [line.get_xydata().tolist() for line in panels[0].get_lines()]
    assert drawn[0] == points
    assert max(abs(x) for x in panels[2].get_xlim()) < 5  # a run that flies off does not hide the others
    assert [panels[i].get_lines()[-1].get_marker() for i in (0, 2)] == ["o", "x"]


def test_a_path_far_from_zero_is_drawn_too():
    rows = [{"event": "evaluation", "spent": float(i), "point": [50.0 + i, -7.0]} for i in range(3)]
    points, is_cut = _points(SimpleNamespace(evaluations=rows))
    assert (points.tolist(), is_cut) == ([[50.0, -7.0], [51.0, -7.0], [52.0, -7.0]], False)
    rows[2]["point"] = [None, -7.0]
    points, is_cut = _points(SimpleNamespace(evaluations=rows))
    assert (len(points), is_cut) == (2, True)


def test_the_contours_are_those_of_the_problem():
    problem = get("rosenbrock", a=0.5, b=7.0)
    model = problem.model()
    for x, y in ((0.3, -1.2), (2.0, 1.5), (-1.0, 0.0)):
        torch.nn.utils.vector_to_parameters(torch.tensor([x, y]), model.parameters())
        value = float(problem.objective(model, problem.batch(problem.load().train)).value())
        assert rosenbrock(x, y, a=0.5, b=7.0) == pytest.approx(value, rel=1e-5)
