#!/usr/bin/env bash
# Runs the checks of a change, up to the first that fails: `.ci/check.sh quick`, or `full` with those that
# take hours. `.ci/run` and `.ci/full` are these two as CI; `cargo xtask check` and `cargo xtask check --full`
# run them by hand. A check that lacks a program exits with 69. In CI (CI=true) that is a failure; elsewhere
# it is reported at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tier=${1:-quick}
not_run=()

if ! cargo --version >/dev/null 2>&1; then
    rustup toolchain install "$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)" --profile minimal \
        --component clippy,rustfmt
fi

# The screens of commands are tested in tmux.
if [ "${CI:-}" = true ] && ! command -v tmux >/dev/null; then
    sudo=$(command -v sudo || true)
    $sudo apt-get update -qq && $sudo apt-get install -qq -y --no-install-recommends tmux >/dev/null
fi

# check NAME COMMAND...: runs one check and prints its time.
check() {
    local name=$1 status=0 start=$SECONDS
    shift
    echo "--- $name: $*"
    "$@" || status=$?
    if [ "$status" = 69 ] && [ "${CI:-}" != true ]; then
        not_run+=("$name")
        echo "--- $name: NOT RUN, see above"
    elif [ "$status" != 0 ]; then
        echo "--- $name: FAILED after $((SECONDS - start)) s with status $status; to repeat it: $*" >&2
        exit 1
    else
        echo "--- $name: passed in $((SECONDS - start)) s"
    fi
}

# Runs xtask with the crates that the tests use. `cargo xtask` selects one package, which builds others of its
# own.
xtask() {
    cargo build --quiet --workspace --bin xtask && "${CARGO_TARGET_DIR:-target}/debug/xtask" "$@"
}

# Runs each example of the package `mixbit-examples`, as `cargo test --workspace` built it.
examples() {
    local target=${CARGO_TARGET_DIR:-target}
    local run=$target/debug/examples
    "$run/draw" "$target/draw.png" &&
        "$run/run_package" fixtures/coreml/encodings/ios16_palette4.mlpackage &&
        "$run/palettize_layer" &&
        "$run/backend"
}

quick() {
    check "formatting" cargo fmt --all --check
    check "workflows" tools/workflows/run.sh
    check "rules" xtask rules
    check "lints" cargo clippy --workspace --all-targets -- -D warnings
    # The README's test command; it includes the examples in the documentation.
    check "tests" cargo test --workspace
    check "examples" examples
    check "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    check "packages for the registry" xtask package
    check "fuzz corpora" fuzz/run.sh replay
    check "wheel" tools/wheel/run.sh
    check "kernels on Arm" tools/qemu/run.sh
    check "conformance with coremltools" tools/conformance/run.sh
}

full() {
    check "licences, bans and sources" tools/deny/run.sh
    check "packages compiled as published" xtask package --verify
    check "fuzzing" fuzz/run.sh 30
    check "performance smoke test" tools/smoke/run.sh
    check "the demo model's drawings" cargo run --quiet --release --package xtask -- demo-eval
}

case $tier in
    quick) quick ;;
    full) quick && full ;;
    *)
        echo "usage: .ci/check.sh quick|full" >&2
        exit 2
        ;;
esac
if [ ${#not_run[@]} -gt 0 ]; then
    printf 'not run: %s\n' "${not_run[@]}"
fi
echo "--- all passed in $SECONDS s"
