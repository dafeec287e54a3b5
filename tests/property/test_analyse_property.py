"""Analysers: how records were cut into batches changes nothing of what is derived from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.analysed import Recorded, analysed, described

from sidestep_collector.analyse import load

LOSSES = st.one_of(st.floats(0.01, 10), st.sampled_from([float("nan"), float("inf"), 0.0]))


@st.composite
def recordings(draw: Any) -> Recorded:
    """A stream with epochs by event and without, sampled norms, losses of several names, tensors."""
    recorded = Recorded()
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    with_events, epoch_steps = draw(st.booleans()), draw(st.integers(3, 60))
    odd = draw(st.dictionaries(st.integers(0, 239), LOSSES, max_size=5))
    begins_to_log_bits = draw(st.integers(0, 400))
    for step in range(draw(st.integers(1, 240))):
        epoch = step // epoch_steps
        if with_events and step % epoch_steps == 0:
            recorded.event("epoch_begin", epoch=epoch)
        loss = odd.get(step, 1 + rng.random())
        values = {"train/loss": loss, "train/loss_nats": loss, "train/loss_fm": rng.random()}
        if step >= begins_to_log_bits:
            values["train/loss_bits"] = 1.0
        recorded.log(values, step=step, epoch=epoch)
        if step % 4 == 0:
            norms = {f"train/gradients/{block}": 10 ** rng.normal() for block in "abcd"}
            recorded.log(norms, step=step, epoch=epoch + 0.5)
        if step % 50 == 20:
            recorded.tensor("val/level0_features", rng.normal(size=(8, 3)), step=step)
            recorded.tensor("samples/generated_latents", rng.normal(size=(4, 1, 3)), step=step)
            recorded.tensor("samples/real_latents", rng.normal(size=(4, 1, 3)), step=step)
        if with_events and (step + 1) % epoch_steps == 0:
            recorded.event("epoch_end", epoch=epoch)
    recorded.event("end", status="finished")
    return recorded


@settings(max_examples=40, deadline=None)
@given(recordings(), st.lists(st.integers(0, 300), max_size=12), st.booleans())
def test_cuts_change_nothing_of_what_is_given(recorded: Recorded, cuts: list[int], one_by_one: bool) -> None:
    whole, whole_items = analysed(recorded, load())
    cuts = list(range(len(recorded.records))) if one_by_one else [cut for cut in cuts if cut < len(recorded.records)]
    found, items = analysed(recorded, load(), cuts)
    assert found.keys() == whole.keys()
    for tag, rows in whole.items():
        np.testing.assert_allclose(np.array(found[tag]), np.array(rows), rtol=1e-12, err_msg=tag)
    assert described(items) == described(whole_items)
