import json

from sidestep_collector.blocks import Batch, PeriodSummary
from sidestep_collector.sinks.epoch_json import EpochJsonSink


def test_a_period_is_written_once_with_the_epochs_it_covers_in_its_name(tmp_path):
    statistics = {"mean": 1.5, "std": None, "min": 1.0, "max": 2.0, "last": float("nan"), "n": 2, "n_nonfinite": 1}
    period = PeriodSummary("r", "p", 1, 25, {"train/loss": statistics})

    EpochJsonSink(tmp_path).write(Batch(periods=[period]))

    (file,) = (tmp_path / "runs" / "p" / "r" / "diagnostics" / "periods").iterdir()
    assert file.name == "epochs_001-025.json"
    assert json.loads(file.read_text()) == {
        "first_epoch": 1,
        "last_epoch": 25,
        "metrics": {"train/loss": {**statistics, "last": None}},
    }
