"""`sidestep run -- python script.py`: what a script logs is in the store, in TensorBoard, in the epoch documents."""

import json
import math
import signal
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from support.place import ended, said

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "specs" / "epoch.schema.json").read_text(encoding="utf-8"))
EPOCHS, STEPS = 3, 20

EVERYTHING = f"""
import numpy as np
import sidestep

run = sidestep.init("shop", id="first", name="The first", tags=["a", "b"], config={{"lr": 0.1}})
run.text("notes/why", "because\\nof \\u00e9")
for epoch in run.epoch(range(1, {EPOCHS} + 1)):
    for _ in range({STEPS}):
        step = run.step + 1
        run.log({{"loss": 1 / (step + 3), "tokens": 2**53 - 1 - step, "odd": [step, float("nan"), float("inf"), -float("inf")][step % 4]}})
    run.log({{"loss": 10.0 * epoch}}, split="val", epoch=epoch)
    run.image("seen", np.full((4, 6, 3), 40 * epoch, dtype=np.uint8), step=epoch)
    run.histogram("weights", counts=[1, 2, epoch], edges=[0, 1, 2, 3], step=epoch)
    run.tensor("confusion", np.arange(6, dtype=np.int32).reshape(2, 3) * epoch, step=epoch)
run.mark("checkpoint", path="model.pt", size_mb=1.5)
run.config["later"] = "yes"
print("job says", run.id)
"""


def loss(step):
    return 1 / (step + 3)


def odd(step):
    return [float(step), math.nan, math.inf, -math.inf][step % 4]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    from support.place import Place

    place = Place(tmp_path_factory.mktemp("job") / "data")
    script = place.written(EVERYTHING)
    done = place.sidestep("run", "--json", "--", sys.executable, str(script))
    yield place, done
    place.close()


def test_the_job_ends_with_its_code_and_a_summary_in_json(job):
    place, done = job
    assert done.returncode == 0, done.stderr
    said, document = done.stdout.splitlines()
    assert said == "job says first"
    [summary] = json.loads(document)
    assert (summary["project"], summary["run"], summary["state"]) == ("shop", "first", "finished")
    assert summary["sent"] == summary["committed"] == place.stored("first")
    assert (summary["lost"], summary["waiting_streams"], summary["ranks"]) == (0, 0, 1)
    assert summary["last"]["train/loss"] == loss(EPOCHS * STEPS - 1)
    assert all(Path(summary[name]).exists() for name in ("tensorboard", "diagnostics", "store"))
    assert place.collector() is None
    assert place.journals() == []


def test_the_store_holds_each_scalar_exactly_as_it_was_logged(job):
    place, _ = job
    steps = range(EPOCHS * STEPS)
    assert place.values("first", "train/loss") == [(step, loss(step)) for step in steps]
    assert place.values("first", "train/tokens") == [(step, float(2**53 - 1 - step)) for step in steps]
    found = place.values("first", "train/odd")
    assert [step for step, _ in found] == list(steps)
    np.testing.assert_equal([value for _, value in found], [odd(step) for step in steps])
    assert [value for _, value in place.values("first", "val/loss")] == [10.0, 20.0, 30.0]
    place.check_whole("first", key_sets=3)


def test_the_store_holds_items_and_what_the_run_is(job):
    place, _ = job
    assert place.rows("select name, text from texts") == [("notes/why", "because\nof é")]
    assert place.rows("select step, edges, counts from histograms order by step") == [
        (epoch, [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, float(epoch)]) for epoch in (1, 2, 3)
    ]
    tensors = place.rows("select step, dtype, shape, data from tensors order by step")
    assert [tensor[:3] for tensor in tensors] == [(epoch, "int32", [2, 3]) for epoch in (1, 2, 3)]
    assert np.frombuffer(tensors[2][3], "<i4").tolist() == [0, 3, 6, 9, 12, 15]
    images = [png for (png,) in place.rows("select png from images order by step")]
    assert len(images) == 3
    assert all(png.startswith(b"\x89PNG") for png in images)
    name, tags, config, state, world = place.row("select name, tags, config::varchar, state, world_size from runs")
    assert (name, tags, state, world) == ("The first", ["a", "b"], "finished", 1)
    assert json.loads(config) == {"lr": 0.1, "later": "yes"}
    [(details,)] = place.rows("select details::varchar from events where event = 'checkpoint'")
    assert json.loads(details) == {"path": "model.pt", "size_mb": 1.5}


