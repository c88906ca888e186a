"""Parts of `HessianFree`: shorthands, tables, checks, what became of flat options, and their way into state dicts."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import latephase
from latephase import CG, GGN, Armijo, Blocks, Fixed, Hessian, HessianFree, LevenbergMarquardt, Nystrom, Objective
from latephase.optim.newton.former import FORMER, with_parts

PARTS = [
    GGN(dtype=torch.bfloat16, structural_damping=0.1),
    Hessian(compile=True),
    CG(max_iter=3, preconditioner=Nystrom(rank=3), max_step_norm=0.5),
    LevenbergMarquardt(0.3, thresholds=(0.0, 0.5)),
    Fixed(0.2),
    Armijo(c=0.1, max_trials=3),
    Blocks(samples=4),
]


def made(**options):
    return HessianFree([torch.zeros(3, requires_grad=True)], **options)


def group_of(**options):
    return made(**options).param_groups[0]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_part_compares_prints_hashes_copies_and_cannot_be_changed(part):
    name = type(part).__name__
    twin = eval(repr(part), vars(latephase) | {name: type(part), "torch": torch, "Nystrom": Nystrom})
    assert twin == part == copy.deepcopy(part) == pickle.loads(pickle.dumps(part))
    assert hash(twin) == hash(part)
    assert part != type(part)(**({"value": 9.0} if isinstance(part, Fixed) else {}))
    first = next(iter(inspect.signature(type(part)).parameters))
    with pytest.raises(AttributeError):
        setattr(part, first, None)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({}, {"curvature": GGN(), "solver": CG(), "damping": LevenbergMarquardt(1.0), "line_search": Armijo()}),
        ({"damping": 0.3}, {"damping": LevenbergMarquardt(0.3)}),
        ({"damping": torch.tensor(0.5)}, {"damping": LevenbergMarquardt(0.5)}),
        ({"curvature": "hessian"}, {"curvature": Hessian()}),
        ({"line_search": False}, {"line_search": False}),
        ({"blocks": True}, {"blocks": Blocks()}),
        ({"blocks": False}, {"blocks": None}),
        ({"solver": CG(preconditioner="nystrom")}, {"solver": CG(preconditioner=Nystrom())}),
        ({"solver": {"max_iter": 3}}, {"solver": CG(max_iter=3)}),
        (
            {"solver": {"kind": "cg", "preconditioner": {"kind": "nystrom", "rank": 7}}},
            {"solver": CG(preconditioner=Nystrom(rank=7))},
        ),
        ({"damping": {"initial": 0.3, "thresholds": [0.0, 0.5]}}, {"damping": LevenbergMarquardt(0.3, (0.0, 0.5))}),
        ({"damping": {"kind": "fixed", "value": 0.3}}, {"damping": Fixed(0.3)}),
        ({"curvature": {"kind": "hessian", "dtype": "bfloat16"}}, {"curvature": Hessian(dtype=torch.bfloat16)}),
        ({"line_search": {"max_trials": 3}}, {"line_search": Armijo(max_trials=3)}),
        ({"blocks": {"samples": 2}}, {"blocks": Blocks(samples=2)}),
    ],
    ids=str,
)
def test_a_shorthand_and_a_table_are_the_part(short, long):
    found = group_of(**short)
    assert {name: found[name] for name in long} == long


def test_presets_keep_what_a_shorthand_or_a_table_does_not_say():
    params = [torch.zeros(3, requires_grad=True)]
    fixed = HessianFree.fixed_rate(params, damping=0.1, solver={"max_iter": 5}).param_groups[0]
    assert (fixed["damping"], fixed["solver"]) == (Fixed(0.1), CG(max_iter=5, candidates="last"))
    assert (fixed["line_search"], fixed["blocks"]) == (False, Blocks())
    late = HessianFree.late_phase(params, damping={"factors": (0.5, 2.0)}, solver=CG()).param_groups[0]
    assert late["damping"] == LevenbergMarquardt(0.3, thresholds=(0.0, 0.5), factors=(0.5, 2.0))
    assert late["solver"] == CG()
    with pytest.raises(TypeError, match=r"HessianFree.late_phase: cg_max_iter is solver=CG\(max_iter=5\)"):
        HessianFree.late_phase(params, cg_max_iter=5)


@pytest.mark.parametrize(
    ("name", "value", "now"),
    [
        ("cg_max_iter", 3, "solver=CG(max_iter=3)"),
        ("cg_decay_x0", 0.5, "solver=CG(warm_start=0.5)"),
        ("cg_backtracking", False, "solver=CG(candidates='last')"),
        ("cg_stopping", "residual", "solver=CG(stopping='residual')"),
        ("preconditioner", "nystrom", "solver=CG(preconditioner='nystrom')"),
        ("preconditioner", Nystrom(), "solver=CG(preconditioner=...)"),
        ("iterates_on_host", True, "solver=CG(on_host=True)"),
        ("curvature_dtype", torch.bfloat16, "curvature=GGN(dtype=...)"),
        ("structural_damping", 0.1, "curvature=GGN(structural_damping=0.1)"),
        ("damping_range", (0.1, 1.0), "damping=LevenbergMarquardt(range=(0.1, 1.0))"),
        ("ratio_data", "objective", "damping=LevenbergMarquardt(data='objective')"),
        ("adapt_damping", False, "damping=Fixed(...)"),
        ("block_diagonal", True, "blocks=True"),
        ("block_samples", 3, "blocks=Blocks(samples=3)"),
    ],
)
def test_a_flat_option_is_an_error_that_says_how_it_is_written(name, value, now):
    assert name in FORMER
    with pytest.raises(TypeError) as caught:
        made(**{name: value})
    assert str(caught.value) == f"HessianFree: {name} is {now}"
    with pytest.raises(TypeError, match=f"param group 0 of HessianFree: {name} is"):
        HessianFree([{"params": [torch.zeros(3, requires_grad=True)], name: value}])


@pytest.mark.parametrize("name", FORMER)
def test_every_flat_option_has_a_place(name):
    with pytest.raises(TypeError, match=f"HessianFree: {name} is "):
        made(**{name: None})


def test_an_option_that_never_was_is_named():
    with pytest.raises(TypeError, match=r"HessianFree has no option 'speed'; there are lr, curvature, solver"):
        made(speed=1)


def test_the_tolerance_of_a_group_goes_with_blocks():
    p = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"tolerance of a param group goes with blocks=True"):
        HessianFree([{"params": [p], "tolerance": 0.1}])


def test_a_state_dict_holds_plain_dicts_and_leaves_what_is_of_the_process(toy):
    model = toy.network()
    options = {"damping": Fixed(0.2), "line_search": Armijo(c=0.1), "blocks": Blocks(samples=4)}
    optimizer = HessianFree(model.parameters(), solver=CG(max_iter=3, preconditioner=Nystrom(rank=3)), **options)
    (group,) = optimizer.state_dict()["param_groups"]
    assert group["damping"] == {"kind": "fixed", "value": 0.2, "model": "undamped"}
    assert group["blocks"] == {"kind": "blocks", "samples": 4}
    assert "preconditioner" not in group["solver"]
    own = lambda r: r  # noqa: E731
    other = HessianFree(model.parameters(), solver=CG(preconditioner=own))
    other.load_state_dict(optimizer.state_dict())
    loaded = other.param_groups[0]
    assert loaded["solver"] == CG(max_iter=3, preconditioner=own)
    assert {name: loaded[name] for name in options} == options


def test_a_saved_part_without_a_field_has_the_optimizers_own():
    saved = made(solver=CG(max_iter=3)).state_dict()
    del saved["param_groups"][0]["solver"]["stopping"]
    other = made(solver=CG(stopping="residual", max_iter=9))
    other.load_state_dict(saved)
    assert other.param_groups[0]["solver"] == CG(stopping="residual", max_iter=3)


def test_flat_options_become_the_same_parts():
    flat = {"damping": 0.1, "adapt_damping": False, "cg_backtracking": False, "cg_max_iter": 4, "curvature": "hessian"}
    found = with_parts(flat)
    assert (found["damping"], found["solver"]) == (Fixed(0.1), CG(max_iter=4, candidates="last"))
    assert (found["curvature"], found["line_search"], found["blocks"]) == (Hessian(), Armijo(), None)
    looked_at = with_parts({"adapt_damping": False, "ratio_data": "objective"})["damping"]
    assert looked_at == LevenbergMarquardt(factors=(1.0, 1.0), data="objective")
    blocks = with_parts({"block_diagonal": True, "cg_tolerance": 0.1, "block_samples": 3})
    assert (blocks["blocks"], blocks["tolerance"], blocks["solver"]) == (Blocks(samples=3), 0.1, CG())


def test_a_pickle_with_flat_options_goes_on(toy):
    """As one is that an earlier release wrote: flat options, and the preconditioner beside them."""
    model = toy.network()
    optimizer = HessianFree(model.parameters(), solver=CG(max_iter=3, preconditioner=Nystrom(rank=2)))
    flat = {"damping": 0.1, "cg_max_iter": 3, "curvature": "ggn", "lr": 1.0, "line_search": True, "damping_scale": 1.0}
    state = {
        **optimizer.__getstate__(),
        "defaults": flat,
        "param_groups": [{**flat, "params": list(model.parameters())}],
        "_preconditioner": Nystrom(rank=2),
    }
    other = HessianFree.__new__(HessianFree)
    other.__setstate__(state)
    assert other.param_groups[0]["solver"] == CG(max_iter=3, preconditioner=Nystrom(rank=2))
    other.step(Objective(model, nn.CrossEntropyLoss(), toy.batch()))
    assert max(other.report.cg_iterations) <= 3
    assert other.report.damping == 0.1


def test_levenberg_marquardt_leaves_the_damping_where_a_ratio_says_nothing():
    rule = LevenbergMarquardt(1.0, range=(0.5, 2.0))
    assert [rule.next(1.0, ratio) for ratio in (0.0, 0.5, 1.0, float("nan"))] == [1.5, 1.0, 2 / 3, 1.0]
    assert (rule.next(0.0, 0.0), rule.next(2.0, 0.0), Fixed(3.0).next(1.0, 0.0)) == (0.0, 2.0, 1.0)


def test_armijos_settings_are_used(function):
    """Where the loss rises along every direction, each trial is one evaluation."""
    calls = []

    def forward(x):
        calls.append(1)
        return (x @ x, x)

    point, objective = function(forward, 3.0, 4.0)
    here = point.x.detach().clone()
    judge = Objective.from_forward(point, lambda: (calls.append(1) or (point.x - here).square().sum(), point.x))
    counts = []
    for trials in (2, 9):
        optimizer = HessianFree(point.parameters(), line_search=Armijo(max_trials=trials), solver=CG(candidates="last"))
        calls.clear()
        optimizer.step(objective, judge)
        counts.append(len(calls))
        assert not optimizer.report.accepted
    assert counts[1] - counts[0] == 7
