#!/bin/sh
# Builds the Python wheel with the development profile, installs it into an environment of its own, and draws
# with the program that it brings. Exits with 69 if there is no Python with venv, or maturin can't be
# installed.
set -eu
cd "$(dirname "$(realpath "$0")")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
folder=$target/wheel
python=${PYTHON:-python3}
maturin=maturin==1.16.0
if ! [ -x "$folder/tools/bin/maturin" ]; then
    if ! { "$python" -m venv --clear "$folder/tools" &&
        "$folder/tools/bin/pip" install --quiet --disable-pip-version-check "$maturin"; }; then
        echo "error: $maturin can't be installed: it needs Python with venv, and the package index" >&2
        exit 69
    fi
fi
rm -rf "$folder/dist" "$folder/user"
CARGO_TARGET_DIR=$target "$folder/tools/bin/maturin" build --quiet --compatibility linux --out "$folder/dist"
"$python" -m venv "$folder/user"
"$folder/user/bin/pip" install --quiet --disable-pip-version-check --no-index "$folder"/dist/mixbit-*.whl
"$folder/user/bin/mixbit" --version
"$folder/user/bin/mixbit" generate "a red circle" --steps 2 --quiet --output "$folder/picture.png"
ls -l "$folder"/dist/mixbit-*.whl
