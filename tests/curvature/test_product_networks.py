"""Products of whole networks, of the kinds that are trained, against an oracle by vectors."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import relative
from product_cases import PRODUCTS, REFUSAL, TIGHT, randn, seeded
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase import Objective
from latephase.curvature import Linearization, linearize

ROWS, CLASSES = 6, 5
TARGETS = torch.arange(ROWS) % CLASSES
TOKENS = torch.randint(0, 7, (ROWS, 4), generator=torch.Generator().manual_seed(1))


class Recurrent(nn.Module):
    """A recurrent layer read out at its last place."""

    def __init__(self, layer: nn.RNNBase, width: int):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class MaskedAttention(nn.Module):
    """Multi-head attention with a mask over pairs and one over the keys."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, CLASSES)
        self.register_buffer("mask", torch.ones(3, 3, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.attention(x, x, x, attn_mask=self.mask, key_padding_mask=padding, need_weights=False)[0]
        return self.head(y.sum(1))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.again = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.again(x))))


class SmallGPT(nn.Module):
    """Embeddings, positions, two pre-norm blocks, a head tied to the embedding; logits [N, V, T]."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 4), nn.Embedding(4, 4)
        self.blocks, self.norm = nn.Sequential(Block(4, 2), Block(4, 2)), nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h))).transpose(1, 2)


class Residual(nn.Module):
    """A residual block with batch norm and ReLUs in place, and a shortcut by a strided convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.short = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 1, stride=2)
        self.one, self.two = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.stem(x)))
        y = self.norms[2](self.two(self.relu(self.norms[1](self.one(x)))))
        y += self.short(x)
        return self.head(F.adaptive_avg_pool2d(self.relu(y), 1).flatten(1))


def convolutional() -> nn.Module:
    """Grouped, dilated, strided and transposed convolutions, every kind of pooling."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm2d(3, affine=True),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


PADDING = torch.zeros(ROWS, 3, dtype=torch.bool)
PADDING[::2, 2] = True
SEQUENCES, IMAGES = randn(ROWS, 3, 4, seed=2), randn(ROWS, 1, 6, 6, seed=3)
NETWORKS = {
    "convolutional": (convolutional, (randn(ROWS, 2, 6, 6, seed=4),), TARGETS),
    "residual": (Residual, (IMAGES,), TARGETS),
    "residual_eval": (lambda: Residual().eval(), (IMAGES,), TARGETS),
    "rnn": (lambda: Recurrent(nn.RNN(4, 3, batch_first=True), 3), (SEQUENCES,), TARGETS),
    "gru": (lambda: Recurrent(nn.GRU(4, 3, 2, batch_first=True), 3), (SEQUENCES,), TARGETS),
    "lstm": (lambda: Recurrent(nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True), 6), (SEQUENCES,), TARGETS),
    "attention": (MaskedAttention, (SEQUENCES, PADDING), TARGETS),
    "encoder": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(12, CLASSES)
        ),
        (SEQUENCES,),
        TARGETS,
    ),
    "gpt": (SmallGPT, (TOKENS,), TOKENS.roll(-1, 1)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, CLASSES)),
        (TOKENS,),
        TARGETS,
    ),
    "embedding_with_padding": (  # its row of padding gets no gradient, although the outputs depend on it
        lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, CLASSES)),
        (TOKENS,),
        TARGETS,
    ),
    "sparse_embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(12, CLASSES)),
        (TOKENS,),
        TARGETS,
    ),
}


def by_vectors(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor, curvature: str, v: Tensor):
    """Loss, gradient [P] and product [P] by torch.autograd.functional, of one flat parameter vector."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # sparse gradients are no functions of one flat vector; the numbers are the same
    named = dict(model.named_parameters())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def outputs_of(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for p in named.values()])
        point = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration")  # said by setting any flag of oneDNN
            with torch.backends.mkldnn.flags(enabled=False):  # its recurrent layers have one derivative
                return functional_call(model, point | {name: b.clone() for name, b in before.items()}, inputs)

    def loss_of(theta: Tensor) -> Tensor:
        return F.cross_entropy(outputs_of(theta), targets)

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
    point = theta.clone().requires_grad_()
    loss = loss_of(point)
    (gradient,) = torch.autograd.grad(loss, point)
    if curvature == "hessian":
        return loss.detach(), gradient, torch.autograd.functional.vhp(loss_of, theta, v)[1]
    outputs, tangents = torch.autograd.functional.jvp(outputs_of, theta, v)
    times = torch.autograd.functional.hvp(lambda z: F.cross_entropy(z, targets), outputs, tangents)[1]
    return loss.detach(), gradient, torch.autograd.functional.vjp(outputs_of, theta, times)[1]


