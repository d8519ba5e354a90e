"""Use the Python client: add two rooms, rank them for a viewer, and send an event of the viewer.

Start the service with `make up`, then run `.venv/bin/python examples/rank.py [URL]`.
"""

import sys
import time

from serve.client import Candidate, Client, Event


def main(url: str) -> None:
    """Call each method of the client once, on the service at `url`."""
    now_ms = time.time_ns() // 1_000_000
    rooms = {"example-jazz": "jazz", "example-news": "news"}
    # The default timeout of a ranking is 250 ms, because a page should not wait longer. An example
    # may take its time.
    with Client(url, timeout_s=1.0) as client:
        # The fields are those of the surface `spaces`. A field that is not named counts as missing.
        sent = [
            Candidate(id=room, fields={"topic": topic, "started_ms": now_ms}, ends_ms=now_ms + 60_000)
            for room, topic in rooms.items()
        ]
        print(client.send(sent))
        # Rankings know a new candidate within a second.
        time.sleep(1.0)
        # Every room in an answer counts as shown, unless the request says that its traffic is
        # "test". Training ignores such requests. The two rooms and the event below are real
        # records, so do not run this example on a production service.
        answer = client.rank("example-viewer", list(rooms), limit=2, traffic="test")
        for ranked in answer.ranking:
            print(ranked.position, ranked.candidate, ranked.score)
        # An event with an id that the service knows is ignored, so it is safe to send it again. The
        # request_id says which ranking showed the room.
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
