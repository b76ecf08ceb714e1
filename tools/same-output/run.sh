#!/usr/bin/env bash
# Builds a commit and the working tree, and compares what the two write: tools/same-output/run.sh COMMIT
# [OPTIONS OF run.py]
set -euo pipefail
cd "$(dirname "$0")/../.."
commit=$1
shift
base=${MIXBIT_BASE_BUILD:-target/same-output}
if [ ! -d "$base" ]; then
    git worktree add --quiet --detach "$base" "$commit"
fi
git -C "$base" checkout --quiet --detach "$commit"
(cd "$base" && cargo build --release --locked --package mixbit)
cargo build --release --locked --package mixbit
python3 tools/same-output/run.py "$base/target/release/mixbit" target/release/mixbit --fixtures "$base/fixtures" "$@"
