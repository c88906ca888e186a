"""State dicts: those of an earlier release continue the training, damaged ones are named and load nothing."""

import copy
import io
import math
from pathlib import Path

import pytest
import torch
from optimizer_table import OPTIMIZERS
from step_cases import CASES, batch, hessian_free, model_of, objectives_of, take_steps
from torch import nn

from latephase import CG, KFAC, SGDQLR, AdamQLR, HessianFree, Objective, QuadraticLearningRate
from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom

SAVED = torch.load(Path(__file__).parent / "fixtures" / "saved_states.pt", weights_only=True)
"""Of commit 50008bc, which counted no versions; see make_saved_states.py beside it."""
PARTS = ("curvature", "solver", "damping", "line_search", "blocks", "tolerance", "factors")
"""Options that took the place of flat ones."""
NAMELESS = ("EmpiricalFisher, kept", "GGNDiagonal, kept")
"""Cases whose estimate is in use, and does not tell by its form which of two methods made it."""


def loaded(case, saved=None):
    """A model and an optimizer with the state that was saved."""
    saved = SAVED[case] if saved is None else saved
    model = model_of(case)
    model.load_state_dict(saved["parameters"])
    optimizer = CASES[case](model)
    if case in NAMELESS and "version" not in saved["optimizer"]:
        with pytest.warns(UserWarning, match="does not say whose it is.* it is taken for one of"):
            optimizer.load_state_dict(saved["optimizer"])
    else:
        optimizer.load_state_dict(saved["optimizer"])
    return model, optimizer


