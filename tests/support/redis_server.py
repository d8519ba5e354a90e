"""Redis (or Valkey) server for tests, on a free port of 127.0.0.1, with its own folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

MISSING = "redis-server is missing: run `apt-get install redis-server`"
START_S = 20.0


def find_server() -> str | None:
    """Return the path of the server program, or None if it is not installed."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """Server that can be stopped and started again on the same port, with its persisted data."""

    def __init__(self, folder: Path, *settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder), "--save", "")
        settings += ("--appendonly", "yes", "--daemonize", "no", *self._settings)
        program = find_server()
        assert program is not None, MISSING
        log = self._folder / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen([program, *settings], stdout=output, stderr=output)
        end = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{program} did not start:\n{log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server as a service manager does."""
        self._end("terminate")

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        self._end("kill")

    def _end(self, how: str) -> None:
        process, self.process = self.process, None
        if process is not None:
            getattr(process, how)()
            process.wait(30)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
