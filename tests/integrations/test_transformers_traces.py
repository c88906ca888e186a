"""Models of Transformers are traced, and no trace is older than what the model, the data and the packages hold."""

import copy
import warnings

import pytest
import torch
from language_models import batch, model_of, without_dropout

from latephase import CG, HessianFree
from latephase.curvature import linearize

transformers = pytest.importorskip("transformers", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")  # what Transformers deprecates, and that there is no accelerator

from latephase.integrations.transformers import language_objective  # noqa: E402

CLASSES = torch.tensor([0, 2, 1, 2])


def adapted(name="gpt2"):
    peft = pytest.importorskip("peft", exc_type=ImportError)
    settings = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["c_attn"], init_lora_weights=False)
    return peft.get_peft_model(model_of(name), settings)


MODELS = {
    "gpt2": lambda: model_of("gpt2"),
    "llama": lambda: model_of("llama"),
    "bert": lambda: model_of("bert", "SequenceClassification", num_labels=3),
    "masked": lambda: model_of("bert", "MaskedLM"),
    "t5": lambda: model_of("t5"),
    "lora": adapted,
    "checkpointed": lambda: checkpointed(),
    "eager": lambda: model_of("gpt2", attn_implementation="eager"),
}


def checkpointed():
    model = model_of("gpt2")
    model.gradient_checkpointing_enable()
    return model


def given(model, seed=1, padded=True, **changed):
    """A batch of numbers for a model; other tokens for another seed."""
    found = batch(seed=seed, padded=padded)
    if "SequenceClassification" in type(model).__name__:
        found["labels"] = CLASSES
    return {name: value for name, value in (found | changed).items() if value is not None}


def right(model, data):
    """How products are computed, which are compared with those that know no trace."""
    objective = language_objective(model, data)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # no trace is found to be wrong only when it is compared
        one = linearize(objective, parameters=parameters)
    other = linearize(objective, parameters=parameters, method="double_backward")
    v = torch.randn(one.space.size, dtype=one.space.dtype, generator=torch.Generator().manual_seed(2))
    for ours, plain in ((one.loss, other.loss), (one.gradient, other.gradient), (one.matvec(v), other.matvec(v))):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))  # norms are in float32
    return one.method


def settled(model):
    """A model whose trace is used, and at its next use, the fourth, would not be found out by the comparison."""
    methods = [right(model, given(model, seed=1 + use)) for use in range(6)]
    assert methods[2:] == ["traced"] * 4
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_is_traced_whatever_its_masks(name):
    model = MODELS[name]().double().train()  # with dropout
    methods = []
    for use, padded in enumerate([True, True, False, True, False, True]):
        methods.append(right(model, given(model, seed=use, padded=padded)))
    assert methods[2:] == ["traced"] * 4


def masked(*zeros):
    mask = torch.ones(4, 9, dtype=torch.long)
    for row, column in zeros:
        mask[row, column:] = 0
    return mask


def relabelled(count):
    labels = batch()["labels"].clone()
    labels[:, :count] = -100
    return labels


DATA = {
    "another mask": {"attention_mask": masked((0, 2), (1, 5))},
    "no padding": {"attention_mask": masked()},
    "padding on the left": {"attention_mask": masked().flip(1) * masked((2, 4)).flip(1)},
    "no mask": {"attention_mask": None},
    "a mask of floats": {"attention_mask": masked((0, 3)).double()},
    "labels that count": {"labels": relabelled(6)},
    "all labels": {"labels": relabelled(0)},
    "positions": {"position_ids": torch.arange(9).flip(0).expand(4, 9)},
    "packed": {"attention_mask": None, "position_ids": torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1]).expand(4, 9)},
    "a shorter batch": {name: batch()[name][:, :5] for name in ("input_ids", "attention_mask", "labels")},
    "a smaller batch": {name: batch()[name][:3] for name in ("input_ids", "attention_mask", "labels")},
}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_no_data_is_taken_for_other_data(name):
    model = MODELS[name]().double().train()
    settled(model)
    for changed in (*DATA.values(), {}, *reversed(DATA.values())):
        right(model, given(model, seed=7, **changed))


def of_module(part, name, value):
    """A change of an attribute of the part of a model."""

    def change(model, patch):
        for module_name, module in model.named_modules():
            if module_name.endswith(part):
                setattr(module, name, value)

    return change


def configured(name, value):
    return lambda model, patch: setattr(model.config, name, value)


def replaced(path, value):
    """A change of what a module of the package holds, found when it is made."""

    def change(model, patch):
        owner, name = path.rsplit(".", 1)
        module, *inner = owner.split(":")
        target = __import__(module, fromlist=["_"])
        for each in inner:
            target = getattr(target, each)
        patch.setattr(target, name, value)

    return change


def untied(model, patch):
    model.lm_head.weight = torch.nn.Parameter(1.5 * model.lm_head.weight.detach())


