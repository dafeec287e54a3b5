"""Where a stream comes from, as its start said, and whether that process can be seen from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from sidestep_schemas.host import boot_id, process_space, process_start, read_oom_counters


@dataclass(frozen=True, slots=True)
class Origin:
    """A process. Empty where its start said nothing, and then it cannot be seen.

    Attributes:
        boot: the boot of its host, in hexadecimal.
        space: which process ids count for it.
        pid, start: its id, and when it started in ticks since the boot.
        oom_counters: how often the kernel had killed for want of memory when it began, by file, its own group first.
    """

    boot: str = ""
    space: str = ""
    pid: int = 0
    start: str = ""
    oom_counters: Mapping[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Origin:
        """What the details of a `start` tell; whatever is not as it should be counts as unsaid."""
        pid: Any = details.get("pid")
        counters: Any = details.get("oom_counters")
        known = cast("Mapping[object, object]", counters if isinstance(counters, Mapping) else {})
        return cls(
            boot=str(details.get("boot") or ""),
            space=str(details.get("process_space") or ""),
            pid=pid if type(pid) is int else 0,
            start=str(details.get("process_start") or ""),
            oom_counters={str(path): n for path, n in known.items() if type(n) is int and _is_counter(path)},
        )

    @property
    def is_of_this_host(self) -> bool:
        """Whether it is, or was, a process of this boot of this host."""
        return any(map(int, boot_id())) and self.boot == boot_id().hex()

    def lives(self) -> bool | None:
        """Whether the process is there; None where that cannot be seen from here."""
        is_visible = self.is_of_this_host and bool(self.start) and self.space == process_space() != ""
        return process_start(self.pid) == self.start if is_visible else None

    def oom_kills(self) -> int | None:
        """How often the kernel killed in its group since it began; None where that cannot be read from here."""
        if not self.is_of_this_host:
            return None
        now = read_oom_counters(self.oom_counters)
        # A group that went with its job is counted in the one above it.
        return next((now[path] - before for path, before in self.oom_counters.items() if path in now), None)


def _is_counter(path: object) -> bool:
    # A peer names the files: nothing else is opened for it.
    return isinstance(path, str) and path.startswith("/sys/fs/cgroup/") and ".." not in path