@pytest.mark.parametrize("case", [case for case in SAVED if case not in {each.saved for each in OPTIMIZERS.values()}])
def test_a_state_of_an_earlier_release_continues(case):
    model, optimizer = loaded(case)
    assert optimizer.damping == SAVED[case]["damping"]
    torch.manual_seed(1)
    found = torch.stack(take_steps(case, model, optimizer, range(3, 6)))
    # Within one make of processor to the last bit; six digits where another orders its sums otherwise.
    torch.testing.assert_close(found, SAVED[case]["continued"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", SAVED)
def test_a_state_without_an_option_has_the_optimizers_own(case):
    """As one is that was saved before there was the option."""
    whole = SAVED[case]["optimizer"]
    for name in sorted(set(whole["param_groups"][0]) - {"params", "name"}):
        saved = copy.deepcopy(whole)
        for group in saved["param_groups"]:
            del group[name]
        model = model_of(case)
        optimizer = CASES[case](model)
        own = optimizer.param_groups[0]
        here = [name] if name in own else [part for part in PARTS if part in own]
        own = [[group[each] for each in here] for group in optimizer.param_groups]
        if case in NAMELESS:
            saved["state"] = {}
        optimizer.load_state_dict(saved)
        assert [[group[each] for each in here] for group in optimizer.param_groups] == own


def test_a_pickle_without_an_option_has_its_default():
    for make in (HessianFree, KFAC, SGDQLR):
        model = model_of("KFAC")
        optimizer = make(model.parameters())
        missing = {"HessianFree": "debias", "KFAC": "factors", "SGDQLR": "lr_clip"}[make.__name__]
        state = optimizer.__getstate__()
        state = {**state, "defaults": dict(state["defaults"]), "param_groups": [dict(optimizer.param_groups[0])]}
        default = state["defaults"].pop(missing)
        state["param_groups"][0].pop(missing)
        other = make.__new__(make)
        other.__setstate__(state)
        assert other.param_groups[0][missing] == default
        other.step(Objective(model, nn.CrossEntropyLoss(), batch(0)))


@pytest.mark.parametrize("case", CASES)
def test_a_state_dict_says_its_version_and_whose_it_is(case):
    model = model_of(case)
    optimizer = CASES[case](model)
    take_steps(case, model, optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["version"] == 3
    twin, other = copy.deepcopy(model), CASES[case]
    other = other(twin)
    other.load_state_dict(saved)
    torch.manual_seed(2)
    expected = take_steps(case, model, optimizer, range(2, 4))
    torch.manual_seed(2)
    assert all(torch.equal(x, y) for x, y in zip(take_steps(case, twin, other, range(2, 4)), expected, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def drop(*path):
    def damage(saved):
        *way, last = path
        for key in way:
            saved = saved[key]
        del saved[last]

    return damage


def put(value, *path):
    def damage(saved):
        *way, last = path
        for key in way:
            saved = saved[key]
        saved[last] = value(saved.get(last) if isinstance(saved, dict) else saved[last]) if callable(value) else value

    return damage


def spoiled(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] = math.nan
    return tensor


def shorter(tensor):
    return tensor[:-1]


ESTIMATE = ("state", 0, "preconditioner", "estimate")
FACTORS = ("state", 0, "factors")
DAMAGES = {
    # The frame, of whichever optimizer
    "no state": ("HessianFree", drop("state"), "has no 'state'"),
    "no groups": ("KFAC", drop("param_groups"), "has no 'param_groups'"),
    "a list of states": ("AdamQLR", put([], "state"), r"\['state'\] must be a dict, got list"),
    "groups of no list": ("HessianFree", put(3, "param_groups"), r"\['param_groups'\] must be a list, got int"),
    "a later version": ("HessianFree", put(4, "version"), "has version 4, .* reads versions up to 3"),
    "a version in words": ("KFAC", put("new", "version"), "has version 'new'"),
    "another optimizer's": ("KFAC", put("HessianFree", "optimizer"), "is that of HessianFree, .* into KFAC"),
    "a group too many": ("SGDQLR", lambda s: s["param_groups"].append({}), "has 2 param groups, the optimizer has 1"),
    "a group of no dict": ("HessianFree", put(None, "param_groups", 0), r"\[0\] must be a dict, got NoneType"),
    "a group without parameters": ("KFAC", drop("param_groups", 0, "params"), "must have a list 'params'"),
    "too few parameters": ("KFAC", put([0, 1, 2], "param_groups", 0, "params"), "has 3 parameters, .* has 4"),
    "a parameter twice": ("KFAC", put([0, 1, 1, 2], "param_groups", 0, "params"), "names a parameter twice"),
    "a state of nobody": ("AdamQLR", put({}, "state", 9), "has an entry 9"),
    "a state of no dict": ("HessianFree", put(1.0, "state", 1), r"\['state'\]\[1\] must be a dict, got float"),
    # Options
    "an option not a number": ("HessianFree", put(math.nan, "param_groups", 0, "damping"), "damping must be a finite"),
    "an option in words": ("KFAC", put("1", "param_groups", 0, "damping"), "damping must be a number >= 0, or a part"),
    "an unknown choice": ("AdamQLR", put("x", "param_groups", 0, "curvature"), "curvature must be one of"),
    "a range of one": ("HessianFree", put([1], "param_groups", 0, "damping", "range"), "range must be a pair"),
    "a cap of zero": ("HessianFree", put(0, "param_groups", 0, "solver", "max_iter"), "CG.max_iter must be an integer"),
    "an unknown field": ("HessianFree", put(0, "param_groups", 0, "solver", "maxiter"), "did you mean 'max_iter'"),
    "an unknown part": ("HessianFree", put("lu", "param_groups", 0, "solver", "kind"), "solver: kind must be one of"),
    "a part of no dict": ("HessianFree", put(3, "param_groups", 0, "solver"), "solver must be a part"),
    "betas in words": ("AdamQLR", put("ab", "param_groups", 0, "betas"), r"\['betas'\] must be 2 numbers, got 'ab'"),
    "a rate of NaN": ("momentum", put(math.nan, "param_groups", 0, "lr"), r"\['lr'\] must be a finite number"),
    "a carried NaN": ("AdamQLR", put(math.nan, "param_groups", 0, "adapted_damping"), r"\['adapted_damping'\] must be"),
    "a rule of another's": ("KFAC", put("decreasing_loss", "param_groups", 0, "damping", "kind"), "must be one of"),
    "forms in words": ("SGDQLR", put("abc", "param_groups", 0, "forms"), r"\['forms'\] must be a list of whole"),
    # What a step leaves
    "damping of NaN": ("HessianFree", put(math.nan, "state", 0, "damping"), r"\[0\]\['damping'\] must be a finite"),
    "infinite damping": ("KFAC", put(math.inf, "state", 0, "damping"), r"\[0\]\['damping'\] must be a finite"),
    "negative damping": ("HessianFree", put(-1.0, "state", 0, "damping"), r"\[0\]\['damping'\] must be a finite"),
    "damping as a tensor": ("KFAC", put(torch.ones(2), "state", 0, "damping"), r"got a tensor of shape \[2\]"),
    "half a step": ("KFAC", put(1.5, "state", 0, "steps"), r"\['steps'\] must be a whole number"),
    "half a rise": ("HessianFree", put(0.5, "state", 0, "rises"), r"\['rises'\] must be a whole number"),
    "an unknown key": ("HessianFree", put(1, "state", 0, "speed"), r"\[0\]\['speed'\] is unknown: there may be"),
    "a start of NaN": ("HessianFree", put(spoiled, "state", 1, "x0"), r"\[1\]\['x0'\] holds values that are not"),
    "a start too short": ("HessianFree", put(shorter, "state", 2, "x0"), r"\['x0'\] must have shape \[3, 4\]"),
    "a start of integers": ("HessianFree", put(lambda x: x.long(), "state", 2, "x0"), "of floating-point numbers"),
    "an update in words": ("KFAC", put("none", "state", 1, "update"), r"\['update'\] must be a tensor"),
    "no age": ("Nystrom", drop("state", 0, "preconditioner", "age"), r"\['preconditioner'\] has no 'age'"),
    "no estimate": ("Nystrom", drop(*ESTIMATE), r"\['preconditioner'\] has no 'estimate'"),
    "a part is missing": ("Nystrom", drop(*ESTIMATE, "rest"), r"\['estimate'\] has no 'rest'"),
    "a part too much": ("Nystrom", put(torch.ones(1), *ESTIMATE, "more"), r"\['more'\] is unknown"),
    "vectors too short": ("Nystrom", put(lambda x: x[:, 1:], *ESTIMATE, "vectors"), r"must have shape \[any, 31\]"),
    "a diagonal of NaN": ("EmpiricalFisher, kept", put(spoiled, *ESTIMATE, "diagonal"), r"\['diagonal'\] holds values"),
    "a diagonal too short": ("GGNDiagonal, kept", put(shorter, *ESTIMATE, "diagonal"), r"must have shape \[31\]"),
    "a factor is missing": ("Kronecker", drop(*ESTIMATE, "0.inputs.values"), "has no '0.inputs.values'"),
    "a factor too small": ("Kronecker", put(shorter, *ESTIMATE, "1.slopes.vectors"), r"must have shape \[3, 3\]"),
    "layers of floats": ("Kronecker", put(lambda x: x.double(), *ESTIMATE, "layers"), "a tensor of whole numbers"),
    "no count": ("KFAC", drop(*FACTORS, "count"), r"\['factors'\] has no 'count'"),
    "factors of no dict": ("KFAC", put(3, *FACTORS), r"\['factors'\] must be a dict"),
    "a moment is missing": ("KFAC", drop(*FACTORS, "moments", "1.slopes"), r"\['moments'\] has no '1.slopes'"),
    "a moment of NaN": ("KFAC", put(spoiled, *FACTORS, "moments", "0.inputs"), r"\['0.inputs'\] holds values"),
    "an inverse too small": ("KFAC", put(shorter, *FACTORS, "inverses", "0.slopes"), r"must have shape \[4, 4\]"),
    "an inverse is missing": ("KFAC", drop(*FACTORS, "inverses", "0.slopes"), r"\['inverses'\] has no '0.slopes'"),
    "a moment of Adam's is missing": ("AdamQLR", drop("state", 1, "exp_avg_sq"), r"\[1\] has no 'exp_avg_sq'"),
    "Adam's maximum is missing": ("AdamW", drop("state", 0, "max_exp_avg_sq"), "has no 'max_exp_avg_sq'"),
    "momentum too short": ("momentum", put(shorter, "state", 0, "momentum_buffer"), r"must have shape \[4, 3\]"),
    "momentum of NaN": ("momentum", put(spoiled, "state", 3, "momentum_buffer"), r"\[3\]\['momentum_buffer'\] holds"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_dict_is_named_and_loads_nothing(name, unchanged):
    case, damage, message = DAMAGES[name]
    model = model_of(case)
    optimizer = CASES[case](model)
    take_steps(case, model, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    damage(saved)
    report, damping = optimizer.report, optimizer.damping
    with unchanged(model, optimizer, generator=True), pytest.raises(ValueError, match=message) as caught:
        optimizer.load_state_dict(saved)
    assert "state_dict" in str(caught.value)
    assert (optimizer.report, optimizer.damping) == (report, damping)
    take_steps(case, model, optimizer, range(2, 3))


def test_what_is_no_state_dict_is_refused():
    optimizer = KFAC(model_of("KFAC").parameters())
    with pytest.raises(ValueError, match="must be a dict as state_dict"):
        optimizer.load_state_dict(None)


def test_the_state_of_a_base_that_was_not_wrapped_may_be_loaded():
    model = model_of("AdamQLR")
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    adam.step(Objective(model, nn.CrossEntropyLoss(), batch(0)))
    optimizer = AdamQLR(model.parameters())
    optimizer.load_state_dict(adam.state_dict())
    optimizer.step(Objective(model, nn.CrossEntropyLoss(), batch(1)))
    assert float(optimizer.state[next(model.parameters())]["step"]) == 2
    other = QuadraticLearningRate(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"is that of QuadraticLearningRate\(Adam\), .* into Quad.*\(SGD\)"):
        other.load_state_dict(optimizer.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# Whose an estimate is

FISHER, DIAGONAL, NYSTROM, KRONECKER = KEPT = [
    EmpiricalFisher(every=5),
    GGNDiagonal(every=5),
    Nystrom(rank=3, every=5),
    Kronecker(every=5),
]
SETTINGS = [
    (FISHER, EmpiricalFisher(every=5, exponent=1.0)),
    (DIAGONAL, GGNDiagonal(every=5, probes=3)),
    (NYSTROM, Nystrom(rank=4, every=5)),
    (KRONECKER, Kronecker(every=5, weight_sharing="reduce")),
]


@pytest.mark.parametrize(
    ("first", "second"), [(x, y) for x in KEPT for y in [*KEPT, None] if y or x is FISHER] + SETTINGS, ids=str
)
def test_an_estimate_serves_the_method_that_made_it(first, second):
    """Another's is dropped with a warning, and the next step is that of an optimizer without an estimate."""
    model = model_of("HessianFree")
    optimizer = hessian_free(solver=CG(preconditioner=first))(model)
    take_steps("HessianFree", model, optimizer, range(2))
    saved = optimizer.state_dict()
    assert type(first).__name__ in saved["state"][0]["preconditioner"]["method"]
    other = hessian_free(solver=CG(preconditioner=second))(model)
    if first == second:
        other.load_state_dict(saved)
        assert "preconditioner" in other.state[next(model.parameters())]
        return
    with pytest.warns(UserWarning, match=f"holds {type(first).__name__}.*the estimate is dropped"):
        other.load_state_dict(saved)
    bare = hessian_free(solver=CG(preconditioner=second))(twin := copy.deepcopy(model))
    without = copy.deepcopy(saved)
    del without["state"][0]["preconditioner"]
    bare.load_state_dict(without)
    torch.manual_seed(3)
    expected = take_steps("HessianFree", twin, bare, range(2, 3))
    torch.manual_seed(3)
    assert torch.equal(take_steps("HessianFree", model, other, range(2, 3))[0], expected[0])


@pytest.mark.parametrize(
    ("case", "second"),
    [("Nystrom", GGNDiagonal(every=5)), ("Kronecker", Nystrom(rank=3)), ("EmpiricalFisher, kept", Nystrom(rank=3))],
)
def test_an_estimate_of_an_earlier_release_that_is_anothers_by_its_form_is_dropped(case, second):
    model = model_of(case)
    model.load_state_dict(SAVED[case]["parameters"])
    optimizer = hessian_free(solver=CG(preconditioner=second))(model)
    with pytest.warns(UserWarning, match="does not say whose it is.*dropped"):
        optimizer.load_state_dict(SAVED[case]["optimizer"])
    optimizer.step(*objectives_of(case, model, 3))
    assert optimizer.report.accepted
