"""The folder of a finish: what is gone on with, what is refused, and that nothing written is lost."""

import dataclasses
import json
import shutil

import pytest
import torch
from filelock import FileLock
from small_tasks import blobs, classifier, descent, held_out_loss, noisy, plain, quick, tensors_of
from torch import nn

import latephase
from latephase.finishing import folder as folders


class Killed(BaseException):
    """As a kill: nothing catches it."""


@pytest.fixture
def every_step(monkeypatch):
    """The state is written after every step."""
    monkeypatch.setattr(folders, "SECONDS", 0.0)
    monkeypatch.setattr(folders, "PAUSE", 0.0)


STEPS = 48


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    given = noisy()
    torch.manual_seed(5)
    report = latephase.finish(**given, steps=STEPS, out=tmp_path_factory.mktemp("whole"))
    return report, tensors_of(given["model"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return latephase.finish(**quick(out=folder)), folder


@pytest.fixture
def finished(done, tmp_path):
    """A folder of its own in which `quick` is finished."""
    return shutil.copytree(done[1], tmp_path / "finished")


def events_of(folder):
    return json.loads((folder / "events.json").read_text())


def loss_of(folder):
    """Held-out loss of `best.pt`, by hand; loaded as the page says."""
    given = noisy()
    given["model"].load_state_dict(torch.load(folder / "best.pt"))
    return held_out_loss(given)


def test_a_run_stopped_at_three_moments_is_the_uninterrupted_one(whole, tmp_path, every_step):
    """In the race, at its end, and while the winner goes on."""
    losses = []
    for moment in (6, 19, 33, None):
        given = noisy()
        torch.manual_seed(5)

        def stop(late, moment=moment):
            if moment is not None and late.spent >= moment:
                raise Killed

        try:
            report = latephase.finish(**given, steps=STEPS, out=tmp_path, watch=stop)
        except Killed:
            losses.append(loss_of(tmp_path))
    assert report.events == whole[0].events
    assert report.loss == whole[0].loss
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(given["model"]), whole[1], strict=True))
    losses.append(loss_of(tmp_path))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(report.loss, rel=1e-6)
    assert not list(tmp_path.glob("*unfinished*"))


def test_killed_between_two_files_the_best_is_never_worse(tmp_path, every_step, monkeypatch):
    """A kill after any of the first writings, each time going on: `best.pt` only improves."""
    plain_write, losses = folders.write_atomic, []
    for count in (1, 2, 3, 4, 5, 7):
        left = [count]

        def write(path, content, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            plain_write(path, content)

        monkeypatch.setattr(folders, "write_atomic", write)
        with pytest.raises(Killed):
            latephase.finish(**noisy(), steps=STEPS, out=tmp_path)
        if (tmp_path / "best.pt").exists():
            losses.append(loss_of(tmp_path))
            state = torch.load(tmp_path / "state.pt", weights_only=True)
            assert float(state["late"]["hand_over"]["race"]["best"][0].sum()) <= losses[-1] * (1 + 1e-6)
    assert len(losses) >= 4
    assert losses == sorted(losses, reverse=True)


def test_a_finished_folder_gives_its_report_without_a_step(done, finished):
    said, given = [], quick(out=finished)
    assert events_of(finished)["phase"] == "done"
    report = latephase.finish(**given, say=said.append, watch=lambda late: pytest.fail("a step was taken"))
    assert report == dataclasses.replace(done[0], folder=str(finished))
    assert said == [f"{finished} is finished; no step is taken"]
    best = torch.load(finished / "best.pt")
    assert all(torch.equal(best[name], tensor) for name, tensor in given["model"].state_dict().items())


def test_the_files_say_what_the_report_says(done):
    report, folder = done
    assert events_of(folder)["events"] == report.events
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "best.pt", "events.json", "index.html", "state.pt",
    ]  # fmt: skip
    assert str(folder) in str(report)