def registered(model, patch):
    """Another function under the name by which the model finds its attention."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def sharper(module, query, key, value, mask, **options):
        return sdpa_attention_forward(module, 1.5 * query, key, value, mask, **options)

    patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", sharper)


def hooked(model, patch):
    next(m for n, m in model.named_modules() if n.endswith("mlp")).register_forward_hook(lambda m, i, out: 1.1 * out)


GPT2 = "transformers.models.gpt2.modeling_gpt2"
CHANGES = {
    "eval": ("gpt2", lambda model, patch: model.eval()),
    "eval of a part": ("gpt2", lambda model, patch: model.transformer.h[0].attn.eval()),
    "dropout": ("gpt2", lambda model, patch: setattr(model.transformer.drop, "p", 0.6)),
    "dropout that is a number": ("bert", of_module("attention.self", "dropout", torch.nn.Dropout(0.7))),
    "scaling": ("gpt2", of_module("attn", "scaling", 1.0)),
    "activation": ("gpt2", of_module("mlp", "act", torch.nn.ReLU())),
    "use_cache": ("gpt2", configured("use_cache", True)),
    "attention": ("gpt2", lambda model, patch: model.set_attn_implementation("eager")),
    "hidden states": ("gpt2", configured("output_hidden_states", True)),
    "bidirectional": ("llama", configured("is_causal", False)),
    "norm": ("llama", of_module("input_layernorm", "variance_epsilon", 0.3)),
    "rotation": ("llama", lambda model, patch: model.model.rotary_emb.inv_freq.mul_(3)),
    "rotation's scale": ("llama", of_module("rotary_emb", "attention_scaling", 2.0)),
    "checkpointing": ("gpt2", lambda model, patch: model.gradient_checkpointing_enable()),
    "untied": ("gpt2", untied),
    "frozen": ("gpt2", lambda model, patch: model.transformer.wte.requires_grad_(False)),
    "hook": ("gpt2", hooked),
    "adapter's scale": ("lora", of_module("c_attn", "scaling", {"default": 9.0})),
    "adapter's dropout": ("lora", of_module("lora_dropout.default", "p", 0.8)),
    "registry": ("gpt2", registered),
    "function": ("llama", replaced("transformers.models.llama.modeling_llama.apply_rotary_pos_emb",
                                   lambda q, k, cos, sin, **_: (q * cos[:, None], k))),
    "function of torch": ("bert", replaced("torch.nn.functional.scaled_dot_product_attention",
                                           lambda q, k, v, **_: torch.softmax(q @ k.mT, -1) @ v)),
    "mask function": ("gpt2", replaced("transformers.masking_utils.causal_mask_function",
                                       lambda batch_idx, head_idx, q_idx, kv_idx: kv_idx <= q_idx + 2)),
    "method": ("gpt2", replaced(f"{GPT2}:GPT2MLP.forward", lambda self, x: self.c_proj(torch.sin(self.c_fc(x))))),
    "special method": ("gpt2", replaced(f"{GPT2}:GPT2Attention.__call__", lambda self, x, *_, **__: (2 * x, None))),
    "environment": ("llama", lambda model, patch: patch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "1")),
}  # fmt: skip


SAME_LOSS = {"use_cache", "attention", "hidden states", "checkpointing", "frozen", "environment"}


@pytest.mark.parametrize("name", CHANGES)
def test_no_trace_is_older_than_a_change(name, monkeypatch):
    kind, change = CHANGES[name]
    model = settled(MODELS[kind]().double().train())
    before = float(language_objective(model, given(model, seed=7)).value())
    change(model, monkeypatch)
    data = given(model, seed=7)
    after = float(language_objective(model, data).value())
    assert (after == pytest.approx(before, rel=1e-6)) == (name in SAME_LOSS)
    for use in range(3):
        right(model, given(model, seed=7 + use))


def test_steps_with_traces_are_those_without(monkeypatch):
    def train():
        model = model_of("gpt2", **without_dropout("gpt2")).double()
        optimizer = HessianFree(model.parameters(), damping=0.1, solver=CG(max_iter=6))
        for use in range(6):
            optimizer.step(language_objective(model, given(model, seed=use, padded=use % 3 == 0)))
        return optimizer.report.method, [p.detach() for p in model.parameters()]

    method, traced = train()
    assert method == "traced"
    monkeypatch.setattr("latephase.curvature.chunk.traced_pass", lambda *_, **__: "not today")
    method, plain = train()
    assert method != "traced"
    for one, other in zip(traced, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_copy_of_a_model_and_its_own_trace():
    model = settled(MODELS["gpt2"]().double().train())
    twin = copy.deepcopy(model)
    twin.transformer.drop.p = 0.0
    for use in range(4):
        right(twin, given(twin, seed=use))
        right(model, given(model, seed=use))


def test_a_model_of_ones_own_around_one_of_the_package(monkeypatch):
    scale = [1.0]

    class Scaled(transformers.GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            found.logits = scale[0] * found.logits
            return found

    model = settled(Scaled(model_of("gpt2").config).double().train())
    scale[0] = 2.0
    right(model, given(model, seed=7))
