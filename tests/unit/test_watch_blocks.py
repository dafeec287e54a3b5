"""Which parameter belongs to which block, and what blocks are called."""

from __future__ import annotations

import pytest
import torch
from support.watched import SmallNet
from torch import nn

from sidestep.blocks import Blocks, block_name, named_parameters, unwrapped
from sidestep.errors import UsageError
from sidestep_schemas.catalog import METRICS


def blocks_of(model: nn.Module, given: object = None) -> dict[str, str]:
    blocks = Blocks(model, given)  # type: ignore[arg-type]
    named = named_parameters(unwrapped(model))
    places = blocks.place([parameter for _, parameter in named])
    return {name: blocks.names[place] for (name, _), place in zip(named, places, strict=True)}


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("down_blocks.0", "down_block_0"),
        ("encoder.layers.3", "encoder_layer_3"),
        ("layers.3.attention", "layer_3_attention"),
        ("h.11", "h_11"),
        ("heads.left", "heads_left"),
        ("compress.0", "compress_0"),
        ("0", "layer_0"),
        ("stem", "stem"),
        ("global_norm", "global_norm_block"),
        ("relative_update_norm", "relative_update_norm_block"),
    ],
)
def test_a_prefix_becomes_a_name(prefix: str, name: str) -> None:
    assert block_name(prefix) == name


BLOCK_FAMILIES = {metric.tag.removesuffix("<block>") for metric in METRICS if metric.tag.endswith("/<block>")}
BESIDE_BLOCKS = [tag for tag in (metric.tag for metric in METRICS) if tag.rpartition("/")[0] + "/" in BLOCK_FAMILIES]


@pytest.mark.parametrize("tag", [tag for tag in BESIDE_BLOCKS if "<" not in tag])
def test_no_block_has_the_tag_of_another_quantity(tag: str) -> None:
    folder, _, name = tag.rpartition("/")
    assert f"{folder}/{block_name(name)}" != tag
    assert set(blocks_of(nn.ModuleDict({"linear": nn.Linear(2, 2)}), {name: "linear"}).values()) == {f"{name}_block"}


def test_children_are_blocks_and_lists_of_modules_are_opened_one_level() -> None:
    assert blocks_of(SmallNet()) == {
        "temperature": "root",
        "blocks.0.weight": "block_0",
        "blocks.0.bias": "block_0",
        "blocks.1.weight": "block_1",
        "blocks.1.bias": "block_1",
        "head.weight": "head",
        "head.bias": "head",
    }


def test_names_come_in_the_order_of_the_model_and_other_is_last() -> None:
    assert Blocks(SmallNet()).names == ("root", "block_0", "block_1", "head", "other")


def test_a_sequence_with_one_trained_child_stays_whole() -> None:
    model = nn.ModuleDict({"head": nn.Sequential(nn.Flatten(), nn.Linear(2, 2))})
    assert set(blocks_of(model).values()) == {"head"}


def test_lists_inside_of_children_are_not_opened() -> None:
    model = nn.ModuleDict({"encoder": SmallNet()})
    assert set(blocks_of(model).values()) == {"encoder"}


def test_a_bare_sequence_has_numbered_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert set(blocks_of(model).values()) == {"layer_0", "layer_2"}


def test_a_parameter_on_a_list_belongs_to_the_list() -> None:
    model = SmallNet()
    model.blocks.register_parameter("gate", nn.Parameter(torch.ones(1)))
    assert blocks_of(model)["blocks.gate"] == "blocks"


def test_wrappers_are_looked_through() -> None:
    plain = blocks_of(SmallNet())
    assert blocks_of(nn.DataParallel(SmallNet())) == plain
    assert blocks_of(torch.compile(SmallNet(), backend="eager")) == plain
    assert blocks_of(nn.DataParallel(torch.compile(SmallNet(), backend="eager"))) == plain
    inside = SmallNet()
    inside.head = torch.compile(inside.head, backend="eager")  # type: ignore[assignment]
    assert blocks_of(inside) == plain


def test_given_prefixes_decide_and_the_rest_is_other() -> None:
    found = blocks_of(SmallNet(), ["blocks.1", "head.bias"])
    assert found["blocks.1.weight"] == "block_1"
    assert found["head.bias"] == "head_bias"
    assert {found["blocks.0.weight"], found["head.weight"], found["temperature"]} == {"other"}


def test_the_longest_prefix_decides() -> None:
    found = blocks_of(SmallNet(), {"body": "blocks", "late": ("blocks.1", "head")})
    assert (found["blocks.0.bias"], found["blocks.1.bias"], found["head.bias"]) == ("body", "late", "late")


def test_a_name_with_a_slash_stays_one_part_of_a_tag() -> None:
    assert "a_b" in Blocks(SmallNet(), {"a/b": "head"}).names


def test_a_prefix_ends_at_a_dot() -> None:
    with pytest.raises(UsageError, match=r"'hea'.*temperature, blocks, head"):
        Blocks(SmallNet(), ["hea"])


def test_a_shared_parameter_belongs_to_the_first_of_its_blocks() -> None:
    model = SmallNet()
    model.head.bias = None  # type: ignore[assignment]
    model.head.weight = model.blocks[0].weight  # type: ignore[assignment]
    assert Blocks(model).place([model.head.weight]) == [Blocks(model).names.index("block_0")]


def test_parameters_that_come_later_find_their_block_or_are_other() -> None:
    model = SmallNet()
    blocks = Blocks(model)
    blocks.place(list(model.parameters()))
    model.blocks[0].register_parameter("late", nn.Parameter(torch.ones(2)))
    stranger = nn.Parameter(torch.ones(2))
    late = model.blocks[0].get_parameter("late")
    assert [blocks.names[place] for place in blocks.place([late, stranger])] == ["block_0", "other"]
