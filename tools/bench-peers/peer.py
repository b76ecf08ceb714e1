"""One network of a checkpoint in OpenVINO or PyTorch, run step by step on fixed inputs. `cargo xtask bench-peers` starts it.

    python peer.py --framework torch --precision bf16 --part unet --model DIR --threads 2 --inputs FILE --output FILE

It says `ready VERSION` when the network is loaded, then answers each line of its standard input with one of its own:
`step` with the seconds of one step, `save` with `saved` once the last step's result is in the output file, as f32.
`quit` ends it.
"""

import argparse
import gc
import os
import sys
import time
import warnings

import numpy as np
import torch
from safetensors.numpy import load_file

import diffusers
import transformers

PARTS = ["unet", "vae", "text_encoder", "text_encoder_2"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=["openvino", "torch"], required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--model", required=True, help="a directory in the diffusers layout")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--inputs", required=True, help="a safetensors file with what the network is given")
    parser.add_argument("--output", required=True, help="the .npy file that `save` writes")
    return parser.parse_args()


class Unet(torch.nn.Module):
    """diffusers' UNet with positional inputs, which tracing needs."""

    def __init__(self, folder):
        super().__init__()
        self.network = diffusers.UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds=None, time_ids=None):
        told = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.network(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=told, return_dict=False
        )[0]


class Decoder(torch.nn.Module):
    """The decoder of diffusers' autoencoder."""

    def __init__(self, folder):
        super().__init__()
        self.network = diffusers.AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
        self.network.encoder = None

    def forward(self, z):
        return self.network.decode(z, return_dict=False)[0]


class TextEncoder(torch.nn.Module):
    """A text encoder, up to the states that the UNet attends to."""

    def __init__(self, folder, penultimate):
        super().__init__()
        with_projection = folder.endswith("text_encoder_2")
        kind = transformers.CLIPTextModelWithProjection if with_projection else transformers.CLIPTextModel
        self.network = kind.from_pretrained(folder, dtype=torch.float32)
        self.penultimate = penultimate

    def forward(self, input_ids):
        results = self.network(input_ids, output_hidden_states=self.penultimate)
        return results.hidden_states[-2] if self.penultimate else results.last_hidden_state


def load(model, part):
    folder = os.path.join(model, part)
    if part == "unet":
        network = Unet(folder)
    elif part == "vae":
        network = Decoder(folder)
    else:
        # Stable Diffusion XL, which alone has a second text encoder, attends to the last layer but one.
        network = TextEncoder(folder, os.path.isdir(os.path.join(model, "text_encoder_2")))
    return network.eval().requires_grad_(False)


ORDER = ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids", "z", "input_ids"]


def read_inputs(path):
    """The network's inputs in the order of its parameters. Token ids are stored as floats."""
    stored = load_file(path)
    tensors = [torch.from_numpy(stored[name]) for name in ORDER if name in stored]
    return [tensor.long() for tensor in tensors] if "input_ids" in stored else tensors


def torch_step(network, inputs, options):
    """One step of a module, a function that reads its result, and the library's version."""
    torch.set_num_threads(options.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    network = network.to(dtype=dtype, memory_format=torch.channels_last)

    def given(tensor):
        if not tensor.is_floating_point():
            return tensor
        # Time steps and sizes are embedded in f32, as diffusers' pipelines do; bf16 does not hold them.
        tensor = tensor if tensor.dim() < 2 or tensor.shape[-1] == 6 else tensor.to(dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    inputs = [given(tensor) for tensor in inputs]

    def step():
        with torch.inference_mode():
            return network(*inputs)

    return step, lambda result: result.float().contiguous().numpy(), f"torch {torch.__version__}"


def openvino_step(network, inputs, options):
    """One step of the converted module, a function that reads its result, and the library's version with the
    precision."""
    import openvino

    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        converted = openvino.convert_model(
            network, example_input=tuple(inputs), input=[list(tensor.shape) for tensor in inputs]
        )
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": options.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads,
        },
    )
    # OpenVINO keeps its own copy of the weights that it needs.
    del converted, network
    gc.collect()
    request = compiled.create_infer_request()
    for index, tensor in enumerate(inputs):
        request.set_input_tensor(index, openvino.Tensor(tensor.numpy()))

    def step():
        request.infer()
        return request.get_output_tensor(0).data

    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    version = openvino.__version__.split("-")[0]
    return step, lambda result: np.array(result, dtype=np.float32), f"openvino {version} in {used}"


def main():
    options = arguments()
    # Libraries must not print between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    inputs = read_inputs(options.inputs)
    prepare = {"torch": torch_step, "openvino": openvino_step}[options.framework]
    step, to_numpy, version = prepare(load(options.model, options.part), inputs, options)
    print("ready", version, file=answers)
    result = None
    for line in sys.stdin:
        match line.strip():
            case "step":
                begin = time.perf_counter()
                result = step()
                print(time.perf_counter() - begin, file=answers)
            case "save":
                np.save(options.output, to_numpy(result))
                print("saved", file=answers)
            case "quit":
                return
            case other:
                sys.exit(f"error: {other!r} is no request")


if __name__ == "__main__":
    main()
