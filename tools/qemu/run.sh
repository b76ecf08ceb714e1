#!/bin/sh
# Builds the kernels for aarch64 and runs their tests under QEMU, on a CPU that has all of Arm's vector
# extensions. Needs QEMU's user emulation, a cross linker and Rust's standard library for the target; gets
# what is missing where it may, and ends with 69 where it can't. Arguments are passed on to the tests: with a
# word, only those that have it are run.
set -eu
cd "$(dirname "$(realpath "$0")")/../.."
triple=aarch64-unknown-linux-gnu
emulator=qemu-aarch64-static
linker=aarch64-linux-gnu-gcc
if ! command -v $emulator >/dev/null || ! command -v $linker >/dev/null; then
    if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends \
        qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross; } >/dev/null; then
        echo "error: there is no $emulator or no $linker: install qemu-user-static and gcc-aarch64-linux-gnu" >&2
        exit 69
    fi
fi
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$triple" ] && ! rustup --quiet target add $triple; then
    echo "error: there is no standard library for $triple: rustup target add $triple" >&2
    exit 69
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$linker
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$emulator -cpu max -L /usr/aarch64-linux-gnu"
export MIXBIT_HAS_ALL_PRECISIONS=1
exec cargo test --quiet --package mixbit-kernels --lib --target $triple -- "$@"
