"""Models in bfloat16 and float16 train with every loss, whatever the dtype of the targets."""

import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

from latephase import KFAC, SGDQLR, AdamQLR, HessianFree, Objective
from latephase.curvature import linearize

LOSSES = {
    "mse": (nn.MSELoss(), "real"),
    "l1": (nn.L1Loss(), "real"),
    "huber": (nn.HuberLoss(), "real"),
    "smooth_l1": (nn.SmoothL1Loss(), "real"),
    "bce_with_logits": (nn.BCEWithLogitsLoss(), "share"),
    "soft_labels": (nn.CrossEntropyLoss(), "share"),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), "share"),
    "poisson": (nn.PoissonNLLLoss(), "share"),
    "margin": (nn.SoftMarginLoss(), "sign"),
}


def batch(kind: str, narrow: torch.dtype) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    inputs, real = torch.randn(8, 4, generator=random), torch.randn(8, 3, generator=random)
    targets = {"real": real, "share": real.softmax(1), "sign": real.sign()}[kind]
    return inputs.to(narrow), targets.to(narrow)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_narrow_targets_are_widened_as_outputs_are(name, narrow):
    loss, kind = LOSSES[name]
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(narrow)
    inputs, targets = batch(kind, narrow)
    objective = Objective(model, loss, (inputs, targets))
    expected = loss(model(inputs).float(), targets.float())
    torch.testing.assert_close(objective.value(), expected.detach(), rtol=0, atol=0)
    # Nothing but the dtype of the targets differs.
    wide = linearize(Objective(model, loss, (inputs, targets.float())))
    torch.testing.assert_close(linearize(objective).gradient, wide.gradient, rtol=0, atol=0)
    for optimizer in (HessianFree(model.parameters()), AdamQLR(model.parameters()), SGDQLR(model.parameters())):
        before = float(objective.value())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of losses without curvature
            optimizer.step(objective)
        assert optimizer.report.loss == before


def test_a_batch_that_stays_whole_is_whatever_the_loss_takes():
    """Inputs [B, T], outputs [B T, V] and targets [B T]: rows are counted where something is cut, and refused there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7), nn.Flatten(0, 1))
    inputs = torch.randint(7, (3, 4))
    flat = Objective(model, nn.CrossEntropyLoss(), (inputs, inputs.reshape(-1)))
    expected = nn.functional.cross_entropy(model(inputs), inputs.reshape(-1))
    torch.testing.assert_close(flat.value(), expected.detach())
    optimizer = HessianFree(model.parameters())
    for _ in range(3):
        optimizer.step(flat)
    assert optimizer.report.accepted
    for ask in (lambda: flat.split(2, 2), lambda: flat.subsample(2), lambda: Objective(*both(model, inputs)).value()):
        with pytest.raises(ValueError, match="3 rows of inputs but 12 of targets"):
            ask()
    with pytest.raises(ValueError, match="3 rows of inputs but 12 of targets"):
        Objective(model, nn.CrossEntropyLoss(), (inputs, inputs.reshape(-1)), microbatch_size=2)


def both(model: nn.Module, inputs: Tensor) -> tuple:
    loss = nn.MultiMarginLoss()  # a mean over rows, which must be counted
    return model, loss, [(inputs, inputs.reshape(-1)), (inputs, inputs.reshape(-1))]


@pytest.mark.parametrize("kind", [nn.HuberLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss])
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float32])
def test_targets_narrower_than_outputs_in_float64_are_widened_too(kind, narrow):
    torch.manual_seed(0)
    model, (inputs, targets) = nn.Linear(4, 3).double(), batch("share", narrow)
    objective = Objective(model, kind(), (inputs.double(), targets), microbatch_size=3)
    expected = kind()(model(inputs.double()), targets.double())
    torch.testing.assert_close(objective.value(), expected.detach())
    HessianFree(model.parameters()).step(objective)


def test_settings_of_a_partial_in_a_narrow_dtype_meet_outputs_of_theirs():
    torch.manual_seed(0)
    model, weight = nn.Linear(4, 3).bfloat16(), torch.ones(3, dtype=torch.bfloat16)
    inputs, labels = batch("real", torch.bfloat16)[0], torch.arange(8) % 3
    loss = functools.partial(nn.functional.cross_entropy, weight=weight)
    value = Objective(model, loss, (inputs, labels)).value()
    torch.testing.assert_close(value, loss(model(inputs), labels).detach())


@pytest.mark.parametrize(("own", "of_targets"), [(torch.bfloat16,) * 2, (torch.float64, torch.float32)])
def test_kfac_takes_narrow_targets_as_the_others_do(own, of_targets):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(own)
    inputs, targets = batch("real", torch.float32)
    optimizer = KFAC(model.parameters())
    optimizer.step(Objective(model, nn.HuberLoss(), (inputs.to(own), targets.to(of_targets))))
    assert optimizer.report.accepted


@pytest.mark.parametrize(
    ("loss", "of_targets"),
    [(nn.HuberLoss(), torch.float64), (nn.BCEWithLogitsLoss(), torch.int64), (nn.BCELoss(), None)],
)
def test_an_error_of_dtypes_says_whose_they_are(loss, of_targets):
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    inputs, targets = batch("share", torch.float32)
    of_targets = of_targets or torch.bool
    objective = Objective(model, loss, (inputs, targets.round().to(of_targets)))
    for call in (lambda: HessianFree(model.parameters()).step(objective), objective):
        with pytest.raises(RuntimeError, match=r"type|bool") as caught:
            call()
        assert f"of {type(loss).__name__}: parameters torch.float32; targets {of_targets}" in caught.value.__notes__[0]
