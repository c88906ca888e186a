"""Products with the diagonal blocks of the Gauss-Newton matrix, for all blocks at once (Zhang et al. 2017)."""

from .products import OverBlocks as OverBlocks
from .products import over_blocks as over_blocks
