"""A run's settings and its end for TensorBoard's hparams page: one session for each attempt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from sidestep_collector.sinks import summaries
from sidestep_collector.sinks.protos import protos

# Tags and enumeration of tensorboard/plugins/hparams/{metadata.py,api.proto}.
_START_TAG: Final = "_hparams_/session_start_info"
_END_TAG: Final = "_hparams_/session_end_info"
_STATUS_SUCCESS: Final = 1
_STATUS_FAILURE: Final = 2

#: A setting longer than this is cut: the page is a table.
_CHARACTERS: Final = 1000


def session_start(run: str, config: Mapping[str, Any], seconds: float) -> Any:
    """The start of a session with its settings. Sessions of one run are one group."""
    data = protos().HParamsPluginData()
    data.session_start_info.group_name = run
    data.session_start_info.start_time_secs = seconds
    for name, value in flat(config):
        if isinstance(value, bool):
            data.session_start_info.hparams[name].bool_value = value
        elif isinstance(value, float):
            data.session_start_info.hparams[name].number_value = value
        else:
            data.session_start_info.hparams[name].string_value = value
    return _value(_START_TAG, data)


def session_end(status: object, seconds: float) -> Any:
    """The end of a session. `status` as an end event says it."""
    data = protos().HParamsPluginData()
    data.session_end_info.status = _STATUS_SUCCESS if status is None or status == "finished" else _STATUS_FAILURE
    data.session_end_info.end_time_secs = seconds
    return _value(_END_TAG, data)


def parsed(config: str) -> Mapping[str, Any] | None:
    """Settings from JSON; None where it is no JSON object."""
    try:
        return msgspec.json.decode(config, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Settings by their path (`optimizer/lr`). Lists and null are written as JSON; numbers that JSON has not,
    as text."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            inner = cast("Mapping[str, Any]", value)
            yield from flat(inner, f"{name}/")
        elif isinstance(value, bool):
            yield name, value
        elif isinstance(value, int | float) and _is_number(value):
            yield name, float(value)
        else:
            yield name, _written(value)


def _is_number(value: float) -> bool:
    # An integer that float64 cannot hold is kept as text, exact.
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= 2**53


def _written(value: object) -> str:
    if isinstance(value, str | float):
        return str(value)[:_CHARACTERS]
    return msgspec.json.encode(value, enc_hook=str).decode()[:_CHARACTERS]


def _value(tag: str, data: Any) -> Any:
    return summaries.with_metadata(tag, "hparams", data.SerializeToString(), summaries.nothing())
