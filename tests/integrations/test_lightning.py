"""Lightning trains modules whose `training_step` returns an objective, as a plain loop does."""

import copy
import functools
import os
import unittest.mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latephase import (
    KFAC,
    AdamQLR,
    GaussNewton,
    HessianFree,
    LevenbergMarquardt,
    Objective,
    SelfScaledBroyden,
)
from latephase.integrations.lightning import SecondOrderModule

L = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, of workers, loggers and what it deprecates

OPTIMIZERS = {
    "HessianFree": functools.partial(HessianFree, damping=0.1),
    "GaussNewton": functools.partial(GaussNewton, damping=LevenbergMarquardt(0.1)),
    "KFAC": KFAC,
    "AdamQLR": AdamQLR,
    "SelfScaledBroyden": SelfScaledBroyden,
    "SGD": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
LOSS = nn.MSELoss()


class Net(SecondOrderModule, L.LightningModule):
    """A small network, in float64 so that quasi-Newton steps have digits; `seen` has what Lightning was told."""

    def __init__(self, make, held_out=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.make, self.held_out, self.seen = make, held_out, []

    def training_step(self, batch, batch_idx):
        objective = Objective(self.net, LOSS, batch)
        return (
            objective if self.held_out is None else {"objective": objective, "evaluation": objective.on(self.held_out)}
        )

    def configure_optimizers(self):
        return self.make(self.parameters())

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.trainer.global_step)  # K-FAC draws signs, and Lightning's checkpoints hold no generator

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append((self.trainer.global_step, outputs.get("loss")))


def data(batches=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * batches, 3, dtype=torch.float64, generator=generator)
    return TensorDataset(x, torch.stack([x.sin().sum(1), x.prod(1)], 1))


def loader(**options):
    return DataLoader(data(**options), batch_size=8)


def trainer(folder, **options):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "default_root_dir": folder, "enable_checkpointing": False}
    return L.Trainer(**settings | {"max_epochs": 2} | options)


def by_hand(module, epochs=2):
    """The same steps in a plain loop; the losses before them."""
    optimizer, losses = module.configure_optimizers(), []
    for _ in range(epochs):
        for batch in loader():
            torch.manual_seed(len(losses))
            objective = Objective(module.net, LOSS, batch)
            others = {} if module.held_out is None else {"evaluation": objective.on(module.held_out)}
            losses.append(optimizer.step(objective, **others).detach())
    return losses


def same(first, second):
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@every_optimizer
def test_parameters_are_those_of_a_plain_loop_bit_for_bit(make, tmp_path):
    module = Net(make)
    twin, begun = copy.deepcopy(module), copy.deepcopy(module)
    fitted = trainer(tmp_path)
    fitted.fit(module, loader())
    losses = by_hand(twin)
    assert same(module, twin)
    assert not same(module, begun)
    assert fitted.global_step == 6
    steps, seen = zip(*module.seen, strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    assert torch.equal(torch.stack(seen), torch.stack(losses))
    assert losses[-1] < losses[0]


@every_optimizer
def test_a_run_resumes_from_lightnings_checkpoint_with_the_same_numbers(make, tmp_path):
    keep = L.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    whole, resumed = Net(make), Net(make)
    trainer(tmp_path, callbacks=[keep], enable_checkpointing=True).fit(whole, loader())
    again = trainer(tmp_path)
    again.fit(resumed, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert again.global_step == 6
    assert [step for step, _ in resumed.seen] == [4, 5, 6]
    assert same(whole, resumed)


def test_the_evaluation_objective_reaches_the_step(tmp_path):
    held_out = tuple(tensor[:5] for tensor in data().tensors)
    module = Net(OPTIMIZERS["HessianFree"], held_out)
    twin = copy.deepcopy(module)
    trainer(tmp_path).fit(module, loader())
    by_hand(twin)
    assert same(module, twin)
    assert not module.step_report.same_data


def test_the_module_itself_may_be_the_model(tmp_path):
    class Whole(Net):
        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return Objective(self, LOSS, batch)

    whole, inner = Whole(OPTIMIZERS["HessianFree"]), Net(OPTIMIZERS["HessianFree"])
    trainer(tmp_path, max_epochs=1).fit(whole, loader())
    trainer(tmp_path, max_epochs=1).fit(inner, loader())
    assert inner.step_report.method == "traced"
    for p, q in zip(whole.parameters(), inner.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)  # other products' rounding, through three runs of CG


def test_a_schedule_runs_over_the_steps(tmp_path):
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=3)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Scheduled(OPTIMIZERS["AdamQLR"])
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    assert module.optimizers().param_groups[0]["lr"] == 0.5


def test_none_skips_a_batch(tmp_path):
    class Skipping(Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    module = Skipping(OPTIMIZERS["HessianFree"])
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    assert [loss is None for _, loss in module.seen] == [False, True, False]


def test_manual_optimization_is_as_ever(tmp_path):
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = LOSS(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            optimizer.step()
            return loss

    manual, automatic = Manual(OPTIMIZERS["SGD"]), Net(OPTIMIZERS["SGD"])
    trainer(tmp_path).fit(manual, loader())
    trainer(tmp_path).fit(automatic, loader())
    assert same(manual, automatic)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2: .* microbatch_size"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val=1.0 does not go with HessianFree"),
        ({"precision": "bf16-mixed"}, "precision='bf16-mixed': .*GGN"),
    ],
)
def test_settings_that_would_train_something_else_are_refused(options, said, tmp_path):
    module = Net(OPTIMIZERS["HessianFree"])
    begun = copy.deepcopy(module)
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, **options).fit(module, loader())
    assert same(module, begun)


@unittest.mock.patch.dict(os.environ)  # where Lightning leaves its addresses, by which others would find a group
def test_a_strategy_with_a_wrapper_is_refused(tmp_path):
    try:
        with pytest.raises(ValueError, match=r"strategy is DDPStrategy.*process_group"):
            trainer(tmp_path, strategy="ddp").fit(Net(OPTIMIZERS["HessianFree"]), loader())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_clipping_is_the_clipping_of_torchs_optimizers(tmp_path):
    module = Net(OPTIMIZERS["SGD"])
    twin = copy.deepcopy(module)
    trainer(tmp_path, gradient_clip_val=0.01, max_epochs=1).fit(module, loader())
    optimizer = twin.configure_optimizers()
    for batch in loader():
        Objective(twin.net, LOSS, batch)()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
        optimizer.step()
    assert same(module, twin)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda f: f().requires_grad_(), "must return an Objective.*got Tensor"),
        (lambda f: {"loss": f}, "got a dict with 'loss'"),
        (lambda f: {"objective": f, "accuracy": 0.5}, "returns float as 'accuracy'"),
    ],
)
def test_what_is_no_objective_is_named(returned, said, tmp_path):
    class Wrong(Net):
        def training_step(self, batch, batch_idx):
            return returned(super().training_step(batch, batch_idx))

    module = Wrong(OPTIMIZERS["HessianFree"])
    with pytest.raises(TypeError, match=said):
        trainer(tmp_path).fit(module, loader())
    assert "training_step" not in vars(module)
