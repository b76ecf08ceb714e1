"""Noise of NumPy's, PyTorch's and CUDA's generators. See fixtures/README.md for the format."""

import common
import numpy as np
import torch
from common import write_cases, write_tensors

SEEDS = (0, 1, 42, 93, 1234567, 2**31, 2**32 - 1)
LARGE_SEEDS = (2**32, 2**53 + 1, 2**64 - 1)
LATENT = 4 * 64 * 64
"""A Stable Diffusion latent of 512x512."""
KEPT = 40
"""Values that are stored from each end of a long call."""

PUBLISHED = [
    {
        "generator": "nvidia",
        "seed": 0,
        "source": "AUTOMATIC1111/stable-diffusion-webui, modules/rng_philox.py, docstring",
        "call": 12,
        "from": 0,
        "values": [
            -0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564, -0.62285122, -0.32838709,
            -1.07454231, -0.36314407, -1.67105067, 2.26550497,
        ],
    },
    {
        "generator": "numpy",
        "seed": 12345,
        "source": "apple/ml-stable-diffusion, StableDiffusionTests.swift, test_randomNormalValues_matchNumPyRandom",
        "call": 10_000,
        "from": 9_995,
        "values": [-0.86285345, 2.15229409, -0.00670556, -1.21472309, 0.65498866],
    },
]
BLOCKS = [
    # Counter, key, output: known answers of philox4x32-10 in Random123's kat_vectors.
    [[0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]],
    [[0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]],
    [
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ],
]


class NumPy:
    """`numpy.random.RandomState`, whose normals are f64."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def __call__(self, count):
        return torch.from_numpy(self.state.randn(count))


class Torch:
    """`torch.randn` on the CPU."""

    def __init__(self, seed, dtype=torch.float32):
        # As `torch.manual_seed` does, seeds past 2^63 are taken as their two's complement.
        self.generator = torch.Generator().manual_seed(seed if seed < 2**63 else seed - 2**64)
        self.dtype = dtype

    def __call__(self, count):
        return torch.randn(count, generator=self.generator, dtype=self.dtype)


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) of arrays of counters `[4, n]` and keys `[2, n]`, u64 holding u32."""
    counter, key = [c.copy() for c in counter], [k.copy() for k in key]
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        first = counter[0] * np.uint64(0xD2511F53)
        second = counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (second >> shift) ^ counter[1] ^ key[0], second & low, (first >> shift) ^ counter[3] ^ key[1], first & low,
        ]
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return counter


class Nvidia:
    """`torch.randn` on a GPU, below one element per thread of the launch: the first normal of each subsequence.

    cuRAND's Box-Muller takes f32 uniforms `x * 2^-32 + 2^-33`. They are made in f32 here, and the logarithm and
    the sine are exact f64 ones; a GPU's own differ in the last digits.
    """

    def __init__(self, seed):
        self.seed = seed
        self.calls = 0

    def __call__(self, count):
        index = np.arange(count, dtype=np.uint64)
        zero = np.zeros_like(index)
        low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
        key = [zero + np.uint64(self.seed & 0xFFFFFFFF), zero + np.uint64(self.seed >> 32)]
        counter = [zero + np.uint64(self.calls), zero, index & low, index >> shift]
        x, y, _, _ = philox(counter, key)
        self.calls += 1
        scale, turn = 2.0**-32, float(np.float32(2 * np.pi)) * 2.0**-32
        # One f32 rounding of the fused multiply-add: the f64 product and sum are exact to far below it.
        x, y = x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)
        u = (x * scale + scale / 2).astype(np.float32).astype(np.float64)
        v = (y * turn + turn / 2).astype(np.float32).astype(np.float64)
        return torch.from_numpy((np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32))


def plans():
    """Generator, seeds, and the sizes of the calls that are made one after another."""
    short = ([1], [2], [3, 2], [5, 1, 1, 7], [15], [15, 16, 3])
    long = ([16], [17], [31], [32], [64], [100], [16, 16], [17, 5, 64], [3, 20, 3, 16], [LATENT], [LATENT, 40])
    for seed in SEEDS:
        for calls in ([40], [1, 1, 1], [7, 6, 5, 1], [LATENT], [LATENT, 3]):
            yield "numpy", NumPy, seed, calls
        for calls in (*short, *long):
            yield "torch", Torch, seed, calls
        for calls in ([1], [12], [40, 40], [LATENT, 5]):
            yield "nvidia", Nvidia, seed, calls
    for seed in LARGE_SEEDS:
        for calls in ([3, 2], [17], [LATENT]):
            yield "torch", Torch, seed, calls
        for calls in ([12, 12], [LATENT]):
            yield "nvidia", Nvidia, seed, calls
    for seed in (0, 93):
        # The f32 values rounded; only a last block of 16 that is not full is drawn otherwise.
        for calls in ([3, 2], [16], [64, 32]):
            yield "torch-f16", lambda s: Torch(s, torch.float16), seed, calls


def bits_sum(values):
    """The sum of the values' bit patterns, modulo 2^64: a checksum that needs no rounding."""
    kind = {torch.float16: np.uint16, torch.float32: np.uint32, torch.float64: np.uint64}[values.dtype]
    return int(np.add.reduce(values.numpy().view(kind).astype(np.uint64), dtype=np.uint64))


def main():
    for counter, key, output in BLOCKS:
        arrays = [[np.array([word], dtype=np.uint64) for word in part] for part in (counter, key)]
        assert [int(word[0]) for word in philox(*arrays)] == output
    for row in PUBLISHED:
        source = {"numpy": NumPy, "nvidia": Nvidia}[row["generator"]](row["seed"])
        end = row["from"] + len(row["values"])
        assert np.allclose(source(row["call"]).numpy()[row["from"] : end], row["values"], rtol=0, atol=1e-6), row

    cases, tensors = [], {}
    for name, make, seed, calls in plans():
        source = make(seed)
        key = f"{name}/{seed}/" + "+".join(map(str, calls))
        parts = [source(count) for count in calls]
        for index, values in enumerate(parts):
            if len(values) > 2 * KEPT:
                values = torch.cat([values[:KEPT], values[-KEPT:]])
            tensors[f"{key}/{index}"] = values
        cases.append({
            "key": key, "generator": name, "seed": str(seed), "calls": calls,
            "bits_sum": [str(bits_sum(values)) for values in parts],
            "sum": [float(values.double().sum()) for values in parts],
        })
    for row in PUBLISHED:
        row["seed"] = str(row["seed"])
    folder = common.area("rng")
    write_tensors(folder / "values.safetensors", tensors)
    record = common.meta("random_sources.py", None, "torch", "numpy")
    write_cases(folder, record, cases, kept=KEPT, published=PUBLISHED, philox_blocks=BLOCKS)
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
