"""Scalars a second into TensorBoard event files, beside the writers that people use.

    python benchmarks/bench_tensorboard.py [--scalars N] [--metrics K] [--json]

All write the same numbers to a temporary folder, one after the other in this process: the sink as bytes
that no file takes (`no file`: what it costs without the kernel), in blocks of one run (`bulk`), and in
flushes of 100 runs; torch's SummaryWriter and tensorboardX one value a call, as their interface has it,
where they are installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from sidestep_collector.blocks import Batch, KeySet, ScalarBlock, Stream
from sidestep_collector.sinks.scalar_template import templates
from sidestep_collector.sinks.tensorboard import TensorBoardSink

#: Writers of one value a call get fewer values: they are slower by three orders of magnitude.
SLOW_SHARE = 200


def block(run, names, first, records):
    stream = Stream(run.encode()[:8].ljust(8), bytes(16), run, "bench", 0, 0)
    step = np.arange(first, first + records, dtype=np.int64)
    values = np.random.default_rng(first).random((records, len(names)), dtype=np.float32)
    key_set = KeySet(0, 0, "step", names, ("mean",) * len(names))
    return ScalarBlock(stream, key_set, step, 1_700_000_000_000_000_000 + step * 10**7, step, step / 1000, values)


def sink_seconds(root, batches):
    sink = TensorBoardSink(root, {})
    sink.write(batches[0])  # tables are made once
    start = time.perf_counter()
    for batch in batches[1:]:
        sink.write(batch)
    seconds = time.perf_counter() - start
    sink.close()
    return seconds


def bytes_alone(_root, names, scalars):
    data = block("r", names, 0, max(1, scalars // len(names)))
    parts = templates(names)
    for measured in (False, True):  # tables are made once
        start = time.perf_counter()
        for columns, template in parts:
            for _ in template.fill(data.t_ns / 1e9, data.step, data.values[:, columns]):
                pass
        if measured:
            return data.values.size / (time.perf_counter() - start)
    return 0.0


def bulk(root, names, scalars):
    records = max(1, scalars // len(names) // 8)
    batches = [Batch(blocks=[block("r", names, index * records, records)]) for index in range(9)]
    return 8 * records * len(names) / sink_seconds(root, batches)


def many_runs(root, names, scalars):
    records, runs = max(1, scalars // len(names) // 500), 100
    batches = [
        Batch(blocks=[block(f"r{run}", names, index * records, records) for run in range(runs)]) for index in range(6)
    ]
    return 5 * runs * records * len(names) / sink_seconds(root, batches)


def one_value_a_call(make):
    def measure(root, names, scalars):
        writer = make(str(root))
        data = block("r", names, 0, max(2, scalars // SLOW_SHARE // len(names)))
        rows = data.values.tolist()
        start = time.perf_counter()
        for step, row in enumerate(rows):
            for name, value in zip(names, row, strict=True):
                writer.add_scalar(name, value, step)
        writer.close()
        return len(rows) * len(names) / (time.perf_counter() - start)

    return measure


def writers():
    found = {"sidestep, no file": bytes_alone, "sidestep, bulk": bulk, "sidestep, 100 runs": many_runs}
    try:
        from torch.utils.tensorboard import SummaryWriter

        found["torch SummaryWriter"] = one_value_a_call(SummaryWriter)
    except ImportError:
        pass
    try:
        from tensorboardX import SummaryWriter as XWriter

        found["tensorboardX"] = one_value_a_call(XWriter)
    except ImportError:
        pass
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scalars", type=int, default=8_000_000)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = tuple(f"train/gradients/down_block_{index}" for index in range(given.metrics))
    rates = {}
    for name, measure in writers().items():
        with tempfile.TemporaryDirectory() as root:
            rates[name] = measure(Path(root), names, given.scalars)
    if given.json:
        print(json.dumps({name: round(rate) for name, rate in rates.items()}))
        return
    for name, rate in rates.items():
        print(f"{name:24}{rate / 1e6:10.3f} M scalars/s")


if __name__ == "__main__":
    main()
