#!/bin/bash
# Runs every built fuzz target for a while on a copy of its corpus; fails when one finds a crash, a hang or a leak.
# Usage: run_all.sh [BUILD_FOLDER [SECONDS_EACH [TARGET...]]]     default: build/fuzz, 30 seconds, all targets
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$here/../../build/fuzz}
seconds=${2:-30}
[ $# -gt 2 ] && targets=("${@:3}") || targets=()

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
count=0
for binary in "$build"/tests/fuzz/*_fuzz; do
  [ -x "$binary" ] || continue
  name=$(basename "$binary")
  if [ ${#targets[@]} -gt 0 ] && [[ " ${targets[*]} " != *" $name "* ]]; then continue; fi
  count=$((count + 1))
  mkdir -p "$work/$name/corpus" "$work/$name/found"
  [ -d "$here/corpus/$name" ] && cp -r "$here/corpus/$name/." "$work/$name/corpus/"
  dictionary=()
  [ -f "$here/corpus/$name.dict" ] && dictionary=("-dict=$here/corpus/$name.dict")
  if "$binary" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -max_len=8192 -print_final_stats=1 \
      -artifact_prefix="$work/$name/found/" "${dictionary[@]}" "$work/$name/corpus" >"$work/$name/log" 2>&1; then
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$name/log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$work/$name/log")
    coverage=$(grep -o 'cov: [0-9]*' "$work/$name/log" | tail -1)
    echo "$name: ${executed:-0} runs in $seconds s, ${coverage:-cov: ?}, peak ${peak:-?} MB, no crash"
  else
    failed=1
    echo "$name: FAILED"
    tail -40 "$work/$name/log"
    for artifact in "$work/$name/found/"*; do
      [ -f "$artifact" ] || continue
      kept=$build/$(basename "$name")-$(basename "$artifact")
      cp "$artifact" "$kept"
      echo "the input is kept in $kept"
    done
  fi
done
if [ $count -eq 0 ]; then
  echo "no fuzz targets in $build/tests/fuzz; build them with: cmake --preset fuzz && cmake --build --preset fuzz"
  exit 1
fi
exit $failed
