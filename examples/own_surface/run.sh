#!/usr/bin/env bash
# A surface of your own, from CSV files to a ranking: train, serve, rank, stop. After `make install`
# run `examples/own_surface/run.sh`; it works in var/own-surface, which it replaces, for two minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export PATH="$root/.venv/bin:$PATH" RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}"
rm -rf "$root/var/own-surface"
mkdir -p "$root/var/own-surface"
cd "$root/var/own-surface"

# Your data: four tables. Replace both scripts by an export of your own.
python "$here/make_csv.py" csv
python "$here/csv_to_log.py" csv log

# A draft of the surface, with its reasons: review it. `training search` finds better networks.
python -m training surface --log log --name bakery --out bakery.toml
python -m training fit --surface bakery.toml --log log --out model --epochs 3
python -m training publish --model model --models models

# The shipped cluster.yaml with this surface, its store, models and log.
python -m serve load --surface bakery.toml --log log --store lmdb:store
sed -e 's/surface: spaces/surface: bakery.toml/' -e 's#lmdb:var/store#lmdb:store#' \
    -e 's#models: var/models#models: models#' -e 's#log: var/log#log: log#' "$root/cluster.yaml" >cluster.yaml
python -m serve check
trap 'python -m serve down' EXIT
python -m serve up

curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' \
    --data '{"viewer": "v1", "candidates": ["p1", "p2", "p3", "p4", "p5"], "traffic": "test"}' \
    http://127.0.0.1:8000/v1/rank
echo
