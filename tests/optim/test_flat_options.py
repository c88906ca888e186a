"""States and pickles of K-FAC and AdamQLR with flat options load, and go on to the same numbers."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.make_flat_options import steps
from step_cases import model_of

from latephase import KFAC, SGDQLR, AdamQLR, DecreasingLoss, Fixed, KroneckerFactors, LevenbergMarquardt
from latephase.optim.kfac.former import FORMER as FORMER_KFAC
from latephase.optim.quadratic_lr.former import FORMER as FORMER_QLR

SAVED = torch.load(Path(__file__).parent / "fixtures" / "flat_options.pt", weights_only=True)
"""Of commit 34b9fef; see make_flat_options.py beside it."""
MAKERS: dict[str, Any] = {"KFAC": KFAC, "AdamQLR": AdamQLR, "SGDQLR": SGDQLR}
UNTUNED = LevenbergMarquardt(1e-3, factors=(0.5, 2.0), range=(1e-8, math.inf), model="damped")
EXPECTED: dict[str, dict[str, Any]] = {
    "KFAC": {
        "damping": LevenbergMarquardt(0.1, factors=(0.9**2, 1 / 0.9**2), range=(1e-6, 1e6), model="damped"),
        "adapt_period": 2,
        "factors": KroneckerFactors(period=2, inverse_period=3, decay=0.9, probes=2, weight_sharing="reduce"),
    },
    "KFAC, adaptive": {
        "damping": LevenbergMarquardt(1.0, factors=(0.9, 1 / 0.9), range=(1e-8, math.inf)),
        "adapt_period": 1,
        "factors": KroneckerFactors(inverse_period=1),
    },
    "KFAC, constant": {"damping": Fixed(0.3, "damped"), "lr": 0.1, "exact_lr": False, "factors": KroneckerFactors()},
    "AdamQLR": {"damping": UNTUNED, "curvature": "ggn"},
    "AdamQLR, undamped ratio": {"damping": UNTUNED.changed(model="undamped"), "lr_clip": 0.1},
    "AdamQLR, constant": {"damping": Fixed(0.3, "damped"), "lr_clip": 0.1},
    "AdamQLR, absolute": {"damping": DecreasingLoss(1e-3, factors=(0.75, 2.0)), "curvature": "absolute_hessian"},
    "SGDQLR": {"damping": DecreasingLoss(), "amplification": 0.5},
    "SGDQLR, ratio": {
        "damping": LevenbergMarquardt(1.0, factors=(0.9, 2.0), range=(1e-3, 10.0), model="damped"),
    },
}
"""What the options are with parts. Flat options of quadratic learning rates kept no initial damping: it is that of the
optimizer which loads them."""


def loaded(case: str, state: Any) -> tuple[torch.nn.Module, Any]:
    model = model_of("KFAC")
    model.load_state_dict(SAVED[case]["parameters"])
    optimizer = MAKERS[case.split(",")[0]](model.parameters())
    optimizer.load_state_dict(state)
    return model, optimizer


def unpickled(case: str) -> tuple[torch.nn.Module, Any]:
    return pickle.loads(SAVED[case]["pickle"].numpy().tobytes())


@pytest.mark.parametrize("how", ["state dict", "state dict again", "pickle", "pickle again"])
@pytest.mark.parametrize("case", EXPECTED)
def test_it_goes_on_to_the_same_numbers(case, how):
    model, optimizer = unpickled(case) if "pickle" in how else loaded(case, SAVED[case]["optimizer"])
    if how == "state dict again":
        model, optimizer = loaded(case, copy.deepcopy(optimizer.state_dict()))
    elif how == "pickle again":
        model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in EXPECTED[case]} == EXPECTED[case]
    assert not {*FORMER_KFAC, *FORMER_QLR} & set(group)
    assert optimizer.damping == SAVED[case]["damping"]
    for found, expected in zip(steps(model, optimizer, range(3, 7)), SAVED[case]["continued"], strict=True):
        assert set(found) == set(expected)
        for name, value in expected.items():
            if isinstance(value, (float, torch.Tensor)):
                # To the last bit within one make of processor; six digits where another orders its sums otherwise.
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, equal_nan=True)
            else:
                assert found[name] == value, name


def test_an_option_that_there_is_no_more_is_named_where_it_did_something():
    with pytest.raises(ValueError, match=r"state_dict cannot be loaded: curvature_ema was 0.5, and there is no such"):
        loaded("AdamQLR, averages", SAVED["AdamQLR, averages"]["optimizer"])
    with pytest.raises(ValueError, match=r"curvature_ema was 0.5, and there is no such"):
        unpickled("AdamQLR, averages")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr_ema", 0.5), ("gradient_clip", 1.0), ("direction_clip", 1.0), ("step_clip", 1.0), ("decay_per_step", 0.1),
        ("absolute_curvature", True),
    ],
)  # fmt: skip
def test_so_are_the_others(option, value):
    """The absolute value goes with the Hessian only now."""
    saved = copy.deepcopy(SAVED["AdamQLR"]["optimizer"])
    saved["param_groups"][0][option] = value
    with pytest.raises(ValueError, match=f"state_dict cannot be loaded: {option} was {value}"):
        loaded("AdamQLR", saved)


def test_a_rule_that_there_never_was_is_named():
    saved = copy.deepcopy(SAVED["AdamQLR"]["optimizer"])
    saved["param_groups"][0]["damping_rule"] = "kfac"
    with pytest.raises(ValueError, match="damping_rule must be one of ratio, decreasing_loss; got 'kfac'"):
        loaded("AdamQLR", saved)
