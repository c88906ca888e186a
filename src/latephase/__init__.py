"""Second-order training for PyTorch, above all of its late phase."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curvature import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom, Preconditioner
    from .diagnosis import check
    from .objective import Objective, WithHidden
    from .optim import (
        CG,
        GGN,
        KFAC,
        SGDQLR,
        AdamQLR,
        Armijo,
        Blocks,
        DecreasingLoss,
        Direct,
        Fixed,
        GaussNewton,
        GaussNewtonReport,
        Hessian,
        HessianFree,
        KFACStepReport,
        KroneckerFactors,
        LevenbergMarquardt,
        QuadraticLearningRate,
        QuadraticStepReport,
        QuadraticStepStatus,
        QuasiNewtonStepReport,
        ResidualsResult,
        SecondOrderReport,
        SelfScaledBroyden,
        StepReport,
        StepStatus,
        TargetRatio,
        Wolfe,
        WolfeStatus,
        minimize_residuals,
    )
    from .parameters import by_module, layerwise
    from .records import JSONLinesWriter, MLflowWriter, TensorBoardWriter, WandbWriter

__all__ = [
    "CG",
    "GGN",
    "KFAC",
    "SGDQLR",
    "AdamQLR",
    "Armijo",
    "Blocks",
    "DecreasingLoss",
    "Direct",
    "EmpiricalFisher",
    "Fixed",
    "GGNDiagonal",
    "GaussNewton",
    "GaussNewtonReport",
    "Hessian",
    "HessianFree",
    "JSONLinesWriter",
    "KFACStepReport",
    "Kronecker",
    "KroneckerFactors",
    "LevenbergMarquardt",
    "MLflowWriter",
    "Nystrom",
    "Objective",
    "Preconditioner",
    "QuadraticLearningRate",
    "QuadraticStepReport",
    "QuadraticStepStatus",
    "QuasiNewtonStepReport",
    "ResidualsResult",
    "SecondOrderReport",
    "SelfScaledBroyden",
    "StepReport",
    "StepStatus",
    "TargetRatio",
    "TensorBoardWriter",
    "WandbWriter",
    "WithHidden",
    "Wolfe",
    "WolfeStatus",
    "by_module",
    "check",
    "layerwise",
    "minimize_residuals",
]
__version__ = "0.1.0"

_ROOMS = {
    "AdamQLR": "optim",
    "Armijo": "optim",
    "Blocks": "optim",
    "CG": "optim",
    "DecreasingLoss": "optim",
    "Direct": "optim",
    "EmpiricalFisher": "curvature",
    "Fixed": "optim",
    "GGN": "optim",
    "GGNDiagonal": "curvature",
    "GaussNewton": "optim",
    "GaussNewtonReport": "optim",
    "Hessian": "optim",
    "HessianFree": "optim",
    "JSONLinesWriter": "records",
    "KFAC": "optim",
    "KFACStepReport": "optim",
    "Kronecker": "curvature",
    "KroneckerFactors": "optim",
    "LevenbergMarquardt": "optim",
    "MLflowWriter": "records",
    "Nystrom": "curvature",
    "Objective": "objective",
    "Preconditioner": "curvature",
    "QuadraticLearningRate": "optim",
    "QuadraticStepReport": "optim",
    "QuadraticStepStatus": "optim",
    "QuasiNewtonStepReport": "optim",
    "ResidualsResult": "optim",
    "SGDQLR": "optim",
    "SecondOrderReport": "optim",
    "SelfScaledBroyden": "optim",
    "StepReport": "optim",
    "StepStatus": "optim",
    "TargetRatio": "optim",
    "TensorBoardWriter": "records",
    "WandbWriter": "records",
    "WithHidden": "objective",
    "Wolfe": "optim",
    "WolfeStatus": "optim",
    "by_module": "parameters",
    "check": "diagnosis",
    "layerwise": "parameters",
    "minimize_residuals": "optim",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that reading a study's results does not import torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
