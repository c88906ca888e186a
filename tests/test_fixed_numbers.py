"""`benchmarks/fixed_numbers.py`: what it writes compares as equal, and one changed bit is found."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CASES = "hessian_free-n*"
"""No decay, no line search, no damping, and the two of Nystrom's preconditioner."""


@pytest.fixture(scope="module")
def numbers():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("fixed_numbers")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def written(numbers, tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers") / "numbers.json"
    assert numbers.main(["--out", str(path), "--only", CASES, "--steps", "3"]) == 0
    return path


def compared(numbers, path, *arguments):
    return numbers.main(["--compare", str(path), "--only", CASES, "--steps", "3", *arguments])


def changed(written, tmp_path, change):
    content = json.loads(written.read_text(encoding="utf-8"))
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_second_run_has_the_same_numbers_bit_for_bit(numbers, written, capsys):
    assert compared(numbers, written) == 0
    assert "5 cases compared, 0 differ" in capsys.readouterr().out


def test_what_is_kept_of_each_step(numbers, written):
    _, cases = numbers.read(written)
    columns = cases["hessian_free-nystrom"]["columns"]
    assert all(len(column) == 3 for column in columns.values())
    assert columns["returned"] == columns["loss"]
    assert columns["damping"][0] == 0.1
    assert len(set(columns["parameters"])) == 3
    assert "seconds" not in columns


def test_a_number_that_differs_in_its_last_bit_is_found(numbers, written, tmp_path, capsys):
    def change(content):
        column = content["cases"]["hessian_free-no_decay"]["columns"]["gradient_norm"]
        column[1] = math.nextafter(column[1], 0.0)

    assert compared(numbers, changed(written, tmp_path, change)) == 1
    said = capsys.readouterr().out
    assert "hessian_free-no_decay:\n    row 1, gradient_norm: was " in said
    assert "1 differ" in said


def test_a_hash_a_state_and_a_missing_case_are_found(numbers, written, tmp_path, capsys):
    def change(content):
        cases = content["cases"]
        cases["hessian_free-no_decay"]["columns"]["parameters"][2] = "0" * 16
        cases["hessian_free-nystrom"]["end"]["state"] = "0" * 16
        cases["hessian_free-never_was"] = cases["hessian_free-no_damping"]

    assert compared(numbers, changed(written, tmp_path, change), "--only", "hessian_free-n*") == 1
    said = capsys.readouterr().out
    assert "row 2, parameters: was '0000000000000000'" in said
    assert "at the end, state: was" in said
    assert "hessian_free-never_was:\n    is missing" in said


def test_a_difference_between_the_kept_rows_is_found(numbers):
    rows = [float(row) for row in range(40)]
    old = {"columns": {"loss": rows}, "end": {"rows": 40}}
    kept = {"columns": {"loss": [rows[row] for row in numbers.kept(40)]}}
    kept["end"] = {"rows": 40, "everything": numbers.everything(old["columns"], ["loss"])}
    assert len(kept["columns"]["loss"]) < 40
    assert numbers.differences({"case": kept}, {"case": old}) == {}
    new = {"columns": {"loss": [*rows[:33], -1.0, *rows[34:]], "another": rows}, "end": {"rows": 40}}
    assert "everything" in numbers.differences({"case": kept}, {"case": new})["case"][0]


def test_fewer_steps_compare_with_the_first_of_the_file(numbers, written):
    assert compared(numbers, written, "--steps", "2") == 0


@pytest.mark.parametrize(("factor", "status"), [(1 + 1e-9, 0), (1 + 1e-4, 1)])
def test_on_another_machine_rounding_is_no_difference(numbers, written, tmp_path, capsys, factor, status):
    def change(content):
        content["environment"]["processor"] = "another"
        columns = content["cases"]["hessian_free-no_decay"]["columns"]
        columns["parameters"][0] = "0" * 16
        columns["gradient_norm"][0] *= factor

    assert compared(numbers, changed(written, tmp_path, change)) == status
    assert "rounding may differ" in capsys.readouterr().out


def test_threads_and_kernels_are_as_before(numbers, written):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()
    numbers.record("hessian_free-no_decay", 1)
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()
    assert after == before


def test_the_kept_file_has_every_case(numbers):
    _, cases = numbers.read(BENCHMARKS / "results" / "numbers.json")
    assert set(numbers.CASES) - set(numbers.GONE) <= set(cases)
    whole = [name for name in cases.keys() & numbers.CASES if "error" not in cases[name]["end"]]
    assert all(cases[name]["end"]["rows"] == numbers.STEPS for name in whole)
    assert {"study-scores", "tuning-trials"} <= set(cases)
