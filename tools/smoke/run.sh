#!/bin/sh
# Measures a UNet of Stable Diffusion 1.5's size with random weights, and fails if its step reaches less than
# a quarter of the peak that was measured in the same run: a ratio, so that the machine's speed doesn't
# matter. Takes 2.1 GB of disk.
set -eu
cd "$(dirname "$(realpath "$0")")/../.."
target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release --package mixbit
mkdir -p "$target/smoke"
"$target/release/mixbit" bench --synthetic sd15 --size 256x256 --only unet --runs 3 --quiet --json \
    --cache "$target/smoke" >"$target/smoke/bench.json"
python3 - "$target/smoke/bench.json" <<'PYTHON'
import json
import sys

parts = json.load(open(sys.argv[1]))["parts"]
share = parts[0]["of_peak"]
print(f"the UNet's step reaches {100 * share:.0f} % of the measured peak")
sys.exit(0 if share >= 0.25 else "error: that is less than 25 %")
PYTHON
