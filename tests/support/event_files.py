"""Records for a TensorBoard sink, and its event files as TensorBoard reads them."""

import struct

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from sidestep_collector.blocks import KeySet, Moment, ScalarBlock, Stream
from sidestep_collector.sinks.tensorboard import TensorBoardSink

START_NS = 1_700_000_000_000_000_000
KEEP_ALL = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
FILE = "events.out.tfevents.0.sidestep"


def stream(run="r1", rank=0, attempt=0, project="p"):
    return Stream(struct.pack("<II", rank, attempt), bytes(16), run, project, rank, attempt)


def block(steps, names=("train/loss_total", "train/lr"), values=None, to=None, key_set_id=0):
    steps = np.asarray(steps, dtype=np.int64)
    if values is None:
        values = np.arange(len(steps) * len(names), dtype=np.float32).reshape(len(steps), len(names))
    key_set = KeySet(key_set_id, 0, "step", tuple(names), ("mean",) * len(names))
    seq = np.arange(len(steps), dtype=np.int64) + 1000
    return ScalarBlock(to or stream(), key_set, seq, START_NS + steps * 10**9, steps, steps / 10, np.asarray(values))


def at(step=5, to=None, seq=77):
    return Moment(to or stream(), seq, START_NS + step * 10**9, step, 0.0)


def statistics(mean, n):
    return {"mean": mean, "std": 0.0, "min": mean, "max": mean, "last": mean, "n": n, "n_nonfinite": 0}


def folder(root, sub="attempt_0", run="r1"):
    return root / "runs" / "p" / run / "tensorboard" / sub


def accumulator(path):
    found = EventAccumulator(str(path), size_guidance=KEEP_ALL)
    return found.Reload()


def multiplexer(root):
    found = EventMultiplexer(tensor_size_guidance=dict.fromkeys(("scalars", "text", "hparams", "histograms"), 0))
    return found.AddRunsFromDirectory(str(root)).Reload()


def scalars(root, tag, sub="attempt_0", run="r1"):
    return [(event.step, event.value) for event in accumulator(folder(root, sub, run)).Scalars(tag)]


@pytest.fixture
def sink(tmp_path):
    made = TensorBoardSink(tmp_path, {})
    yield made
    made.close()
