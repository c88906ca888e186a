"""Rows J~ of the Gauss-Newton matrix: GGN = J~'J~, piece by piece."""

from .chunk_rows import ChunkRows as ChunkRows
from .chunk_rows import together as together
from .following import follow as follow
from .kernel import kernel_of as kernel_of
from .residuals import is_squared_error as is_squared_error
from .residuals import residual_of_free_form as residual_of_free_form
from .residuals import residual_of_pass as residual_of_pass
from .terms import Terms as Terms
