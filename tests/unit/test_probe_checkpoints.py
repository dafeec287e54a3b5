"""Checkpoints: each that is written counts once, whoever writes it and however it is watched."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.journal_reader import read_events, read_scalars
from support.watched import offline, small_net

import sidestep
from sidestep.auto.patching import hide_wrappers
from sidestep.probes.checkpoints import SAVES

__all__ = ["offline"]


def watched(offline: dict[str, Any], **more: Any) -> tuple[sidestep.Run, torch.nn.Module]:
    model = small_net()
    return sidestep.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), **offline, **more), model


def sizes(folder: Path) -> list[float]:
    return [told["size_mb"] for told in read_events(folder, "checkpoint")]


def test_a_saved_file_counts_with_its_size_on_disk_its_time_and_its_path(offline, tmp_path: Path) -> None:
    run, model = watched(offline)
    place = tmp_path / "model.pt"
    torch.save(model.state_dict(), place)
    run.finish()
    megabytes = place.stat().st_size / 1e6
    (mark,) = read_events(offline["dir"], "checkpoint")
    assert (mark["path"], mark["size_mb"]) == (str(place), megabytes)
    assert read_scalars(offline["dir"], "checkpoint_size_mb") == {-1: megabytes}
    assert read_scalars(offline["dir"], "perf/checkpoint_time_sec") == {-1: mark["seconds"]}
    assert mark["seconds"] > 0


def test_what_is_written_into_a_stream_counts_from_where_it_began(offline) -> None:
    run, model = watched(offline)
    stream = io.BytesIO(b"")
    stream.write(b"header")
    torch.save(model.state_dict(), stream)
    run.finish()
    assert sizes(offline["dir"]) == [(stream.tell() - 6) / 1e6]


def test_a_file_of_safetensors_counts_also_where_its_function_was_imported_before(offline, tmp_path: Path) -> None:
    from safetensors.torch import save_file, save_model

    run, model = watched(offline)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    save_model(model, str(tmp_path / "b.safetensors"))
    run.finish()
    assert sizes(offline["dir"]) == [
        (tmp_path / name).stat().st_size / 1e6 for name in ("a.safetensors", "b.safetensors")
    ]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_counts_once_with_all_its_files(offline, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    run, model = watched(offline)
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "one")
    dcp.save(model.state_dict(), storage_writer=dcp.FileSystemWriter(tmp_path / "two", thread_count=2))
    run.finish()
    expected = [sum(file.stat().st_size for file in (tmp_path / name).iterdir()) / 1e6 for name in ("one", "two")]
    assert sizes(offline["dir"]) == expected


def test_writers_are_put_back_with_the_end_of_the_run(offline, tmp_path: Path) -> None:
    before = torch.save, torch.serialization.save
    run, model = watched(offline)
    assert torch.save is torch.serialization.save
    assert torch.save is not before[0]
    run.finish()
    assert (torch.save, torch.serialization.save) == before
    torch.save(model.state_dict(), tmp_path / "later.pt")
    assert sizes(offline["dir"]) == []


def test_a_writer_that_somebody_else_has_wrapped_since_is_left_to_him(
    offline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", torch.save)  # puts back what was there at the end of the test
    run, model = watched(offline)
    ours = torch.save

    def theirs(*args: Any, **kwargs: Any) -> None:
        ours(*args, **kwargs)

    torch.save = theirs
    run.finish()
    assert torch.save is theirs
    torch.save(model.state_dict(), tmp_path / "later.pt")
    assert sizes(offline["dir"]) == []


def test_a_second_run_counts_for_itself_alone(offline, tmp_path: Path) -> None:
    first, model = watched({**offline, "dir": tmp_path / "one"})
    torch.save(model.state_dict(), tmp_path / "first.pt")
    first.finish()
    second, model = watched({**offline, "dir": tmp_path / "other"})
    torch.save(model.state_dict(), tmp_path / "second.pt")
    second.finish()
    assert len(sizes(tmp_path / "one")) == len(sizes(tmp_path / "other")) == 1


def test_left_out_it_wraps_nothing(offline) -> None:
    before = torch.save
    run, _ = watched(offline, probes={"checkpoints": False})
    assert torch.save is before
    run.finish()


def test_what_saving_raises_reaches_the_script_as_it_is_and_counts_nothing(offline, tmp_path: Path) -> None:
    run, model = watched(offline)
    with pytest.raises(RuntimeError, match="Parent directory"):
        torch.save(model.state_dict(), tmp_path / "nowhere" / "model.pt")
    with pytest.raises(TypeError):
        torch.save()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    run.finish()
    assert len(sizes(offline["dir"])) == 1


def test_a_file_that_is_gone_before_it_is_measured_ends_no_training(offline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("SIDESTEP_STRICT")
    run, _ = watched(offline)
    with pytest.warns(sidestep.SidestepWarning, match="recorded nothing"):
        SAVES.listener(tmp_path / "gone.pt", None, 0.1)
    run.finish()


def test_tracebacks_below_sidestep_run_show_no_wrapper(offline, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    hide_wrappers()
    run, model = watched(offline)
    try:
        torch.save(model.state_dict(), tmp_path / "nowhere" / "model.pt")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    run.finish()
    said = capsys.readouterr().err
    assert "test_probe_checkpoints.py" in said
    assert 'checkpoints.py", line' not in said.replace("test_probe_checkpoints.py", "")
