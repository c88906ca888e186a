"""Writers of step reports to trackers of experiments: MLflow, and Weights & Biases."""

import math
import time
from typing import Any

from .step_writers import StepWriter, changed_texts, scalars_of

__all__ = ["MLflowWriter", "WandbWriter"]

_GROUPS = ("loss", "damping", "cg", "direct", "step")


class MLflowWriter(StepWriter):
    """Each step's report as metrics of an MLflow run; needs the package `mlflow` or `mlflow-skinny`.

    The names are `TensorBoardWriter`'s tags, and so is what is left out. The methods of the products are tags of the
    run, set where they change. Where the run is kept is MLflow's own business: `mlflow.set_tracking_uri`. Under
    `torch.distributed` let rank 0 alone write.

    It can be pickled: the copy writes to the same run and goes on from its own count.

    Args:
        run_id: of a run. Default: the active one, or a new one, which is ended when this writer is closed.
        step: number of the last step taken, where training resumes. Default 0.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(self, run_id: str | None = None, *, step: int = 0):
        mlflow = _imported("mlflow")
        self._own = run_id is None and mlflow.active_run() is None
        run = mlflow.active_run() or mlflow.start_run() if run_id is None else None
        self.run_id: str = run_id if run is None else run.info.run_id  # pyright: ignore[reportAttributeAccessIssue]
        self.step = step
        self._tracking_uri = mlflow.get_tracking_uri()
        self._texts: dict[str, str] = {}

    def _write(self, report: Any) -> None:
        mlflow = _imported("mlflow")
        client, number = mlflow.MlflowClient(self._tracking_uri), self.step + 1
        now = int(time.time() * 1000)
        finite = {tag: value for tag, value in scalars_of(report).items() if math.isfinite(value)}
        metrics = [mlflow.entities.Metric(tag, value, now, number) for tag, value in finite.items()]
        tags = [mlflow.entities.RunTag(tag, text) for tag, text in changed_texts(report, self._texts).items()]
        client.log_batch(self.run_id, metrics=metrics, tags=tags)

    def close(self) -> None:
        """End the run if it was begun here; steps after that are an error."""
        if self._own and not self._closed:
            _imported("mlflow").end_run()
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_own": False}  # who began the run ends it


class WandbWriter(StepWriter):
    """Each step's report as metrics of a run of Weights & Biases; needs the package `wandb`.

    The names are `TensorBoardWriter`'s tags, and so is what is left out. They are drawn over `steps`, the number of the
    step, so that what you log yourself keeps a count of its own. The methods of the products are texts, logged where
    they change. Under `torch.distributed` let rank 0 alone write.

    Args:
        run: what `wandb.init()` returned. Default: the run that is under way, or a new one, which is finished when this
            writer is closed.
        step: number of the last step taken, where training resumes. Default 0.

    Raises:
        ImportError: wandb is not installed.
        TypeError: something else than a run.
    """

    def __init__(self, run: Any = None, *, step: int = 0):
        if run is not None and not (hasattr(run, "log") and hasattr(run, "define_metric")):
            raise TypeError(f"run must be what wandb.init() returns, got {type(run).__name__}")
        wandb = _imported("wandb") if run is None else None
        self._own = wandb is not None and wandb.run is None
        self.run: Any = run if wandb is None else wandb.run or wandb.init()
        self.step = step
        self._texts: dict[str, str] = {}
        for group in _GROUPS:
            self.run.define_metric(f"{group}/*", step_metric="steps")

    def _write(self, report: Any) -> None:
        finite = {tag: value for tag, value in scalars_of(report).items() if math.isfinite(value)}
        self.run.log({"steps": self.step + 1, **finite, **changed_texts(report, self._texts)})

    def close(self) -> None:
        """Finish the run if it was begun here; steps after that are an error."""
        if self._own and not self._closed:
            self.run.finish()
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a WandbWriter cannot be pickled, since a run belongs to its process; begin another writer there"
        )


def _imported(name: str) -> Any:
    """A package, by its name.

    Raises:
        ImportError: it is not installed; says how.
    """
    writer = {"mlflow": "MLflowWriter", "wandb": "WandbWriter"}[name]
    try:
        if name == "mlflow":
            import mlflow  # pyright: ignore[reportMissingImports]
            import mlflow.entities  # pyright: ignore[reportMissingImports]

            return mlflow
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f'{writer} needs the package {name}; install it with pip install "latephase[{name}]"'
        ) from error
    return wandb
