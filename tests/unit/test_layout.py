"""Where things lie, and what an address stands for."""

import os
from pathlib import Path

import pytest

from sidestep_schemas.errors import AddressError
from sidestep_schemas.layout import data_dir, default_address, endpoints, journal_roots, run_dir, safe_name


def test_the_data_folder_is_what_is_given_else_the_variable_else_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_dir() == tmp_path / "sidestep-data"
    monkeypatch.setenv("SIDESTEP_DIR", "elsewhere")
    assert data_dir() == tmp_path / "elsewhere"
    assert data_dir("given") == tmp_path / "given"
    assert data_dir("~/x") == Path.home() / "x"


def test_names_that_are_no_folder_names_are_changed_and_stay_apart():
    assert safe_name("run-1.a=b+c") == "run-1.a=b+c"
    changed = [safe_name(name) for name in ("", ".", "..", "a/b", "a_b", "a b", ".hidden", "x" * 81, "\udcff")]
    assert len(set(changed)) == len(changed)
    assert not any("/" in name or name.startswith(".") for name in changed)


def test_a_run_lies_under_its_project():
    assert run_dir(Path("/d"), "p", "r") == Path("/d/runs/p/r")


def test_every_data_folder_has_an_address_that_fits_a_socket():
    one, other = default_address(Path("/a")), default_address(Path("/b"))
    assert one != other
    assert default_address(Path("/a")) == one
    assert len(endpoints(one).control) < 104


def test_a_folder_whose_name_is_no_text_has_an_address_and_journals():
    folder = Path(os.fsdecode(b"/data/\xff"))
    assert default_address(folder).startswith("ipc://")
    assert journal_roots(folder)[0] == folder / "journal"


def test_an_address_stands_for_three_sockets():
    assert endpoints("ipc:///a/b") == ("ipc:///a/b.data", "ipc:///a/b.ack", "ipc:///a/b.control")
    assert endpoints("tcp://h:1") == ("tcp://h:1", "tcp://h:2", "tcp://h:3")


@pytest.mark.parametrize(
    "address",
    ["", "ipc://", "tcp://", "tcp://:5", "tcp://h", "tcp://h:0", "tcp://h:65534", "tcp://h:x", "http://h:5", "h:5"],
)
def test_what_is_no_address_is_refused_with_both_forms(address):
    with pytest.raises(AddressError, match=r"write ipc:///path/of/socket or tcp://host:port"):
        endpoints(address)


def test_a_socket_path_that_is_too_long_is_refused():
    with pytest.raises(AddressError, match="at most 90 characters"):
        endpoints("ipc:///" + "x" * 90)
