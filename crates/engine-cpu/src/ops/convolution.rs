//! Convolution, padding and resizing.

use std::sync::Arc;

use mixbit_engine::Error;
use mixbit_engine::fuse;
use mixbit_engine::geometry::{conv_extents, pad_margins};
use mixbit_kernels::{Bias, ConvShape, Epilogue, Mat, Padding};
use mixbit_mil::ops::ConvGeometry;
use mixbit_mil::{OpView, ValueId};

use super::{Lowering, kernel};
use crate::plan::{Label, PlanBuilder};

pub(super) static LOWERINGS: &[Lowering] = &[
    Lowering { op: "conv", lower: |op, plan| lower_conv(op, plan, op.into(), &fuse::Epilogue::none(op)) },
    Lowering { op: "pad", lower: lower_pad },
    Lowering { op: "resize_nearest_neighbor", lower: lower_resize },
    Lowering { op: "upsample_nearest_neighbor", lower: lower_upsample },
];

/// The sizes of a `conv`.
fn conv_shape(op: &OpView) -> Result<ConvShape, Error> {
    let geometry = ConvGeometry::of(op)?;
    let ([batch, in_channels, height, width], [out_channels, _, kernel_height, kernel_width]) =
        conv_extents(op)?;
    let [top, bottom, left, right] = geometry.pad;
    Ok(ConvShape {
        batch,
        in_channels,
        in_size: [height, width],
        out_channels,
        kernel: [kernel_height, kernel_width],
        stride: geometry.strides,
        padding: Padding { top, bottom, left, right },
        dilation: geometry.dilations,
        groups: geometry.groups,
    })
}

/// Adds the step of a convolution with its epilogue.
pub(crate) fn lower_conv(
    op: &OpView,
    plan: &mut PlanBuilder,
    label: Label,
    epilogue: &fuse::Epilogue,
) -> Result<(), Error> {
    let shape = conv_shape(op)?;
    let ConvShape { batch, out_channels, .. } = shape;
    let pixels = shape.out_size().iter().product();
    let Some(weight) = plan.conv_kernel(op.value("weight")?, false, &shape)? else {
        return plan.by_definition(op);
    };
    let weight = Arc::new(weight);
    let packed = weight.clone();
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let &fuse::Epilogue { output, shift, residual, activation, .. } = epilogue;
    let reads: Vec<ValueId> = [Some(op.value("x")?), shift, residual].into_iter().flatten().collect();
    let [has_shift, has_residual] = [shift, residual].map(|value| value.is_some());
    let activation = activation.map(kernel);
    plan.step(label, &reads, &[output], move |io| {
        let mut operands = io.floats[1..].iter().copied();
        let shift = if has_shift { operands.next() } else { None };
        let residual = if has_residual { operands.next() } else { None };
        let shifted = shift.map(|shift| shifted(bias.as_deref(), shift, batch, out_channels));
        let rows = batch * out_channels;
        let epilogue = Epilogue {
            bias: shifted.as_deref().or(bias.as_deref()).map_or(Bias::None, Bias::PerRow),
            residual: residual.map(|residual| Mat::new(residual, rows, pixels)),
            activation,
            gate: None,
        };
        let mut scratch = None;
        let operand = weight.operand(&mut scratch)?;
        mixbit_kernels::conv2d(&shape, io.floats[0], operand, weight.precision(), &epilogue, io.out[0]);
        Ok(())
    })?;
    plan.prepare(move || packed.prepare());
    Ok(())
}

/// Adds the step of a convolution of one group whose outputs are the values, then the gates of a gated unit.
///
/// # Errors
/// If the weight is computed.
pub(crate) fn lower_gated_conv(
    op: &OpView,
    plan: &mut PlanBuilder,
    label: Label,
    gated: &fuse::Gated,
) -> Result<(), Error> {
    let shape = conv_shape(op)?;
    let weight = plan.conv_kernel(op.value("weight")?, true, &shape)?;
    let weight = Arc::new(weight.ok_or_else(|| op.invalid("of a weight that is computed"))?);
    let packed = weight.clone();
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let gate = kernel(gated.activation);
    plan.step(label, &[op.value("x")?], &[gated.output], move |io| {
        let mut scratch = None;
        let bias = bias.as_deref().map_or(Bias::None, Bias::PerRow);
        let epilogue = Epilogue { bias, gate: Some(gate), ..Epilogue::default() };
        let operand = weight.operand(&mut scratch)?;
        let (x, precision) = (io.floats[0], weight.precision());
        mixbit_kernels::conv2d(&shape, x, operand, precision, &epilogue, io.out[0]);
        Ok(())
    })?;
    plan.prepare(move || packed.prepare());
    Ok(())
}

/// The bias of each image and channel: the sum of a bias of each channel and a shift of every image or of
/// each.
fn shifted(bias: Option<&[f32]>, shift: &[f32], batch: usize, channels: usize) -> Vec<f32> {
    let one = |index: usize| shift[index % shift.len()] + bias.map_or(0.0, |bias| bias[index % channels]);
    (0..batch * channels).map(one).collect()
}

fn lower_pad(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let (before, after) = pad_margins(op)?;
    let shape = op.ty("x")?.shape.clone();
    let value = op.float("constant_val")? as f32;
    if shape.len() > mixbit_kernels::MAX_RANK {
        return plan.by_definition(op);
    }
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::pad(io.floats[0], &shape, &before, &after, value, io.out[0]);
        Ok(())
    })
}

fn lower_upsample(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let shape = &op.ty("x")?.shape;
    let rank = shape.len();
    let size = [shape[rank - 2], shape[rank - 1]];
    let planes = shape[..rank - 2].iter().product();
    let scale = [op.float("scale_factor_height")? as usize, op.float("scale_factor_width")? as usize];
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::upsample_nearest(io.floats[0], planes, size, scale, io.out[0]);
        Ok(())
    })
}

fn lower_resize(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let (from, to) = (&op.ty("x")?.shape, plan.shape(op.op().outputs[0]));
    let rank = from.len();
    let [height, width, out_height, out_width] = [from[rank - 2], from[rank - 1], to[rank - 2], to[rank - 1]];
    let columns: Vec<usize> = (0..out_width).map(|column| column * width / out_width).collect();
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        let x = io.floats[0];
        mixbit_kernels::pool::for_each_chunk_mut(io.out[0], out_height * out_width, |plane, out| {
            for (row, out) in out.chunks_exact_mut(out_width).enumerate() {
                let start = (plane * height + row * height / out_height) * width;
                let source = &x[start..start + width];
                out.iter_mut().zip(&columns).for_each(|(out, &column)| *out = source[column]);
            }
        });
        Ok(())
    })
}
