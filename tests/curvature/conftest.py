"""What several test modules of curvature share; assertions of the helpers report their values."""

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite(
    "block_oracle", "dense_oracle", "preconditioner_contract", "product_cases", "reach_checks", "trace_cases"
)


@pytest.fixture
def same_numbers() -> Iterator[None]:
    """Torch's generator begins at the same place, and is put back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
