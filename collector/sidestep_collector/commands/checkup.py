"""What `sidestep doctor` looks at: each check says what it saw, and what to do where that is wrong."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from sidestep_collector.config import Config, load, sources
from sidestep_schemas.errors import ConfigError, SidestepError
from sidestep_schemas.host import is_network_folder
from sidestep_schemas.layout import endpoints, journal_roots
from sidestep_schemas.settings import VARIABLES, unknown

DISK_BYTES_MIN: Final = 1 << 30
_INODES_MIN: Final = 10_000
#: Wall times of points are the trainer's; beyond this they mislead.
_CLOCK_SECONDS: Final = 1.0
_PACKAGES: Final = ("sidestep", "duckdb", "pyzmq", "msgspec", "numpy", "pydantic", "tensorboard", "prometheus-client")
_PEERS: Final = ("torch",)

Ask = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `change` is what to do; "" where nothing is wrong."""

    name: str
    seen: str
    change: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing is to be done."""
        return not self.change


def examine(root: Path, ask: Ask, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Look at everything.

    Args:
        root: data folder.
        ask: the document of `sidestep status`; raises where no collector answers.
        environ: the environment.
    """
    keys = _keys(_config(root, environ).keys_folder(root))
    return [*_settings(root, environ), *_folders(root), *keys, *_collector(root, ask, environ), *_versions()]


def settings(root: Path, environ: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """Every setting with its value and where it comes from; the collector's where they can be used at all."""
    rows = [
        {
            "name": name,
            "value": ("set" if variable.is_secret else environ[name]) if environ.get(name) else variable.default,
            "source": "environment" if environ.get(name) else "default",
        }
        for name, variable in VARIABLES.items()
    ]
    try:
        config = load(root, {}, environ)
    except ConfigError:
        return rows
    origin = sources(root, environ)
    values = config.model_dump(mode="json")
    values["webhook"] = "set" if config.webhook else ""  # whoever knows such an address may post there
    return rows + [{"name": f"collector.{key}", "value": str(values[key]), "source": origin[key]} for key in values]


def _settings(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    try:
        load(root, {}, environ)
    except ConfigError as error:
        yield Check("settings", str(error), f"correct them in {root / 'sidestep.toml'} or the environment")
    else:
        yield Check("settings", "the collector's can be used")
    strange = unknown(list(environ))
    if strange:
        yield Check("variables", f"unknown: {', '.join(strange)}", "they do nothing: correct or unset them")


def _config(root: Path, environ: Mapping[str, str]) -> Config:
    """The collector's settings; where they cannot be used, those of one without any."""
    try:
        return load(root, {}, environ)
    except ConfigError:
        return Config()


def _folders(root: Path) -> Iterator[Check]:
    near, local = journal_roots(root)
    place = _existing(root)
    if not os.access(place, os.W_OK):
        yield Check("data folder", f"{place} cannot be written", "choose another with --dir or SIDESTEP_DIR")
        return
    if is_network_folder(place):
        yield Check(
            "data folder",
            f"{root} lies on a network file system; journals go to {local}: `sidestep sync` finds them on this host",
        )
        yield from _room("journal disk", _existing(local))
    else:
        yield Check("data folder", f"{root} lies on this machine; journals in {near}")
    yield from _room("disk", place)


def _room(name: str, place: Path) -> Iterator[Check]:
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    change = f"make room, or choose another folder: below {DISK_BYTES_MIN >> 20} MB a run may not fit"
    yield Check(name, f"{free / 1e9:.1f} GB left at {place}", "" if free >= DISK_BYTES_MIN else change)
    if found.f_files:  # some file systems have as many as they like
        few = found.f_favail < _INODES_MIN
        yield Check(f"{name} inodes", f"{found.f_favail:,} left", "remove small files there" if few else "")


def _keys(folder: Path) -> Iterator[Check]:
    secrets = [path for path in (folder, *folder.glob("*.key")) if path.exists()] if folder.is_dir() else []
    for path in secrets:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            wanted = "700" if path.is_dir() else "600"
            yield Check("keys", f"{path} may be read by others (mode {mode:o})", f"chmod {wanted} {path}")
    if secrets and all(not stat.S_IMODE(path.stat().st_mode) & 0o077 for path in secrets):
        yield Check("keys", f"{len(secrets) - 1} in {folder}, for this user alone")


def _collector(root: Path, ask: Ask, environ: Mapping[str, str]) -> Iterator[Check]:
    before = time.time()
    try:
        document = ask()
    except SidestepError as error:
        # No collector is nothing wrong: a script starts one. One that is there and does not answer is.
        if (root / "collector.json").exists() or environ.get("SIDESTEP_COLLECTOR"):
            yield Check("collector", str(error), f"look into {root / 'collector.log'}; `sidestep up` starts another")
        else:
            yield Check("collector", "none runs; `sidestep up`, or the first script, starts one")
        yield from _address(root, environ)
        return
    after = time.time()
    yield Check("collector", f"pid {document['pid']} answers at {document['address']}")
    ours, theirs = version("sidestep"), str(document.get("version"))
    differs = "" if ours == theirs else f"install one version on both sides: this is {ours}"
    yield Check("collector version", theirs, differs)
    yield from _clock(document, before, after)
    reasons = document.get("not_ready", ())
    yield Check("collector ready", "; ".join(reasons) or "what it receives gets stored", "see above" if reasons else "")


def _clock(document: Mapping[str, Any], before: float, after: float) -> Iterator[Check]:
    if isinstance(document.get("now"), float):
        # It answered between the two: beyond half of that, the difference is one of the clocks.
        ahead = document["now"] - (before + after) / 2
        is_off = abs(ahead) > _CLOCK_SECONDS + (after - before) / 2
        change = "set both by NTP: times of points are the trainer's" if is_off else ""
        yield Check("clock", f"the collector's is {ahead:+.3f} s ahead of this one", change)


def _address(root: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    try:
        address = load(root, {}, environ).address(root)
        points = endpoints(address)
    except SidestepError as error:
        yield Check("address", str(error), "set listen to ipc:///path or tcp://host:port")
        return
    taken = [point for point in points if point.startswith("tcp://") and _is_taken(point)]
    change = "end what listens there, or choose another with listen" if taken else ""
    yield Check("address", f"in use: {', '.join(taken)}" if taken else f"{address} is free", change)


def _is_taken(point: str) -> bool:
    host, _, port = point.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("" if host == "*" else host, int(port)))
    except OSError:
        return True
    return False


def _versions() -> Iterator[Check]:
    found: list[str] = []
    for name in (*_PACKAGES, *_PEERS):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name in _PEERS:
                found.append(f"no {name}")
            else:
                yield Check("packages", f"{name} is not installed", "pip install 'sidestep[collector]'")
    yield Check("packages", ", ".join(found))


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())
