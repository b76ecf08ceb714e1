#!/bin/sh
# Runs every fuzz target: `replay` runs its seeds once each, on stable Rust; a number fuzzes each target for
# so many seconds, with cargo-fuzz. Exits with 69 if a C++ compiler or cargo-fuzz is missing.
set -eu
cd "$(dirname "$(realpath "$0")")"
mode=${1:?replay, or the seconds for each target}
targets=$(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | grep -v '^mixbit-fuzz$')

if ! command -v c++ >/dev/null; then
    echo "error: libFuzzer needs a C++ compiler" >&2
    exit 69
fi

# The seeds of a target. Those of `config` are the configurations that the repository has elsewhere.
seeds() {
    if [ "$1" = config ]; then
        find ../fixtures ../crates ../models -name '*config.json' 2>/dev/null
    else
        find "corpus/$1" -type f
    fi
}

replay() {
    target=${CARGO_TARGET_DIR:-../target}/fuzz
    cargo build --quiet --target-dir "$target"
    for name in $targets; do
        log=$target/$name.log
        # libFuzzer ends with an error at the first seed that crashes, or that takes 60 s.
        if ! seeds "$name" | xargs "$target/debug/$name" -timeout=60 >"$log" 2>&1; then
            tail -n 50 "$log" >&2
            echo "error: a seed of the fuzz target $name failed" >&2
            exit 1
        fi
        echo "$name: $(seeds "$name" | wc -l) seeds"
    done
}

fuzz() {
    if ! cargo fuzz --version >/dev/null 2>&1 && ! cargo install --quiet --locked cargo-fuzz; then
        echo "error: there is no cargo-fuzz: cargo install cargo-fuzz" >&2
        exit 69
    fi
    mkdir -p corpus/config
    seeds config | while read -r path; do
        cp "$path" "corpus/config/$(echo "$path" | tr / - | sed 's/^[.-]*//')"
    done
    cd ..
    for name in $targets; do
        RUSTC_BOOTSTRAP=1 cargo fuzz run "$name" -- -max_total_time="$mode" -timeout=60
    done
}

case $mode in
    replay) replay ;;
    *) fuzz ;;
esac
