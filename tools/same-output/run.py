#!/usr/bin/env python3
"""Compares what two builds of mixbit write, case by case, by content.

For a restructuring that must not change results: build the commit before and the commit after it on one machine, then

    python3 tools/same-output/run.py BEFORE/target/release/mixbit AFTER/target/release/mixbit --fixtures BEFORE/fixtures

`run.sh COMMIT` does all of that for the working tree. Pictures are compared by pixels and text chunks (but for
`Version`), everything else by its bytes: packages (graph, weights, manifest), recipes, reports. Only the standard
library is used. Exit code 1 if a case differs or fails in one build alone.
"""

import argparse
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

PROMPT = "a small red circle above a large blue square"
DRAW = ["generate", PROMPT, "--seed", "7", "--json", "--output", "{out}/picture.png"]
SCHEDULERS = ["ddim", "ddpm", "euler", "euler-ancestral", "heun", "lcm", "lms", "pndm", "unipc",
              "dpmpp-2m-karras", "dpmpp-2m-sde", "dpmpp-2s", "dpmpp-2m-exponential"]


def draws(name, *arguments, base=DRAW):
    return name, [*base, *arguments]


def cases(fixtures):
    """(name, commands): each command's `{out}` is the case's own directory."""
    model = {name: str(fixtures / "pipelines" / name) for name in ["sd15", "sd21", "sdxl", "sdxl-no-zeros"]}
    tiny = [*DRAW, "--steps", "4"]
    yield draws("demo-f32", "--precision", "f32", "--steps", "8")
    yield draws("demo-bf16", "--precision", "bf16", "--steps", "8")
    yield draws("demo-int8", "--precision", "int8", "--steps", "8")
    yield draws("demo-f16", "--precision", "f16", "--steps", "3")
    yield draws("demo-non-square", "--precision", "f32", "--steps", "4", "--size", "192x104")
    yield draws("demo-large", "--precision", "f32", "--steps", "1", "--size", "512x512")
    yield draws("demo-tiles", "--precision", "f32", "--steps", "2", "--size", "256x192", "--tiled-decode")
    yield draws("demo-reduce-memory", "--precision", "f32", "--steps", "2", "--reduce-memory")
    yield draws("demo-no-guidance", "--precision", "f32", "--steps", "6", "--guidance-scale", "1")
    yield draws("demo-negative", "--precision", "f32", "--steps", "6", "--negative-prompt", "a green star",
                "--guidance-rescale", "0.7")
    yield draws("demo-bf16-many-steps", "--precision", "bf16", "--steps", "12", "--scheduler", "heun")
    for threads in ["1", "2", "3"]:
        for precision in ["f32", "bf16", "int8"]:
            yield draws(f"demo-{precision}-threads-{threads}", "--precision", precision, "--steps", "2",
                        "--threads", threads)
    yield "demo-previews", [*DRAW, "--steps", "4", "--preview-every", "1", "--images", "1", "--precision", "f32"]
    yield "demo-two-images", ["generate", PROMPT, "--seed", "7", "--steps", "6", "--images", "2", "--precision",
                              "f32", "--output", "{out}"]
    for rng in ["numpy", "nvidia"]:
        yield draws(f"demo-rng-{rng}", "--rng", rng, "--steps", "2", "--precision", "f32")
    for name, path in model.items():
        for precision in ["f32", "bf16", "int8", "f16"]:
            yield draws(f"{name}-{precision}", "--model", path, "--precision", precision, base=tiny)
    for scheduler in SCHEDULERS:
        yield draws(f"sd15-{scheduler}", "--model", model["sd15"], "--scheduler", scheduler, "--precision", "f32",
                    base=tiny)
    yield draws("sdxl-sizes", "--model", model["sdxl"], "--size", "96x64", "--precision", "f32", "--prompt-2",
                "a lighthouse", base=tiny)
    for name in ["sd15", "sd21", "sdxl"]:
        yield f"convert-{name}", ["convert", "--model", model[name], "--output", "{out}/packages"]
    yield "convert-split-chunks", ["convert", "--model", model["sd15"], "--output", "{out}/packages",
                                   "--attention-implementation", "SPLIT_EINSUM", "--chunk-unet",
                                   "--min-deployment-target", "iOS18"]
    yield "convert-bundle", ["convert", "--model", model["sd15"], "--output", "{out}/packages", "--quantize-nbits",
                             "6", "--bundle-resources-for-swift-cli"]
    yield "convert-draw", [["convert", "--model", model["sdxl"], "--output", "{out}/packages"],
                           [*tiny, "--model", "{out}/packages", "--precision", "f32"]]
    for scheme in ["palette-4", "grouped-palette-4", "linear-8"]:
        yield f"palettize-{scheme}", [["palettize", "--model", model["sdxl"], "--output", "{out}/packages",
                                       "--scheme", scheme, "--min-size", "64"],
                                      *[[*tiny[:-3], "{out}/" + precision + ".png", "--steps", "4", "--model",
                                         "{out}/packages", "--precision", precision]
                                        for precision in ["f32", "bf16", "int8"]]]
    analysis = ["analyze", "--model", model["sd15"], "--output", "{out}/analysis", "--effort", "low", "--steps", "4",
                "--min-size", "512", "--target-bits", "4.5"]
    recipe = "{out}/analysis/sd15_palettization_recipe.json"
    yield "analyze-palettize", [analysis,
                                ["palettize", "--model", model["sd15"], "--recipe", recipe, "--select", "4.50",
                                 "--output", "{out}/packages"],
                                [*tiny, "--model", "{out}/packages", "--precision", "f32"]]
    yield "analyze-exhaustive", [*analysis, "--method", "exhaustive"]
    yield "compare", ["compare", "--models", f"{model['sdxl']},{model['sdxl-no-zeros']}", "--schemes", "palette-4",
                      "--steps", "3", "--output", "{out}/grid.png", "a lighthouse", "a bicycle"]
    yield "inspect", ["inspect", model["sdxl"], "--layers"]
    yield "inspect-package", ["inspect", str(fixtures / "coreml" / "unet_sdxl_split_einsum__pal2.mlpackage"),
                              "--json"]
    yield "diff-finds-differences", ["diff", model["sdxl"], model["sdxl-no-zeros"]]
    yield "refuses-size", ["generate", PROMPT, "--size", "12x12", "--output", "{out}/picture.png"]


