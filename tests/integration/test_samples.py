"""Latents of a script as files, and the wishes of its start, across a restart of the collector."""

from support.place import ended, said, tell

DRAWS = """
import sys, numpy as np, sidestep
run = sidestep.init(id=sys.argv[1], config={"lr": 0.5}, diagnostics={"json_every_n_epochs": 2, "every_n_epochs": 3, "latent_histograms": False})
rng = np.random.default_rng(0)
for epoch in run.epoch(range(1, 5)):
    run.log({"loss": 1.0 / epoch})
    if epoch == 1:
        run.tensor("samples/real_latents", rng.normal(size=(2, 3, 4, 4, 4)).astype("float32"))
    else:
        run.tensor("samples/generated_latents", rng.normal(size=(2, 3, 4, 4, 4)).astype("float32"))
    if str(epoch) in sys.argv[2:]:
        assert run.flush(30)
        print("at", epoch, flush=True)
        sys.stdin.readline()
assert run.finish(timeout=30).complete
"""


def files(place, run):
    folder = place.root / "runs" / "default" / run / "samples"
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_collector_that_is_killed_writes_the_same_files_and_goes_by_the_same_wishes_as_an_undisturbed_one(place):
    place.up()
    place.train(DRAWS, "whole")
    process = place.script(DRAWS, "killed", "1", "3")
    for epoch in (1, 3):
        said(process, f"at {epoch}")
        place.kill_collector()
        place.up("--flush-seconds", "0.2")
        tell(process)
    ended(process)
    whole, killed = files(place, "whole"), files(place, "killed")
    assert killed == whole
    assert {name.split("/")[0] for name in whole} == {"epoch_002", "epoch_003", "epoch_004"}
    assert all(f"epoch_00{epoch}/latents/real.npy" in whole for epoch in (2, 3, 4))
    periods = place.root / "runs" / "default" / "whole" / "diagnostics" / "periods"
    assert [file.name for file in periods.iterdir()] == ["epochs_001-003.json"]
    for run in ("whole", "killed"):
        diagnostics = place.root / "runs" / "default" / run / "diagnostics"
        assert sorted(file.name for file in diagnostics.glob("epoch_*")) == ["epoch_002", "epoch_004"]
        assert (diagnostics.parent / "tensorboard" / "hparams.yaml").read_text() == "lr: 0.5\n"
    assert place.rows("select * from histograms") == []
    pictures = "select run, name, step, png from images where run = ? order by name, step"
    drawn = [[row[1:] for row in place.rows(pictures, run)] for run in ("whole", "killed")]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2 * 3
