"""The page that says what to choose has no number but those of committed results."""

import csv
import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = " ".join((ROOT / "docs" / "choose.md").read_text(encoding="utf-8").split())


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def scored(study, strategy, what, epoch=0):
    """The median over the seeds of a stored study."""
    text = (ROOT / "docs" / "studies" / study / "scores.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["checkpoint_epoch"] == str(epoch)]
    return statistics.median(float(row[what]) for row in rows if row["strategy"] == strategy)


def row(problem):
    """The cells of a row of the table, without marks."""
    found = re.search(rf"\| {re.escape(problem)}[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|", PAGE)
    assert found is not None, problem
    return [cell.replace("*", "").replace("`", "").strip() for cell in found.groups()]


def winner(problem):
    """What is printed bold."""
    line = PAGE[PAGE.index(f"| {problem}") :]
    return re.findall(r"\*\*`?([\w.]+)", line)[0]


def test_physics():
    runs = result("gauss_newton")["runs"]
    errors = {
        method: statistics.median(run["end"]["error"] for run in runs if run["method"] == method)
        for method in ("gauss_newton", "lbfgs", "adam")
    }
    *_, ours, others = row("Poisson's equation")
    assert ours == f"GaussNewton {errors['gauss_newton']:.1e}"
    assert others == f"L-BFGS {errors['lbfgs']:.1e}, Adam with a cosine {errors['adam']:.1e}"
    trials = result("physics_tuning")["trials"]
    found = {name: statistics.median(trial["valid_loss"] for trial in each) for name, each in trials.items()}
    assert {len(each) for each in trials.values()} == {8}
    *_, ours, others = row("the same in two dimensions")
    assert ours == f"GaussNewton {found['gauss-newton']:.1e}, SelfScaledBroyden {found['broyden']:.1e}"
    assert others == f"L-BFGS {found['lbfgs']:.1e}, SOAP {found['soap']:.1e}, Adam {found['adam']:.1e}"


def test_fits():
    runs = result("nist")["runs"]
    solved = {
        method: sum(run["digits"] >= 4 for run in runs if run["method"] == method)
        for method in ("latephase, exact", "SciPy lm, exact", "SciPy trf, exact")
    }
    assert len({run["problem"] for run in runs}) == 27
    ours, lm, trf = solved.values()
    assert row("27 fits of NIST")[1:] == [
        "solved to four digits, of 54", f"minimize_residuals {ours}", f"SciPy's lm {lm}, its trf {trf}",
    ]  # fmt: skip


def test_perceptrons():
    kinks = statistics.median(run["train"] for run in result("kinks")["runs"]["NonMonotone(), no acceleration"])
    energy = {name: scored("qlr-uci-energy", name, "final_train_loss") for name in ("kfac", "adam-default")}
    *_, ours, others = row("UCI Energy")
    assert ours == f"GaussNewton(damping=NonMonotone()) {kinks:.1e}, KFAC {energy['kfac']:.1e}"
    assert others == f"Adam {energy['adam-default']:.1e}"
    for problem, study, shown in (
        ("the same | 8 s", "qlr-uci-energy", ".1e"),
        ("UCI Protein", "qlr-uci-protein", ".3f"),
        ("Fashion-MNIST, a perceptron", "qlr-fashion-mnist", ".3f"),
    ):
        names = {"KFAC": "kfac", "AdamQLR": "adamqlr", "SGD": "sgd-full", "Adam": "adam"}
        found = {shown_as: scored(study, name, "final_test_loss") for shown_as, name in names.items()}
        line = PAGE[PAGE.index(f"| {problem}") :].replace("*", "").replace("`", "")
        kfac, qlr, sgd, adam = (f"{name} {value:{shown}}" for name, value in found.items())
        assert f"| test loss | {kfac}, {qlr} | {sgd}, {adam} |" in line
        assert winner(problem) == min(found, key=lambda name: found[name])


def test_late_and_early_phase():
    late = {name: scored("fashion-mnist", name, "final_test_loss", 18)
            for name in ("hf-late-2048", "sgd-cosine", "sgd-average")}  # fmt: skip
    *_, ours, others = row("Fashion-MNIST, a convolutional network")
    assert ours == f"HessianFree.late_phase {late['hf-late-2048']:.3f}"
    assert others == f"SGD with a cosine {late['sgd-cosine']:.3f}, averaged weights {late['sgd-average']:.3f}"
    everybody = ("hf-1", "hf-4", "hf-8", "hf-adapted-8", "block-1", "block-4", "block-8", "block-adapted-8", "halves-8")
    best = min(scored("block-autoencoder", name, "final_test_loss") for name in everybody)
    *_, ours, others = row("MNIST's autoencoder")
    assert ours == f"HessianFree {best:.3f}"
    assert others == f"Adam {scored('block-autoencoder', 'adam', 'final_test_loss'):.3f}"
    *_, ours, others = row("Rosenbrock's function")
    values = {name: scored("qlr-rosenbrock", name, "final_train_loss") for name in ("adamqlr", "sgd-minimal", "adam")}
    assert ours == f"AdamQLR {values['adamqlr']:.1e}"
    assert others == f"SGD {values['sgd-minimal']:.1e}, Adam {values['adam']:.1e}"


def test_every_name_in_the_tree_is_public():
    import latephase

    tree = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8").split("```")[1]
    names = set(re.findall(r"\b([A-Z]+[a-z]+[A-Z]\w*|KFAC|minimize_residuals)\b", tree)) - {"ReLU"}
    assert {"GaussNewton", "HessianFree", "SelfScaledBroyden", "AdamQLR", "NonMonotone"} <= names
    assert all(hasattr(latephase, name) for name in names)
