import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from latephase.problems.architectures import LSTMClassifier, Transformer, all_cnn_c, autoencoder, cnn_3c3d, wrn_16_4
from latephase.problems.architectures.layers import SamePadding
from latephase.problems.problem import is_weight

BUILDERS = {
    "3C3D": (cnn_3c3d, 895_210, (3, 32, 32), (10,)),
    "ALL-CNN-C": (all_cnn_c, 1_387_108, (3, 32, 32), (100,)),
    "WRN-16-4": (wrn_16_4, 2_748_890, (3, 32, 32), (10,)),
    "WRN-16-4, 100 classes": (lambda: wrn_16_4(100), 2_772_020, (3, 32, 32), (100,)),
    "autoencoder": (autoencoder, 2_837_314, (784,), (784,)),
    # per layer: 4 * width * (inputs + width) weights and twice 4 * width biases
    "LSTM": (LSTMClassifier, 4 * 128 * (129 + 256 + 256) + 3 * 1024 + 1290, (49, 1), (10,)),
}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shapes(model: nn.Module, inputs: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[tuple[int, ...]]:
    """Output shapes of the modules of some kinds, without the batch, in the order of the forward pass."""
    found: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _module, _inputs, output: found.append(tuple(output.shape[1:])))
    model(inputs)
    return found


@pytest.mark.parametrize("name", BUILDERS)
def test_size_and_output(name):
    build, expected, shape, outputs = BUILDERS[name]
    model = build().eval()
    assert size(model) == expected
    assert model(torch.rand(2, *shape)).shape == (2, *outputs)


def test_3c3d_layer_by_layer():
    model = cnn_3c3d()
    found = shapes(model, torch.rand(2, 3, 32, 32), (nn.Conv2d, nn.MaxPool2d, nn.Linear))
    images = [(64, 28, 28), (64, 14, 14), (96, 12, 12), (96, 6, 6), (128, 6, 6), (128, 3, 3)]
    assert found == [*images, (512,), (256,), (10,)]
    sizes = [size(layer) for layer in model if size(layer)]
    assert sizes == [4_864, 55_392, 110_720, 590_336, 131_328, 2_570]


def test_all_cnn_c_layer_by_layer():
    model = all_cnn_c()
    found = shapes(model.eval(), torch.rand(2, 3, 32, 32), (nn.Conv2d,))
    sides = [(96, 32), (96, 32), (96, 16), (192, 16), (192, 16), (192, 8), (192, 6), (192, 6), (100, 6)]
    assert found == [(channels, side, side) for channels, side in sides]
    assert [layer.p for layer in model if isinstance(layer, nn.Dropout)] == [0.2, 0.5, 0.5]
    names = [type(layer).__name__ for layer in model]
    assert names[0] == "Dropout"
    assert names[-4:] == ["Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten"]
    assert (model(torch.randn(4, 3, 32, 32)) >= 0).all()


def test_wrn_16_4_layer_by_layer():
    model = wrn_16_4()
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 1 + 6 * 2 + 3
    assert all(layer.bias is None for layer in convolutions.values())
    assert [name for name in convolutions if "shortcut" in name] == [f"{i}.shortcut.0" for i in (1, 3, 5)]
    found = [tuple(model[:depth](torch.rand(1, 3, 32, 32)).shape[1:]) for depth in range(1, 8)]
    groups = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert found == [(16, 32, 32), *(shape for shape in groups for _ in range(2))]


