"""Many processes of one run: ranks that come late, die and stand still, workers of loaders, children of a fork."""

import signal
import sys

from support.place import ended, said, tell, until

RANK = """
import os, sys, sidestep
run = sidestep.init(id="ranks")
rank = int(os.environ["RANK"])
for step in range(50):
    run.log({"loss": rank + step / 64})
print("half", flush=True)
sys.stdin.readline()
for step in range(50, 100):
    run.log({"loss": rank + step / 64})
report = run.finish(timeout=60)
assert report.complete, report
"""

FORKS = """
import os, sys
import sidestep
run = sidestep.init(id="forks")

def child():
    for step in range(1000):
        run.log({"loss": -1.0})      # the run is its parent's
    run.finish()

for step in range(200):
    run.log({"loss": step / 4})
    if step % 50 == 10:
        pid = os.fork()
        if pid == 0:
            child()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
report = run.finish(timeout=60)
assert report.complete and report.sent == 203, report
"""

LOADERS = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset
import sidestep

class Rows(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        active = sidestep.active_run()
        if active is not None:
            active.log({"loss": -1.0})
        return torch.tensor([float(index)])

if __name__ == "__main__":
    run = sidestep.init(id="loaders")
    seen = []
    loader = DataLoader(Rows(), batch_size=8, num_workers=2, multiprocessing_context=sys.argv[1])
    for (batch,) in zip(loader):
        run.log({"loss": float(batch.sum())})
        seen += batch.flatten().tolist()
    assert seen == [float(index) for index in range(64)]
    report = run.finish(timeout=60)
    assert report.complete and report.sent == 11, report
"""


def values(place, rank):
    return place.values("ranks", "train/loss", rank=rank)


def test_eight_ranks_come_late_die_and_stand_still_and_each_keeps_its_own(place):
    place.up("--flush-seconds", "0.1")
    environ = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}
    ranks = {rank: place.script(RANK, RANK=str(rank), **environ) for rank in range(7)}
    for process in ranks.values():
        said(process, "half")
    ranks[2].send_signal(signal.SIGKILL)
    ranks[3].send_signal(signal.SIGSTOP)
    ranks[7] = place.script(RANK, RANK="7", **environ)
    said(ranks[7], "half")
    for rank, process in ranks.items():
        if rank != 2:
            tell(process)
    for rank in (0, 1, 4, 5, 6, 7):
        ended(ranks[rank])
    ranks[3].send_signal(signal.SIGCONT)
    ended(ranks[3])
    until(lambda: not place.journals())
    for rank in ranks:
        assert values(place, rank) == [(step, rank + step / 64) for step in range(50 if rank == 2 else 100)]
    assert place.row("select world_size, count(*) from runs join attempts using (run) group by all") == (8, 8)
    causes = dict(place.rows("select rank, cause from attempts where run = 'ranks'"))
    assert causes == {rank: "killed" if rank == 2 else "finished" for rank in range(8)}
    place.check_whole("ranks", key_sets=1)


def test_children_that_a_script_forks_write_nothing_into_its_stream(place):
    place.up()
    place.train(FORKS)
    assert place.values("forks", "train/loss") == [(step, step / 4) for step in range(200)]
    place.check_whole("forks", key_sets=1)


def test_workers_of_loaders_forked_or_spawned_write_nothing_into_their_parents_stream(place):
    place.up()
    script = place.written(LOADERS)
    for attempt, way in enumerate(("fork", "spawn")):
        ended(place.start(sys.executable, str(script), way))
        found = place.values("loaders", "train/loss", attempt)
        assert found == [(step, sum(range(8 * step, 8 * step + 8))) for step in range(8)]
    place.check_whole("loaders", attempts=2, key_sets=1)
