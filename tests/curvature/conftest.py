"""Assertions of the helper modules report their values, as those of test modules do."""

import pytest

pytest.register_assert_rewrite("block_oracle", "dense_oracle", "product_cases")
