"""Where data goes: each sink takes a batch and writes it in one form. A sink knows no other stage."""

from sidestep_collector.sinks.epoch_json import EpochJsonSink
from sidestep_collector.sinks.tensorboard import TensorBoardSink

__all__ = ["EpochJsonSink", "TensorBoardSink"]
