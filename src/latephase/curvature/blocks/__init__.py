"""Products with the diagonal blocks of the Gauss-Newton matrix, for all blocks at once (Zhang et al. 2017)."""
