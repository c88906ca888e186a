"""Curvature products: the Gauss-Newton matrix and the Hessian of an objective, linearised once and multiplied often."""

from .blocks import OverBlocks, over_blocks
from .chunk_task import ChunkTask as ChunkTask
from .eager import ForwardPass as ForwardPass
from .linearization import METHODS as METHODS
from .linearization import Linearization, linearize
from .loss import loss_curvature as loss_curvature
from .operators import Matvec as Matvec
from .operators import block_diagonal, damped, dense
from .preconditioners import PRECONDITIONERS as PRECONDITIONERS
from .preconditioners import WEIGHT_SHARING as WEIGHT_SHARING
from .preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom, Preconditioner
from .preconditioners import Estimate as Estimate
from .preconditioners import blocks_of as blocks_of
from .preconditioners import check_whole as check_whole
from .preconditioners import diagonal_inverse as diagonal_inverse
from .preconditioners import factored as factored
from .preconditioners import floored as floored
from .preconditioners import preconditioner as preconditioner
from .structural_damping import structurally_damped as structurally_damped
from .tracing import MAX_TRACES as MAX_TRACES
from .tracing import bring_back as bring_back
from .tracing import kept_traces as kept_traces
from .tracing import put_back as put_back
from .tracing import set_aside as set_aside

__all__ = [
    "EmpiricalFisher",
    "GGNDiagonal",
    "Kronecker",
    "Linearization",
    "Nystrom",
    "OverBlocks",
    "Preconditioner",
    "block_diagonal",
    "damped",
    "dense",
    "linearize",
    "over_blocks",
]
