#!/usr/bin/env bash
# Use the HTTP API with curl: add two rooms, rank them for a viewer, send an event of the viewer.
# Start the service with `make up`, then run `examples/rank.sh [URL]`.
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
now_ms=$(date +%s%3N)
ends_ms=$((now_ms + 60000))
ranking="example-$now_ms"

post() { # PATH JSON
    curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' --data "$2" "$url$1"
    echo
}

# The fields are those of the surface `spaces`. A field that is not named counts as missing.
post /v1/events '{"records": [
    {"type": "candidate", "id": "example-jazz", "ends_ms": '$ends_ms',
     "fields": {"topic": "jazz", "language": "en", "speakers": 3, "started_ms": '"$now_ms"'}},
    {"type": "candidate", "id": "example-news", "ends_ms": '$ends_ms',
     "fields": {"topic": "news", "language": "en", "speakers": 8, "started_ms": '"$now_ms"'}}]}'

# Rankings know a new candidate within a second.
sleep 1

# Every room in an answer counts as shown, unless the request says that its traffic is "test".
# Training ignores such requests. The two rooms and the event below are real records, so do not run
# this example on a production service.
post /v1/rank '{"viewer": "example-viewer", "candidates": ["example-jazz", "example-news"],
    "limit": 2, "request_id": "'"$ranking"'", "traffic": "test"}'

# An event with an id that the service knows is ignored, so it is safe to send it again. The
# request_id says which ranking showed the room.
post /v1/events '{"records": [
    {"type": "event", "id": "'"$ranking"'-join", "kind": "join", "viewer": "example-viewer",
     "candidate": "example-jazz", "request_id": "'"$ranking"'"}]}'
