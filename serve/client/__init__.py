"""Python client of a tabrank service, documented in `docs/client.md`.

It may import `contract`, but neither Ray nor numpy.
"""

from serve.client.clients import AsyncClient, Client
from serve.client.errors import ClientError, Refused, TimedOut, Unreachable

__all__ = ["AsyncClient", "Client", "ClientError", "Refused", "TimedOut", "Unreachable"]
