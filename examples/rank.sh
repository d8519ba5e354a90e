#!/usr/bin/env bash
# The HTTP API with curl: add two rooms, rank them for a viewer, send an event of the viewer.
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

# The fields are those of the surface `spaces`; a field that is not named is missing.
post /v1/events '{"records": [
    {"type": "candidate", "id": "example-jazz", "ends_ms": '$ends_ms',
     "fields": {"topic": "jazz", "language": "en", "speakers": 3, "started_ms": '"$now_ms"'}},
    {"type": "candidate", "id": "example-news", "ends_ms": '$ends_ms',
     "fields": {"topic": "news", "language": "en", "speakers": 8, "started_ms": '"$now_ms"'}}]}'

# A change reaches the rankings within a second.
sleep 1

# Live traffic counts each candidate in the answer, `limit` of them, as an impression. Test traffic
# counts none, and training ignores it. The candidates and the event are real records: do not run
# this on a production service.
post /v1/rank '{"viewer": "example-viewer", "candidates": ["example-jazz", "example-news"],
    "limit": 2, "request_id": "'"$ranking"'", "traffic": "test"}'

# The id makes a retry harmless; the request_id says which ranking showed the room.
post /v1/events '{"records": [
    {"type": "event", "id": "'"$ranking"'-join", "kind": "join", "viewer": "example-viewer",
     "candidate": "example-jazz", "request_id": "'"$ranking"'"}]}'
