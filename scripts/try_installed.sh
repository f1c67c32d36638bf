#!/usr/bin/env bash
# Use an installed Branchwork as a newcomer would, in this folder: bash scripts/try_installed.sh PATH/TO/branchwork
set -euo pipefail
branchwork=$1
"$branchwork" doctor
"$branchwork" demo --data sample
"$branchwork" export runs/demo/sample/residual --to html --out page.html
grep -q "</html>" page.html
"$branchwork" ui runs/demo/sample/residual --no-browser --port 8642 &
page=$!
trap 'kill "$page" 2>/dev/null || true' EXIT
for _ in $(seq 120); do
  if curl --silent --fail http://127.0.0.1:8642/ | grep -q "</html>"; then
    echo "the page answers"
    exit 0
  fi
  sleep 0.5
done
echo "the page does not answer" >&2
exit 1
