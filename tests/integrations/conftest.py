"""What the tests of integrations have in common."""

import os

import pytest


@pytest.fixture(autouse=True)
def own_environment():
    """Packages put what they find of a cluster into the environment (Lightning LOCAL_RANK), which others believe."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