def test_wrn_16_4_as_written_in_the_table():
    torch.manual_seed(0)
    model = wrn_16_4().double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight)
        nn.init.normal_(norm.bias)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    p = dict(model.named_parameters())

    def activate(x: Tensor, name: str) -> Tensor:
        scaled = x / math.sqrt(1 + 1e-5) * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]
        return scaled.relu()

    def same(x: Tensor, name: str, stride: int) -> Tensor:
        weight = p[f"{name}.weight"]
        side = weight.shape[-1]
        total = (x.shape[-1] // stride - 1) * stride + side - x.shape[-1]
        before, after = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
        return functional.conv2d(functional.pad(x, (before, after, before, after)), weight, stride=stride)

    x = same(images, "0", 1)
    for block, stride in ((1, 1), (2, None), (3, 2), (4, None), (5, 2), (6, None)):
        a = activate(x, f"{block}.activate.0")
        shift = int(stride == 2)  # a strided convolution has a layer of padding before it
        b = activate(same(a, f"{block}.residual.{shift}", stride or 1), f"{block}.residual.{1 + shift}")
        b = same(b, f"{block}.residual.{3 + shift}", 1)
        x = b + (x if stride is None else same(a, f"{block}.shortcut.0", stride))
    expected = activate(x, "7").mean((2, 3)) @ p["11.weight"].T + p["11.bias"]
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("size_", "kernel", "stride"), [(32, 3, 2), (33, 3, 2), (28, 3, 2), (7, 5, 1), (32, 1, 2)])
def test_same_padding_keeps_the_ceiling_and_pads_the_end_first(size_, kernel, stride):
    padded = SamePadding(kernel, stride)(torch.ones(1, 1, size_, size_ + 1))
    pooled = functional.max_pool2d(padded, kernel, stride)
    assert pooled.shape[2:] == (math.ceil(size_ / stride), math.ceil((size_ + 1) / stride))
    row = padded[0, 0].sum(1) > 0
    before, after = int(row.int().argmax()), int(row.flip(0).int().argmax())
    assert after - before in (0, 1)


def test_pooling_of_3c3d_is_pooling_with_zeros_at_bottom_and_right():
    for side in (28, 12, 6):
        images = torch.randn(2, 3, side, side).relu()
        expected = functional.max_pool2d(functional.pad(images, (0, 1, 0, 1)), 3, 2)
        assert torch.equal(nn.MaxPool2d(3, 2, ceil_mode=True)(images), expected)


def spread(weight: Tensor) -> float:
    """Xavier's standard deviation."""
    area = weight[0, 0].numel()
    return math.sqrt(2 / (area * (weight.shape[0] + weight.shape[1])))


@pytest.mark.parametrize(
    ("name", "bias", "uniform"),
    [("3C3D", 0.0, "dense"), ("ALL-CNN-C", 0.1, "none"), ("WRN-16-4", 0.0, "all"), ("autoencoder", 0.0, "all")],
)
def test_initial_weights_are_xaviers_and_biases_constant(name, bias, uniform):
    torch.manual_seed(0)
    for module in BUILDERS[name][0]().modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight, count = module.weight.detach(), module.weight.numel()
            # the standard deviation of the estimate is at most sd / sqrt(2 n): 5 of them
            assert abs(float(weight.std()) / spread(weight) - 1) < 5 / math.sqrt(2 * count)
            assert abs(float(weight.mean())) < 5 * spread(weight) / math.sqrt(count)
            bounded = bool(weight.abs().max() <= math.sqrt(3) * spread(weight) * 1.0001)
            assert bounded == (uniform == "all" or (uniform == "dense" and isinstance(module, nn.Linear)))
            assert module.bias is None or (module.bias == bias).all()


@pytest.mark.parametrize(
    ("build", "classes", "decay", "term", "loss"),
    [(cnn_3c3d, 10, 0.002, 1.262, 3.56), (all_cnn_c, 100, 5e-4, 0.306, 4.91)],
)
def test_initial_loss_is_what_the_tables_say(build, classes, decay, term, loss):
    torch.manual_seed(1)
    model = build().eval()
    inputs, targets = torch.randn(128, 3, 32, 32), torch.randint(classes, (128,))
    weights = [p for name, p in model.named_parameters() if is_weight(name, p)]
    l2 = float(sum(0.5 * decay * p.detach().square().sum() for p in weights))
    assert l2 == pytest.approx(term, abs=0.005)
    with torch.no_grad():
        found = float(functional.cross_entropy(model(inputs), targets)) + l2
    assert found == pytest.approx(loss, abs=0.1)  # the logits of a fresh network are small, not zero


def test_bn_momentum_is_what_was_asked_for():
    for momentum in (0.9, 0.1):
        norms = [m for m in wrn_16_4(bn_momentum=momentum).modules() if isinstance(m, nn.BatchNorm2d)]
        assert {norm.momentum for norm in norms} == {momentum}
        assert len(norms) == 13


