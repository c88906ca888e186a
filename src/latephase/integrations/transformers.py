"""Hugging Face's Trainer with second-order steps: the batches of a step become an objective."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

try:
    from transformers import Trainer  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        "latephase.integrations.transformers needs transformers and accelerate; install them with pip install "
        '"latephase[transformers]"'
    ) from error

from ..objective import Objective
from ..optim import SecondOrder

__all__ = ["SecondOrderTrainer", "language_objective"]

Batch = Mapping[str, Any]
_SHIFTED, _SEQUENCES = "ForCausalLMLoss", "ForSequenceClassificationLoss"
_KINDS = (_SHIFTED, "ForMaskedLMLoss", "ForTokenClassification", _SEQUENCES)
"""The losses of `transformers.loss` whose objective is known here."""
_CLIP = 1.0
"""The default of `TrainingArguments.max_grad_norm`, which is taken for "not asked for"."""
_IGNORED = -100
"""Labels that do not count."""
_OWN = "override SecondOrderTrainer.objective(model, batches) and return an Objective with that loss"


class SecondOrderTrainer(Trainer):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """`transformers.Trainer` whose optimizer is one of latephase's, on the loss that the model would compute itself.

        optimizer = HessianFree([p for p in model.parameters() if p.requires_grad])
        SecondOrderTrainer(model, args, train_dataset=data, optimizers=(optimizer, None)).train()

    A step's batches, `gradient_accumulation_steps` of them, are the chunks of one objective, see `language_objective`;
    for other losses override `objective`. Everything else is the Trainer's: logs (where `grad_norm` is that of the
    objective), evaluation, and checkpoints, from which a run is resumed with the same numbers. Give `TrainingArguments`
    a schedule that fits Newton steps, whose rate is 1: `lr_scheduler_type="constant"`; the Trainer's default takes it
    to zero. `weight_decay` becomes an L2 term of the objective, on the parameters that the Trainer would decay.

    LoRA and other adapters of peft are models as any other: the optimizer gets the parameters that are trained.

    Args:
        *args: as of `Trainer`.
        objective_options: options of the `Objective`, {"microbatch_size": 8} say. Default none.
        **kwargs: as of `Trainer`; `optimizers=(optimizer, None)`, or `optimizer_cls_and_kwargs=(HessianFree, {...})`.

    Raises:
        ValueError: at the first step: fp16 or bf16 by autocast, several processes or devices, a `max_grad_norm` other
            than the default, or a model whose own loss is another than that of the objective.
        TypeError: an optimizer of another kind.
    """

    def __init__(self, *args: Any, objective_options: Mapping[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.objective_options = dict(objective_options or {})
        self._loss_checked = False
        self._batches: list[Batch] = []

    def objective(self, model: nn.Module, batches: Sequence[Batch]) -> Objective:
        """The function that a step is taken on.

        Args:
            model: the model that is trained.
            batches: of the step, on the model's device, each as the data collator made it.
        """
        options = dict(self.objective_options)
        if self.args.weight_decay:
            names = set(self.get_decay_parameter_names(model))
            options.setdefault("weight_decay", (self.args.weight_decay, lambda name, _: name in names))
        smoothing = self.args.label_smoothing_factor
        return language_objective(model, batches, label_smoothing=smoothing, **options)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, see `Trainer.train`."""
        self._batches = []  # of a training that was broken off
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.sync_gradients = True  # the process's, see `training_step`

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that was given, or of the class that was given.

        Raises:
            TypeError: there is none, or it is not one of latephase's.
        """
        if self.optimizer is None and self.optimizer_cls_and_kwargs is not None:
            make, options = self.optimizer_cls_and_kwargs
            trained = self.model if model is None else model
            self.optimizer = make([p for p in trained.parameters() if p.requires_grad], **options)
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # of a Trainer that trains again
        if not isinstance(inner, SecondOrder):
            given = "none" if inner is None else type(inner).__name__
            raise TypeError(
                f"SecondOrderTrainer needs an optimizer of latephase, got {given}: give optimizers=(HessianFree([p for "
                "p in model.parameters() if p.requires_grad]), None); transformers.Trainer itself is for the others"
            )
        return self.optimizer  # pyright: ignore[reportReturnType]

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Keep a batch; with the last of a step take the step.

        Args:
            model: the model.
            inputs: the batch.
            num_items_in_batch: not used: the objective weighs its chunks by the labels that count.

        Returns:
            The loss before the step; zero for the batches before the last, so that their sum is the step's.
        """
        _check_settings(self)
        model.train()
        self._batches.append(self._prepare_inputs(inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._batches = self._batches, []
        if not self._loss_checked and type(self).objective is SecondOrderTrainer.objective:
            self._check_loss(model, batches[0])
        self._loss_checked = True
        loss = self.optimizer.optimizer.step(self.objective(model, batches))
        self.accelerator.sync_gradients = False  # the step that the Trainer asks for next has been taken
        return loss.detach()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the gradient's norm: the Trainer's is that of no gradients."""
        report = getattr(getattr(self.optimizer, "optimizer", None), "report", None)
        if "grad_norm" in logs and report is not None:
            logs = {**logs, "grad_norm": report.gradient_norm}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def _check_loss(self, model: nn.Module, batch: Batch) -> None:
        """Refuse a model whose loss is another one, once, on one batch and without dropout.

        Raises:
            ValueError: it is.
        """
        model.eval()
        ours = float(language_objective(model, [batch], label_smoothing=self.args.label_smoothing_factor).value())
        own = float(self.compute_loss(model, dict(batch)))
        model.train()
        if not abs(ours - own) <= 1e-3 * max(abs(own), 1.0):  # float32 over some thousand tokens
            raise ValueError(
                f"the loss of {type(model).__name__} is {own:.6g} on the first batch, and that of its logits and "
                f"labels, of which the objective is, {ours:.6g}: the model or compute_loss_func adds to it; {_OWN}"
            )


def language_objective(
    model: nn.Module, batches: Sequence[Batch] | Batch, *, label_smoothing: float = 0.0, **options: Any
) -> Objective:
    """The objective of a model of Transformers: the loss of its logits and labels, which it would compute itself.

    Causal and masked language models, models with an encoder and a decoder, and token classifiers: the cross-entropy of
    all labels but -100, of causal ones those of the next token, as a mean over all batches' labels. Classifiers of
    sequences, images, video and audio: cross-entropy, squared error of one or several numbers, or binary cross-entropy,
    as `problem_type` says. The losses are torch's own, whose Hessians are known; attention of any implementation that
    calls torch's serves, "sdpa" included.

    Args:
        model: a model with a head, or peft's around one.
        batches: dicts of what the model takes, "labels" among them, or one such dict.
        label_smoothing: of cross-entropies.
        **options: of the `Objective`.

    Raises:
        ValueError: a batch without labels, or a model with another kind of loss; give an `Objective` of your own.
    """
    batches = [batches] if isinstance(batches, Mapping) else batches
    own = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", model)
    kind = _kind_of(own)
    loss = _loss_of(own, kind, batches[0], label_smoothing)
    forward = functools.partial(_logits, loss=loss)
    chunks = [_chunk(own, batch, kind, loss) for batch in batches]
    return Objective(model, loss, chunks, forward=forward, **options)


def _kind_of(model: nn.Module) -> str:
    """The name of the model's loss in Transformers.

    Raises:
        ValueError: one that is not known here.
    """
    inner: Any = model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    kind = getattr(getattr(inner, "loss_function", None), "__name__", "none")
    if kind not in _KINDS:
        raise ValueError(
            f"the loss of {type(inner).__name__} ({kind}) is not known here, only {', '.join(_KINDS)}; {_OWN}"
        )
    return kind


def _loss_of(model: nn.Module, kind: str, batch: Batch, smoothing: float) -> nn.Module:
    config: Any = model.config
    labels = _labels_of(batch)
    if kind != _SEQUENCES:
        return nn.CrossEntropyLoss(ignore_index=_IGNORED, label_smoothing=smoothing)
    problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
    if problem is None:
        problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem == "regression":
        return nn.MSELoss()
    if problem == "multi_label_classification":
        return nn.BCEWithLogitsLoss()
    return nn.CrossEntropyLoss(ignore_index=_IGNORED, label_smoothing=smoothing)


def _labels_of(batch: Batch) -> Tensor:
    if not isinstance(batch.get("labels"), Tensor):
        raise ValueError(f"a batch has no tensor of labels, only {', '.join(map(repr, batch))}: without it, no loss")
    return batch["labels"]


def _chunk(model: nn.Module, batch: Batch, kind: str, loss: nn.Module) -> tuple[dict[str, Any], Tensor]:
    """A batch as (inputs, targets), the targets in the form of `_logits`."""
    inputs, labels = {name: value for name, value in batch.items() if name != "labels"}, _labels_of(batch)
    if kind == _SEQUENCES and isinstance(loss, nn.MSELoss):
        labels = labels.reshape(len(labels), -1)
    elif kind == _SEQUENCES and isinstance(loss, nn.CrossEntropyLoss):
        labels = labels.reshape(-1)
    elif getattr(model.config, "is_encoder_decoder", False):  # whose decoder gets the labels, shifted by itself
        shifted: Any = model.prepare_decoder_input_ids_from_labels
        if "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = shifted(labels=labels)
    elif kind == _SHIFTED:
        labels = nn.functional.pad(labels[..., 1:], (0, 1), value=_IGNORED)
    return inputs, labels


def _logits(model: nn.Module, inputs: Batch, loss: nn.Module) -> Tensor:
    """The logits as torch's losses take them: [B, V, T], [B, V], or [B, k]."""
    outputs = model(**inputs)
    logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits.transpose(1, -1) if isinstance(loss, nn.CrossEntropyLoss) and logits.dim() == 3 else logits


def _check_settings(trainer: Any) -> None:
    """Refuse settings under which a step is not what it says.

    Raises:
        ValueError: one of them.
    """
    args = trainer.args
    if args.fp16 or args.bf16:
        raise ValueError(
            "fp16 and bf16 of TrainingArguments run passes under autocast: dampings and line searches need the digits "
            "of the loss. Leave them off; HessianFree(curvature=GGN(dtype=torch.bfloat16)) runs the products, where "
            "the time goes, in lower precision"
        )
    if trainer.accelerator.num_processes > 1 or args.n_gpu > 1:
        raise ValueError(
            f"{trainer.accelerator.num_processes} processes with {args.n_gpu} devices each: SecondOrderTrainer is for "
            "one device (CUDA_VISIBLE_DEVICES=0). For several ranks write the loop yourself, with "
            "language_objective(..., process_group=group) on each of them"
        )
    if args.max_grad_norm not in (None, 0, _CLIP):
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm}: a second-order step does not go with a clipped gradient. Bound the "
            "step itself, by the damping, by CG(max_step_norm=...) or by Direct(max_step_norm=...)"
        )
