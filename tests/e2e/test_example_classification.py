"""The example of image classification: each trouble is named, a healthy run is not, and all numbers are right."""

import json
import math

import numpy as np
import pytest
import torch
from support.families import EXAMPLES, TWO_RANKS, imported, missing_of, shown_tags, started, stored_tags
from support.place import Place, ended
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

FOLDER = EXAMPLES / "classification"
EPOCHS = 3
BATCHES, VAL_BATCHES = 22, 2  # of 64 of 1,438 digits, and of 256 of 359
EVERY = 10  # steps from one measurement of a captured script to the next
#: How long each runs, and what is found; the cause alone, not what follows from it.
TROUBLES = {
    "early-drop": (("--epochs", "7"), "lr_dropped_early"),
    "vanishing": (("--epochs", "2"), "vanishing_gradients"),
    "chance": (("--epochs", "3"), "chance_level"),
    "clip-before-unscale": (("--epochs", "2"), "amp_clip_order"),
    "shared-transform": (("--epochs", "1"), "shared_transform"),
    "plateau": (("--epochs", "10", "--samples", "1500"), "early_plateau"),
}
#: Under mixed precision, clipped in the right order.
HEALTHY = ("--epochs", str(EPOCHS), "--amp")
#: Seven trainings at once take their time where others work too.
PATIENCE_SECONDS = 500

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS + 60)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data folder with a run of each trouble, and of none: all at once, below one collector."""
    root = tmp_path_factory.mktemp("classification")
    place = Place(root / "data")
    place.up()
    runs = {run: arguments for run, (arguments, _) in TROUBLES.items()}
    commands = {run: ("--trouble", run, *arguments) for run, arguments in runs.items()} | {"healthy": HEALTHY}
    processes = {
        run: started(
            *(place, run, str(FOLDER / "train.py"), *arguments),
            **({"DIAGNOSTICS_DIR": str(root / "lines")} if run == "healthy" else {}),
        )
        for run, arguments in commands.items()
    }
    for run, process in processes.items():
        (root / f"{run}.txt").write_text(ended(process, seconds=PATIENCE_SECONDS))
    yield place
    place.close()


def project(place):
    """What a captured script's runs belong to: it is named after the script."""
    return place.row("select distinct project from runs")[0]


def diagnostics(place):
    return place.root / "runs" / project(place) / "healthy" / "diagnostics"


def report(place, run):
    done = place.sidestep("report", run, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_trouble_is_named_by_its_cause(place, trouble):
    [diagnosis] = report(place, trouble)["diagnoses"]
    assert diagnosis["name"] == TROUBLES[trouble][1]
    assert diagnosis["evidence"]
    assert diagnosis["advice"]


def test_a_healthy_run_is_left_in_peace(place):
    found = report(place, "healthy")
    assert found["diagnoses"] == []
    assert found["findings"] == []


def test_every_quantity_of_the_profile_is_stored_and_shown(place):
    assert missing_of("classification", stored_tags(place, "healthy")) == []
    assert missing_of("classification", shown_tags(place, "healthy", project=project(place))) == []


class Plain:
    """The healthy training once more in this process, without sidestep: its numbers in double precision."""

    def __init__(self, monkeypatch):
        [train] = imported("classification", "train")
        self.losses, self.norms, self.updates, self.val = [], [], [], []
        arguments = train.parse(HEALTHY)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        clip, step, validate = nn.utils.clip_grad_norm_, torch.optim.SGD.step, train.validate

        def clip_grad_norm_(parameters, limit):
            entries = list(parameters)
            self.norms.append(math.sqrt(sum(entry.grad.double().square().sum().item() for entry in entries)))
            return clip(entries, limit)

        def step_of(optimizer, *more):
            entries = optimizer.param_groups[0]["params"]
            before = [entry.detach().double() for entry in entries]
            given = step(optimizer, *more)
            change = sum(
                (entry.detach() - old).square().sum().item() for entry, old in zip(entries, before, strict=True)
            )
            self.updates.append(math.sqrt(change / sum(old.square().sum().item() for old in before)))
            return given

        def note_validation(model, loader):
            self.val.append(validate(model, loader))
            return self.val[-1]

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip_grad_norm_)
        monkeypatch.setattr(torch.optim.SGD, "step", step_of)
        monkeypatch.setattr(train, "validate", note_validation)
        monkeypatch.setattr(train, "parse", lambda: arguments)
        try:
            train.main()
        finally:
            torch.set_num_threads(threads)


@pytest.fixture
def plain(monkeypatch):
    return Plain(monkeypatch)