def test_autoencoder_has_sigmoids_but_on_code_and_output():
    model = autoencoder()
    assert [name for name, _ in model.named_children()] == ["encoder", "decoder"]
    for half in model.children():
        assert [type(layer).__name__ for layer in half.children()] == [*(["Linear", "Sigmoid"] * 3), "Linear"]
    small = autoencoder((5, 4, 2))
    assert [m.out_features for m in small.modules() if isinstance(m, nn.Linear)] == [4, 2, 4, 5]
    assert sum(isinstance(m, nn.Sigmoid) for m in small.modules()) == 2


def test_lstm_classifies_by_the_last_hidden_state_of_the_last_layer():
    model = LSTMClassifier(width=8).double()
    sequences = torch.rand(3, 5, 1, dtype=torch.float64)
    whole = nn.LSTM(1, 8, 3, batch_first=True).double()  # torch's own, with the same weights
    for k, layer in enumerate(model.layers):
        for name, p in layer.named_parameters():
            getattr(whole, name.replace("l0", f"l{k}")).data.copy_(p)
    _, (hidden, _) = whole(sequences)
    torch.testing.assert_close(model(sequences), model.classify(hidden[-1]))
    assert hidden.shape == (3, 3, 8)


def test_transformer_size():
    block = 12 * 128 * 128 + 13 * 128
    assert size(Transformer(65)) == 2 * 65 * 128 + 64 * 128 + 3 * block + 2 * 128
    with pytest.raises(ValueError, match="heads must divide the width 128, got 3"):
        Transformer(65, heads=3)


def test_transformer_sees_the_past_only():
    torch.manual_seed(0)
    model = Transformer(11, layers=2, width=16, heads=2, context=9).double()
    symbols = torch.randint(11, (2, 9))
    changed = symbols.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(symbols), model(changed)
    assert before.shape == (2, 9, 11)
    assert torch.equal(before[:, :5], after[:, :5])
    assert ((before - after)[:, 5:].abs().amax((0, 2)) > 0).all()
    torch.testing.assert_close(model(symbols[:, :4]), before[:, :4])


def test_transformer_attends_as_torchs_own_layer_does():
    torch.manual_seed(0)
    own = Transformer(11, layers=1, width=16, heads=2).double()
    (block,) = own.blocks
    other = nn.TransformerEncoderLayer(16, 2, 64, 0.0, functional.gelu, batch_first=True, norm_first=True).double()
    pairs = {
        "self_attn.in_proj_": block.queries_keys_values,
        "self_attn.out_proj.": block.attention_out,
        "linear1.": block.network_in,
        "linear2.": block.network_out,
        "norm1.": block.attention_norm,
        "norm2.": block.network_norm,
    }
    state = {f"{prefix}{key}": value for prefix, m in pairs.items() for key, value in m.state_dict().items()}
    other.load_state_dict(state)
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    torch.testing.assert_close(block(x), other(x, src_mask=mask, is_causal=True))


def test_initial_weights_of_the_transformer():
    torch.manual_seed(0)
    model = Transformer(65)
    for name, p in model.state_dict().items():
        if p.dim() > 1:
            expected = 0.02 / (math.sqrt(6) if name.endswith("_out.weight") else 1)
            assert abs(float(p.std()) / expected - 1) < 5 / math.sqrt(2 * p.numel()), name
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
    logits = model(torch.randint(65, (4, 64)))
    loss = functional.cross_entropy(logits.flatten(0, 1), torch.randint(65, (256,)))
    assert float(loss.detach()) == pytest.approx(math.log(65), abs=0.1)


def test_dropout_of_the_transformer_is_off_by_default_and_in_eval_mode():
    symbols = torch.randint(11, (2, 9))
    plain, dropping = Transformer(11, width=16), Transformer(11, width=16, dropout=0.5)
    assert torch.equal(plain(symbols), plain(symbols))
    assert not torch.equal(dropping(symbols), dropping(symbols))
    assert torch.equal(dropping.eval()(symbols), dropping(symbols))
