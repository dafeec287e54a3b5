"""Derived numbers, from a script to the store, to TensorBoard and to the epoch's document; and across restarts."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from support.place import ended, said, tell, tensorboard_points

from sidestep_collector.analyse import features

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysers.md"

TRAINS = """
import sys, numpy as np, sidestep
run = sidestep.init(id=sys.argv[1])
stops = {int(step) for step in sys.argv[2:]}
rng = np.random.default_rng(0)
step = 0
for epoch in run.epoch(range(4)):
    for _ in range(60):
        if step in stops:
            assert run.flush(30)
            print("at", step, flush=True)
            sys.stdin.readline()
        loss = 1 / (1 + 0.01 * step) + 0.1 * rng.random()
        run.log({"train/loss": loss, "train/loss_nats": loss, "train/loss_fm": loss * rng.random()}, step=step)
        if step % 3 == 0:
            norms = {f"train/gradients/{block}": float(rng.random()) for block in ("stem", "body", "head")}
            run.log({**norms, "train/gradients/stem": 1e-3}, step=step)
        if step % 50 == 10:
            run.tensor("val/level0_features", rng.normal(size=(32, 8)).astype("float16"), step=step)
            if step == 10:
                run.tensor("samples/real_latents", rng.normal(size=(4, 2, 5)), step=step)
            run.tensor("samples/generated_latents", rng.normal(size=(4, 2, 5)), step=step)
        step += 1
assert run.finish(timeout=30).complete
"""

DERIVED = "select metric, step, value from points where run = ? order by metric, step"


def test_what_is_derived_is_stored_shown_and_aggregated_with_its_source(place):
    place.up()
    place.train(TRAINS, "x")
    place.check_whole("x")  # no record has a second row
    nats = place.values("x", "train/loss_nats")
    assert place.values("x", "train/loss_bits") == [(step, pytest.approx(v / math.log(2))) for step, v in nats]
    assert [step for step, _ in place.values("x", "train/stability/loss_smoothness")] == list(range(9, 240, 10))
    assert len(place.values("x", "noise/floor")) == 2
    assert [value for _, value in place.values("x", "train/flow/bottleneck/stem")] == [1.0] * 4
    assert len(place.values("x", "generated/distance_ch1")) == 5
    [(shape, data)] = place.rows("select shape, data from tensors where name = 'val/level0_features' and step = 60")
    matrix = np.frombuffer(data, np.float16).reshape(shape).astype(float)
    ranks = dict(place.values("x", "val/level0_effective_rank"))
    assert ranks[60] == pytest.approx(features.effective_rank(matrix))
    texts = place.rows("select text from texts where name = 'train/flow/profile'")
    assert [re.sub(r"[^;]*; ", "", text) for (text,) in texts] == ["bottlenecks: stem"] * 4
    assert place.rows("select count(*) from histograms where name = 'feature_distributions/val_level0'") == [(5,)]
    document = place.document("x", 1)["metrics"]
    bits = [value / math.log(2) for _, value in nats[60:120]]
    assert document["train/loss_bits"]["n"] == 60
    assert document["train/loss_bits"]["mean"] == pytest.approx(np.mean(bits))
    assert {"noise/psd_tail", "train/flow/class", "train/stability/loss_trend_slope"} <= document.keys()
    shown = {tag for tag, *_ in tensorboard_points(place.tensorboard("x"))}
    assert {"train/loss_bits", "val/level0_mean_similarity", "train/flow/bottleneck_count"} <= shown
    row = place.row("select name, unit, block from metrics where metric = 'train/flow/bottleneck/stem'")
    assert row == ("block is a bottleneck", "", "stem")
    counters = place.counters()
    assert counters["derived_scalars"] > 0
    assert counters["analyser_failures"] == 0


def test_a_collector_that_is_killed_gives_the_same_derived_numbers_as_an_undisturbed_one(place):
    place.up()
    place.train(TRAINS, "whole")
    stops = ("35", "119", "120")
    process = place.script(TRAINS, "killed", *stops)
    for stop in stops:
        said(process, f"at {stop}")
        place.kill_collector()
        place.up("--flush-seconds", "0.2")
        tell(process)
    ended(process)
    whole, killed = place.rows(DERIVED, "whole"), place.rows(DERIVED, "killed")
    assert [row[:2] for row in killed] == [row[:2] for row in whole]
    np.testing.assert_allclose([row[2] for row in killed], [row[2] for row in whole], rtol=1e-12)
    texts = "select name, step, text from texts where run = ? order by name, step"
    assert place.rows(texts, "killed") == place.rows(texts, "whole")
    place.check_whole("killed")


def written(place, text):
    """A folder from which a collector imports a module `mine`."""
    folder = place.root.parent / "modules"
    folder.mkdir()
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def test_the_analyser_of_the_page_works_as_it_stands_there(place):
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    place.root.mkdir()
    (place.root / "sidestep.toml").write_text('[collector]\nanalysers = ["mine:Perplexity"]\n', encoding="utf-8")
    place.up(**written(place, code))
    place.train("""
        import sidestep
        run = sidestep.init(id="x")
        for epoch in range(3):
            run.log({"loss_nats": 1.0 + epoch}, split="val", step=epoch)
        assert run.finish(timeout=30).complete
    """)
    assert place.values("x", "val/perplexity") == [(n, pytest.approx(math.exp(1.0 + n))) for n in range(3)]


def test_an_analyser_that_raises_costs_nothing_but_itself(place):
    module = """
        from sidestep_collector.analyse.protocol import Analyser
        class Broken(Analyser):
            reads = ("train/loss",)
            gives = ("x",)
            def add(self, span):
                raise RuntimeError("on purpose")
    """
    place.up("--analysers", "mine:Broken", **written(place, re.sub("^        ", "", module, flags=re.MULTILINE)))
    place.train(TRAINS, "x")
    assert len(place.values("x", "train/stability/loss_smoothness")) == 24
    assert place.counters()["analyser_failures"] == 1


def test_a_named_analyser_that_cannot_be_loaded_keeps_the_collector_from_starting(place):
    done = place.sidestep("up", "--analysers", "no_such_module:Thing, json:loads")
    assert done.returncode != 0
    assert "no_such_module:Thing (ModuleNotFoundError" in done.stderr
    assert "json:loads" in done.stderr
