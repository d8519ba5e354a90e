"""Python client of a tabrank service, documented in `docs/client.md`.

It may import `contract`, but neither Ray nor numpy. The distribution `tabrank-client` has it as
`tabrank_client`.
"""

from serve.client.clients import AsyncClient, Client
from serve.client.errors import ClientError, Refused, TimedOut, Unreachable
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankAnswer, StatedCandidate
from serve.contract.records import Candidate, Event, EventsAnswer, Forget, Viewer

__all__ = ["AsyncClient", "Candidate", "Client", "ClientError", "Event", "EventsAnswer", "Forget"]
__all__ += ["RankAnswer", "Refused", "StatedCandidate", "TabrankError", "TimedOut", "Unreachable", "Viewer"]
