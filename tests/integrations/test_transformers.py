"""Transformers: the objective is the model's own loss, its curvature exact, and the Trainer's steps a plain loop's."""

import copy
import functools

import pytest
import torch
from language_models import Rows, batch, model_of, next_token_loss, without_dropout

from latephase import CG, AdamQLR, HessianFree, Objective
from latephase.curvature import linearize

transformers = pytest.importorskip("transformers", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")  # what Transformers deprecates, and that there is no accelerator

from latephase.integrations.transformers import SecondOrderTrainer, language_objective  # noqa: E402

few = functools.partial(HessianFree, damping=0.1, solver=CG(max_iter=4))


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def adapted(model):
    peft = pytest.importorskip("peft", exc_type=ImportError)
    torch.manual_seed(3)
    settings = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["c_attn"], init_lora_weights=False)
    return peft.get_peft_model(model, settings)


def arguments(folder, **options):
    settings = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 5}
    settings |= {"per_device_train_batch_size": 4, "num_train_epochs": 2, "lr_scheduler_type": "constant"}
    return transformers.TrainingArguments(output_dir=str(folder), **settings | options)


def same(first, second):
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


# The objective


CLASSES = torch.tensor([0, 2, 1, 2])
CASES = {
    "gpt2": (lambda: model_of("gpt2"), None),
    "llama": (lambda: model_of("llama"), None),
    "t5": (lambda: model_of("t5"), None),
    "masked": (lambda: model_of("bert", "MaskedLM"), None),
    "tokens": (lambda: model_of("bert", "TokenClassification", num_labels=31), None),
    "classes": (lambda: model_of("bert", "SequenceClassification", num_labels=3), CLASSES),
    "number": (lambda: model_of("bert", "SequenceClassification", num_labels=1), CLASSES.float()),
    "several": (lambda: model_of("bert", "SequenceClassification", num_labels=2), torch.rand(4, 2).round()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_objective_is_the_models_own_loss(case):
    make, labels = CASES[case]
    model, given = make().eval(), batch()
    given = given if labels is None else given | {"labels": labels}
    own = float(model(**given).loss.detach())
    assert float(language_objective(model, given).value()) == pytest.approx(own, rel=2e-6)  # of float32
    rows = [{name: value[part] for name, value in given.items()} for part in (slice(0, 1), slice(1, 4))]
    assert float(language_objective(model, rows).value()) == pytest.approx(own, rel=2e-6)


@pytest.mark.parametrize(("model", "digits"), [
    pytest.param(lambda: model_of("gpt2"), 1e-10, id="gpt2"),
    pytest.param(lambda: model_of("llama"), 1e-5, id="llama"),  # whose norms compute in float32 whatever the model does
    pytest.param(lambda: adapted(model_of("gpt2")), 1e-10, id="lora"),
])  # fmt: skip
@pytest.mark.parametrize("padded", [False, True])
def test_curvature_is_that_of_the_loss_written_out_with_the_default_attention(model, digits, padded):
    model, given = model().double().eval(), batch(padded=padded)
    assert model.config._attn_implementation == "sdpa"
    curved = linearize(language_objective(model, given), curvature="hessian", parameters=trained(model))
    direction = torch.randn(curved.space.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = next_token_loss(model, given)  # on torch's fused kernels, as anybody's training
    gradient = curved.space.flatten(torch.autograd.grad(loss, trained(model)))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        slopes = torch.autograd.grad(next_token_loss(model, given), trained(model), create_graph=True)
    product = torch.autograd.grad(slopes, trained(model), curved.space.unflatten(direction), materialize_grads=True)
    for ours, plain in ((curved.gradient, gradient), (curved.matvec(direction), curved.space.flatten(product))):
        torch.testing.assert_close(ours, plain, rtol=digits, atol=digits * float(plain.abs().max()))


def test_a_loss_that_is_not_known_is_named():
    model = model_of("bert", "QuestionAnswering")
    with pytest.raises(ValueError, match=r"ForQuestionAnsweringLoss.*override SecondOrderTrainer.objective"):
        language_objective(model, batch())


def test_a_batch_without_labels_is_named():
    given = {name: value for name, value in batch().items() if name != "labels"}
    with pytest.raises(ValueError, match="no tensor of labels, only 'input_ids', 'attention_mask'"):
        language_objective(model_of("gpt2"), given)


# The Trainer


class Recording(SecondOrderTrainer):
    """Keeps the batches of each step."""

    def objective(self, model, batches):
        self.seen = [*getattr(self, "seen", []), copy.deepcopy(list(batches))]
        return super().objective(model, batches)


@pytest.mark.parametrize("make", [few, AdamQLR], ids=["HessianFree", "AdamQLR"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_parameters_are_those_of_a_plain_loop_bit_for_bit(make, accumulated, tmp_path):
    model = model_of("gpt2", **without_dropout("gpt2"))
    twin, begun = copy.deepcopy(model), copy.deepcopy(model)
    args = arguments(tmp_path, gradient_accumulation_steps=accumulated, logging_steps=1)
    trainer = Recording(model, args, train_dataset=Rows(), optimizers=(make(model.parameters()), None))
    trainer.train()
    assert trainer.state.global_step == len(trainer.seen) == 6 // accumulated
    optimizer, losses = make(twin.parameters()), []
    for batches in trainer.seen:
        losses.append(float(optimizer.step(language_objective(twin.train(), batches))))
    assert same(model, twin)
    assert not same(model, begun)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in logged] == pytest.approx(losses, abs=1e-4)  # the Trainer rounds what it logs
    assert logged[-1]["grad_norm"] == pytest.approx(optimizer.report.gradient_norm, rel=1e-3)


def test_a_run_with_dropout_resumes_from_the_trainers_checkpoint_with_the_same_numbers(tmp_path):
    def run(folder, **options):
        model = model_of("gpt2")
        args = arguments(folder, save_strategy="steps", save_steps=2)
        trainer = SecondOrderTrainer(model, args, train_dataset=Rows(), optimizers=(few(model.parameters()), None))
        trainer.train(**options)
        return model, trainer

    whole, _ = run(tmp_path / "whole")
    resumed, trainer = run(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert same(whole, resumed)
    assert trainer.state.global_step == 6


def test_adapters_are_trained_and_nothing_else(tmp_path):
    model = adapted(model_of("gpt2", **without_dropout("gpt2")))
    begun = copy.deepcopy(model)
    trainer = Recording(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(few(trained(model)), None))
    trainer.train()
    twin = copy.deepcopy(begun)
    optimizer = few(trained(twin))
    for batches in trainer.seen:
        optimizer.step(language_objective(twin.train(), batches))
    assert same(model, twin)
    assert language_objective(model, Rows().all).value() < language_objective(begun, Rows().all).value()
    for (name, p), q in zip(model.named_parameters(), begun.parameters(), strict=True):
        assert torch.equal(p, q) != ("lora_" in name), name


def test_a_class_of_optimizers_will_do_and_weight_decay_is_an_l2_term(tmp_path):
    model = model_of("bert", "MaskedLM", **without_dropout("bert"))
    twin = copy.deepcopy(model)
    args = arguments(tmp_path, weight_decay=0.1, max_steps=2)
    trainer = Recording(model, args, train_dataset=Rows(), optimizer_cls_and_kwargs=(AdamQLR, {"damping": 0.1}))
    trainer.train()
    decayed = [name for name, p in twin.named_parameters() if p.dim() > 1 and "LayerNorm" not in name]
    optimizer = AdamQLR(twin.parameters(), damping=0.1)
    for batches in trainer.seen:
        decay = (0.1, lambda name, _: name in decayed)
        optimizer.step(language_objective(twin.train(), batches, weight_decay=decay))
    assert same(model, twin)


def test_options_of_the_objective(tmp_path):
    model = model_of("gpt2", **without_dropout("gpt2"))
    trainer = SecondOrderTrainer(
        model, arguments(tmp_path), train_dataset=Rows(), optimizers=(few(model.parameters()), None),
        objective_options={"microbatch_size": 1},
    )  # fmt: skip
    assert len(trainer.objective(model, [batch()]).chunks) == 4


def test_label_smoothing_is_the_trainers(tmp_path):
    model = model_of("gpt2", **without_dropout("gpt2"))
    args = arguments(tmp_path, label_smoothing_factor=0.2, max_steps=1)
    SecondOrderTrainer(model, args, train_dataset=Rows(), optimizers=(few(model.parameters()), None)).train()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"bf16": True}, "fp16 and bf16 .*GGN"), ({"max_grad_norm": 0.5}, "max_grad_norm=0.5: .*max_step_norm")],
)
def test_settings_that_would_train_something_else_are_refused(options, said, tmp_path):
    model = model_of("gpt2")
    trainer = SecondOrderTrainer(
        model, arguments(tmp_path, **options), train_dataset=Rows(), optimizers=(few(model.parameters()), None)
    )
    with pytest.raises(ValueError, match=said):
        trainer.train()


@pytest.mark.parametrize("make", [None, torch.optim.AdamW])
def test_optimizers_of_another_kind_are_named(make, tmp_path):
    model = model_of("gpt2")
    given = None if make is None else make(model.parameters())
    trainer = SecondOrderTrainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(given, None))
    with pytest.raises(TypeError, match=f"got {'none' if make is None else 'AdamW'}: give optimizers="):
        trainer.train()


