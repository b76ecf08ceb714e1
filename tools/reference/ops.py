"""MIL ops whose meaning is not obvious, computed by PyTorch in double precision.

    python tools/reference/ops.py

Writes `fixtures/ops/cases.json`. Inputs are multiples of 1/64, exact in every float type.
`mil_ops.py` has the ops that coremltools itself can compute.
"""

import math

import torch
import torch.nn.functional as F

import common

SEED = 20261123
generator = torch.Generator().manual_seed(SEED)
cases = []


def values(*shape, low=-2, high=2):
    """Random multiples of 1/64 between the bounds."""
    return torch.randint(low * 64, high * 64 + 1, shape, generator=generator).double() / 64


def tensor(value):
    rounded = [float(f"{number:.9g}") for number in value.double().flatten().tolist()]
    number = lambda x: int(x) if x.is_integer() else x
    entry = {"shape": list(value.shape), "values": [number(x) for x in rounded]}
    return entry | ({} if value.is_floating_point() else {"dtype": "bool" if value.dtype == torch.bool else "int32"})


def add(op, inputs, output, constants=(), **attributes):
    """A case: tensors by MIL's names, a list of them for a variadic input."""
    encode = lambda value: [tensor(item) for item in value] if isinstance(value, list) else tensor(value)
    outputs = output if isinstance(output, (list, tuple)) else [output]
    cases.append(
        {
            "op": op,
            "inputs": {name: encode(value) for name, value in inputs.items()},
            "constants": list(constants),
            "attributes": attributes,
            "outputs": [tensor(value) for value in outputs],
        }
    )


def same(extent, kernel, stride, dilation, lower):
    """Padding before and after an axis for ceil(extent / stride) windows; an odd element goes last, or first."""
    needed = max((math.ceil(extent / stride) - 1) * stride + (kernel - 1) * dilation + 1 - extent, 0)
    less, more = needed // 2, needed - needed // 2
    return (more, less) if lower else (less, more)


def convolutions():
    shapes = [  # x, weight, strides, dilations, groups
        ((1, 3, 6, 5), (4, 3, 3, 3), (1, 1), (1, 1), 1),
        ((2, 2, 7, 8), (3, 2, 3, 2), (2, 3), (1, 1), 1),
        ((1, 2, 9, 7), (2, 2, 2, 3), (1, 2), (3, 2), 1),
        ((1, 4, 5, 6), (6, 2, 3, 3), (2, 1), (1, 1), 2),
        ((1, 3, 5, 5), (3, 1, 4, 2), (1, 1), (1, 2), 3),
        ((2, 3, 4, 3), (2, 3, 1, 1), (2, 2), (1, 1), 1),
    ]
    for x_shape, weight_shape, strides, dilations, groups in shapes:
        for pad_type in ["valid", "same", "same_lower", "custom"]:
            x, weight, bias = values(*x_shape), values(*weight_shape), values(weight_shape[0])
            axis = lambda i: same(x_shape[2 + i], weight_shape[2 + i], strides[i], dilations[i], pad_type == "same_lower")
            pads = {"valid": [(0, 0), (0, 0)], "custom": [(2, 1), (0, 3)]}.get(pad_type) or [axis(0), axis(1)]
            padded = F.pad(x, [*pads[1], *pads[0]])
            out = F.conv2d(padded, weight, bias, stride=strides, dilation=dilations, groups=groups)
            attributes = {"pad": [*pads[0], *pads[1]]} if pad_type == "custom" else {}
            add(
                "conv", {"x": x, "weight": weight, "bias": bias}, out, ["weight", "bias"],
                strides=list(strides), dilations=list(dilations), groups=groups, pad_type=pad_type, **attributes,
            )


def resizing():
    x = values(1, 2, 3, 4)
    for scale in [(2, 2), (3, 1), (1, 4)]:
        out = F.interpolate(x, scale_factor=tuple(map(float, scale)), mode="nearest")
        add("upsample_nearest_neighbor", {"x": x}, out, scale_factor_height=scale[0], scale_factor_width=scale[1])
    for size in [(5, 7), (1, 2), (6, 3), (2, 9)]:
        out = F.interpolate(x, size=size, mode="nearest")
        add("resize_nearest_neighbor", {"x": x}, out, target_size_height=size[0], target_size_width=size[1])
    for pad in [[1, 2], [0, 1, 2, 0], [1, 0, 0, 2, 1, 1]]:
        pairs = list(zip(pad[::2], pad[1::2]))
        out = F.pad(x, [side for pair in reversed(pairs) for side in pair], value=0.5)
        add("pad", {"x": x}, out, pad=pad, mode="constant", constant_val=0.5)


