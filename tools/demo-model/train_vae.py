"""Trains the demo model's autoencoder (AutoencoderKL, factor 8, 4 latent channels) on procedurally drawn scenes.

Most of the time goes to 64x64 crops of crowded scenes, which are all edges; the last part is whole scenes, so that the
group normalisations see the statistics that they will see in use.
"""

from __future__ import annotations

import argparse
import math
import random
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

import scenes
from optimizer import MuonAdamW
from training import Ema, add_worker_arguments, average_gradients, launch, load_checkpoint, save_checkpoint

CONFIG = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 64),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    sample_size=128,
    force_upcast=False,
)
CROP = 64
CROP_PHASE = 0.7


def crops(rng: random.Random, count: int) -> np.ndarray:
    """Square crops of crowded scenes, four from each."""
    result = []
    for _ in range(count // 4):
        image = scenes.draw(scenes.busy_scene(rng))
        for _ in range(4):
            x, y = rng.randint(0, scenes.SIDE - CROP), rng.randint(0, scenes.SIDE - CROP)
            result.append(image[y : y + CROP, x : x + CROP])
    return np.stack(result)


def wholes(rng: random.Random, count: int) -> np.ndarray:
    """Whole scenes: three of four from the training distribution, the others crowded."""
    return np.stack([scenes.draw(scenes.busy_scene(rng) if i % 4 == 0 else scenes.sample_scene(rng)) for i in range(count)])


def to_tensor(images: np.ndarray, device: str) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in [-1, 1]."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return pixels.contiguous(memory_format=torch.channels_last)


def loss_of(model: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss and the mean squared error."""
    posterior = model.encode(pixels).latent_dist
    decoded = model.decode(posterior.sample()).sample
    error = decoded - pixels
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    squared = error.square().mean()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + squared + 0.5 * edges + 1e-4 * divergence, squared


@torch.no_grad()
def whiten(model: AutoencoderKL, device: str) -> None:
    """Folds an affine map into the 1x1 convolutions around the latents, so that over training scenes they have zero mean,
    no correlation between channels and unit variance; reconstructions stay what they are."""
    rng = random.Random(20_000_003)
    moments = []
    for _ in range(16):
        moments.append(model.encode(to_tensor(wholes(rng, 16), device)).latent_dist.mean)
    values = torch.cat(moments).permute(1, 0, 2, 3).flatten(1).double()
    mean = values.mean(1)
    variances, axes = torch.linalg.eigh(torch.cov(values))
    forward = axes @ torch.diag(variances.rsqrt()) @ axes.T
    backward = axes @ torch.diag(variances.sqrt()) @ axes.T
    encode, decode = model.quant_conv, model.post_quant_conv
    weight, bias = encode.weight[:4, :, 0, 0].double(), encode.bias[:4].double()
    encode.weight[:4] = (forward @ weight)[:, :, None, None].float()
    encode.bias[:4] = (forward @ (bias - mean)).float()
    # The posterior's own noise is tiny; a constant stands for it in the new basis.
    encode.weight[4:] = 0
    encode.bias[4:] = -9.0
    weight = decode.weight[:, :, 0, 0].double()
    decode.bias += (weight @ mean).float()
    decode.weight.copy_((weight @ backward)[:, :, None, None].float())
    model.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def report(model: AutoencoderKL, device: str) -> dict[str, float | list[float]]:
    """PSNR on held-out seeds and the latents' mean and standard deviation."""
    rng = random.Random(10_000_019)
    pixels = to_tensor(np.stack([scenes.draw(scenes.sample_scene(rng)) for _ in range(64)]), device)
    latents = model.encode(pixels).latent_dist.mean
    error = (model.decode(latents).sample.clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3))
    return {
        "psnr": float((10 * torch.log10(4.0 / error)).mean()),
        "worst_psnr": float((10 * torch.log10(4.0 / error)).min()),
        "std": float(latents.std()),
        "channel_mean": [round(v, 3) for v in latents.mean(dim=(0, 2, 3)).tolist()],
        "channel_std": [round(v, 3) for v in latents.std(dim=(0, 2, 3)).tolist()],
    }


def worker(rank: int, args: argparse.Namespace) -> None:
    """One data-parallel training process."""
    torch.manual_seed(args.seed)
    model = AutoencoderKL(**CONFIG).to(args.device, memory_format=torch.channels_last)
    parameters = list(model.parameters())
    optimizer = MuonAdamW(model.named_parameters(), plain=("conv_in", "conv_out"), lr=args.lr)
    ema = Ema({"vae": model}, 0.995)
    state = load_checkpoint(args.work / "vae.pt", {"vae": model}, optimizer, ema) or {"step": 0, "elapsed": 0.0}
    saved = shown = time.monotonic()
    while state["elapsed"] < args.seconds:
        begin = time.monotonic()
        progress = state["elapsed"] / args.seconds
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (state["step"] + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        rng = random.Random(f"{args.seed}/{state['step']}/{rank}")
        torch.manual_seed(rng.getrandbits(62))
        count = args.batch // args.workers
        pixels = to_tensor(crops(rng, 2 * count) if progress < CROP_PHASE else wholes(rng, count), args.device)
        loss, squared = loss_of(model, pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # A process that was stopped for a while must not count the pause as training time.
        spent = torch.tensor([min(time.monotonic() - begin, 5.0)], device=args.device)
        average_gradients(parameters, spent)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(state["step"])
        state["step"] += 1
        state["elapsed"] += spent.item()
        now = time.monotonic()
        if rank == 0 and now - shown > 20:
            shown = now
            print(f"{time.strftime('%H:%M:%S')} step {state['step']} elapsed {state['elapsed']:.0f} loss {loss.item():.4f} psnr {10 * math.log10(4 / squared.item()):.2f}", flush=True)
        if rank == 0 and now - saved > 120:
            saved = now
            save_checkpoint(args.work / "vae.pt", {"vae": model}, optimizer, ema, state)
            with ema.applied():
                print(report(model, args.device), flush=True)
    if rank == 0:
        save_checkpoint(args.work / "vae.pt", {"vae": model}, optimizer, ema, state)
        with ema.applied():
            print("before whitening", state, report(model, args.device), flush=True)
            whiten(model, args.device)
            print("final", report(model, args.device), flush=True)
            model.save_pretrained(args.work / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1080.0, help="training time, over all stretches")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=8, help="images per step, over all workers; twice as many crops")
    add_worker_arguments(parser)
    launch(worker, parser.parse_args())


if __name__ == "__main__":
    main()