def test_a_model_that_adds_to_its_loss_is_refused_until_the_objective_is_given(tmp_path):
    class Penalised(transformers.GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            if outputs.loss is not None:
                outputs.loss = outputs.loss + 0.1 * outputs.logits.square().mean() + 1
            return outputs

    class Own(SecondOrderTrainer):
        def objective(self, model, batches):
            return Objective.from_forward(model, lambda: tuple(model(**batches[0]).to_tuple()[:2]))

    model, args = Penalised(model_of("gpt2").config), arguments(tmp_path, max_steps=1, remove_unused_columns=False)
    settings = {"train_dataset": Rows(), "optimizers": (few(model.parameters()), None)}
    with pytest.raises(ValueError, match=r"loss of Penalised is .* override"):
        SecondOrderTrainer(model, args, **settings).train()
    model = Penalised(model.config)
    settings["optimizers"] = (few(model.parameters()), None)
    Own(model, args, **settings).train()
    assert settings["optimizers"][0].report.accepted


# Accelerate


def test_a_loop_of_accelerate_is_a_plain_loop_and_resumes_from_its_state(tmp_path):
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)
    accelerator = accelerate.Accelerator(cpu=True)
    plain = model_of("gpt2", **without_dropout("gpt2"))
    optimizer = few(plain.parameters())
    model = copy.deepcopy(plain)
    model, prepared = accelerator.prepare(model, few(model.parameters()))
    for seed in range(4):
        if seed == 2:
            accelerator.save_state(str(tmp_path / "state"))
        given = batch(seed=seed)
        prepared.step(language_objective(model, given))
        optimizer.step(language_objective(plain, given))
    assert same(plain, model)
    accelerator.load_state(str(tmp_path / "state"))
    assert not same(plain, model)
    for seed in (2, 3):
        prepared.step(language_objective(model, batch(seed=seed)))
    assert same(plain, model)
