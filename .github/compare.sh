#!/usr/bin/env bash
# Markdown that says what differs between a commit and the workspace: bash .github/compare.sh main
# The commit's numbers are those in DVC's cache: `dvc fetch --all-branches` brings what was pushed.
set -euo pipefail

differing() {  # what DVC calls it, and a heading
  local table
  table=$(dvc "$1" diff --md "$base")
  [ "$(wc -l <<<"$table")" -gt 2 ] || table="None differ."  # a head and a line below it
  printf '\n### %s\n\n%s\n' "$2" "$table"
}

base=$1
echo "## Results against $base"
differing metrics Numbers
differing params Parameters
