from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sidestep_collector.blocks import Batch, EpochSummary, Event, Moment, Stream
from sidestep_collector.sinks.tensorboard import TensorBoardSink

STREAM = Stream(b"12345678", b"1234567890123456", "r", "p", 0, 0)


def statistics(mean: float, n: int) -> dict[str, float | int | None]:
    return {"mean": mean, "std": None, "min": mean, "max": mean, "last": mean, "n": n, "n_nonfinite": 0}


def test_what_follows_from_an_epoch_stands_under_its_own_tag_at_the_last_step(tmp_path):
    summary = EpochSummary(
        *("r", "p", 3, 120, 1.0, 1),
        {"train/loss_total": statistics(0.5, 40), "train/loss_std": statistics(0.25, 1), "val/acc": statistics(1, 1)},
        last_t_ns=2_000_000_000,
        derived=frozenset({"train/loss_std"}),
    )
    start = Event(Moment(STREAM, 0, 1_000_000_000, -1, float("nan")), "start", {})

    (path,) = TensorBoardSink(tmp_path, {}).write(Batch(items=[start], summaries=[summary]))

    events = EventAccumulator(str(tmp_path / path))
    events.Reload()
    assert {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "train/loss_std": [(120, 0.25)],
        "epoch/train/loss_total": [(3, 0.5)],
    }
