//! The layers that the networks share, as the MIL ops that Apple's converter emits for them.
//!
//! Every weight is looked up under its PyTorch module path. Results are named after the path, with
//! underscores for dots.

use mixbit_mil::{
    Builder, DType, Function, Literal, OpBuilder, Opset, TensorType, ValueId, WeightRef, Weights, identifier,
};

use super::{ArchError, GraphOptions};

/// A network under construction.
pub(super) struct Net<'w> {
    b: Builder,
    weights: &'w dyn Weights,
    dtype: DType,
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x), also called swish.
    Silu,
    /// x Φ(x), with the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// x sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// x tanh(ln(1 + exp(x))).
    Mish,
}

/// The parameters of a convolution. Padding applies to all four sides.
#[derive(Clone, Copy)]
pub(super) struct Conv {
    pub(super) out: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) pad: usize,
}

impl Conv {
    /// A convolution that preserves height and width. `kernel` is odd.
    pub(super) fn same(out: usize, kernel: usize) -> Self {
        Conv { out, kernel, stride: 1, pad: kernel / 2 }
    }
}

/// The parameters of a group norm.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    pub(super) count: usize,
    pub(super) epsilon: f64,
}

/// The bias of a linear layer.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bias {
    Yes,
    No,
}

impl<'w> Net<'w> {
    pub(super) fn new(weights: &'w dyn Weights, options: &GraphOptions) -> Result<Self, ArchError> {
        if !matches!(options.dtype, DType::F16 | DType::F32) {
            let what = format!("a network computes in fp16 or fp32, not {}", options.dtype);
            return Err(ArchError::Option { option: "dtype", what });
        }
        if options.opset < Opset::Ios16 {
            let what =
                format!("{} has not every op that is needed; the oldest that has is ios16", options.opset);
            return Err(ArchError::Option { option: "opset", what });
        }
        Ok(Net { b: Builder::new("main", options.opset), weights, dtype: options.dtype })
    }

    pub(super) fn finish(self, outputs: &[ValueId]) -> Result<Function, ArchError> {
        Ok(self.b.finish(outputs)?)
    }

    pub(super) fn opset(&self) -> Opset {
        self.b.function().opset
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn shape(&self, x: ValueId) -> &[usize] {
        self.b.shape(x)
    }

    pub(super) fn op(&mut self, kind: &str) -> OpBuilder<'_> {
        self.b.op(kind)
    }

    pub(super) fn literal(&mut self, literal: Literal) -> ValueId {
        self.b.literal(literal)
    }

    /// A float constant.
    pub(super) fn floats(
        &mut self,
        dtype: DType,
        shape: &[usize],
        values: &[f64],
    ) -> Result<ValueId, ArchError> {
        let literal = Literal::floats(dtype, shape, values).ok_or_else(|| {
            mixbit_mil::Error::Graph(format!("{} values for a {dtype} constant {shape:?}", values.len()))
        })?;
        Ok(self.b.literal(literal))
    }

    pub(super) fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<ValueId, ArchError> {
        Ok(self.b.input(name, TensorType::new(dtype, shape))?)
    }

    /// The name to create a value with if it becomes the output `name`.
    pub(super) fn result_name(&self, name: &str) -> String {
        if self.dtype == DType::F32 { name.to_string() } else { format!("{name}_{}", self.dtype) }
    }

    /// The output `name`, which is always `fp32`. `x` must have the name that
    /// [`result_name`](Self::result_name) returns.
    pub(super) fn output(&mut self, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
        if self.dtype == DType::F32 {
            return Ok(x);
        }
        self.cast(x, DType::F32, name)
    }

    pub(super) fn has_weight(&self, name: &str) -> bool {
        self.weights.get(name).is_some()
    }

    /// A checkpoint tensor of the given shape, in the compute type.
    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<WeightRef, ArchError> {
        Ok(self.float_weight(name, shape)?.cast(self.dtype))
    }

