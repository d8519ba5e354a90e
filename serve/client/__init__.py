"""The Python client of a tabrank service: `docs/client.md`. It imports neither Ray nor numpy."""

from serve.client.clients import AsyncClient, Client
from serve.client.errors import ClientError, Refused, TimedOut, Unreachable

__all__ = ["AsyncClient", "Client", "ClientError", "Refused", "TimedOut", "Unreachable"]
