"""Assertions of the helper module report their values, as those of test modules do."""

import pytest

pytest.register_assert_rewrite("cg_systems", "solver_contract")
