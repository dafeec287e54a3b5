"""Keys as text and as files, and who may use them."""

import os
import stat

import pytest

from sidestep_collector.keys import KeyRing, public_of, write_private
from sidestep_schemas.errors import ConfigError, UsageError
from sidestep_schemas.keys import (
    CLIENT_PREFIX,
    COLLECTOR_PREFIX,
    PUBLIC_PREFIX,
    ClientKey,
    parse_key,
    read_client_key,
    read_key_file,
    why_refused,
    write_key,
)


@pytest.fixture
def ring(tmp_path):
    return KeyRing(tmp_path / "keys")


def test_a_key_is_read_back_from_its_text_and_from_its_file(tmp_path):
    key = ClientKey(bytes(range(32)), bytes(range(32, 64)))
    (tmp_path / "k").write_text(f"# for people\n\n{key.text}\n", encoding="ascii")
    assert read_client_key(key.text) == read_client_key(f" {key.text}\n") == read_client_key(tmp_path / "k") == key


@pytest.mark.parametrize("prefix", [COLLECTOR_PREFIX, PUBLIC_PREFIX])
def test_every_byte_of_a_key_survives(prefix):
    for byte in (0, 1, 62, 63, 250, 255):
        assert parse_key(prefix, write_key(prefix, bytes([byte]) * 32), "x") == bytes([byte]) * 32


def test_a_key_does_not_show_its_secret():
    key = ClientKey(b"c" * 32, b"s" * 32)
    assert "ssss" not in repr(key)


@pytest.mark.parametrize("text", ["", "sidestep-key-1:", f"{CLIENT_PREFIX}abc", f"{CLIENT_PREFIX}{'ä' * 86}"])
def test_a_part_of_a_key_is_none_and_is_not_repeated(text):
    with pytest.raises(ConfigError, match=r"no key, or a part of one") as error:
        parse_key(CLIENT_PREFIX, text, "here")
    assert "abc" not in str(error.value)


def test_a_key_of_another_kind_is_told_from_the_right_one():
    with pytest.raises(ConfigError, match=r"a key of another kind \(sidestep-collector-1:\)"):
        read_client_key(write_key(COLLECTOR_PREFIX, b"x" * 32))


def test_a_file_that_is_not_there_or_holds_no_key_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        read_client_key(tmp_path / "nowhere")
    (tmp_path / "two").write_text("a\nb\n", encoding="ascii")
    with pytest.raises(ConfigError, match="holds 2 lines"):
        read_key_file(tmp_path / "two")
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="it is no text"):
        read_key_file(tmp_path / "bytes")


def test_the_first_key_makes_the_collectors_own_and_all_are_private(ring):
    assert not ring.exists
    ring.allow("alice", ring.new("alice"))
    ring.make_local()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [ring.folder, *ring.folder.rglob("*")]}
    assert modes == {"keys": 0o700, "clients": 0o700, "collector.key": 0o600, "local.key": 0o600, "alice.pub": 0o600}


def test_who_is_allowed_is_who_was_and_was_not_revoked(ring):
    keys = {name: ring.new(name) for name in ("alice", "bob")}
    assert ring.allowed() == {}
    for name, key in keys.items():
        ring.allow(name, key)
    assert ring.allowed() == {public_of(key.secret): name for name, key in keys.items()}
    before = ring.signature()
    ring.revoke("alice")
    assert ring.signature() != before
    assert ring.allowed() == {public_of(keys["bob"].secret): "bob"}
    assert [(client.name, client.is_allowed) for client in ring.clients()] == [("alice", False), ("bob", True)]
    again = ring.new("alice")
    ring.allow("alice", again)
    assert ring.allowed()[public_of(again.secret)] == "alice"
    assert public_of(keys["alice"].secret) not in ring.allowed()


def test_a_name_is_given_once_and_a_name_that_nobody_has_is_not_revoked(ring):
    ring.allow("alice", ring.new("alice"))
    with pytest.raises(UsageError, match="revoke it first"):
        ring.new("alice")
    with pytest.raises(UsageError, match="there are: alice"):
        ring.revoke("bob")
    with pytest.raises(UsageError, match="there are: alice"):
        ring.revoke("../clients/alice")


@pytest.mark.parametrize("name", ["", "local", "../x", "/x", "a/b", ".x", "a\0b", "x" * 65, "ä", "a\n"])
def test_a_name_that_is_no_file_name_is_refused(ring, name):
    with pytest.raises(UsageError):
        ring.new(name)
    assert not ring.folder.exists()


def test_the_local_key_stays_unless_the_collectors_own_is_another(ring):
    ring.new("alice")
    ring.make_local()
    first = read_client_key(ring.local)
    ring.make_local()
    assert read_client_key(ring.local) == first
    assert ring.allowed() == {public_of(first.secret): "local"}
    (ring.folder / "collector.key").unlink()
    ring.new("alice")
    ring.make_local()
    assert read_client_key(ring.local).collector == public_of(ring.secret()) != first.collector


def test_a_file_in_the_list_that_is_no_key_allows_nobody_and_hides_nobody(ring):
    key = ring.new("alice")
    ring.allow("alice", key)
    (ring.folder / "clients" / "noise.pub").write_bytes(os.urandom(100))
    assert ring.allowed() == {public_of(key.secret): "alice"}


def test_a_private_file_never_replaces_another(tmp_path):
    write_private(tmp_path / "k", "one")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "k", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["k"]
    assert (tmp_path / "k").read_text() == "one"


@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.parametrize("failure", ["key", "mechanism", "silence"])
def test_every_refusal_names_the_collector(failure, has_key):
    assert "tcp://h:1" in why_refused("tcp://h:1", failure, has_key=has_key)
