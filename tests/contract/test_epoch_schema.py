import json
import tempfile
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep_collector.blocks import Batch, EpochSummary
from sidestep_collector.sinks.epoch_json import EpochJsonSink
from sidestep_schemas.epoch import FIELDS, STATISTICS, epoch_document, epoch_json_schema

PUBLISHED = Path(__file__).parents[2] / "docs" / "specs" / "epoch.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(epoch_json_schema())

KNOWN = sorted({tag.replace("*", "3") for field in FIELDS for tag in field.tags} | {"train/channel/loss_ch11"})
TAGS = st.one_of(st.sampled_from(KNOWN), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
STATISTIC = st.fixed_dictionaries(
    {
        name: st.integers(0, 2**40) if name.startswith("n") else st.one_of(st.none(), st.floats(), st.integers(-9, 9))
        for name in STATISTICS
    }
)
SUMMARIES = st.builds(
    EpochSummary,
    run=st.just("r"),
    project=st.just("p"),
    epoch=st.integers(0, 5),
    global_step=st.integers(-1, 2**53),
    wall_time_sec=st.floats(),
    ranks=st.just(1),
    statistics=st.dictionaries(TAGS, STATISTIC, max_size=12),
)


def refuse(name):
    raise ValueError(name)


def test_the_published_schema_is_the_one_in_the_code():
    """To publish a change: write `json.dumps(epoch_json_schema(), indent=2)` and a newline to the file."""
    assert PUBLISHED.read_text() == json.dumps(epoch_json_schema(), indent=2) + "\n"


def test_the_schema_is_a_valid_schema():
    jsonschema.Draft202012Validator.check_schema(epoch_json_schema())


@given(st.lists(SUMMARIES, max_size=4))
@settings(deadline=None, max_examples=60)
def test_documents_fulfil_the_schema(summaries):
    with tempfile.TemporaryDirectory() as root:
        EpochJsonSink(Path(root)).write(Batch(summaries=summaries))
        documents = {
            file.name: json.loads(file.read_text(), parse_constant=refuse) for file in Path(root).rglob("summary.json")
        }
        for document in documents.values():
            VALIDATOR.validate(document)
        for file in Path(root).rglob("training_summary.json"):
            array = json.loads(file.read_text(), parse_constant=refuse)
            assert [one["epoch"] for one in array] == sorted({one.epoch for one in summaries})
            for document in array:
                VALIDATOR.validate(document)


def test_what_a_machine_without_a_gpu_cannot_measure_is_null_beside_what_it_can():
    performance = epoch_document(1, 1, 1.0, {"perf/steps_per_sec": dict.fromkeys(STATISTICS, 2)})["performance"]
    others = ("samples_per_sec", "gpu_mem_allocated_gb", "gpu_mem_reserved_gb", "epoch_time_sec")
    assert performance == {"steps_per_sec": 2, **dict.fromkeys(others)}
    assert "performance" not in epoch_document(1, 1, 1.0, {})


@pytest.mark.parametrize(
    "change", [{"epoch": 1.5}, {"schema_version": 2}, {"mine": 1}, {"train": {}}, {"wall_time_sec": -1}]
)
def test_the_schema_refuses_what_is_no_document(change):
    document = {"schema_version": 1, "epoch": 1, "global_step": 1, "wall_time_sec": 1.0, "metrics": {}}
    VALIDATOR.validate(document)
    assert not VALIDATOR.is_valid({**document, **change})
