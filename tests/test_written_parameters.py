"""Passes never write the user's parameters: embeddings with `max_norm`, and forwards that write in place."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latephase import KFAC, SGDQLR, AdamQLR, HessianFree, Objective, check
from latephase.curvature import linearize

WORDS = torch.tensor([[0, 1, 1], [2, 3, 0], [4, 4, 2], [1, 3, 4]])
LABELS = torch.tensor([0, 1, 1, 0])


class Table(nn.Module):
    """An embedding with `max_norm`, called in one of the ways."""

    def __init__(self, way: str, norm_type: float = 2.0, padding_idx: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.norm_type = way, norm_type
        if way == "bag":
            self.table = nn.EmbeddingBag(5, 4, max_norm=1.0, norm_type=norm_type, mode="mean")
        else:
            self.table = nn.Embedding(5, 4, max_norm=1.0, norm_type=norm_type, padding_idx=padding_idx)
        self.last = nn.Linear(4, 2)
        with torch.no_grad():
            self.table.weight[3].mul_(0.1)
            self.table.weight[4].add_(0.2)  # torch leaves zeros at `padding_idx`
        self.double()

    def forward(self, words: Tensor) -> Tensor:
        if self.way == "function":
            rows = F.embedding(words, self.table.weight, max_norm=1.0, norm_type=self.norm_type).mean(1)
        elif self.way == "bag":
            rows = self.table(words)
        else:
            rows = self.table(words).mean(1)
        return self.last(torch.tanh(rows))


class Scaled(nn.Module):
    """The same function, written out."""

    def __init__(self, table: Table):
        super().__init__()
        self.table, self.last, self.norm_type = copy.deepcopy(table.table), copy.deepcopy(table.last), table.norm_type

    def forward(self, words: Tensor) -> Tensor:
        weight = self.table.weight
        lengths = weight.norm(self.norm_type, dim=1, keepdim=True)
        weight = torch.where(lengths > 1.0, weight / (lengths + 1e-7), weight)
        return self.last(torch.tanh(F.embedding(words, weight, self.table.padding_idx).mean(1)))


WAYS = {"module": Table("module"), "function": Table("function"), "third_norm": Table("module", 3.0),
        "padding": Table("module", padding_idx=4)}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_scaled_as_a_function_of_the_weight(way, unchanged):
    model = WAYS[way]
    ours, written = (Objective(m, nn.CrossEntropyLoss(), (WORDS, LABELS)) for m in (model, Scaled(model)))
    v = torch.randn(ours.space().size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with unchanged(model):
        assert torch.allclose(ours.value(), written.value(), rtol=1e-12)
        for curvature in ("ggn", "hessian"):
            expected = linearize(written, curvature=curvature, method="double_backward")
            for method in ("double_backward", "traced"):
                found = linearize(ours, curvature=curvature, method=method)
                assert torch.allclose(found.gradient, expected.gradient, rtol=1e-9, atol=1e-13)
                assert torch.allclose(found.matvec(v), expected.matvec(v), rtol=1e-9, atol=1e-13)
    written()
    ours()  # the ordinary closure is of the same function
    for p, q in zip(model.parameters(), written.model.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-9, atol=1e-13)


def test_a_row_of_zeros_has_derivatives():
    model = Table("module", padding_idx=4)
    with torch.no_grad():
        model.table.weight[[3, 4]] = 0.0
    curved = linearize(Objective(model, nn.CrossEntropyLoss(), (WORDS, LABELS)), curvature="hessian")
    assert curved.matvec(torch.ones(curved.space.size, dtype=torch.float64)).isfinite().all()


def test_the_loss_is_that_of_torch_s_own_call():
    for way in ("module", "function", "bag"):
        model = Table(way)
        value = Objective(model, nn.CrossEntropyLoss(), (WORDS, LABELS)).value()
        assert torch.allclose(value, nn.CrossEntropyLoss()(model(WORDS), LABELS), rtol=1e-12)


def test_a_bag_has_torch_s_loss_and_the_gradient_of_that_function(unchanged):
    model = Table("bag")
    objective = Objective(model, nn.CrossEntropyLoss(), (WORDS, LABELS))
    space, h = objective.space(), 1e-6
    with unchanged(model):
        gradient = linearize(objective, products=False).gradient
        v = torch.randn(space.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        ends = [float(objective.value(space.named(space.values() + t * v))) for t in (h, -h)]
    assert float(gradient @ v) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-7)


@pytest.mark.parametrize("make", [HessianFree, KFAC, AdamQLR, SGDQLR])
def test_every_optimizer_takes_steps(make):
    model = Table("module")
    objective = Objective(model, nn.CrossEntropyLoss(), (WORDS, LABELS))
    optimizer, losses = make(model.parameters()), [float(objective.value())]
    for _ in range(3):
        optimizer.step(objective)
        losses.append(float(objective.value()))
    assert losses[3] < losses[0]
    assert max(losses) == losses[0]


def test_check_writes_nothing_and_finds_nothing(unchanged):
    model = Table("module")
    with unchanged(model):
        report = check(Objective(model, nn.CrossEntropyLoss(), (WORDS, LABELS)))
    assert not [finding for finding in report.findings if finding.severity == "defect"]


class Clamped(nn.Module):
    """A layer whose forward pass keeps its weight small, in one of the ways in which that is done."""

    def __init__(self, way: str):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.way = nn.Linear(3, 2), way
        self.layer.requires_grad_(way != "frozen")
        self.last = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "data":
            self.layer.weight.data.clamp_(-0.1, 0.1)
        elif self.way == "renorm":
            torch.embedding_renorm_(self.layer.weight.detach(), torch.tensor([0, 1]), 0.1, 2.0)
        else:
            with torch.no_grad():
                self.layer.weight.clamp_(-0.1, 0.1)
        return self.last(self.layer(x))


@pytest.mark.parametrize("act", ["value", "linearize", "step"])
@pytest.mark.parametrize("way", ["data", "no_grad", "frozen", "renorm"])
def test_a_forward_that_writes_parameters_is_refused_and_undone(way, act, unchanged):
    model = Clamped(way)
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), LABELS))
    run = {
        "value": objective.value, "linearize": lambda: linearize(objective),
        "step": lambda: HessianFree(model.parameters()).step(objective),
    }[act]  # fmt: skip
    with (
        unchanged(model),
        pytest.raises(RuntimeError, match=r"writes the parameter 'layer.weight' of Clamped in place"),
    ):
        run()


def test_a_write_that_comes_later_is_refused_too():
    class Late(Clamped):
        late = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.late else self.last(self.layer(x))

    model = Late("no_grad")
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), LABELS))
    objective.value()
    model.late = True
    with pytest.raises(RuntimeError, match="writes the parameter"):
        objective.value()


def test_parameters_that_are_not_finite_are_not_taken_for_written():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    assert Objective(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), LABELS)).value().isnan()


class Culprit(nn.Module):
    """A bag of embeddings, which torch cannot differentiate twice, after a layer that moves its statistics."""

    def __init__(self):
        super().__init__()
        self.first, self.table, self.last = nn.BatchNorm1d(3), nn.EmbeddingBag(5, 4, max_norm=0.1), nn.Linear(4, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.table(words)) + 0 * F.dropout(self.first(words.float())).sum()


def product(objective: Objective) -> Tensor:
    curved = linearize(objective)
    return curved.matvec(torch.ones(curved.space.size))


@pytest.mark.parametrize("look", ["step", "check", "linearize"])
def test_the_search_for_the_layer_to_blame_changes_nothing(look):
    torch.manual_seed(0)
    model = Culprit()
    objective = Objective(model, nn.MSELoss(), (torch.randint(5, (6, 3)), torch.randn(6, 2)))
    before = copy.deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    if look == "check":
        assert "EmbeddingBag" in str(check(objective))
    else:
        take = HessianFree(model.parameters()).step if look == "step" else product
        with pytest.raises(RuntimeError, match=r"layer 'table' \(EmbeddingBag\)"):
            take(objective)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), drawn)
