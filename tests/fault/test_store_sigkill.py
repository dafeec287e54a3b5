"""The collector is killed at any moment: nothing acknowledged is lost, nothing is there twice."""

import random
import signal
import subprocess
import sys

from sidestep_collector.store import Store, connect

RECORDS = 200

#: Commits from the watermark on, merges now and then, and says each commit once it is done.
WRITER = f"""
import sys
from pathlib import Path
import numpy as np
from sidestep_collector.blocks import Batch, KeySet, Progress, ScalarBlock, Stream
from sidestep_collector.store import Store
S = Stream(b"k" * 8, b"u" * 16, "run", "project", 0, 0)
KEYS = KeySet(0, 0, "step", ("a", "b", "c"), ("", "", ""))
store = Store.open(Path(sys.argv[1]), grace_seconds=0.0)
first = max((known.watermark for known in store.known()), default=0)
while True:
    seq = np.arange(first, first + {RECORDS})
    values = np.stack([seq, -seq, seq * 0.5], axis=1).astype(np.float64)
    block = ScalarBlock(S, KEYS, seq, seq * 1000, seq, np.zeros({RECORDS}), values)
    first += {RECORDS}
    store.commit(Batch(blocks=[block], progress=[Progress(S, first, 0, False)]), {{"events": first}})
    print(first, flush=True)
    store.compact()
"""


def test_what_was_acknowledged_before_a_sigkill_is_stored_once_and_nothing_else(tmp_path):
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(chance.randint(1, 25)):
            acknowledged = int(writer.stdout.readline())
        for _ in range(chance.randint(0, 200_000)):  # somewhere within the next commit
            pass
        writer.send_signal(signal.SIGKILL)
        rest, errors = writer.communicate(timeout=60)
        assert writer.returncode == -signal.SIGKILL, errors
        acknowledged = max(
            [acknowledged, *(int(line) for line in rest.split() if line.isdigit() and rest.endswith("\n"))]
        )
        check(tmp_path, acknowledged)


def check(root, acknowledged):
    store = Store.open(root)
    [known] = store.known()
    watermark = known.watermark
    assert acknowledged <= watermark <= acknowledged + RECORDS
    assert store.files() == {"events": watermark}
    store.close()
    with connect(root) as connection:
        counted = "select count(*), count(distinct step), min(step), max(step), sum(value) from points where metric = ?"
        for metric, factor in (("a", 1.0), ("b", -1.0), ("c", 0.5)):
            total = factor * watermark * (watermark - 1) / 2
            found = connection.execute(counted, [metric]).fetchone()
            assert found == (watermark, watermark, 0, watermark - 1, total)
        assert connection.execute("select count(distinct seq) from snapshots").fetchone() == (watermark,)
        manifest = {part for (part,) in connection.execute("select part from parts").fetchall()}
    files = {str(path.relative_to(root / "store")) for path in (root / "store" / "parts").glob("*/*")}
    assert manifest <= files
