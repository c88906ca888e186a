"""Networks whose param groups are blocks, and dense solves with the cross blocks set to zero."""

import copy

import torch
from dense_models import Model, dense_model, flat
from torch import Tensor, nn

from latephase import HessianFree, Objective

ROWS = 10


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1, 0, 1])
VECTORS, IMAGES, SIX = normal(ROWS, 4), normal(ROWS, 1, 4, 4), normal(ROWS, 6)
TOKENS = torch.randint(0, 5, (ROWS, 3), generator=torch.Generator().manual_seed(1))
BITS = (SIX > 0).double()


class Autoencoder(nn.Module):
    """Encoder, decoder, and optionally one weight that both use."""

    def __init__(self, tied: bool = False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 6))
        if tied:
            self.decoder[2].weight = self.encoder[2].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def perceptron(frozen: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    if frozen:
        model[2].bias.requires_grad_(False)
    return model


def convolution(norm: nn.Module) -> nn.Module:
    head = nn.Linear(8, 3)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), head)


class Centred(nn.Module):
    """Rows centred over the batch behind a narrow layer, and a last layer that begins at zero, so that this shows in
    no number before the second step.
    """

    def __init__(self):
        super().__init__()
        self.first, self.code, self.last = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(1, 3)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(torch.tanh(self.first(x)))
        return self.last(torch.tanh(code - code.mean(0)))


NETWORKS = {
    "linear": (perceptron, nn.CrossEntropyLoss(), VECTORS, LABELS),
    "frozen": (lambda: perceptron(frozen=True), nn.CrossEntropyLoss(), VECTORS, LABELS),
    "convolution": (lambda: convolution(nn.GroupNorm(1, 2)), nn.CrossEntropyLoss(), IMAGES, LABELS),
    "batch_norm": (lambda: convolution(nn.BatchNorm2d(2)), nn.CrossEntropyLoss(), IMAGES, LABELS),
    "batch_norm_eval": (lambda: convolution(nn.BatchNorm2d(2)).eval(), nn.CrossEntropyLoss(), IMAGES, LABELS),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 2), nn.LayerNorm(2), nn.Flatten(), nn.Linear(6, 3)),
        nn.CrossEntropyLoss(), TOKENS, LABELS,
    ),
    "autoencoder": (Autoencoder, nn.BCEWithLogitsLoss(), SIX, BITS),
    "tied": (lambda: Autoencoder(tied=True), nn.MSELoss(), SIX, SIX),
    "centred": (Centred, nn.CrossEntropyLoss(), VECTORS, LABELS),
    "twice": (Twice, nn.CrossEntropyLoss(), VECTORS, LABELS),
}  # fmt: skip


def model_of(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name][0]().double()


def objective_of(name: str, model: nn.Module, **options) -> Objective:
    return Objective(model, NETWORKS[name][1], NETWORKS[name][2:], **options)


def oracle_of(name: str, model: nn.Module, **options) -> Model:
    return dense_model(copy.deepcopy(model), NETWORKS[name][1], NETWORKS[name][2:], **options)  # keeps the buffers


def places(model: nn.Module, groups: list[dict]) -> list[Tensor]:
    """Where each group's parameters are in `flat(model)`."""
    ends = torch.tensor([p.numel() for p in model.parameters()]).cumsum(0).tolist()
    ranges = {p: torch.arange(end - p.numel(), end) for p, end in zip(model.parameters(), ends, strict=True)}
    return [torch.cat([ranges[p] for p in group["params"] if p.requires_grad]) for group in groups]


def system(oracle: Model, rows: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """C_bb + lambda_b I and -g_b of one block."""
    matrix = oracle.matrix[rows][:, rows] + damping * torch.eye(len(rows), dtype=torch.float64)
    return matrix, -oracle.gradient[rows]


def solved(oracle: Model, blocks: list[Tensor], dampings: list[float]) -> Tensor:
    """The solution of (C_bb + lambda_b I) d_b = -g_b for each block, in the order of the model."""
    step = torch.zeros_like(oracle.gradient)
    for rows, damping in zip(blocks, dampings, strict=True):
        step[rows] = torch.linalg.solve(*system(oracle, rows, damping))
    return step


def step_of(model: nn.Module, optimizer: HessianFree, *objectives: Objective, **others) -> Tensor:
    before = flat(model)
    optimizer.step(*objectives, **others)
    return flat(model) - before


def interleaved(model: nn.Module) -> list[dict]:
    """Two groups whose parameters alternate in the model, the later ones first."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [{"params": parameters[1::2]}, {"params": parameters[::2]}]
