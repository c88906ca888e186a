"""What the kinds share whose steps are Newton's: batches of the gradient, of the curvature and of the judgement."""

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ...parameters import by_module, layerwise
from ...problems import Problem
from ...problems.sampling import Stream, draw, generator
from .base import Strategy
from .context import StrategyContext
from .redrawing import OnTrainingData
from .table import checked, made_by

WARM_UP_ITERATIONS = 2

BlocksKey = Annotated[
    Literal["all", "layerwise"] | list[str],
    Field(description="of the curvature: one, one for each layer, or the names of submodules"),
]
OptionsKey = Annotated[
    dict[str, Any], Field(default_factory=dict, description="parts are tables, such as options.solver")
]


class NewtonSteps(OnTrainingData):
    """Go on with Newton steps on batches of `batch_size`, judged on evaluation batches.

    A kind adds the keys `blocks` and `options`, and before them `preset` where its optimizer has named settings.
    """

    optimizer: ClassVar[type]
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows, which also judge the step")
    evaluation_batch_size: int | None = Field(
        default=None, ge=0, description="default: 1,024 or a quarter of the split; 0: judged on the batch itself"
    )
    curvature_batch_size: int | None = Field(default=None, ge=1, description="rows of the batch; default: all of it")
    mode: Literal["train", "eval"] = Field(default="eval", description="of the model: eval freezes dropout, statistics")

    @field_validator("options", check_fields=False)
    @classmethod
    def _known(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return checked(cls.optimizer, options, made_by(cls.optimizer, info.data.get("preset", "default")))

    @model_validator(mode="after")
    def _part(self) -> Self:
        if self.batch_size is None and self.evaluation_batch_size:
            raise ValueError("evaluation_batch_size: no rows are left for it where batch_size is not given")
        if self.curvature_batch_size and self.batch_size and self.curvature_batch_size > self.batch_size:
            raise ValueError(
                f"curvature_batch_size {self.curvature_batch_size} exceeds the batch of {self.batch_size} that it is "
                "drawn from"
            )
        return self

    def start(self, context: StrategyContext) -> "NewtonStrategy":
        """The strategy."""
        return NewtonStrategy(self, context)

    def warm_up_version(self) -> Self:
        """With few iterations of conjugate gradients, which call all that many call."""
        table: Any = super().warm_up_version()
        if not hasattr(self.settings["solver"], "max_iter"):
            return table
        solver = table.options.get("solver", {}) | {"max_iter": WARM_UP_ITERATIONS}
        return table.model_copy(update={"options": table.options | {"solver": solver}})

    def made(self, parameters: Any, **more: Any) -> Any:
        """The optimizer.

        Args:
            parameters: or param groups.
            **more: options beside the table's own, which are asked first.
        """
        table: Any = self
        return made_by(self.optimizer, getattr(self, "preset", "default"))(parameters, **(more | table.options))

    @property
    def settings(self) -> dict[str, Any]:
        """The optimizer's options, every part an object."""
        return self.made([torch.zeros(1, requires_grad=True)]).param_groups[0]

    def fitted(self, problem: Problem, rows: int) -> Self:
        """With the size of its evaluation batch."""
        given = self.evaluation_batch_size if self.batch_size else 0
        held_out = self._held_out(rows) if given is None else given
        self._check_fit(self.batch_size or 0, held_out, problem, rows)
        return self.model_copy(update={"evaluation_batch_size": held_out})

    def _held_out(self, rows: int) -> int:
        """Rows of the evaluation batch: 1,024 as in Tatzel et al. (2022), or a quarter of a split that is smaller."""
        return min(1024, rows // 4)


class NewtonStrategy(Strategy):
    """Newton steps on fresh batches, statistics and dropout frozen unless its mode is "train"; see `NewtonSteps`."""

    def __init__(self, config: NewtonSteps, context: StrategyContext):
        super().__init__(context)
        self.model.train(config.mode == "train")
        self._config: Any = config
        self._optimizer: Any = config.made(self._parameters(), **self._blocks())
        self._steps = 0

    def _parameters(self) -> Any:
        """The parameters, a param group for each block of the curvature."""
        blocks = self._config.blocks
        if isinstance(blocks, list):
            return by_module(self.model, blocks)
        return layerwise(self.model) if blocks == "layerwise" else self.model.parameters()

    def _blocks(self) -> dict[str, Any]:
        return {} if self._config.blocks == "all" else {"blocks": True}

    @property
    def lr(self) -> float:
        """The step size that the last step took, before any the first trial's."""
        report = self._optimizer.report
        return self._optimizer.param_groups[0]["lr"] if report is None else report.lr

    def step(self, share: float) -> dict[str, Any]:
        """Take one step and return its report."""
        config, context = self._config, self.context
        self._steps += 1
        random = generator(Stream.AUGMENTATION, context.seed, self._steps)
        sizes: list[int] = [size for size in (config.batch_size, config.evaluation_batch_size) if size]
        parts = draw(context.rows, sizes, context.seed, self._steps) if sizes else [None]
        objective, *others = (context.objective(part, random) for part in parts)
        rows, evaluation_rows = config.batch_size or context.rows, config.evaluation_batch_size or 0
        curvature, curvature_rows = None, config.curvature_batch_size or rows
        if config.curvature_batch_size is not None:
            curvature = objective.subsample(curvature_rows, generator(Stream.CURVATURE, context.seed, self._steps))
            context.work.values += curvature_rows  # linearised beside the objective
        self._optimizer.step(objective, evaluation=others[0] if others else None, curvature_objective=curvature)
        report = self._optimizer.report
        assert report is not None
        context.work.values += objective.value_calls * rows
        context.work.values += sum(other.value_calls for other in others) * evaluation_rows
        context.work.values += 0 if curvature is None else curvature.value_calls * curvature_rows
        on_evaluation = report.products // 2 if config.options.get("debias") else 0  # one for each of the curvature's
        context.work.gradients += rows + (evaluation_rows if config.options.get("debias") else 0)
        context.work.gradients += getattr(report, "rows", 0)  # of J~, where a direct solve took them
        context.work.products += (report.products - on_evaluation) * curvature_rows + on_evaluation * evaluation_rows
        return report.as_dict()
