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

# Your data, a row for each candidate shown. Replace the script by an export of your own.
python "$here/make_csv.py" rows.csv
python -m training import csv --source rows.csv --out log --viewer customer --candidate pastry \
    --time at --event order

# A draft of the surface and its cluster.yaml: review it. `training search` finds better networks.
python -m training surface --log log --name bakery --out my
python -m training fit --surface my/surface.toml --log log --out model --epochs 3
python -m training publish --model model --models my/models

python -m serve load --surface my/surface.toml --log log --store lmdb:my/store
trap 'python -m serve down' EXIT
python -m serve up my/cluster.yaml

curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' \
    --data @my/request.json http://127.0.0.1:8000/v1/rank
echo
