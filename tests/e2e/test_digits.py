"""The example of the README, whose collector is killed in the middle: training ends well, and nothing is lost."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
from support.place import Place, tensorboard_points, until

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits.py"
EPOCHS = 2
BATCH = 16
STEPS = 90  # batches of an epoch
SEQS = "select metric, step, attempt from points where run = ? order by all"


def digits(place, run):
    command = (
        "run",
        "--id",
        run,
        "--",
        sys.executable,
        str(DIGITS),
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        str(BATCH),
    )
    settings = {"OMP_NUM_THREADS": "1", "SIDESTEP_COLLECTOR_FLUSH_SECONDS": "0.1"}
    return place.start(sys.executable, "-m", "sidestep", *command, **settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("undisturbed") / "data")
    process = digits(place, "quiet")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    yield place, out, errors
    place.close()


def test_digits_is_recorded_whole(undisturbed):
    place, out, errors = undisturbed
    assert "lost 0" in out
    assert "lost 0" in errors
    place.check_whole("quiet")
    losses = place.values("quiet", "train/loss_total")
    assert len(losses) == EPOCHS * STEPS
    assert losses[-1][1] < losses[0][1]
    schema = json.loads((ROOT / "docs" / "specs" / "epoch.schema.json").read_text(encoding="utf-8"))
    for epoch in range(1, EPOCHS + 1):
        document = place.document("quiet", epoch, project="digits")
        jsonschema.validate(document, schema)
        assert document["metrics"]["train/loss_total"]["n"] == STEPS


def test_digits_whose_collector_is_killed_ends_with_0_and_after_up_every_record_is_stored_once(undisturbed, place):
    quiet, _, _ = undisturbed
    process = digits(place, "killed")
    until(lambda: len(place.values("killed", "train/loss_total")) > STEPS // 4)
    place.kill_collector()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert place.stored("killed") < quiet.stored("quiet")
    place.up()
    until(lambda: not place.journals())
    place.check_whole("killed")
    assert place.stored("killed") == quiet.stored("quiet")
    assert place.rows(SEQS, "killed") == quiet.rows(SEQS, "quiet")
    assert place.row("select state from runs") == ("finished",)
    points = [(tag, step) for tag, step, _ in tensorboard_points(place.tensorboard("killed", project="digits"))]
    expected = [(tag, step) for tag, step, _ in tensorboard_points(quiet.tensorboard("quiet", project="digits"))]
    assert sorted(points) == sorted(expected)
    assert len(set(points)) == len(points)
    for epoch in range(1, EPOCHS + 1):
        found = place.document("killed", epoch, project="digits")["metrics"]
        wanted = quiet.document("quiet", epoch, project="digits")["metrics"]
        assert {tag: found[tag]["n"] for tag in found} == {tag: wanted[tag]["n"] for tag in wanted}
        assert found["train/loss_total"]["mean"] == pytest.approx(wanted["train/loss_total"]["mean"], rel=1e-2)
