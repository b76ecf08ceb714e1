#!/usr/bin/env bash
# Packs the release binary of a target with its completions, manual pages and licences: .github/archive.sh
# TARGET. Needs a binary that runs on this machine. Archives go to target/archives.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${1:?the target, such as x86_64-unknown-linux-gnu}
suffix=
case $target in *-windows-*) suffix=.exe ;; esac
binary=target/$target/release/mixbit$suffix
version=$("$binary" --version | cut -d ' ' -f 2)
name=mixbit-$version-$target
folder=target/archives/$name
rm -rf "$folder"
mkdir -p "$folder/completions" "$folder/man"
cp "$binary" README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$folder"
"$binary" man "$folder/man"
"$binary" completions bash >"$folder/completions/mixbit.bash"
"$binary" completions elvish >"$folder/completions/mixbit.elv"
"$binary" completions fish >"$folder/completions/mixbit.fish"
"$binary" completions powershell >"$folder/completions/_mixbit.ps1"
"$binary" completions zsh >"$folder/completions/_mixbit"
cd target/archives
case $target in
    *-windows-*) 7z a -bd "$name.zip" "$name" >/dev/null ;;
    *) tar -czf "$name.tar.gz" "$name" ;;
esac
rm -rf "$name"
ls -l "$name".*
