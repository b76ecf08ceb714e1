#!/bin/sh
# Checks licences, duplicate versions and sources of all dependencies (deny.toml). Exits with 69 if cargo-deny
# can't be installed.
set -eu
cd "$(dirname "$(realpath "$0")")/../.."
if ! cargo deny --version >/dev/null 2>&1 && ! cargo install --quiet --locked cargo-deny; then
    echo "error: there is no cargo-deny: cargo install cargo-deny" >&2
    exit 69
fi
exec cargo deny check bans licenses sources