def check(linearization: Linearization, expected, v: Tensor, tolerance: float) -> None:
    loss, gradient, product = expected
    assert relative(linearization.loss.double(), loss) < tolerance
    assert relative(linearization.gradient.double(), gradient) < tolerance
    for _ in range(2):
        assert relative(linearization.matvec(v).double(), product) < tolerance
    form, scale = float(v.double() @ product), float(v.double().norm() * product.norm())
    assert float(linearization.quadratic_form(v)) == pytest.approx(form, abs=tolerance * scale)


@pytest.mark.parametrize(
    ("curvature", "method"),
    [("ggn", "auto"), ("hessian", "auto"), ("ggn", "double_backward"), ("hessian", "double_backward")]
    # The second rung of "auto" is the trace already; torch.func.linearize takes seconds for these.
    + [pytest.param(*product, marks=pytest.mark.slow) for product in PRODUCTS if product[1] in ("traced", "linearize")],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, curvature, method):
    build, inputs, targets = NETWORKS[name]
    model = seeded(build)
    v = randn(sum(p.numel() for p in model.parameters()), seed=5)
    expected = by_vectors(model, inputs, targets, curvature, v)
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    try:
        for _ in range(2 if method == "auto" else 1):
            linearization = linearize(objective, curvature, method=method)
            check(linearization, expected, v, TIGHT)
    except (RuntimeError, NotImplementedError) as refusal:
        assert method != "auto"
        assert REFUSAL.search(str(refusal)), refusal  # noqa: PT017
    else:
        # Every network here is one that a trace follows; none falls back to another method unsaid.
        assert linearization.method == ("traced" if method == "auto" else method), linearization.reason


@pytest.mark.parametrize("curvature", ["ggn", pytest.param("hessian", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float32(name, curvature):
    build, inputs, targets = NETWORKS[name]
    model = seeded(build)
    v = randn(sum(p.numel() for p in model.parameters()), seed=5)
    expected = by_vectors(model, inputs, targets, curvature, v)
    narrow = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    objective = Objective(model.float(), nn.CrossEntropyLoss(), (narrow, targets))
    for method in ("traced", "double_backward"):
        check(linearize(objective, curvature, method=method), expected, v.float(), 1e-4)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag_is_refused_by_name(mode):
    # torch has neither derivative of it: what is said must name the layer.
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.relu, self.last = nn.EmbeddingBag(7, 3, mode=mode), nn.ReLU(), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.relu(self.bag(x)))

    objective = Objective(seeded(Bag), nn.CrossEntropyLoss(), (TOKENS, TARGETS))
    for _ in range(2):
        linearization = linearize(objective)
        with pytest.raises(RuntimeError, match=r"'bag' \(EmbeddingBag\)"):
            linearization.matvec(torch.ones_like(linearization.gradient))


def test_the_layer_to_blame_is_found_behind_one_that_works_in_place():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu = nn.Linear(4, 3), nn.ReLU(inplace=True)
            self.bag, self.last = nn.EmbeddingBag(7, 3), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
            return self.last(self.relu(self.first(x)) + self.bag(tokens))

    objective = Objective(seeded(Bag), nn.CrossEntropyLoss(), ((randn(ROWS, 4, seed=6), TOKENS), TARGETS))
    linearization = linearize(objective)
    with pytest.raises(RuntimeError, match=r"'bag' \(EmbeddingBag\)"):
        linearization.matvec(torch.ones_like(linearization.gradient))
