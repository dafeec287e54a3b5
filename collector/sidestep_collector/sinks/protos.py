"""TensorBoard's own message classes, loaded when the first one is needed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final

_CLASSES: Final = {
    "tensorboard.compat.proto.event_pb2": ("Event",),
    "tensorboard.compat.proto.summary_pb2": ("Summary", "SummaryMetadata", "HistogramProto"),
    "tensorboard.compat.proto.tensor_pb2": ("TensorProto",),
    "tensorboard.plugins.custom_scalar.layout_pb2": ("Layout",),
    "tensorboard.plugins.hparams.plugin_data_pb2": ("HParamsPluginData",),
}


@cache
def protos() -> Any:
    """A namespace with the classes. Only generated modules are imported: 25 ms, no web server, no pandas."""
    return SimpleNamespace(
        **{name: getattr(import_module(module), name) for module, names in _CLASSES.items() for name in names}
    )
