"""The example of the README, whose collector is killed in the middle: training ends well, and nothing is lost."""

import json
import re
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
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    sent = int(re.search(r"sent ([\d,]+)", out)[1].replace(",", ""))
    assert place.stored("killed") < sent
    place.up()
    until(lambda: not place.journals())
    place.check_whole("killed")
    assert place.stored("killed") == sent
    assert place.row("select state from runs") == ("finished",)
    # How often some figures are taken depends on the clock; what the script itself logs does not.
    for metric in ("train/loss_total", "train/acc", "val/loss_total", "val/acc"):
        steps = [step for step, _ in quiet.values("quiet", metric)]
        assert [step for step, _ in place.values("killed", metric)] == steps
        for epoch in range(1, EPOCHS + 1):
            found, wanted = (
                there.document(run, epoch, project="digits")["metrics"][metric]["n"]
                for there, run in ((place, "killed"), (quiet, "quiet"))
            )
            assert found == wanted
    shown = [(tag, step) for tag, step, _ in tensorboard_points(place.tensorboard("killed", project="digits"))]
    assert len(set(shown)) == len(shown)
    assert set(place.rows("select metric, step from points where run = 'killed'")) <= set(shown)