def png(data):
    """Pixels, and text chunks but for the version and the time that drawing took."""
    position, parts, texts = 8, [], []
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8:position + 8 + length]
        position += 12 + length
        if kind == b"IDAT":
            parts.append(body)
        elif kind in (b"IHDR", b"tEXt", b"iTXt", b"zTXt"):
            texts.append(re.sub(rb"Version: mixbit [\w.]+", b"", body))
    return zlib.decompress(b"".join(parts)), texts


# Times, rates and memory are not results; `{out}` differs between the two runs.
NOISE = re.compile(r'"\w*(seconds|bytes|time|rate)\w*": *[-+.\de]+|\d+(\.\d+)? (s|ms|min|GB|MB|GFLOP/s)\b')


def text(data, out):
    return NOISE.sub("", data.replace(str(out), "OUT"))


def content(path, out):
    data = path.read_bytes()
    if path.suffix == ".png":
        return png(data)
    if path.suffix in (".json", ".jsonl", ".html", ".md", ".csv", ".txt"):
        return text(data.decode("utf-8", "replace"), out)
    return data


def outcome(binary, commands, out):
    """What a build makes of a case: exit codes, standard output, and the files by name."""
    out.mkdir(parents=True)
    printed = []
    commands = commands if isinstance(commands[0], list) else [commands]
    for command in commands:
        arguments = [argument.replace("{out}", str(out)) for argument in command]
        environment = {**os.environ, "NO_COLOR": "1"}
        run = subprocess.run([binary, *arguments], capture_output=True, text=True, env=environment, check=False)
        printed.append((run.returncode, text(run.stdout, out)))
        if run.returncode != 0:
            printed.append(run.stderr[-400:])
            break
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return printed, {str(path.relative_to(out)): content(path, out) for path in files}


def difference(before, after):
    """The first thing that differs, in words; `None` if nothing does."""
    (printed, files), (new_printed, new_files) = before, after
    # Exit codes and standard output. The words of an error may change, results may not.
    results, new_results = ([entry for entry in side if isinstance(entry, tuple)] for side in (printed, new_printed))
    if [code for code, _ in results] != [code for code, _ in new_results]:
        return f"exit codes: {printed[-1]!r} {new_printed[-1]!r}"
    if files.keys() != new_files.keys():
        return f"files {sorted(files.keys() ^ new_files.keys())} are in one of them only"
    for name, value in files.items():
        if value != new_files[name]:
            return f"{name} differs"
    if results != new_results:
        return f"standard output: {printed!r} {new_printed!r}"[:2000]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path)
    parser.add_argument("after", type=pathlib.Path)
    parser.add_argument("--fixtures", type=pathlib.Path, required=True, help="of the commit before")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the outputs in this directory")
    arguments = parser.parse_args()
    scratch = arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix="same-output-"))
    shutil.rmtree(scratch, ignore_errors=True)
    fixtures = arguments.fixtures.resolve()
    chosen = [case for case in cases(fixtures) if arguments.only in case[0]]
    if not chosen:
        sys.exit(f"no case has `{arguments.only}` in its name")
    differing = files = 0
    for name, commands in chosen:
        before, after = (outcome(binary.resolve(), commands, scratch / side / name)
                         for side, binary in [("before", arguments.before), ("after", arguments.after)])
        found = difference(before, after)
        files += len(before[1])
        refused = any(isinstance(entry, tuple) and entry[0] for entry in before[0])
        if refused and not name.startswith(("refuses-", "diff-")):
            found = f"both builds refuse it: {before[0][-1]}"
        differing += found is not None
        print(f"{'DIFFERS' if found else 'equal  '} {name}: {found or f'{len(before[1])} files'}", flush=True)
    if not arguments.keep:
        shutil.rmtree(scratch)
    print(f"{len(chosen)} cases, {files} files; {differing} differ")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
