"""Where another package is missing, its integration says what to install; the others are imported all the same."""

import importlib
import subprocess
import sys

import pytest

NEEDS = {"transformers": "transformers", "pina": "pina", "deepxde": "deepxde"}


@pytest.mark.parametrize("name", NEEDS)
def test_a_package_that_is_missing_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, NEEDS[name], None)
    monkeypatch.delitem(sys.modules, f"latephase.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install\s+"latephase\[{name}\]"'):
        importlib.import_module(f"latephase.integrations.{name}")


def test_nothing_of_them_is_imported_unless_it_is_named():
    code = (
        "import latephase, latephase.cli, sys; latephase.HessianFree; latephase.TensorBoardWriter; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = {module.split(".")[0] for module in done.stdout.split()}
    assert "torch" in loaded
    assert not loaded & {"lightning", "transformers", "accelerate", "pina", "deepxde", "mlflow", "wandb", "optuna"}
    assert "latephase.integrations" not in done.stdout.split()


@pytest.mark.parametrize(("name", "writer"), [("mlflow", "MLflowWriter"), ("wandb", "WandbWriter")])
def test_a_tracker_that_is_missing_is_named_with_its_extra(name, writer, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'{writer} needs .* pip install "latephase\[{name}\]"'):
        getattr(importlib.import_module("latephase"), writer)()
