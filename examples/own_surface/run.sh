#!/usr/bin/env bash
# Go from a CSV file to a ranking on a surface of your own: import the file, draft the surface,
# train, serve, rank, and stop the service. Run this after `make install`. It takes two minutes and
# writes to var/own-surface, which it empties first. docs/features.md explains the surface.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export PATH="$root/.venv/bin:$PATH" RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}"
rm -rf "$root/var/own-surface"
mkdir -p "$root/var/own-surface"
cd "$root/var/own-surface"

# The CSV file has one row for each candidate that was shown. Use an export of your own instead of
# this script.
python "$here/make_csv.py" rows.csv
python -m training import csv --source rows.csv --out log --viewer customer --candidate pastry \
    --time at --event order

# The first command drafts the surface and its cluster.yaml. Review the draft if the data is your
# own. `training search` finds better networks than `fit`, but takes longer.
python -m training surface --log log --name bakery --out my
python -m training fit --surface my/surface.toml --log log --out model --epochs 3
python -m training publish --model model --models my/models

python -m serve load --surface my/surface.toml --log log --store lmdb:my/store
trap 'python -m serve down' EXIT
python -m serve up my/cluster.yaml

curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' \
    --data @my/request.json http://127.0.0.1:8000/v1/rank
echo
