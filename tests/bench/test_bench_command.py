"""`latephase bench`: what it writes, prints and refuses."""

import json

import pytest
import torch
from typer.testing import CliRunner

from latephase.bench import measure
from latephase.bench import run as bench_run
from latephase.bench.contender import default_method
from latephase.bench.figure import draw
from latephase.bench.measure import Settings
from latephase.bench.tables import failures, markdown, terminal
from latephase.cli import app
from latephase.study.performing.conducting import ALLOCATOR

DEFAULT = default_method()


def cell(ratio, **more):
    return {"seconds": ratio / 100, "ratio": ratio, "quartiles": [0.9 * ratio, 1.1 * ratio], **more}


def network(title, **contenders):
    return {
        "name": title,
        "title": title,
        "gradient": cell(1.0, memory={"bytes": 2**20}),
        "contenders": contenders,
        "step": cell(20.0, memory={"bytes": 2**22, "ratio": 4.0}, cg_iterations=[10]),
    }


def ours(ratio):
    costs = {"product": cell(ratio), "quadratic_form": cell(ratio / 2), "once_per_step": cell(1.2)}
    return costs | {"memory": {"bytes": 2**21, "ratio": 2.0}, "difference": 0.0}


@pytest.fixture
def result():
    return {
        "settings": {"rounds": 3, "threads": 1},
        "allocator": ALLOCATOR,
        "environment": {"torch": "2.13", "cpu": "a CPU", "device": "cpu", "packages": {"BackPACK": "1.7.1"}},
        "networks": [
            network(
                "net, 64", traced=ours(0.8), BackPACK={"product": cell(1.9)}, curvlinops={"error": "not installed"}
            ),
            network("LSTM, 8", traced=ours(1.4), BackPACK={"error": "RuntimeError: no derivative"}),
            {"name": "big", "title": "big, 512", "error": "the measuring process ended with status -9"},
        ],
        "sgd_overhead": cell(1.1),
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench") / "out"
    arguments = ["bench", "--networks", "digits", "--rounds", "2", "--out", str(directory)]
    return CliRunner().invoke(app, arguments), directory


@pytest.mark.slow
def test_it_writes_numbers_table_and_figure(measured):
    done, directory = measured
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in directory.iterdir()) == ["bench.json", "bench.md", "bench.pdf", "bench.png"]
    assert (directory / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "| digits CNN, 32 |" in (directory / "bench.md").read_text(encoding="utf-8")
    assert "digits CNN, 32" in done.output
    assert "MALLOC_MMAP_THRESHOLD_=4294967295" in "".join(done.output.split())


@pytest.mark.slow
def test_every_number_is_there(measured):
    record = json.loads((measured[1] / "bench.json").read_text(encoding="utf-8"))
    (found,) = record["networks"]
    assert (found["title"], found["batch_size"], found["parameters"]) == ("digits CNN, 32", 32, 38_282)
    assert list(found["contenders"]) == [DEFAULT, f"{DEFAULT}, bfloat16", "BackPACK", "curvlinops"]
    for name, contender in found["contenders"].items():
        if contender.get("error") == "not installed":
            continue
        own = DEFAULT in name
        quantities = ["product", *(["quadratic_form", "once_per_step"] if own else [])]
        for quantity in quantities:
            assert set(contender[quantity]) == {"seconds", "ratio", "quartiles"}
            assert contender[quantity]["ratio"] > 0
        assert contender["memory"]["ratio"] > 0.5
        assert contender["difference"] < (0.05 if "bfloat16" in name else 1e-5)
    assert found["gradient"]["ratio"] == 1
    step = found["step"]
    assert step["cg_iterations"] == [10]
    assert min(step["products"]) >= 10
    assert step["methods"] == ["traced"]
    assert 0 <= step["accepted"] <= 1
    assert step["ratio"] > 3
    assert step["memory"]["ratio"] > 1
    assert record["sgd_overhead"]["ratio"] > 0.5


@pytest.mark.slow
def test_the_machine_is_written_down(measured):
    record = json.loads((measured[1] / "bench.json").read_text(encoding="utf-8"))
    environment = record["environment"]
    for key in ("torch", "cpu", "git_commit", "avx512_bf16", "amx_bf16", "packages", "threads"):
        assert key in environment
    assert environment["threads"] == record["settings"]["threads"] == 1
    assert record["allocator"] == ALLOCATOR
    assert all(f"{name}={value}" in environment["allocator"] for name, value in ALLOCATOR.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "3c3f"], "unknown network '3c3f'; known networks: autoencoder, 3c3d"),
        (["--networks", "3c3f"], "Did you mean '3c3d'?"),
        (["--dtype", "int8"], "dtypes must be among float32, bfloat16, float16, float64; got int8"),
        (["--device", "tpu"], "device must be one of cpu, cuda; got 'tpu'"),
    ],
)
def test_what_it_does_not_know_it_refuses(arguments, message, tmp_path):
    done = CliRunner().invoke(app, ["bench", *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_the_allocator_may_stay_as_it_is(tmp_path, monkeypatch):
    seen = []

    def measure(name, settings, variables):
        seen.append(variables)
        return cell(1.1) if name is None else network("net, 64", traced=ours(1.0)) | {"environment": {"torch": "2"}}

    monkeypatch.setattr(bench_run, "_measure", measure)
    record = bench_run.bench(tmp_path, Settings(), ["digits"], default_allocator=True)
    assert seen == [{}, {}]
    assert record["allocator"] == "default"
    assert "allocator, for all alike: as it is by default" in (tmp_path / "bench.md").read_text(encoding="utf-8")


def test_a_process_that_dies_leaves_a_record(monkeypatch):
    monkeypatch.setattr(bench_run.sys, "executable", "/bin/false")
    record = bench_run._measure("digits", Settings(), {})
    assert record == {
        "error": "the measuring process ended with status 1",
        "name": "digits",
        "title": "digits CNN, 32",
    }


def test_tables_show_ratios_and_what_failed(result):
    text = markdown(result)
    assert "| network, batch | gradient, ms | MiB | traced | BackPACK | curvlinops |" in text
    assert "| net, 64 | 10.0 | 1 | 0.80 [0.72, 0.88] | 1.90 [1.71, 2.09] | not installed |" in text
    assert "| LSTM, 8 | 10.0 | 1 | 1.40 [1.26, 1.54] | fails |  |" in text
    assert "| big, 512 | fails |  |  |  |  |" in text
    row = "0.40 [0.36, 0.44] | 1.20 [1.08, 1.32] | 20.00 [18.00, 22.00] | 2.00 | 4.00 |"
    assert f"| net, 64 | traced | {row}" in text
    assert failures(result) == [
        "LSTM, 8, BackPACK: RuntimeError: no derivative",
        "big, 512: the measuring process ended with status -9",
    ]
    assert [table.row_count for table in terminal(result)] == [3, 2]


def test_the_figure_has_a_marker_for_each_number_and_a_word_for_each_failure(result, tmp_path):
    from latephase.bench.figure import LIMIT, product_costs

    (axes,) = product_costs(result).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["net, 64", "LSTM, 8"]
    drawn = {bars.get_label(): list(bars.lines[0].get_xdata()) for bars in axes.containers}
    assert drawn == {"traced": [0.8, 1.4], "BackPACK": [1.9]}
    assert " BackPACK fails" in [text.get_text() for text in axes.texts]
    verticals = [
        line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert {1, LIMIT} <= set(verticals)
    first, second = (draw(result, tmp_path)[0].read_bytes() for _ in range(2))
    assert first == second


def test_what_is_missing_or_fails_is_said_and_the_rest_goes_on(monkeypatch):
    def broken(*arguments):
        raise NotImplementedError("no derivative\n of this layer")

    monkeypatch.setattr(measure, "versions", lambda: {"BackPACK": None, "other": "1.0"})
    monkeypatch.setattr(measure, "PEERS", {"BackPACK": broken, "other": broken})
    threads = torch.get_num_threads()
    found = measure.measure_network("digits", Settings(rounds=1, dtypes=["float32"]))
    torch.set_num_threads(threads)
    contenders = found["contenders"]
    assert list(contenders) == [DEFAULT, "BackPACK", "other"]
    assert contenders["BackPACK"] == {"error": "not installed"}
    assert contenders["other"] == {"error": "NotImplementedError: no derivative of this layer"}
    assert contenders[DEFAULT]["product"]["ratio"] > 0
