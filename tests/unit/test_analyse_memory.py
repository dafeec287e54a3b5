"""How many values an analyser looks at is a setting, where the analyser says so."""

import json

import numpy as np
import pytest
from support.analysed import Recorded, analysed

from sidestep_collector.analyse import load
from sidestep_collector.analyse.flow import depth_slope
from sidestep_collector.config import load as load_config
from sidestep_schemas.errors import ConfigError


@pytest.mark.parametrize("memory", [3, 64, 100])
def test_flow_averages_as_many_norms_of_an_epoch_as_the_settings_say(tmp_path, memory):
    said = json.dumps({"flow": memory})
    config = load_config(tmp_path, {}, {"SIDESTEP_COLLECTOR_ANALYSER_MEMORY": said})
    norms = np.random.default_rng(0).uniform(0.1, 1, size=(120, 3))
    recorded = Recorded()
    for step, row in enumerate(norms.tolist()):
        recorded.log(
            dict(zip(("train/gradients/a", "train/gradients/b", "train/gradients/c"), row, strict=True)), step, 1
        )
    recorded.event("epoch_end", epoch=1.0)
    found, _ = analysed(recorded, load(memory=config.analyser_memory))
    [(_, slope)] = [(tag, values) for tag, values in found.items() if tag == "train/flow/slope"]
    assert [value for *_, value in slope] == pytest.approx([depth_slope(norms[-memory:].mean(0))])


def test_memory_that_is_part_of_a_formula_cannot_be_set(tmp_path):
    with pytest.raises(ConfigError, match="analyser_memory: noise, stability: it can be set of flow"):
        load(memory={"stability": 5, "noise": 5})
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        load_config(tmp_path, {"analyser_memory": {"flow": 0}}, {})
