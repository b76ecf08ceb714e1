#!/usr/bin/env python3
"""Compares the speed of two builds of mixbit in pairs of runs, in turn.

    python3 tools/same-output/speed.py BEFORE/mixbit AFTER/mixbit --pairs 9 --cache DIR

Each row is one figure of `mixbit bench` or `mixbit generate`, as reported with `--json`: the ratio after/before of each
pair, their median, and the distribution-free 95 % interval of the median (order statistics of the binomial). The order
within a pair alternates, so that a machine that drifts favours neither. Run it on an idle machine.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess

BENCH = ["bench", "--json", "--quiet"]
COMMANDS = {
    "SD 1.5, 6 bits, 256x256": [*BENCH, "--synthetic", "sd15", "--nbits", "6", "--size", "256x256", "--runs", "3"],
    "SD 1.5, dense, 256x256": [*BENCH, "--synthetic", "sd15", "--size", "256x256", "--only", "text,unet", "--runs", "3"],
    "demo model": [*BENCH, "--runs", "9"],
    "demo model, int8": [*BENCH, "--runs", "9", "--precision", "int8", "--only", "unet"],
}


def figures(binary, arguments, cache):
    """Seconds by part: the fastest run of each."""
    command = [binary, *arguments, *(["--cache", str(cache)] if "--synthetic" in arguments else [])]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds = {part["component"]: part["min_seconds"] for part in result["parts"]}
    return {**seconds, "load": result["load_seconds"]}


def interval(ratios):
    """The ranks of a 95 % interval of the median, and its bounds; needs at least six ratios."""
    ratios, count = sorted(ratios), len(ratios)
    rank = 0
    while 2 * sum(math.comb(count, k) for k in range(rank + 1)) / 2**count <= 0.05:
        rank += 1
    if rank == 0:
        raise SystemExit(f"{count} pairs are too few for an interval of 95 %: take at least 6")
    return ratios[rank - 1], ratios[count - rank]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path)
    parser.add_argument("after", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="where synthetic models are kept")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    print(f"| {'figure':40} | before | after | ratio | 95 % interval | pairs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, command in COMMANDS.items():
        if arguments.only not in name:
            continue
        runs = {"before": [], "after": []}
        for pair in range(arguments.pairs):
            sides = ["before", "after"] if pair % 2 == 0 else ["after", "before"]
            for side in sides:
                runs[side].append(figures(getattr(arguments, side).resolve(), command, arguments.cache))
        for part in runs["before"][0]:
            before, after = ([run[part] for run in runs[side]] for side in ["before", "after"])
            ratios = [new / old for new, old in zip(after, before)]
            low, high = interval(ratios)
            print(f"| {name + ': ' + part:40} | {statistics.median(before):.4f} s | {statistics.median(after):.4f} s "
                  f"| {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} | {len(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