    /// A checkpoint tensor of the given shape, as stored.
    pub(super) fn float_weight(&self, name: &str, shape: &[usize]) -> Result<WeightRef, ArchError> {
        let weight = self.weights.require(name, shape)?;
        match weight.stored_dtype() {
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 => Ok(weight),
            dtype => Err(ArchError::WeightType { name: name.to_string(), dtype }),
        }
    }

    pub(super) fn add_weight(&mut self, weight: WeightRef) -> ValueId {
        self.b.weight(weight)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<ValueId, ArchError> {
        let weight = self.weight(name, &[len])?;
        Ok(self.b.weight(weight))
    }

    fn bias(&mut self, path: &str, len: usize, bias: Bias) -> Result<Option<ValueId>, ArchError> {
        match bias {
            Bias::Yes => self.vector(&format!("{path}.bias"), len).map(Some),
            Bias::No => Ok(None),
        }
    }

    /// `nn.Conv2d` with a bias, over [batch, channels, height, width].
    pub(super) fn conv(&mut self, x: ValueId, path: &str, conv: Conv) -> Result<ValueId, ArchError> {
        self.conv_named(x, path, conv, &identifier(path))
    }

    /// [`conv`](Self::conv) with an explicit result name.
    pub(super) fn conv_named(
        &mut self,
        x: ValueId,
        path: &str,
        conv: Conv,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let kernel = [conv.out, self.channels(x), conv.kernel, conv.kernel];
        let spellings: &[&[usize]] = if conv.kernel == 1 { &[&kernel, &kernel[..2]] } else { &[&kernel] };
        let weight = self.weight_of(&format!("{path}.weight"), spellings)?.reshape(kernel)?;
        let bias = self.bias(path, conv.out, Bias::Yes)?;
        self.convolve(x, weight, bias, conv, name)
    }

    /// `nn.Conv2d` without a bias over non-overlapping square patches.
    pub(super) fn patches(
        &mut self,
        x: ValueId,
        path: &str,
        out: usize,
        size: usize,
    ) -> Result<ValueId, ArchError> {
        let weight = self.weight(&format!("{path}.weight"), &[out, self.channels(x), size, size])?;
        self.convolve(x, weight, None, Conv { out, kernel: size, stride: size, pad: 0 }, &identifier(path))
    }

    /// `nn.Linear` over the channels of [batch, channels, 1, tokens] or an image: a 1x1 convolution.
    pub(super) fn project(
        &mut self,
        x: ValueId,
        path: &str,
        out: usize,
        bias: Bias,
    ) -> Result<ValueId, ArchError> {
        let kernel = [out, self.channels(x), 1, 1];
        let weight = self.weight_of(&format!("{path}.weight"), &[&kernel[..2], &kernel])?.reshape(kernel)?;
        let bias = self.bias(path, out, bias)?;
        self.convolve(x, weight, bias, Conv::same(out, 1), &identifier(path))
    }

    /// A matrix or a 1x1 kernel: checkpoints have either for the same layer. Errors report the first shape.
    fn weight_of(&self, name: &str, shapes: &[&[usize]]) -> Result<WeightRef, ArchError> {
        let mut results = shapes.iter().map(|shape| self.weight(name, shape));
        let first = results.next().unwrap_or_else(|| self.weight(name, &[]));
        first.or_else(|error| results.find_map(Result::ok).ok_or(error))
    }

    fn convolve(
        &mut self,
        x: ValueId,
        weight: WeightRef,
        bias: Option<ValueId>,
        conv: Conv,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let weight = self.b.weight(weight);
        let (stride, pad) = (int(conv.stride)?, int(conv.pad)?);
        let pad_type = if conv.pad == 0 { "valid" } else { "custom" };
        let op = self.b.op("conv").arg("x", x).arg("weight", weight).maybe("bias", bias);
        let op = op.arg("strides", [stride; 2]).arg("pad_type", pad_type).arg("pad", [pad; 4]);
        Ok(op.arg("dilations", [1, 1]).arg("groups", 1).named(name).add()?)
    }

    /// `nn.Linear` over the last axis.
    pub(super) fn linear(
        &mut self,
        x: ValueId,
        path: &str,
        out: usize,
        bias: Bias,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let into = self.shape(x).last().copied().unwrap_or(0);
        let kernel = [out, into, 1, 1];
        let weight =
            self.weight_of(&format!("{path}.weight"), &[&kernel[..2], &kernel])?.reshape([out, into])?;
        let weight = self.b.weight(weight);
        let bias = self.bias(path, out, bias)?;
        let op = self.b.op("linear").arg("x", x).arg("weight", weight).maybe("bias", bias);
        Ok(op.named(name).add()?)
    }

    /// `nn.LayerNorm` over one axis.
    pub(super) fn layer_norm(
        &mut self,
        x: ValueId,
        path: &str,
        axis: i32,
        epsilon: f64,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let shape = self.shape(x);
        let extent = if axis < 0 { shape.last() } else { shape.get(axis as usize) }.copied().unwrap_or(0);
        let gamma = self.vector(&format!("{path}.weight"), extent)?;
        let beta = self.vector(&format!("{path}.bias"), extent)?;
        let op = self.b.op("layer_norm").arg("x", x).arg("axes", [axis]).arg("epsilon", epsilon);
        Ok(op.arg("gamma", gamma).arg("beta", beta).named(name).add()?)
    }

    /// `nn.GroupNorm` over [batch, channels, height, width]; the groups divide the channels.
    ///
    /// MIL has no such op. This is coremltools' lowering; the engine matches this exact sequence of ops.
    pub(super) fn group_norm(
        &mut self,
        x: ValueId,
        path: &str,
        groups: Groups,
    ) -> Result<ValueId, ArchError> {
        let &[_, channels, height, width] = self.shape(x) else { return Err(not_an_image(path)) };
        let id = identifier(path);
        let inner = [channels / groups.count, height, width];
        let x = self.normalize(x, &id, groups, &inner)?;
        let (zeros, ones) = (vec![0.0; channels], vec![1.0; channels]);
        let mean = self.floats(self.dtype, &[channels], &zeros)?;
        let variance = self.floats(self.dtype, &[channels], &ones)?;
        let gamma = self.vector(&format!("{path}.weight"), channels)?;
        let beta = self.vector(&format!("{path}.bias"), channels)?;
        let op = self.b.op("batch_norm").arg("x", x).arg("mean", mean).arg("variance", variance);
        // coremltools uses 1e-5, which is lost next to 1 in fp16. In fp32 it would scale every norm by
        // 1 - 5e-6.
        let epsilon = if self.dtype == DType::F16 { 1e-5 } else { 0.0 };
        let op = op.arg("gamma", gamma).arg("beta", beta).arg("epsilon", epsilon);
        Ok(op.named(&id).add()?)
    }

    /// `nn.GroupNorm` of an image, as [batch, channels, pixels]: coremltools' lowering for rank 3.
    pub(super) fn group_norm_flat(
        &mut self,
        x: ValueId,
        path: &str,
        groups: Groups,
    ) -> Result<ValueId, ArchError> {
        let &[_, channels, height, width] = self.shape(x) else { return Err(not_an_image(path)) };
        let id = identifier(path);
        let inner = [channels / groups.count, height * width];
        let x = self.normalize(x, &id, groups, &inner)?;
        let column = |net: &mut Self, name: String| {
            let weight = net.weight(&name, &[channels])?.reshape([1, channels, 1])?;
            Ok::<_, ArchError>(net.b.weight(weight))
        };
        let gamma = column(self, format!("{path}.weight"))?;
        let beta = column(self, format!("{path}.bias"))?;
        let x = self.b.op("mul").arg("x", x).arg("y", gamma).named(&format!("{id}_scaled")).add()?;
        Ok(self.b.op("add").arg("x", x).arg("y", beta).named(&id).add()?)
    }

    /// Subtracts each group's mean and divides by its standard deviation. The result is
    /// [batch, channels, pixels...]. `inner` is the shape of one group.
    fn normalize(
        &mut self,
        x: ValueId,
        id: &str,
        groups: Groups,
        inner: &[usize],
    ) -> Result<ValueId, ArchError> {
        let batch = self.shape(x)[0];
        let grouped = [&[batch, groups.count], inner].concat();
        let merged = [&[batch, groups.count * inner[0]], &inner[1..]].concat();
        let axes: Vec<i32> = (2..2 + inner.len() as i32).collect();
        let b = &mut self.b;
        let name = |part: &str| format!("{id}_{part}");
        let x = b.op("reshape").arg("x", x).arg("shape", ints(&grouped)?).named(&name("grouped")).add()?;
        let mean = b.op("reduce_mean").arg("x", x).arg("axes", axes.clone()).arg("keep_dims", true);
        let mean = mean.named(&name("mean")).add()?;
        let x = b.op("sub").arg("x", x).arg("y", mean).named(&name("centered")).add()?;
        let square = b.op("square").arg("x", x).named(&name("square")).add()?;
        let variance = b.op("reduce_mean").arg("x", square).arg("axes", axes).arg("keep_dims", true);
        let variance = variance.named(&name("variance")).add()?;
        let sum = b.op("add").arg("x", variance).arg("y", groups.epsilon).named(&name("sum")).add()?;
        let deviation = b.op("sqrt").arg("x", sum).named(&name("deviation")).add()?;
        let x = b.op("real_div").arg("x", x).arg("y", deviation).named(&name("normalized")).add()?;
        let shape = ints(&merged)?;
        Ok(b.op("reshape").arg("x", x).arg("shape", shape).named(&name("merged")).add()?)
    }

    pub(super) fn activate(
        &mut self,
        x: ValueId,
        activation: Activation,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let op = match activation {
            Activation::Silu => self.b.op("silu").arg("x", x),
            Activation::Gelu => self.b.op("gelu").arg("x", x).arg("mode", "EXACT"),
            Activation::GeluTanh => self.b.op("gelu").arg("x", x).arg("mode", "TANH_APPROXIMATION"),
            Activation::Relu => self.b.op("relu").arg("x", x),
            Activation::QuickGelu => {
                let scaled =
                    self.b.op("mul").arg("x", x).arg("y", 1.702).named(&format!("{name}_scaled")).add()?;
                let gate = self.b.op("sigmoid").arg("x", scaled).named(&format!("{name}_gate")).add()?;
                self.b.op("mul").arg("x", x).arg("y", gate)
            }
            Activation::Mish => {
                let gate = self.mish_gate(x, name)?;
                self.b.op("mul").arg("x", x).arg("y", gate)
            }
        };
        Ok(op.named(name).add()?)
    }

    /// tanh(ln(1 + e)) as n / (n + 2) with n = e (e + 2) and e = exp(x), which avoids cancellation. `x` is
    /// clamped where the gate rounds to 1, so n does not overflow.
    fn mish_gate(&mut self, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
        let most = if self.dtype == DType::F16 { 5.5 } else { 10.0 };
        let part = |part: &str| format!("{name}_{part}");
        let b = &mut self.b;
        let bounded = b.op("minimum").arg("x", x).arg("y", most).named(&part("bounded")).add()?;
        let e = b.op("exp").arg("x", bounded).named(&part("exp")).add()?;
        let e_plus = b.op("add").arg("x", e).arg("y", 2.0).named(&part("exp_plus")).add()?;
        let n = b.op("mul").arg("x", e).arg("y", e_plus).named(&part("numerator")).add()?;
        let n_plus = b.op("add").arg("x", n).arg("y", 2.0).named(&part("denominator")).add()?;
        Ok(b.op("real_div").arg("x", n).arg("y", n_plus).named(&part("gate")).add()?)
    }

    pub(super) fn sum(&mut self, x: ValueId, y: ValueId, name: &str) -> Result<ValueId, ArchError> {
        Ok(self.b.op("add").arg("x", x).arg("y", y).named(name).add()?)
    }

    pub(super) fn cast(&mut self, x: ValueId, dtype: DType, name: &str) -> Result<ValueId, ArchError> {
        let dtype = dtype.to_string();
        Ok(self.b.op("cast").arg("x", x).arg("dtype", dtype.as_str()).named(name).add()?)
    }

    pub(super) fn reshape(&mut self, x: ValueId, shape: &[i32], name: &str) -> Result<ValueId, ArchError> {
        Ok(self.b.op("reshape").arg("x", x).arg("shape", shape).named(name).add()?)
    }

    pub(super) fn transpose(&mut self, x: ValueId, perm: &[i32], name: &str) -> Result<ValueId, ArchError> {
        Ok(self.b.op("transpose").arg("x", x).arg("perm", perm).named(name).add()?)
    }

    /// The range [start, length] of one of four axes.
    pub(super) fn slice(
        &mut self,
        x: ValueId,
        axis: usize,
        [start, len]: [usize; 2],
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let shape = self.shape(x).to_vec();
        let mut begin = vec![0; shape.len()];
        let mut end = ints(&shape)?;
        (begin[axis], end[axis]) = (int(start)?, int(start + len)?);
        let whole: [bool; 4] = std::array::from_fn(|other| other != axis);
        let op = self.b.op("slice_by_index").arg("x", x).arg("begin", begin).arg("end", end);
        Ok(op.arg("end_mask", whole).named(name).add()?)
    }

    pub(super) fn einsum(
        &mut self,
        equation: &str,
        values: [ValueId; 2],
        name: &str,
    ) -> Result<ValueId, ArchError> {
        Ok(self.b.op("einsum").arg("values", values).arg("equation", equation).named(name).add()?)
    }

    pub(super) fn concat(&mut self, values: &[ValueId], axis: i32, name: &str) -> Result<ValueId, ArchError> {
        let op = self.b.op("concat").arg("values", values).arg("axis", axis).arg("interleave", false);
        Ok(op.named(name).add()?)
    }

    /// Multi-head attention of [batch, tokens, channels] without the projections. It is coremltools' lowering
    /// of PyTorch's `scaled_dot_product_attention`. `mask` is added to the scores. `heads` must divide the
    /// channels.
    pub(super) fn sequence_attention(
        &mut self,
        [query, key, value]: [ValueId; 3],
        heads: usize,
        mask: Option<ValueId>,
        id: &str,
    ) -> Result<ValueId, ArchError> {
        let &[batch, _, channels] = self.shape(query) else { return Err(not_an_image(id)) };
        let name = |part: &str| format!("{id}_{part}");
        let per_head = [int(batch)?, -1, int(heads)?, int(channels / heads)?];
        let query = self.reshape(query, &per_head, &name("q_heads"))?;
        let key = self.reshape(key, &per_head, &name("k_heads"))?;
        let value = self.reshape(value, &per_head, &name("v_heads"))?;
        const SWAP: &[i32] = &[0, 2, 1, 3];
        let x = if mask.is_none() && self.opset() >= Opset::Ios18 {
            let query = self.transpose(query, SWAP, &name("q"))?;
            let key = self.transpose(key, SWAP, &name("k"))?;
            let value = self.transpose(value, SWAP, &name("v"))?;
            let op = self.b.op("scaled_dot_product_attention").arg("query", query).arg("key", key);
            op.arg("value", value).named(&name("attended")).add()?
        } else {
            let scale = ((channels / heads) as f64).sqrt().recip();
            let query = self.b.op("mul").arg("x", query).arg("y", scale).named(&name("q_scaled")).add()?;
            let key = self.transpose(key, SWAP, &name("k"))?;
            let query = self.transpose(query, SWAP, &name("q"))?;
            let scores = self.matmul(query, key, [false, true], &name("scores"))?;
            let scores = match mask {
                Some(mask) => self.sum(scores, mask, &name("masked"))?,
                None => scores,
            };
            let probabilities =
                self.b.op("softmax").arg("x", scores).arg("axis", -1).named(&name("probabilities")).add()?;
            let value = self.transpose(value, SWAP, &name("v"))?;
            self.matmul(probabilities, value, [false, false], &name("attended"))?
        };
        let x = self.transpose(x, SWAP, &name("tokens"))?;
        self.reshape(x, &[int(batch)?, -1, int(channels)?], &name("merged"))
    }

    pub(super) fn matmul(
        &mut self,
        x: ValueId,
        y: ValueId,
        transpose: [bool; 2],
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let op = self.b.op("matmul").arg("x", x).arg("y", y);
        Ok(op.arg("transpose_x", transpose[0]).arg("transpose_y", transpose[1]).named(name).add()?)
    }

    /// Nearest-neighbour upsampling by two, or to `size` if that differs.
    pub(super) fn upsample(
        &mut self,
        x: ValueId,
        size: Option<[usize; 2]>,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let &[_, _, height, width] = self.shape(x) else { return Err(not_an_image(name)) };
        match size.filter(|&[tall, wide]| tall != 2 * height || wide != 2 * width) {
            Some([tall, wide]) => {
                let op = self.b.op("resize_nearest_neighbor").arg("x", x);
                let op = op.arg("target_size_height", int(tall)?).arg("target_size_width", int(wide)?);
                Ok(op.named(name).add()?)
            }
            None => {
                let two = self.floats(DType::F32, &[], &[2.0])?;
                let op = self.b.op("upsample_nearest_neighbor").arg("x", x);
                let op = op.arg("scale_factor_height", two).arg("scale_factor_width", two);
                Ok(op.named(name).add()?)
            }
        }
    }

    /// `Downsample2D`: a 3x3 convolution with stride 2. Without padding, one row and one column of zeros are
    /// appended.
    pub(super) fn downsample(
        &mut self,
        x: ValueId,
        path: &str,
        padding: usize,
    ) -> Result<ValueId, ArchError> {
        let out = self.channels(x);
        let x = match padding {
            0 => {
                let op = self.b.op("pad").arg("x", x).arg("pad", [0, 0, 0, 0, 0, 1, 0, 1]);
                let op = op.arg("mode", "constant").arg("constant_val", 0.0);
                op.named(&format!("{}_padded", identifier(path))).add()?
            }
            _ => x,
        };
        self.conv(x, path, Conv { out, kernel: 3, stride: 2, pad: padding })
    }

    /// The extent of axis 1.
    pub(super) fn channels(&self, x: ValueId) -> usize {
        self.shape(x).get(1).copied().unwrap_or(0)
    }
}

impl Activation {
    /// The activation with the given diffusers name.
    pub(super) fn diffusers(field: &str, name: &str) -> Result<Self, ArchError> {
        match name.to_lowercase().as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "relu" => Ok(Activation::Relu),
            "mish" => Ok(Activation::Mish),
            _ => Err(ArchError::config(
                field,
                format!("\"{name}\" is not supported; supported: silu, swish, gelu, relu, mish"),
            )),
        }
    }
}

/// A MIL integer.
pub(super) fn int(value: usize) -> Result<i32, ArchError> {
    i32::try_from(value)
        .map_err(|_| mixbit_mil::Error::Graph(format!("{value} is too large for a MIL integer")).into())
}

/// MIL integers.
pub(super) fn ints(values: &[usize]) -> Result<Vec<i32>, ArchError> {
    values.iter().map(|&value| int(value)).collect()
}

fn not_an_image(path: &str) -> ArchError {
    mixbit_mil::Error::Graph(format!("`{path}` is applied to a value of another rank")).into()
}