OTHERS = {
    "another form": ({"model": classifier()}, "its model"),
    "another dtype": (
        {"model": plain().double(), "data": (blobs()[0][:200].double(), blobs()[1][:200]),
         "held_out": (blobs()[0][200:].double(), blobs()[1][200:])}, "its model"),
    "other held-out rows": ({"held_out": tuple(each[210:] for each in blobs())}, "its held-out data"),
    "other targets": ({"held_out": (blobs()[0][200:], 2 - blobs()[1][200:])}, "its held-out data"),
    "another unit": ({"steps": None, "seconds": 12.0}, "its budget: 12 steps there, 12 seconds here"),
    "more steps": ({"steps": 20}, "its budget: 12 steps there, 20 steps here"),
    "other contestants": ({"contestants": [descent("other", 0.1)]}, "its contestants: fast, slow there, other here"),
    "those that fit": ({"contestants": None}, "its contestants: fast, slow there, those that fit here"),
    "other settings": ({"settings": None}, "its settings"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_the_run_of_another_is_refused_by_what_differs(case, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    changes, says = OTHERS[case]
    with pytest.raises(ValueError, match=f"state.pt is of another run, by {says}") as error:
        latephase.finish(**quick(out=finished) | changes)
    assert "another folder" in str(error.value)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_another_model_of_the_form_is_replaced_and_said(done, finished):
    replaced = "the model that was given is not the one that this run began with; it was replaced"
    best = quick(out=finished)
    best["model"].load_state_dict(torch.load(finished / "best.pt"))
    assert replaced not in latephase.finish(**best).remarks
    report = latephase.finish(**quick(out=finished, model=plain(seed=7)))
    assert report.loss == done[0].loss
    assert replaced in report.remarks


def cut(content):
    return content[: len(content) // 2]


DAMAGES = {
    "cut": (cut, "is damaged and cannot be read"),
    "empty": (lambda content: b"", "is damaged and cannot be read"),
    "text": (lambda content: b"hello", "is damaged and cannot be read"),
    "flipped": (lambda content: content[:600] + bytes(b ^ 255 for b in content[600:900]) + content[900:], "state.pt"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_with_the_remedy(damage, finished):
    change, says = DAMAGES[damage]
    state = finished / "state.pt"
    state.write_bytes(change(state.read_bytes()))
    with pytest.raises(ValueError, match=says) as error:
        latephase.finish(**quick(out=finished))
    assert "give another folder, or remove this one (best.pt in it can be loaded all the same)" in str(error.value)
    plain().load_state_dict(torch.load(finished / "best.pt"))


@pytest.mark.parametrize("content", [{"model": 1}, [1, 2], torch.ones(2)])
def test_a_state_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="is no state of a finish; give another folder"):
        latephase.finish(**quick(out=tmp_path))


@pytest.mark.parametrize("name", ["best.pt", "index.html", "events.json"])
def test_files_of_others_are_not_written_over(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} would be written over.*give another folder"):
        latephase.finish(**quick(out=tmp_path))
    assert (tmp_path / name).read_text() == "mine"


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another process is finishing a model in"):
        latephase.finish(**quick(out=tmp_path))


@pytest.mark.slow
def test_contestants_of_the_library_are_saved_and_gone_on_with(tmp_path, every_step):
    """All that fit by themselves, stopped in the race: the states of all optimizers go through a file."""
    inputs, targets = blobs()
    parts = {"data": (inputs[:200], targets[:200]), "held_out": (inputs[200:], targets[200:]), "steps": 140}

    def stop(late):
        if late.spent >= 9:
            raise Killed

    with pytest.raises(Killed):
        latephase.finish(plain(), nn.CrossEntropyLoss(), **parts, out=tmp_path, watch=stop)
    resumed = latephase.finish(plain(), nn.CrossEntropyLoss(), **parts, out=tmp_path)
    alone = latephase.finish(plain(), nn.CrossEntropyLoss(), **parts)
    assert resumed.events == alone.events
    assert {"lbfgs", "gauss_newton", "hessian_free"} <= {event["name"] for event in resumed.events}


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


def test_what_modules_share_is_the_best_under_each_of_its_names(tmp_path, every_step):
    """Stopped where the model stands elsewhere: the state dict has one tensor twice, the later name is read last."""
    given = quick(model=Shared(), contestants=[descent("fast", 0.5), descent("wild", 50.0)], steps=30)

    def watch(late):
        if late.events[-1]["event"] == "winner":
            with torch.no_grad():
                given["model"].first.weight.add_(1.0)
        if late.phase == "winner" and late.spent >= 20:
            raise Killed

    with pytest.raises(Killed):
        latephase.finish(**given, out=tmp_path, watch=watch)
    best = min(event["loss"] for event in events_of(tmp_path)["events"] if event["loss"] is not None)
    assert held_out_loss(given) == pytest.approx(best, rel=1e-6)  # put back on the way out; float32 sums of ten parts
    loaded = Shared()
    loaded.load_state_dict(torch.load(tmp_path / "best.pt"))
    assert held_out_loss(given | {"model": loaded}) == pytest.approx(best, rel=1e-6)
