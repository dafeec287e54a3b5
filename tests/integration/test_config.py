"""Settings of a collector: file, environment, flags; what cannot be used is named all at once."""

import pytest

from sidestep_collector.config import Config, load
from sidestep_schemas.errors import ConfigError


@pytest.fixture
def folder(place):
    place.root.mkdir()
    return place.root


def test_flags_come_before_the_environment_and_that_before_the_file(folder):
    (folder / "sidestep.toml").write_text("[collector]\nflush_seconds = 3\nflush_points = 7\nidle_exit = 9\n")
    environ = {"SIDESTEP_COLLECTOR_FLUSH_SECONDS": "4", "SIDESTEP_COLLECTOR_FLUSH_POINTS": "8"}
    config = load(folder, {"flush_seconds": "5", "flush_points": None}, environ)
    assert (config.flush_seconds, config.flush_points, config.idle_exit) == (5.0, 8, 9.0)


def test_without_settings_there_are_defaults_and_an_address_of_the_folder(folder):
    config = load(folder, {}, {"SIDESTEP_COLLECTOR": "tcp://127.0.0.1:1", "SIDESTEP_DIR": "/x"})
    assert config == Config()
    assert config.address(folder).startswith("ipc://")


def test_all_that_is_wrong_is_named_at_once_with_where_it_stands(place, folder):
    (folder / "sidestep.toml").write_text("[collector]\nflash_seconds = 3\n[trainer]\na = 1\n")
    done = place.sidestep("up", "--flush-points", "none", SIDESTEP_COLLECTOR_IDLE_EXIT="-1")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("sidestep: settings that cannot be used: ")
    for word in ("flash_seconds", "sidestep.toml", "trainer", "idle_exit (environment)", "flush_points (command line)"):
        assert word in line
    assert not (folder / "store").exists()


@pytest.mark.parametrize("content", ["collector = 3", "[collector", "\x00", "[collector]\nlisten = 3"])
def test_a_file_that_cannot_be_meant_is_one_error(folder, content):
    (folder / "sidestep.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"sidestep\.toml"):
        load(folder, {}, {})


def test_a_flag_that_is_none_ends_with_2(place):
    done = place.sidestep("up", "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_file_is_taken_by_a_collector_that_is_started(place, folder):
    (folder / "sidestep.toml").write_text(f'[collector]\nlisten = "ipc://{folder}/s"\n')
    assert place.up()["address"] == f"ipc://{folder}/s"
