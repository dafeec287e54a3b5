"""Whose parameters an optimizer steps."""

from __future__ import annotations

import torch
from torch import nn

from sidestep.auto.owners import Together, as_model, find_optimizers, find_owners, has_gradient
from sidestep.blocks import Blocks


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([entry for module in modules for entry in module.parameters()], lr=0.1)


def test_the_outermost_module_owns() -> None:
    inner = nn.Linear(2, 2)
    model = nn.Sequential(inner, nn.ReLU())
    [owner] = find_owners([sgd(inner)])
    assert owner.module is model


def test_a_wrapper_is_the_outermost() -> None:
    model = nn.DataParallel(nn.Linear(2, 2))
    [owner] = find_owners([sgd(model)])
    assert owner.module is model


def test_a_copy_and_a_part_own_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    copied, part = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(model[0])
    [owner] = find_owners([sgd(model)])
    assert owner.module is model
    assert copied is not part


def test_of_two_that_own_all_the_one_with_less_besides_is_taken() -> None:
    model, teacher = nn.Sequential(nn.Linear(2, 2)), nn.Linear(9, 9)
    both = nn.ModuleList([model[0], teacher])
    [owner] = find_owners([sgd(model)])
    assert owner.module is model
    assert both is not None


def test_several_owners_are_put_under_one() -> None:
    encoder, head = nn.Linear(2, 3), nn.Bilinear(3, 3, 1)
    optimizer = sgd(encoder, head)
    owners = find_owners([optimizer])
    assert [owner.module for owner in owners] == [encoder, head] or [owner.module for owner in owners] == [
        head,
        encoder,
    ]
    model = as_model(owners, [optimizer])
    assert isinstance(model, Together)
    assert set(Blocks(model).names) == {"linear", "bilinear", "other"}


def test_names_that_clash_are_told_apart() -> None:
    model = Together([owner for module in (nn.Linear(2, 2), nn.Linear(2, 2)) for owner in find_owners([sgd(module)])])
    assert [name for name, _ in model.named_children()] == ["linear", "linear_"]


def test_parameters_without_a_module_are_taken_as_they_are() -> None:
    loose = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([loose], lr=0.1)
    assert find_owners([optimizer]) == []
    assert list(as_model([], [optimizer]).parameters()) == [loose]


def test_the_stepping_optimizer_comes_first_and_others_of_the_same_parameters_are_none() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    left_behind, other, stepping = sgd(first), sgd(second), sgd(first)
    found = find_optimizers(stepping)
    assert found[0] is stepping
    assert other in found
    assert left_behind not in found


def test_an_object_that_pretends_to_be_a_module_is_not_touched() -> None:
    class Lazy:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            raise AssertionError("came into being")

    lazy = Lazy()
    model = nn.Linear(2, 2)
    assert [owner.module for owner in find_owners([sgd(model)])] == [model]
    assert type(lazy) is Lazy


def test_a_step_without_any_gradient_is_none() -> None:
    model = nn.Linear(2, 2)
    optimizer = sgd(model)
    assert not has_gradient(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    assert has_gradient(optimizer)
