"""What the collector tells operators' tools over HTTP: whether it lives, whether it is ready, and its figures.

A thread of its own that reads the same document as `sidestep status`; it never touches sockets, records or the store.
"""

from sidestep_collector.serve.endpoint import Endpoint

__all__ = ["Endpoint"]
