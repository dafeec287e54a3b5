"""What a host tells of itself and of its processes: which boot it is, whether a process lives, what ran out of memory.

Both sides ask: the trainer says in its first record who it is, and the collector looks whether it is still there. What
the system does not tell (no `/proc`, no cgroups) is an empty answer, never an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: File systems on which a shared memory map is refused or does not keep its promises.
_NETWORK_FILESYSTEMS: Final = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "gpfs",
        "beegfs",
        "afs",
        "ncpfs",
        "orangefs",
        "fuse.sshfs",
        "fuse.s3fs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.juicefs",
        "fuse.ceph-fuse",
        "virtiofs",
    )
)


def boot_id() -> bytes:
    """Eight bytes that change when the machine starts anew; zeros where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return bytes.fromhex(text.strip().replace("-", ""))[:8]
    return bytes(8)


def process_space() -> str:
    """Which process ids count: two processes of one boot with the same answer see each other. "" where unknown."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def process_start(pid: int) -> str:
    """When a process started, in ticks since the boot: with its id it names it for good. "" where it lives no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if len(fields) < 20 or fields[0] in {"Z", "X"} else fields[19]


def oom_counters(membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> dict[str, int]:
    """How often the kernel killed for want of memory in the cgroup of this process, and in those above it.

    Returns:
        Counts by file, the process' own first; the counters of a group include those below it.
    """
    try:
        lines = Path(membership).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    files: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers not in {"", "memory"}:
            continue
        top, name = (Path(mount), "memory.events") if not controllers else (Path(mount, "memory"), "memory.oom_control")
        own = top / group.lstrip("/")
        files += [folder / name for folder in (own, *own.parents) if folder == top or top in folder.parents]
    return read_oom_counters(map(str, files))


def read_oom_counters(files: Iterable[str]) -> dict[str, int]:
    """The counters of files as `oom_counters` gives them; those that cannot be read are left out."""
    found: dict[str, int] = {}
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(file).read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    found[file] = int(count)
    return found


def is_network_folder(folder: Path, mountinfo: str = "/proc/self/mountinfo") -> bool:
    """Whether a folder lies on a network file system, as far as the kernel says. False where it does not say."""
    try:
        lines = Path(mountinfo).read_text(encoding="utf-8", errors="replace").splitlines()
        target = str(folder.resolve())
    except OSError:
        return False
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = fields[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind in _NETWORK_FILESYSTEMS