def normalizations():
    x = values(2, 3, 4, 5)
    mean, variance, gamma, beta = values(3), values(3, low=0, high=2) + 0.25, values(3), values(3)
    names = ["mean", "variance", "gamma", "beta"]
    tensors = {"x": x, "mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
    add("batch_norm", tensors, F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3), names, epsilon=1e-3)
    tensors = {"x": x, "gamma": gamma, "beta": beta}
    add("instance_norm", tensors, F.instance_norm(x, weight=gamma, bias=beta, eps=1e-2), names[2:], epsilon=1e-2)
    add("instance_norm", {"x": x}, F.instance_norm(x, eps=1e-5))
    for axes in [[-1], [2, 3], [1, 2, 3]]:
        shape = [x.shape[axis] for axis in axes]
        gamma, beta = values(*shape), values(*shape)
        out = F.layer_norm(x, shape, gamma, beta, eps=1e-3)
        add("layer_norm", {"x": x, "gamma": gamma, "beta": beta}, out, names[2:], axes=axes, epsilon=1e-3)
    # Channels first, as Apple's networks normalize, and axes that are not neighbours.
    gamma, beta = values(3), values(3)
    out = F.layer_norm(x.movedim(1, -1), [3], gamma, beta).movedim(-1, 1)
    add("layer_norm", {"x": x, "gamma": gamma, "beta": beta}, out, names[2:], axes=[1])
    mean, variance = x.mean((1, 3), keepdim=True), x.var((1, 3), correction=0, keepdim=True)
    gamma = values(3, 5)
    out = (x - mean) / (variance + 1e-5).sqrt() * gamma[:, None, :]
    add("layer_norm", {"x": x, "gamma": gamma}, out, ["gamma"], axes=[1, 3], epsilon=1e-5)


def activations():
    x = values(3, 17, low=-5, high=5)
    add("gelu", {"x": x}, F.gelu(x))
    add("gelu", {"x": x}, F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION")
    add("gelu", {"x": x}, x * torch.sigmoid(1.702 * x), mode="SIGMOID_APPROXIMATION")
    add("silu", {"x": x}, F.silu(x))
    add("leaky_relu", {"x": x}, F.leaky_relu(x, 0.25), alpha=0.25)
    x = values(2, 3, 4, low=-8, high=8)
    for axis in [0, 1, -1]:
        add("softmax", {"x": x}, torch.softmax(x, axis), axis=axis)
    x = values(31, low=-4, high=4)
    for op, function in [("erf", torch.erf), ("tanh", torch.tanh), ("exp2", torch.exp2), ("round", torch.round)]:
        add(op, {"x": x}, function(x))
    add("clip", {"x": x}, x.clamp(-0.5, 1.25), alpha=-0.5, beta=1.25)
    divisor = values(31, low=1, high=4) * torch.tensor([1.0, -1.0]).double().repeat(16)[:31]
    add("mod", {"x": x, "y": divisor}, torch.remainder(x, divisor))
    add("floor_div", {"x": x, "y": divisor}, torch.floor_divide(x, divisor))


def products():
    equations = [
        ("bchq,bkhc->bkhq", (2, 4, 3, 5), (2, 6, 3, 4)),
        ("bkhq,bchk->bchq", (2, 6, 3, 5), (2, 4, 3, 6)),
        ("nchw,nwhu->nchu", (2, 3, 2, 4), (2, 4, 2, 5)),
        ("abc,cd->ad", (2, 3, 4), (4, 5)),
        ("ab,ab->ba", (3, 4), (3, 4)),
    ]
    for equation, x_shape, y_shape in equations:
        x, y = values(*x_shape), values(*y_shape)
        add("einsum", {"values": [x, y]}, torch.einsum(equation, x, y), equation=equation)
    for flags in [(False, False), (True, False), (False, True), (True, True)]:
        x, y = values(2, 1, 3, 4), values(3, 4, 5)
        out = x @ y
        x, y = (x.mT if flags[0] else x), (y.mT if flags[1] else y)
        add("matmul", {"x": x, "y": y}, out, transpose_x=flags[0], transpose_y=flags[1])
    x, weight, bias = values(2, 3, 4), values(5, 4), values(5)
    add("linear", {"x": x, "weight": weight, "bias": bias}, F.linear(x, weight, bias), ["weight", "bias"])
    query, key, value = values(2, 2, 5, 4), values(2, 2, 7, 4), values(2, 2, 7, 3)
    # One query sees no key at all: PyTorch gives it zeros.
    causal = torch.ones(5, 7).tril().bool()
    hidden = causal.clone()
    hidden[2] = False
    for mask in [None, values(5, 7), values(2, 1, 1, 7), values(2, 2, 5, 7), causal, hidden]:
        inputs = {"query": query, "key": key, "value": value} | ({} if mask is None else {"attn_mask": mask})
        out = F.scaled_dot_product_attention(query, key, value, mask)
        add("scaled_dot_product_attention", inputs, out)


convolutions()
resizing()
normalizations()
activations()
products()
record = common.meta("ops.py", SEED, "torch")
common.write_cases(common.area("ops"), record, cases)
