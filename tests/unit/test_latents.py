"""Pictures and numbers of latents, and the analyser that draws them."""

import io

import numpy as np
import pytest
from PIL import Image as Pillow
from support.analysed import STREAM, Recorded, analysed

from sidestep_collector import latents
from sidestep_collector.analyse.grids import Grids
from sidestep_collector.blocks import Image, Moment, Tensor

rng = np.random.default_rng(0)


def volumes(samples=2, channels=4, depth=6, height=8, width=10):
    return rng.normal(size=(samples, channels, depth, height, width))


def opened(png):
    picture = Pillow.open(io.BytesIO(png))
    assert picture.mode == "L"
    return np.asarray(picture)


def test_middle_slices_are_those_at_half_of_each_side():
    x = volumes()
    assert latents.planes(x) == ("axial", "coronal", "sagittal")
    np.testing.assert_array_equal(latents.middle(x, "axial"), x[:, :, 3])
    np.testing.assert_array_equal(latents.middle(x, "coronal"), x[:, :, :, 4])
    np.testing.assert_array_equal(latents.middle(x, "sagittal"), x[..., 5])


def test_images_have_the_axial_plane_alone_and_anything_else_none():
    x = volumes()[:, :, 0]
    assert latents.planes(x) == ("axial",)
    assert latents.middle(x, "axial") is x
    assert latents.planes(x[0]) == latents.planes(np.empty((0, 4, 2, 2))) == ()


def test_the_grey_scale_runs_between_percentiles_of_what_is_finite():
    x = np.concatenate([np.linspace(0, 100, 1001), [np.nan, np.inf, -np.inf]])
    assert latents.limits(x) == pytest.approx((1.0, 99.0))
    assert latents.limits(np.full(5, 3.0)) == (2.5, 3.5)
    assert latents.limits(np.array([np.nan])) == (0.0, 1.0)


def test_a_slice_is_enlarged_by_a_whole_factor_to_32_pixels_and_keeps_its_order_of_values():
    tile = np.array([[0.0, 1.0, 2.0], [3.0, np.nan, 9.0]])
    drawn = latents.grey(tile, latents.Limits(0.0, 4.0))
    assert drawn.shape == (32, 48)
    np.testing.assert_array_equal(drawn[::16, ::16], [[0, 64, 128], [191, 0, 255]])
    assert (drawn[:16, 16:32] == 64).all()


def test_tiles_stand_apart_on_white_in_rows_and_columns_of_their_own_size():
    page = latents.tiled([[np.full((4, 6), 1, np.uint8), np.full((2, 3), 2, np.uint8)], [np.full((5, 5), 3, np.uint8)]])
    assert page.shape == (4 + 5 + 3 * 2, 6 + 3 + 3 * 2)
    assert (page[2:6, 2:8] == 1).all()
    assert (page[2:4, 10:13] == 2).all()
    assert (page[8:13, 2:7] == 3).all()
    assert (page == 255).sum() == page.size - 24 - 6 - 25


def test_a_grid_has_a_row_for_each_sample_and_a_column_for_each_channel():
    x = volumes(samples=3, channels=5)
    page = latents.grid(x, "coronal")
    tiles = latents.middle(x, "coronal")  # 6 x 10 each, enlarged 6 times
    assert page.shape == (3 * 36 + 4 * 2, 5 * 60 + 6 * 2)
    expected = latents.grey(tiles[1, 2], latents.limits(x))
    np.testing.assert_array_equal(page[2 + 38 : 2 + 38 + 36, 2 + 2 * 62 : 2 + 2 * 62 + 60], expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 300_000), (20_000, 1, 2, 2), (300, 70, 2, 3, 4), (1, 2, 2000, 3)])
def test_pictures_of_odd_shapes_stay_small(shape):
    x = rng.normal(size=shape)
    for plane in latents.planes(x):
        assert latents.grid(x, plane).size < 2 * latents.PAGE_PIXELS
    assert max(latents.overview(x).shape) < 12 * 260
    assert max(latents.compared(x, x).shape) < 12 * 260


def test_a_bfloat16_tensor_is_read_as_the_float32_that_it_is_the_upper_half_of():
    upper = (np.array([1.0, -2.5], "<f4").view("<u4") >> 16).astype("<u2")
    read = latents.array(Tensor(Moment(STREAM, 0, 0, 0, 0.0), "x", "bfloat16", (2,), upper.tobytes()))
    assert read.tolist() == [1.0, -2.5]


def drawn(recorded):
    _, items = analysed(recorded, [Grids()])
    return {(item.name, item.at.seq): opened(item.png) for item in items if isinstance(item, Image)}


def test_generated_latents_are_drawn_at_once_and_again_below_the_first_real_ones():
    recorded = Recorded()
    x, real = volumes(), volumes(samples=3)
    recorded.tensor("samples/generated_latents", x)
    recorded.tensor("samples/real_latents", real)
    recorded.tensor("samples/generated_latents", 2 * x)
    found = drawn(recorded)
    assert sorted(found) == [
        ("samples/generated_grid", 0),
        ("samples/generated_grid", 2),
        ("samples/real_vs_generated", 1),
        ("samples/real_vs_generated", 2),
    ]
    np.testing.assert_array_equal(found["samples/generated_grid", 0], latents.overview(x))
    np.testing.assert_array_equal(found["samples/real_vs_generated", 1], latents.compared(real, x))
    np.testing.assert_array_equal(found["samples/real_vs_generated", 2], latents.compared(real, 2 * x))


def test_an_overview_has_samples_as_rows_and_the_planes_of_four_channels_as_columns():
    x = volumes(samples=9, channels=6)
    page = latents.overview(x)
    # axial 8 x 10 and sagittal 6 x 8 enlarged 4 and 6 times, coronal 6 x 10 six times; 8 samples are shown
    assert page.shape == (8 * 36 + 9 * 2, 4 * (40 + 60 + 48) + 13 * 2)
    expected = latents.grey(x[0, 1, 3], latents.limits(x))
    np.testing.assert_array_equal(page[2:34, 2 + 42 : 2 + 42 + 40], expected)


def test_of_real_and_generated_both_stand_on_one_scale():
    low, high = np.zeros((2, 1, 4, 4)), np.ones((2, 1, 4, 4))
    page = latents.compared(low, high)
    assert (page[2:34, 2:34] == 0).all()
    assert (page[-34:-2, 2:34] == 255).all()


@pytest.mark.parametrize("array", [np.zeros((4, 2)), np.zeros((0, 4, 2, 2)), np.array([b"a", b"b"]).view("u1")])
def test_what_has_no_slices_is_not_drawn(array):
    recorded = Recorded()
    recorded.tensor("samples/generated_latents", array)
    assert drawn(recorded) == {}


def test_real_latents_of_another_shape_are_not_compared():
    recorded = Recorded()
    recorded.tensor("samples/real_latents", volumes(channels=3))
    recorded.tensor("samples/generated_latents", volumes())
    assert [name for name, _ in drawn(recorded)] == ["samples/generated_grid"]
