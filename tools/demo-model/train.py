"""Trains the demo model's UNet and both text encoders together, on latents of the trained autoencoder.

Every step draws scenes from a pool of encoded images that grows while training goes on, words their captions anew, and
uses each with several noise levels. The loss is the squared error of v, weighted up around the captioned objects'
nominal places. Noise levels start out mostly high, where predicting v is predicting the layout from the caption alone,
and become uniform.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import random
import signal
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

import model as demo
import scenes
from optimizer import MuonAdamW
from tokenizer import WordTokenizer
from train_vae import to_tensor
from training import Ema, add_worker_arguments, average_gradients, launch, load_checkpoint, save_checkpoint

LATENT_SIDE = scenes.SIDE // 8
PROMPT_DROPOUT = 0.1
OBJECT_WEIGHT = 3.0


def scene_of(index: int) -> scenes.Scene:
    """Training scene number `index`."""
    return scenes.sample_scene(random.Random(1_000_003 * (index + 1)))


def loss_weight(scene: scenes.Scene) -> np.ndarray:
    """[16, 16] loss weights; they depend on the caption's content only, so the optimum stays the conditional mean."""
    centres = (np.arange(LATENT_SIDE, dtype=np.float32) + 0.5) * 8
    weight = np.ones((LATENT_SIDE, LATENT_SIDE), np.float32)
    for item in scene.objects:
        x, y = scenes.POSITIONS[item.position]
        reach = 1.2 * scenes.RADII[item.size or "medium"] + 6
        weight[np.hypot(centres[None, :] - x, centres[:, None] - y) < reach] = OBJECT_WEIGHT
    return weight


class Pool:
    """Latents of the training scenes first, first + stride, ... encoded so far, up to `capacity` of them."""

    def __init__(self, vae: AutoencoderKL, first: int, stride: int, capacity: int, device: str) -> None:
        self.vae = vae
        self.first, self.stride = first, stride
        self.device = device
        self.latents = torch.empty(capacity, 4, LATENT_SIDE, LATENT_SIDE, dtype=torch.float16)
        self.scenes: list[scenes.Scene] = []

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Draws and encodes the next `count` scenes."""
        start = len(self.scenes)
        count = min(count, len(self.latents) - start)
        if count == 0:
            return
        added = [self._scene(index) for index in range(start, start + count)]
        pixels = to_tensor(np.stack([scenes.draw(scene) for scene in added]), self.device)
        latents = self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor
        self.latents[start : start + count] = latents.to("cpu", torch.float16)
        self.scenes += added

    def restore(self, latents: torch.Tensor) -> None:
        """Restores the pool from a checkpoint."""
        self.latents[: len(latents)] = latents
        self.scenes = [self._scene(index) for index in range(len(latents))]

    def _scene(self, index: int) -> scenes.Scene:
        return scene_of(self.first + self.stride * index)


def batch_of(pool: Pool, tokenizer: WordTokenizer, rng: random.Random, captions: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Latents, loss weights and token ids of random scenes from the pool."""
    picked = [rng.randrange(len(pool.scenes)) for _ in range(captions)]
    drawn = [pool.scenes[index] for index in picked]
    encoded = [tokenizer.encode(scenes.caption(rng, scene)) for scene in drawn]
    latents = pool.latents[picked].float()
    weights = torch.from_numpy(np.stack([loss_weight(scene) for scene in drawn]))[:, None]
    first, second = (torch.tensor([ids[side] for ids in encoded]) for side in (0, 1))
    return latents.to(pool.device), weights.to(pool.device), (first.to(pool.device), second.to(pool.device))


def loss_of(modules: dict[str, torch.nn.Module], batch: tuple, schedule: torch.Tensor, repeats: int, exponent: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted loss, and each sample's timestep and unweighted loss. Each caption serves `repeats` noise levels."""
    latents, weights, ids = batch
    states, pooled = demo.condition(modules, ids)
    keep = (torch.rand(len(latents), device=latents.device) >= PROMPT_DROPOUT).float()
    # As force_zeros_for_empty_prompt has it: without a prompt, hidden states and pooled embedding are zeros.
    states, pooled = states * keep[:, None, None], pooled * keep[:, None]
    latents, weights, states, pooled = (value.repeat_interleave(repeats, 0) for value in (latents, weights, states, pooled))
    count = len(latents)
    # Stratified over the batch, in random order.
    uniform = (torch.randperm(count, device=latents.device) + torch.rand(count, device=latents.device)) / count
    timesteps = (1000 * uniform**exponent).long().clamp(0, 999)
    alpha = schedule[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    time_ids = torch.tensor([demo.TIME_IDS], device=latents.device).expand(count, -1)
    predicted = modules["unet"](
        noisy.contiguous(memory_format=torch.channels_last),
        timesteps,
        states,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
    ).sample
    error = (predicted - target).square()
    return (error * weights).sum() / (weights.sum() * 4), timesteps, error.mean(dim=(1, 2, 3)).detach()


def decay(progress: float) -> float:
    """The learning rate's factor: constant, then a cosine over the last 60%."""
    return 1.0 if progress < 0.4 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.4) / 0.6))


