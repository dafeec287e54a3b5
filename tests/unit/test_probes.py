"""The numbers that probes give, against plain recomputation in double precision."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sidestep.probes import Norms, Placed, fold, gradients, registry, sample, updates
from sidestep.probes.calls import Calls
from sidestep_schemas.catalog import METRICS


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def with_gradient(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    parameter = weights(*shape, seed=seed, dtype=dtype)
    parameter.grad = weights(*shape, seed=seed + 1000, dtype=dtype).detach()
    return parameter


def exact_norm(*tensors: Tensor) -> float:
    return math.sqrt(sum(float(tensor.to(torch.complex128).abs().square().sum()) for tensor in tensors))


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_tag_of_a_probe_is_in_the_catalogue(name: str) -> None:
    settings = {"curvature": {"loss": print}, "features": {"modules": ["head"]}, "kinds": {"phase": "*.phase"}}
    (probe,) = [probe for probe in registry.chosen({name: settings.get(name, True)}) if probe.name == name]
    assert set(probe.tags) <= {metric.tag for metric in METRICS}
    assert 0 <= probe.cost <= 4


def test_every_probe_is_in_the_table() -> None:
    files = {path.stem for path in Path(gradients.__file__).parent.glob("[a-z]*.py")}
    machinery = {
        *("protocol", "registry", "cadence", "calls", "norms", "sample", "expected", "scatter"),
        *("sharding", "undisturbed", "lanczos", "exact_trace", "curvlinops_product", "stable_rank"),
        *("gathering", "labels", "listening", "sketch"),  # what is given and put out
    }
    assert files - machinery == {module.rpartition(".")[2] for module, _ in registry.BUILT_IN.values()}


# --- gradients ---------------------------------------------------------------------------------------------------


def test_norms_of_blocks_are_roots_of_sums_of_squares() -> None:
    first, second, third = with_gradient(7, 5), with_gradient(300, seed=1), with_gradient(2, 2, 2, seed=2)
    blocks, norms = fold(gradients.measure([Placed(first, 0), Placed(second, 0), Placed(third, 4)]))
    assert blocks == (0, 4)
    assert norms.dtype == torch.float32
    assert norms.tolist() == pytest.approx([exact_norm(first.grad, second.grad), exact_norm(third.grad)], rel=1e-6)


def test_types_may_be_mixed_and_halves_do_not_overflow() -> None:
    half = with_gradient(64, dtype=torch.float16)
    half.grad = torch.full_like(half, 30_000.0)
    double, brain = with_gradient(5, dtype=torch.float64), with_gradient(6, 6, dtype=torch.bfloat16)
    _, norms = fold(gradients.measure([Placed(half, 0), Placed(double, 1), Placed(brain, 1)]))
    assert norms.tolist() == pytest.approx([240_000.0, exact_norm(double.grad, brain.grad)], rel=1e-4)


def test_a_complex_gradient_counts_with_its_absolute_value() -> None:
    parameter = with_gradient(4, 4, dtype=torch.complex64)
    parameter.grad = torch.complex(torch.full((4, 4), 3.0), torch.full((4, 4), 4.0))
    _, norms = fold(gradients.measure([Placed(parameter, 0)]))
    assert norms.tolist() == pytest.approx([20.0])


def test_a_sparse_gradient_counts_with_its_coalesced_values() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1, 1, 7])).sum().backward()
    assert embedding.weight.grad is not None
    dense = embedding.weight.grad.to_dense()
    _, norms = fold(gradients.measure([Placed(embedding.weight, 0)]))
    assert norms.tolist() == pytest.approx([exact_norm(dense)])


def test_missing_and_empty_gradients_are_left_out() -> None:
    unused, empty = weights(3), with_gradient(0)
    assert gradients.measure([Placed(unused, 0), Placed(empty, 1)]) == []


def test_a_gradient_that_is_no_number_gives_a_norm_that_is_none() -> None:
    broken, sound = with_gradient(3), with_gradient(3, seed=1)
    broken.grad = torch.tensor([1.0, math.nan, 1.0])
    _, norms = fold(gradients.measure([Placed(broken, 0), Placed(sound, 1)]))
    assert math.isnan(norms[0])
    assert norms[1].item() == pytest.approx(exact_norm(sound.grad))


def test_a_scale_that_is_left_to_a_fused_optimizer_is_taken_out() -> None:
    parameter = with_gradient(9)
    _, norms = fold(gradients.measure([Placed(parameter, 0)], torch.tensor(1024.0)))
    assert norms.tolist() == pytest.approx([exact_norm(parameter.grad) / 1024])


def test_measuring_leaves_gradients_as_they_are() -> None:
    parameter = with_gradient(9)
    before = parameter.grad.clone()
    gradients.measure([Placed(parameter, 0)])
    assert torch.equal(parameter.grad, before)


def test_parts_of_a_block_from_several_optimizers_add_up() -> None:
    parts = [Norms([0, 2], torch.tensor([3.0, 1.0])), Norms([0, 1], torch.tensor([4.0, 7.0], dtype=torch.float64))]
    blocks, norms = fold(parts)
    assert blocks == (0, 1, 2)
    assert norms.tolist() == [5.0, 7.0, 1.0]


# --- updates -----------------------------------------------------------------------------------------------------


def ratio_of(parameters: list[nn.Parameter], changes: list[Tensor]) -> float:
    """Estimated relative update of parameters that lie in one block."""
    (taken,) = updates.sample([Placed(parameter, 0) for parameter in parameters])
    with torch.no_grad():
        taken.take()
        for parameter, change in zip(parameters, changes, strict=True):
            parameter.add_(change)
        change, before = taken.compare()
    return (fold([change])[1] / fold([before])[1]).item()


def test_small_parameters_are_compared_exactly() -> None:
    parameters = [weights(32, 32), weights(7, seed=1), weights(seed=2)]
    changes = [weights(*parameter.shape, seed=9).detach() * 1e-3 for parameter in parameters]
    expected = exact_norm(*changes) / exact_norm(*[parameter.detach() for parameter in parameters])
    assert ratio_of(parameters, changes) == pytest.approx(expected, rel=1e-4)


def standard_error(parameters: list[Tensor], changes: list[Tensor]) -> float:
    """The formula of `sidestep.probes.updates`, with the variance of all elements."""
    ratio = exact_norm(*changes) / exact_norm(*parameters)
    variance = 0.0
    for parameter, change in zip(parameters, changes, strict=True):
        size = parameter.numel()
        count = -(-size // sample.stride_of(size))
        spread = float((change.double().square() - ratio**2 * parameter.double().square()).var())
        variance += size**2 * (1 - count / size) * spread / count
    return math.sqrt(variance) / (2 * ratio * exact_norm(*parameters) ** 2)


def test_the_estimate_lies_as_far_from_the_exact_value_as_its_standard_error_says() -> None:
    deviations: list[float] = []
    for seed in range(40):
        parameters = [weights(200, 300, seed=seed), weights(64, 32, 3, 3, seed=seed + 100), weights(64, seed=seed)]
        changes = [0.01 * weights(*parameter.shape, seed=seed + 500).detach() for parameter in parameters]
        before = [parameter.detach().clone() for parameter in parameters]
        error = standard_error(before, changes)
        estimate, exact = ratio_of(parameters, changes), exact_norm(*changes) / exact_norm(*before)
        assert error / exact < 0.05
        deviations.append((estimate - exact) / error)
    spread = math.sqrt(sum(deviation**2 for deviation in deviations) / len(deviations))
    assert max(map(abs, deviations)) < 4
    assert 0.7 < spread < 1.3  # the standard error of this spread is 1 / sqrt(80)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 4096, 1024 * 1024, 3 * 5 * 7 * 11 * 13, 1_000_003])
def test_a_sample_is_bounded_and_its_stride_shares_no_factor_with_the_size(size: int) -> None:
    stride = sample.stride_of(size)
    count = -(-size // stride)
    assert min(size, 512) <= count <= sample.SAMPLE
    assert math.gcd(stride, size) == 1


def test_a_sample_of_a_matrix_passes_through_its_rows_and_columns() -> None:
    positions = sample.strided(torch.arange(1024 * 1024), sample.stride_of(1024 * 1024))
    assert len(set((positions // 1024).tolist())) > 1000
    assert len(set((positions % 1024).tolist())) > 1000


def test_memory_of_other_layouts_is_looked_at_without_a_copy() -> None:
    tensor = torch.randn(8, 16, 3, 3).to(memory_format=torch.channels_last)
    view = sample.strided(tensor, 5)
    assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert set(view.tolist()) <= set(tensor.flatten().tolist())
    gaps = torch.arange(40.0).reshape(4, 10)[:, ::2]
    assert sample.strided(gaps, 3).tolist() == gaps.flatten()[::3].tolist()


def test_a_sample_is_no_larger_for_a_larger_parameter() -> None:
    (taken,) = updates.sample([Placed(weights(2000, 1000), 0)])
    assert taken._before.whole.numel() <= sample.SAMPLE


def test_a_sample_of_very_many_parameters_is_bounded_as_a_whole() -> None:
    placed = [Placed(weights(100), 0) for _ in range(5000)]
    (chosen,) = sample.coordinates(placed)
    assert chosen.rows().whole.numel() <= sample.TOTAL
    assert sum(factor**2 * count for factor, count in zip(chosen.factors, chosen.counts, strict=True)) == pytest.approx(
        5e5
    )


def test_all_weights_are_compared_on_demand() -> None:
    parameters = [weights(200, 300), weights(64, 32, 3, 3, seed=1)]
    changes = [0.01 * weights(*parameter.shape, seed=9).detach() for parameter in parameters]
    expected = exact_norm(*changes) / exact_norm(*[parameter.detach() for parameter in parameters])
    (taken,) = updates.sample([Placed(parameter, 0) for parameter in parameters], exact=True)
    with torch.no_grad():
        taken.take()
        for parameter, change in zip(parameters, changes, strict=True):
            parameter.add_(change)
        change, before = taken.compare()
    assert (change.values / before.values).item() == pytest.approx(expected, rel=1e-5)
    (probe,) = [probe for probe in registry.chosen({"updates": {"exact": True}}) if probe.name == "updates"]
    assert isinstance(probe, updates.UpdateProbe)
    assert ratio_of(parameters, changes) != pytest.approx(expected, rel=1e-5)  # a sample of them is


def test_frozen_and_empty_parameters_are_left_out_of_updates() -> None:
    frozen = weights(3).requires_grad_(requires_grad=False)
    assert updates.sample([Placed(frozen, 0), Placed(weights(0), 0)]) == []


def test_double_precision_is_compared_in_double_precision() -> None:
    parameter = weights(10, dtype=torch.float64)
    change = parameter.detach() * 1e-12
    assert ratio_of([parameter], [change]) == pytest.approx(1e-12, rel=1e-3)


def test_complex_and_half_parameters_are_compared_as_well() -> None:
    wave, half = weights(3, 4, dtype=torch.complex64), weights(50, dtype=torch.bfloat16)
    before = [wave.detach().clone(), half.detach().clone()]
    change = [torch.full((3, 4), 0.1j), torch.full((50,), 0.25, dtype=torch.bfloat16)]
    estimate = ratio_of([wave, half], change)
    moved = [wave.detach() - before[0], half.detach() - before[1]]
    assert estimate == pytest.approx(exact_norm(*moved) / exact_norm(*before), rel=1e-4)


def test_storage_that_is_replaced_in_a_step_is_found() -> None:
    parameter = weights(10)
    (taken,) = updates.sample([Placed(parameter, 0)])
    with torch.no_grad():
        taken.take()
        parameter.data = parameter.data * 1.5
        change, before = taken.compare()
    assert (change.values / before.values).item() == pytest.approx(0.5)


# --- throughput --------------------------------------------------------------------------------------------------


def count(model: nn.Module, *calls: object, **named: object) -> int:
    counter = Calls()
    counter(model, calls, named)
    return counter.samples


def test_samples_are_counted_from_the_first_tensor_while_training() -> None:
    model = nn.Linear(2, 2)
    assert count(model, torch.ones(5, 2), torch.ones(9)) == 5
    assert count(model, None, images=torch.ones(3, 2)) == 3
    assert count(model, "text") == 0
    assert count(model, torch.ones(())) == 0
    assert count(model.eval(), torch.ones(5, 2)) == 0
    with torch.no_grad():
        assert count(model.train(), torch.ones(5, 2)) == 0
