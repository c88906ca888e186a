"""The loss's Hessian in the outputs: closed forms, its root, and products by autograd for any other loss."""

from .hessians import Product as Product
from .products import loss_curvature as loss_curvature
from .residuals import has_constant_root as has_constant_root
from .residuals import over_diagonal as over_diagonal
from .residuals import unrooted as unrooted
from .roots import MOST_COLUMNS as MOST_COLUMNS
from .roots import diagonal_root as diagonal_root
from .roots import hessian_root as hessian_root
from .roots import root_of_any as root_of_any
