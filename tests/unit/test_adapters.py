"""Names of frameworks to tags, and positions to epochs."""

from __future__ import annotations

import subprocess
import sys
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.adapters import epoch_at, tagged


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "train/loss"),
        ("train_loss", "train/loss"),
        ("val_loss", "val/loss"),
        ("valid_loss", "val/loss"),
        ("validation_loss", "val/loss"),
        ("eval_loss", "val/loss"),
        ("test_loss", "test/loss"),
        ("val_", "train/val_"),
        ("value", "train/value"),
        ("val/loss", "val/loss"),
        ("mine/val_loss", "mine/val_loss"),
        ("val_loss/dataloader_idx_1", "val/loss/dataloader_idx_1"),
        ("val/loss/dataloader_idx_1", "val/loss/dataloader_idx_1"),
    ],
)
def test_a_name_is_a_tag_by_one_rule(name: str, tag: str) -> None:
    assert tagged({name: 1.0}, "train") == {tag: 1.0}


def test_the_split_is_that_of_the_loop_where_a_name_says_none() -> None:
    assert tagged({"loss": 1.0}, "val") == {"val/loss": 1.0}


def test_two_names_of_one_tag_are_both_kept() -> None:
    assert tagged({"loss": 1, "train_loss": 2, "train/x": 3}, "train") == {
        "train/loss": 1,
        "train/train_loss": 2,
        "train/x": 3,
    }


@pytest.mark.parametrize(("position", "epoch"), [(0.0, 1.0), (0.25, 1.25), (1.0, 1.0), (1.5, 2.5), (3.0, 3.0)])
def test_positions_are_epochs_from_one(position: float, epoch: float) -> None:
    assert epoch_at(position) == epoch


@given(st.integers(1, 1000), st.integers(1, 500), st.integers(1, 500))
def test_all_of_an_epoch_has_its_whole_part(epoch: int, batch: int, total: int) -> None:
    batch = min(batch, total)
    assert floor(epoch_at(epoch - 1 + batch / total)) == epoch


@pytest.mark.parametrize("module", ["lightning", "huggingface", "accelerate", "keras"])
def test_a_missing_framework_is_one_line_with_what_to_install(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('lightning', 'pytorch_lightning', 'transformers', 'accelerate', 'keras'): sys.modules[name] = None\n"
        "from sidestep.errors import MissingExtraError\n"
        f"try: import sidestep.{module}\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install" in done.stdout


@pytest.mark.parametrize("module", ["compat", "compat.wandb", "torchtitan", "adapters"])
def test_no_framework_is_loaded_by_what_needs_none(module: str) -> None:
    code = f"import sys, sidestep.{module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "lightning", "transformers", "accelerate", "keras", "PIL"} & set(done.stdout.split())
