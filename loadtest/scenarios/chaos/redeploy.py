"""Fault that redeploys the application again and again, as routine work does."""

from __future__ import annotations

import time

from loadtest.measure.service import TIMEOUT_S
from loadtest.scenarios.chaos.fault import Allowed, Fault
from loadtest.targets.running import Target

# Number of redeploys in a row, and the pause after each.
TIMES, PAUSE_S = 5, 2.0


class Redeploy(Fault):
    """Fault that changes a setting in `args` five times; each change is complete before the next.

    Only missing answers and answers other than 200 count as failures. Latency has no limit, because
    the start of new replicas delays requests on a small machine. The report's p99 shows this.
    """

    name, what = "redeploy", f"{TIMES} redeploys"
    allowed = Allowed(failed_share=0.0, first="none")
    watch_s, timeout_s = 5.0, TIMEOUT_S

    def inject(self, target: Target) -> None:
        """Keep the log for one day longer, five times."""
        for _ in range(TIMES):
            document = target.document()
            arguments = document["applications"][0]["args"]
            arguments["keep_log_days"] = int(arguments.get("keep_log_days", 30)) + 1
            target.deploy(document)
            time.sleep(PAUSE_S)
