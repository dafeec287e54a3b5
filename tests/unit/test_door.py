"""Being let in or not, over real sockets: the drain thread of a trainer against the sockets of a collector."""

import dataclasses

import pytest
from support.journals import IDENTITY, log
from support.place import free_ports
from support.stand_in import until

from sidestep import door as trainers_door
from sidestep.journal import Journal
from sidestep.push import Pusher
from sidestep_collector.keys import KeyRing
from sidestep_collector.receive import Sockets
from sidestep_collector.receive import door as collectors_door
from sidestep_schemas.keys import ClientKey


class Gate:
    """A collector's sockets that ask for keys, and pushers that knock. Everything moves while `until` waits."""

    def __init__(self, folder):
        self.ring = KeyRing(folder / "keys")
        self.ring.new("first")
        self.folder = folder
        self.address = f"tcp://127.0.0.1:{free_ports()}"
        self.sockets = Sockets(self.address, b"b" * 16, ring=self.ring)
        self.greeted = []
        self.frames = 0
        self.pushers = []

    def key(self, name):
        key = self.ring.new(name)
        self.ring.allow(name, key)
        return key

    def knock(self, stream, key):
        identity = dataclasses.replace(IDENTITY, stream=stream)
        journal = Journal(self.folder / stream.hex() / "stream", identity)
        pusher = Pusher(journal, self.address, key=key)
        pusher.start()
        log(journal)
        self.pushers.append(pusher)
        return pusher

    def until(self, condition):
        def move():
            arrivals = self.sockets.wait(0.005, read=True)
            self.greeted += arrivals.greetings
            while self.sockets.frame() is not None:
                self.frames += 1
            return condition()

        return until(move)

    def close(self):
        for pusher in self.pushers:
            assert pusher.stop(20.0)
            pusher.journal.close(delivered=True)
        self.sockets.close()


@pytest.fixture
def gate(tmp_path, monkeypatch):
    monkeypatch.setattr(trainers_door, "_AGAIN_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(collectors_door, "_LOOK_SECONDS", 0.0)
    made = Gate(tmp_path)
    yield made
    made.close()


def test_a_key_that_is_allowed_is_let_in(gate):
    pusher = gate.knock(b"s" * 8, gate.key("alice"))
    gate.until(lambda: gate.greeted == [b"s" * 8] and gate.frames)
    assert pusher.delivery.refused == ""
    assert gate.sockets.access() == {"allowed": ["alice", "local"], "refused": 0}


def test_a_key_that_is_not_on_the_list_is_refused_until_it_is(gate, caplog):
    key = gate.ring.new("alice")
    pusher = gate.knock(b"s" * 8, key)
    gate.until(lambda: pusher.delivery.refused)
    assert "does not allow this key" in pusher.delivery.refused
    gate.until(lambda: gate.sockets.access()["refused"] >= 6)  # it tries again by itself
    assert (gate.greeted, gate.frames) == ([], 0)
    assert caplog.text.count("does not allow this key") == 1
    gate.ring.allow("alice", key)
    gate.until(lambda: gate.greeted and gate.frames)
    until(lambda: pusher.delivery.refused == "")


def test_without_a_key_nothing_gets_in_and_it_is_said_once(gate, caplog):
    pusher = gate.knock(b"s" * 8, None)
    gate.until(lambda: pusher.delivery.refused)
    assert "key" in pusher.delivery.refused
    assert not pusher.wait(1, 3600.0)  # returns at once
    assert (gate.greeted, gate.frames) == ([], 0)
    assert caplog.text.count("nothing is shipped") == 1


def test_a_key_of_another_collector_gets_nothing_in(gate):
    stranger = KeyRing(gate.folder / "others")
    key = gate.key("alice")
    pusher = gate.knock(b"s" * 8, ClientKey(stranger.new("x").collector, key.secret))
    gate.until(lambda: pusher.delivery.refused)
    assert "does not fit the collector" in pusher.delivery.refused
    assert (gate.greeted, gate.frames, gate.sockets.access()["refused"]) == ([], 0, 0)


def test_who_is_revoked_is_cut_and_who_is_not_is_back(gate):
    stays = gate.knock(b"a" * 8, gate.key("alice"))
    goes = gate.knock(b"b" * 8, gate.key("bob"))
    gate.until(lambda: {b"a" * 8, b"b" * 8} == gate.sockets.listeners and gate.frames >= 2)
    gate.greeted.clear()
    gate.ring.revoke("bob")
    gate.until(lambda: goes.delivery.refused and gate.greeted)
    assert set(gate.greeted) == {b"a" * 8}
    assert gate.sockets.listeners == {b"a" * 8}
    assert stays.delivery.refused == ""
    assert "does not allow this key" in goes.delivery.refused


def test_revoking_a_key_that_nobody_uses_cuts_nobody(gate):
    gate.knock(b"a" * 8, gate.key("alice"))
    gate.key("bob")
    gate.until(lambda: gate.greeted and gate.frames)
    gate.greeted.clear()
    gate.ring.revoke("bob")
    gate.until(lambda: gate.sockets.access()["allowed"] == ["alice", "local"])
    gate.key("carol")
    gate.until(lambda: "carol" in gate.sockets.access()["allowed"])
    assert gate.greeted == []
    assert gate.sockets.listeners == {b"a" * 8}


def test_the_tries_of_who_is_refused_become_rarer(monkeypatch):
    monkeypatch.setattr(trainers_door, "_AGAIN_SECONDS", (1.0, 30.0))
    now = [0.0]
    monkeypatch.setattr(trainers_door.time, "monotonic", lambda: now[0])
    door = trainers_door.Door("tcp://127.0.0.1:1", None)
    waits = []
    for _ in range(7):
        door._leave()
        waits.append(door._again_at - now[0])
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