class Run:
    """Everything that one training process holds."""

    def __init__(self, rank: int, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.rank, self.args = rank, args
        self.tokenizer = WordTokenizer()
        self.modules = demo.build(self.tokenizer)
        if args.warm_start is not None:
            demo.load(self.modules, args.warm_start)
        for module in self.modules.values():
            module.to(args.device)
        self.modules["unet"].to(memory_format=torch.channels_last)
        named = [(f"{name}.{key}", value) for name, module in self.modules.items() for key, value in module.named_parameters()]
        self.parameters = [value for _, value in named]
        self.optimizer = MuonAdamW(named, plain=("embedding.weight", "conv_in", "conv_out"), lr=args.lr)
        self.ema = Ema(self.modules, args.ema)
        vae = AutoencoderKL.from_pretrained(args.work / "vae").eval().to(args.device, memory_format=torch.channels_last)
        self.pool = Pool(vae, rank, args.workers, args.pool // args.workers, args.device)
        self.state = {"step": 0, "elapsed": 0.0, "samples": 0}
        self.path, self.pool_path = args.work / "model.pt", args.work / f"pool-{rank}.pt"
        self.schedule = demo.alphas_cumprod().to(args.device)
        resumed = load_checkpoint(self.path, self.modules, self.optimizer, self.ema)
        if resumed is not None:
            self.pool.restore(torch.load(self.pool_path, weights_only=True)[: resumed.pop("pool")])
            self.state = resumed
            print("resumed", self.state, flush=True)

    def save(self) -> None:
        """Writes the checkpoint and this worker's pool."""
        torch.save(self.pool.latents[: len(self.pool.scenes)].clone(), self.pool_path)
        if self.rank == 0:
            save_checkpoint(self.path, self.modules, self.optimizer, self.ema, self.state | {"pool": len(self.pool.scenes)})

    def step(self, stop: bool) -> tuple[bool, torch.Tensor, torch.Tensor]:
        """One training step. Returns whether rank 0 wants to stop, and each local sample's timestep and error."""
        args, state = self.args, self.state
        begin = time.monotonic()
        progress = min(1.0, state["elapsed"] / args.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (state["step"] + 1) / 100) * decay(progress)
        self.pool.grow((args.grow if self.pool.scenes else args.start) // args.workers)
        rng = random.Random(f"{args.seed}/{state['step']}/{self.rank}")
        torch.manual_seed(rng.getrandbits(62))
        batch = batch_of(self.pool, self.tokenizer, rng, args.captions // args.workers)
        exponent = 0.35 + 0.5 * min(1.0, progress / 0.5)
        loss, timesteps, errors = loss_of(self.modules, batch, self.schedule, args.repeats, exponent)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss is {loss.item()} at step {state['step']}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # A process that was stopped for a while must not count the pause as training time.
        shared = torch.tensor([min(time.monotonic() - begin, 10.0), float(stop)], device=args.device)
        average_gradients(self.parameters, shared)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.ema.update(state["step"])
        state["step"] += 1
        state["samples"] += args.captions * args.repeats
        # The exchange and the optimizer's work are a constant share of a step.
        state["elapsed"] += shared[0].item() * 1.15
        return bool(shared[1]), timesteps, errors


def bands(timesteps: torch.Tensor, errors: torch.Tensor) -> str:
    """Mean error per quarter of the noise levels, low noise first."""
    return " ".join(f"{errors[(timesteps >= low) & (timesteps < low + 250)].mean():.4f}" for low in (0, 250, 500, 750))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2760.0, help="training time over all stretches; the learning rate ends there")
    parser.add_argument("--captions", type=int, default=24, help="captions per step, over all workers")
    parser.add_argument("--repeats", type=int, default=2, help="noise levels per caption")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.997)
    parser.add_argument("--pool", type=int, default=40_000, help="images to train on")
    parser.add_argument("--start", type=int, default=400, help="images encoded before the first step")
    parser.add_argument("--grow", type=int, default=8, help="images added at each step")
    parser.add_argument("--warm-start", type=pathlib.Path, help="an exported model whose weights to start from, with a fresh optimizer")
    add_worker_arguments(parser)
    return parser.parse_args()


def worker(rank: int, args: argparse.Namespace) -> None:
    """One data-parallel training process."""
    run = Run(rank, args)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    shown, saved, stopped = time.monotonic(), run.state["elapsed"], False
    while run.state["elapsed"] < args.seconds and not stopped:
        stopped, timesteps, errors = run.step(bool(asked))
        seen.append((timesteps, errors))
        if rank == 0 and time.monotonic() - shown > 30:
            shown = time.monotonic()
            text = bands(torch.cat([t for t, _ in seen]), torch.cat([e for _, e in seen]))
            state = run.state
            print(f"{time.strftime('%H:%M:%S')} step {state['step']} elapsed {state['elapsed']:.0f} samples {state['samples']} v-error by quarter {text}", flush=True)
            seen.clear()
        # Workers agree on this, because they share the elapsed time.
        if run.state["elapsed"] - saved > 240:
            saved = run.state["elapsed"]
            run.save()
    run.save()
    print("stopped" if stopped else "finished", run.state, flush=True)


if __name__ == "__main__":
    launch(worker, parse())
