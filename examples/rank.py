"""The Python client: add two rooms, rank them for a viewer, send an event of the viewer.

Start the service with `make up`, then run `.venv/bin/python examples/rank.py [URL]`.
"""

import sys
import time

from serve.client import Candidate, Client, Event


def main(url: str) -> None:
    """Call each method of the client once, on the service at `url`."""
    now_ms = time.time_ns() // 1_000_000
    rooms = {"example-jazz": "jazz", "example-news": "news"}
    # The default timeout of a ranking is 250 ms: a page does not wait longer.
    with Client(url, timeout_s=1.0) as client:
        # The fields are those of the surface `spaces`; a field that is not named is missing.
        sent = [
            Candidate(id=room, fields={"topic": topic, "started_ms": now_ms}, ends_ms=now_ms + 60_000)
            for room, topic in rooms.items()
        ]
        print(client.send(sent))
        # A change reaches the rankings within a second.
        time.sleep(1.0)
        # Live traffic counts each candidate in the answer, `limit` of them, as an impression.
        # Test traffic counts none, and training ignores it. The candidates and the event are real
        # records: do not run this on a production service.
        answer = client.rank("example-viewer", list(rooms), limit=2, traffic="test")
        for ranked in answer.ranking:
            print(ranked.position, ranked.candidate, ranked.score)
        # The id makes a retry harmless; the request_id says which ranking showed the room.
        join = Event(
            id=f"example-{now_ms}-join",
            kind="join",
            viewer="example-viewer",
            candidate=answer.ranking[0].candidate,
            request_id=answer.request_id,
        )
        print(client.send([join]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
