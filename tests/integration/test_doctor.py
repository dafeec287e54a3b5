"""`sidestep doctor`: what is wrong with a machine, its settings or its collector, and what to do."""

import json
import os
import re
from pathlib import Path

import pytest
from support.place import free_ports

from sidestep_collector.commands import checkup
from sidestep_collector.commands.checkup import examine, settings
from sidestep_schemas.errors import AddressError
from sidestep_schemas.settings import PREFIX, VARIABLES

ROOT = Path(__file__).resolve().parents[2]


def nobody():
    raise AddressError("no collector answers")


def found(root, ask=nobody, environ=None):
    return {check.name: check for check in examine(root, ask, environ or {})}


def test_a_machine_that_is_well_is_told_in_full_and_ends_with_0(place, monkeypatch):
    monkeypatch.setattr(checkup, "DISK_BYTES_MIN", 0)
    place.up()
    done = place.sidestep("doctor", "--json")
    document = json.loads(done.stdout)
    wrong = [check for check in document["checks"] if not check["ok"] and not check["name"].startswith("disk")]
    assert wrong == []
    assert done.returncode == (0 if document["ok"] else 1)
    names = {check["name"] for check in document["checks"]}
    assert {"settings", "data folder", "disk", "collector", "collector version", "clock", "packages"} <= names
    rows = {row["name"]: row for row in document["settings"]}
    assert rows["SIDESTEP_DIR"] == {"name": "SIDESTEP_DIR", "value": str(place.root), "source": "environment"}
    assert rows["collector.flush_seconds"]["source"] == "default"


def test_settings_that_cannot_be_used_are_all_named_and_end_with_1(place):
    place.root.mkdir()
    (place.root / "sidestep.toml").write_text("[collector]\nflash = 1\n")
    done = place.sidestep("doctor", SIDESTEP_COLLECTOR_IDLE_EXIT="-1", SIDESTEP_MODEE="off")
    assert done.returncode == 1
    for word in ("flash", "idle_exit", "SIDESTEP_MODEE"):
        assert word in done.stdout
    assert "WRONG  settings" in done.stdout


def test_each_setting_says_where_it_comes_from(tmp_path):
    (tmp_path / "sidestep.toml").write_text("[collector]\nflush_points = 5\nflush_seconds = 2.0\n")
    environ = {"SIDESTEP_COLLECTOR_FLUSH_SECONDS": "3", "SIDESTEP_MODE": "offline", "SIDESTEP_KEY": "sidestep-key-1:x"}
    rows = {row["name"]: (row["value"], row["source"]) for row in settings(tmp_path, environ)}
    assert rows["collector.flush_points"] == ("5", str(tmp_path / "sidestep.toml"))
    assert rows["collector.flush_seconds"] == ("3.0", "SIDESTEP_COLLECTOR_FLUSH_SECONDS")
    assert rows["collector.silent_seconds"] == ("60.0", "default")
    assert rows["SIDESTEP_MODE"] == ("offline", "environment")
    assert rows["SIDESTEP_KEY"] == ("set", "environment")


def test_the_address_of_a_webhook_is_not_shown(tmp_path):
    for said, shown in ((None, ""), ("https://hooks.example.org/secret", "set")):
        environ = {"SIDESTEP_COLLECTOR_WEBHOOK": said} if said else {}
        rows = {row["name"]: row["value"] for row in settings(tmp_path, environ)}
        assert rows["collector.webhook"] == shown


def test_keys_are_looked_for_where_the_settings_have_them(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir(mode=0o755)
    (tmp_path / "sidestep.toml").write_text(f'[collector]\nkeys = "{folder}"\n')
    assert found(tmp_path)["keys"].change == f"chmod 700 {folder}"


def test_a_disk_without_room_and_a_network_file_system_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checkup, "DISK_BYTES_MIN", 1 << 62)
    monkeypatch.setattr(checkup, "is_network_folder", lambda _: True)
    checks = found(tmp_path)
    assert "make room" in checks["disk"].change
    assert "network file system" in checks["data folder"].seen
    assert checks["data folder"].is_well  # journals go elsewhere
    assert "make room" in checks["journal disk"].change


def test_a_key_that_others_may_read_is_told(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    key = folder / "collector.key"
    key.write_text("x")
    key.chmod(0o644)
    assert found(tmp_path)["keys"].change == f"chmod 600 {key}"
    key.chmod(0o600)
    assert found(tmp_path)["keys"].is_well


def test_a_collector_that_is_announced_and_does_not_answer_is_wrong_and_none_at_all_is_not(tmp_path):
    assert found(tmp_path)["collector"].is_well
    (tmp_path / "collector.json").write_text("{}")
    assert "sidestep up" in found(tmp_path)["collector"].change


def test_another_version_another_clock_and_what_is_not_ready_are_told(tmp_path):
    document = {"pid": 1, "address": "a", "version": "9.9", "now": 1000.0, "not_ready": ["commits fail: x"]}
    checks = found(tmp_path, lambda: document)
    assert "install one version" in checks["collector version"].change
    assert "NTP" in checks["clock"].change
    assert not checks["collector ready"].is_well


def test_an_address_in_use_is_told(tmp_path):
    import socket

    port = free_ports()
    (tmp_path / "sidestep.toml").write_text(f'[collector]\nlisten = "tcp://127.0.0.1:{port}"\n')
    assert found(tmp_path)["address"].is_well
    with socket.create_server(("127.0.0.1", port + 1)):
        assert f"tcp://127.0.0.1:{port + 1}" in found(tmp_path)["address"].seen


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    assert "SIDESTEP_DIR" in found(tmp_path / "data")["data folder"].change
    tmp_path.chmod(0o700)


def test_every_variable_that_the_sources_name_is_known():
    named = set()
    for room in ("trainer_side", "collector", "schemas"):
        for path in (ROOT / room).rglob("*.py"):
            named |= set(re.findall(rf'"({PREFIX}[A-Z_]+[A-Z])"', path.read_text(encoding="utf-8")))
    assert named <= set(VARIABLES)
