"""Receiving: the sockets, and what is known of each stream. Never looks into a record."""

from sidestep_collector.receive.address import reaches_out
from sidestep_collector.receive.registry import Registry, StreamState
from sidestep_collector.receive.sockets import Arrivals, Sockets, Waker

__all__ = ["Arrivals", "Registry", "Sockets", "StreamState", "Waker", "reaches_out"]