def lines(folder, split):
    return [json.loads(line) for line in (folder / f"{split}_diagnostics.jsonl").read_text().splitlines()]


def test_lines_of_epochs_are_what_a_plain_recomputation_gives(place, plain, tmp_path):
    folder = diagnostics(place)
    train, val = lines(folder, "train"), lines(folder, "val")
    assert [line["epoch"] for line in train] == [line["epoch"] for line in val] == list(range(1, EPOCHS + 1))
    norms = np.array(plain.norms).reshape(EPOCHS, BATCHES)
    sampled = [np.arange(EPOCHS * BATCHES).reshape(EPOCHS, BATCHES)[epoch] % EVERY == 0 for epoch in range(EPOCHS)]
    updates = np.array(plain.updates).reshape(EPOCHS, BATCHES)
    for epoch, (line, other) in enumerate(zip(train, val, strict=True)):
        assert line["num_batches"] == BATCHES
        assert other["num_batches"] == VAL_BATCHES
        expected = {"mean_grad_norm": norms[epoch].mean(), "min_grad_norm": norms[epoch].min()}
        expected |= {"max_grad_norm": norms[epoch].max()}
        expected["learning_rate"] = 0.025 * (1 + math.cos(math.pi * epoch / EPOCHS))
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-3)
        # from at most 1024 weights of each parameter
        assert line["weight_change"] == pytest.approx(updates[epoch][sampled[epoch]].mean(), rel=0.1)
        assert (other["loss"], other["accuracy"]) == pytest.approx(plain.val[epoch], rel=1e-3)
        assert other["learning_rate"] == line["learning_rate"]
        assert [other[name] for name in ("mean_grad_norm", "max_grad_norm", "weight_change")] == [None] * 3
    printed = [row.split() for row in (place.root.parent / "healthy.txt").read_text().splitlines() if "val loss" in row]
    assert [line["loss"] for line in train] == pytest.approx([float(row[3]) for row in printed], abs=1e-4)
    for split in ("train", "val"):
        assert lines(place.root.parent / "lines", split) == lines(folder, split)


def test_sql_documents_and_tensorboard_say_what_the_lines_say(place):
    folder = diagnostics(place)
    events = EventAccumulator(str(place.tensorboard("healthy", project=project(place))))
    events.Reload()
    names = ("mean_grad_norm", "min_grad_norm", "max_grad_norm", "weight_change", "num_batches")
    for line in lines(folder, "train"):
        document = place.document("healthy", line["epoch"], project=project(place))["metrics"]
        query = "select metric, mean from epochs where run = 'healthy' and epoch = ?"
        stored = dict(place.rows(query, line["epoch"]))
        for name in names:
            tag = f"train/{name}"
            shown = [event.value for event in events.Scalars(tag)]
            assert len(shown) == EPOCHS
            assert (stored[tag], document[tag]["mean"]) == pytest.approx((line[name], line[name]), rel=1e-12)
            assert shown[line["epoch"] - 1] == pytest.approx(line[name], rel=1e-6)


def test_the_check_of_transforms_tells_the_two_ways_to_split_apart(place):
    for prefix, code, severity in (("", 0, "ok"), ("shared_", 1, "critical")):
        splits = [f"{FOLDER / 'splits.py'}:{prefix}{split}" for split in ("train", "val")]
        done = place.sidestep("check-transforms", "--json", *splits)
        assert done.returncode == code, done.stderr
        assert {check["name"]: check["severity"] for check in json.loads(done.stdout)}["one object"] == severity


def test_two_ranks_of_torchrun_are_one_run_whose_numbers_are_put_together(place):
    ended(started(place, "two", *TWO_RANKS, str(FOLDER / "train.py"), "--epochs", "2"), seconds=PATIENCE_SECONDS)
    assert place.row("select state, world_size from runs where run = 'two'") == ("finished", 2)
    losses = [dict(place.values("two", "train/loss_total", rank=rank)) for rank in range(2)]
    assert len(losses[0]) == len(losses[1]) == 2 * (BATCHES // 2)
    assert losses[0] != losses[1]
    together = place.rows(
        "select step, value, ranks from points_over_ranks where (run, metric) = ('two', 'train/loss_total') order by step"
    )
    assert together == [(step, pytest.approx((losses[0][step] + losses[1][step]) / 2), 2) for step in losses[0]]
    document = place.document("two", 2, project=project(place))["metrics"]
    assert document["train/loss_total"]["n"] == 2 * (BATCHES // 2)
    stored = place.row(
        "select count(distinct rank), sum(n) from epochs where (run, metric, epoch) = ('two', 'train/loss_total', 2)"
    )
    assert stored == (2, 2 * (BATCHES // 2))