def test_tensorboard_shows_what_was_logged(job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place, _ = job
    shown = EventAccumulator(str(place.tensorboard("first", project="shop")), size_guidance={"scalars": 0}).Reload()
    tags = shown.Tags()
    assert {"train/loss", "train/odd", "val/loss"} <= set(tags["scalars"])
    assert tags["images"] == ["seen"]
    assert tags["histograms"] == ["weights"]
    points = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert points == [(step, float(np.float32(loss(step)))) for step in range(EPOCHS * STEPS)]
    values = [event.value for event in shown.Scalars("train/odd")]
    np.testing.assert_equal(values, [odd(step) for step in range(EPOCHS * STEPS)])
    assert [image.step for image in shown.Images("seen")] == [1, 2, 3]


def test_epoch_documents_fulfil_their_schema_and_mean_what_was_logged(job):
    place, _ = job
    for epoch in range(1, EPOCHS + 1):
        document = place.document("first", epoch, project="shop")
        jsonschema.validate(document, SCHEMA)
        steps = range((epoch - 1) * STEPS, epoch * STEPS)
        losses = [loss(step) for step in steps]
        assert (document["epoch"], document["global_step"]) == (epoch, steps[-1])
        assert document["train"]["loss_total"] == pytest.approx(np.mean(losses), rel=1e-12)
        assert document["train"]["loss_std"] == pytest.approx(np.std(losses, ddof=1), rel=1e-9)
        assert document["val"]["loss_total"] == 10.0 * epoch
        odds = document["metrics"]["train/odd"]
        finite = [odd(step) for step in steps if math.isfinite(odd(step))]
        assert (odds["n"], odds["n_nonfinite"]) == (len(finite), STEPS - len(finite))
        assert (odds["min"], odds["max"], odds["last"]) == (min(finite), max(finite), None)
    whole = json.loads((place.root / "runs/shop/first/diagnostics/training_summary.json").read_text(encoding="utf-8"))
    assert [document["epoch"] for document in whole] == [1, 2, 3]


def test_the_store_aggregates_epochs_as_the_documents_do(job):
    place, _ = job
    query = "select epoch, n, mean, vmin, vmax, vfirst, vlast from epochs where metric = 'train/loss' order by epoch"
    for epoch, n, mean, vmin, vmax, vfirst, vlast in place.rows(query):
        losses = [loss(step) for step in range((epoch - 1) * STEPS, epoch * STEPS)]
        assert (n, vmin, vmax, vfirst, vlast) == (STEPS, min(losses), max(losses), losses[0], losses[-1])
        assert mean == pytest.approx(np.mean(losses), rel=1e-12)


def test_ls_show_and_sql_tell_of_the_run(job):
    place, _ = job
    [listed] = json.loads(place.sidestep("ls", "--json").stdout)
    assert (listed["run"], listed["state"], listed["steps"]) == ("first", "finished", EPOCHS * STEPS - 1)
    shown = json.loads(place.sidestep("show", "first", "--json").stdout)
    assert [attempt["state"] for attempt in shown["attempts"]] == ["finished"]
    assert shown["gaps"] == []
    asked = place.sidestep("sql", "--json", "select count(*) as n from points where metric = 'train/loss'")
    assert json.loads(asked.stdout) == [{"n": EPOCHS * STEPS}]


def test_the_exit_code_of_a_job_that_exits_is_passed_on(place):
    script = place.written("import sys, sidestep\nsidestep.init(id='x').log({'a': 1})\nsys.exit(3)")
    done = place.sidestep("run", "--", sys.executable, str(script))
    assert done.returncode == 3
    assert place.values("x", "train/a") == [(0, 1.0)]


def test_an_exception_ends_the_run_as_failed(place):
    script = place.written("import sidestep\nsidestep.init(id='x').log({'a': 1})\nraise RuntimeError('out of luck')")
    done = place.sidestep("run", "--", sys.executable, str(script))
    assert done.returncode == 1
    assert "RuntimeError: out of luck" in done.stderr
    assert place.row("select state from runs") == ("failed",)
    [(details,)] = place.rows("select details::varchar from events where event = 'end'")
    assert json.loads(details)["error"] == "RuntimeError: out of luck"


def test_a_job_that_a_signal_ends_gives_128_more_and_all_it_logged_is_stored(place):
    script = place.written("""
        import os, signal, sidestep
        run = sidestep.init(id="x")
        for step in range(100): run.log({"a": step})
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = place.sidestep("run", "--json", "--", sys.executable, str(script))
    assert done.returncode == 128 + signal.SIGKILL
    assert place.values("x", "train/a") == [(step, float(step)) for step in range(100)]
    assert place.row("select state from runs") == ("killed",)
    [summary] = json.loads(done.stdout)
    assert (summary["state"], summary["waiting_streams"]) == ("killed", 0)


def test_a_signal_to_sidestep_run_reaches_the_job(place):
    script = place.written("""
        import signal, sys, sidestep
        run = sidestep.init(id="x")
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
        print("ready", flush=True)
        while True: signal.pause()
    """)
    process = place.start(sys.executable, "-m", "sidestep", "run", "--", sys.executable, str(script))
    said(process, "ready")
    process.send_signal(signal.SIGUSR1)
    ended(process, 7)
    assert place.row("select state from runs") == ("failed",)


def test_a_command_that_cannot_be_run_is_one_line(place):
    done = place.sidestep("run", "--", "/no/such/program")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("sidestep: /no/such/program cannot be run")
    assert "Traceback" not in done.stderr
