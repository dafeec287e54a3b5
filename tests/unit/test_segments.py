"""Segments: files whose blocks are there, memory where there is no file, and which folders will not do."""

import errno
import os
from pathlib import Path

import pytest

from sidestep import segments
from sidestep.segments import (
    create_file_segment,
    create_memory_segment,
    segment_size_for,
)
from sidestep_schemas.host import is_network_folder
from sidestep_schemas.wire import RECORD_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SegmentHeader

HEADER = SegmentHeader(0, 0, 4, 17, b"r" * 16, b"s" * 8, b"b" * 8)


def test_a_file_segment_has_its_blocks_and_is_empty(tmp_path):
    segment = create_file_segment(tmp_path / "a.seg", SEGMENT_BYTES_MIN)
    assert (tmp_path / "a.seg").stat().st_blocks * 512 >= SEGMENT_BYTES_MIN
    assert bytes(segment.view) == bytes(SEGMENT_BYTES_MIN)
    segment.open(HEADER)
    assert (segment.number, segment.first_seq, segment.next_seq) == (4, 17, 17)
    assert SegmentHeader.unpack((tmp_path / "a.seg").read_bytes()) == HEADER
    segment.release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "a.seg").write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        create_file_segment(tmp_path / "a.seg", SEGMENT_BYTES_MIN)
    assert (tmp_path / "a.seg").read_bytes() == b"kept"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.ENODEV, "no maps"), ValueError("no")])
def test_a_disk_that_refuses_leaves_no_file_and_no_descriptor(tmp_path, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(segments, "_reserve", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        create_file_segment(tmp_path / "a.seg", SEGMENT_BYTES_MIN)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_segment_in_memory_moves_to_a_file_and_its_records_with_it(tmp_path):
    segment = create_memory_segment(SEGMENT_BYTES_MIN)
    segment.open(HEADER)
    segment.view[64:80] = b"\x08\0\0\0\0\0\0\0contents"
    segment.tail, segment.records = 80, 1
    before = bytes(segment.view[:80])
    segment.spill(tmp_path / "a.seg")
    assert not segment.in_memory
    assert (segment.size, segment.limit) == (80, 0)
    assert bytes(segment.view) == before == (tmp_path / "a.seg").read_bytes()
    segment.words[17] = 5
    assert (tmp_path / "a.seg").read_bytes()[68] == 5
    segment.release()
    assert list(tmp_path.iterdir()) == []


def test_a_segment_that_no_file_takes_stays_in_memory(tmp_path):
    segment = create_memory_segment(SEGMENT_BYTES_MIN)
    with pytest.raises(OSError):
        segment.spill(tmp_path / "missing" / "a.seg")
    assert segment.in_memory
    assert len(segment.view) == SEGMENT_BYTES_MIN
    segment.release()


def test_a_file_that_somebody_removed_can_be_released(tmp_path):
    segment = create_file_segment(tmp_path / "a.seg", SEGMENT_BYTES_MIN)
    (tmp_path / "a.seg").unlink()
    segment.release()
    assert list(tmp_path.iterdir()) == []


def test_a_segment_is_as_large_as_its_record_needs():
    assert segment_size_for(1) == SEGMENT_BYTES_MIN
    assert segment_size_for(SEGMENT_BYTES_MIN - 80) == SEGMENT_BYTES_MIN
    assert segment_size_for(SEGMENT_BYTES_MIN - 79) == 4 * SEGMENT_BYTES_MIN
    assert segment_size_for(RECORD_BYTES_MAX) == SEGMENT_BYTES_MAX


MOUNTS = """22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / {0}/far rw - nfs4 server:/x rw
31 30 0:26 / {0}/far/near rw - tmpfs tmpfs rw
32 22 0:27 / {0}/with\\040space rw - fuse.sshfs host: rw
broken line
"""


@pytest.mark.parametrize(
    ("place", "is_network"),
    [("far", True), ("far/deep/er", True), ("far/near/x", False), ("farther", False), ("with space/x", True)],
)
def test_network_file_systems_are_told_by_the_nearest_mount(tmp_path, place, is_network):
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTS.format(tmp_path))
    assert is_network_folder(tmp_path / place, str(mountinfo)) is is_network


def test_where_the_system_does_not_tell_a_folder_counts_as_local(tmp_path: Path):
    assert not is_network_folder(tmp_path, str(tmp_path / "missing"))
