#!/bin/sh
# Converts tiny models and compares the packages with Apple's. Needs Python 3.11 and, the first time, the
# package index; without them it ends with 69. Arguments are passed on to run.py: with a word, only the cases
# that have it are run.
set -eu
here=$(dirname "$(realpath "$0")")
cd "$here/../.."
target=${CARGO_TARGET_DIR:-target}
environment=$target/conformance-environment
if ! cmp -s "$here/requirements.txt" "$environment/requirements.txt"; then
    if ! { ${PYTHON:-python3.11} -m venv --clear "$environment" &&
        "$environment/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"; }; then
        echo "error: no environment with coremltools: it needs Python 3.11 with venv, and the package index" >&2
        exit 69
    fi
    cp "$here/requirements.txt" "$environment/requirements.txt"
fi
# As the tests build it: a package by itself has crates of its own.
cargo build --quiet --workspace --bin mixbit
"$environment/bin/python" "$here/planted.py" "$target/debug/mixbit"
exec "$environment/bin/python" "$here/run.py" "$target/debug/mixbit" "$@"
