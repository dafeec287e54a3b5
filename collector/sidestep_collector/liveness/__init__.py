"""Whether trainings live: who fell silent, who hangs, and what is known of those that ended otherwise than well.

Looks at frames' arrival, at records as they pass, and at processes and cgroups of this host. Never at a socket or the
store: what it finds it hands to the pipeline.
"""

from sidestep_collector.liveness.vigil import RUNNING, News, Vigil

__all__ = ["RUNNING", "News", "Vigil"]
