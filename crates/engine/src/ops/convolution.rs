//! Convolution, padding and resizing.

use mixbit_kernels::{ConvEpilogue, ConvShape, Padding};
use mixbit_mil::OpView;
use mixbit_mil::ops::ConvGeometry;

use super::{Binding, Ending, Gated, offsets, strides};
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "conv", reference: conv, lower: |op, plan| lower_conv(op, plan, Ending::of(op)) },
    Binding { op: "pad", reference: pad, lower: lower_pad },
    Binding { op: "resize_nearest_neighbor", reference: resize, lower: lower_resize },
    Binding { op: "upsample_nearest_neighbor", reference: resize, lower: lower_upsample },
];

/// The parts of a `conv`'s shapes: batch, channels, height and width of x; out, in per group, kernel of the weight.
fn extents(op: &OpView) -> Result<([usize; 4], [usize; 4]), Error> {
    let four = |shape: &[usize]| <[usize; 4]>::try_from(shape).map_err(|_| op.invalid("not of rank 4"));
    Ok((four(&op.ty("x")?.shape)?, four(&op.ty("weight")?.shape)?))
}

fn conv(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let geometry = ConvGeometry::of(&op.view)?;
    let ([batch, channels, height, width], [outs, per_group, taps_y, taps_x]) = extents(&op.view)?;
    let (x, weight, bias) = (op.floats("x")?, op.floats("weight")?, op.optional_floats("bias")?);
    let [out_height, out_width] = geometry.output;
    let per_out_group = outs / geometry.groups;
    let source = |at: usize, tap: usize, axis: usize, extent: usize| {
        let place = (at * geometry.strides[axis] + tap * geometry.dilations[axis])
            .checked_sub(geometry.pad[2 * axis])?;
        (place < extent).then_some(place)
    };
    let mut out = Vec::with_capacity(op.out(0).count());
    for index in offsets(&op.out(0).shape, &strides(&op.out(0).shape), 0) {
        let (column, row) = (index % out_width, index / out_width % out_height);
        let (channel, image) =
            (index / (out_width * out_height) % outs, index / (out_width * out_height * outs));
        debug_assert!(image < batch);
        let first = channel / per_out_group * per_group;
        let mut sum = bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
        for ty in 0..taps_y {
            let y = source(row, ty, 0, height);
            for tx in 0..taps_x {
                let place = y.zip(source(column, tx, 1, width));
                for c in 0..per_group {
                    // The padding is zeros, which a weight that is not finite makes NaN.
                    let value = place.map_or(0.0, |(y, column)| {
                        x[((image * channels + first + c) * height + y) * width + column]
                    });
                    let tap = weight[((channel * per_group + c) * taps_y + ty) * taps_x + tx];
                    sum += f64::from(value) * f64::from(tap);
                }
            }
        }
        out.push(sum as f32);
    }
    op.float_result(out)
}

/// The sizes of a `conv`.
fn conv_shape(op: &OpView) -> Result<ConvShape, Error> {
    let geometry = ConvGeometry::of(op)?;
    let ([batch, in_channels, height, width], [out_channels, _, kernel_height, kernel_width]) = extents(op)?;
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

/// Adds the step of a convolution and what follows it.
pub(crate) fn lower_conv(op: &OpView, plan: &mut Lowering, ending: Ending) -> Result<(), Error> {
    let shape = conv_shape(op)?;
    let ConvShape { batch, out_channels, .. } = shape;
    let Some(weight) = plan.conv_kernel(op.value("weight")?, false, &shape)? else {
        return plan.by_reference(op, conv);
    };
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let reads = ending.reads(op.value("x")?);
    plan.step(ending.label.clone(), &reads, &[ending.output], move |io| {
        let (shift, residual) = ending.operands(io);
        let shifted = shift.map(|shift| shifted(bias.as_deref(), shift, batch, out_channels));
        let epilogue = ConvEpilogue {
            bias: shifted.as_deref().or(bias.as_deref()),
            residual,
            activation: ending.activation,
        };
        let mut room = None;
        let operand = weight.operand(&mut room)?;
        mixbit_kernels::conv2d(&shape, io.floats[0], operand, weight.precision(), &epilogue, io.out[0]);
        Ok(())
    })
}

/// Adds the step of a convolution of one group whose outputs are halves of a gated unit, the gates second.
///
/// # Errors
/// If the weight is computed.
pub(crate) fn lower_gated_conv(op: &OpView, plan: &mut Lowering, gated: Gated) -> Result<(), Error> {
    let shape = conv_shape(op)?;
    let weight = plan.conv_kernel(op.value("weight")?, true, &shape)?;
    let weight = weight.ok_or_else(|| op.invalid("of a weight that is computed"))?;
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let Gated { label, output, activation } = gated;
    plan.step(label, &[op.value("x")?], &[output], move |io| {
        let (mut room, bias) = (None, bias.as_deref());
        let operand = weight.operand(&mut room)?;
        let (x, precision) = (io.floats[0], weight.precision());
        mixbit_kernels::gated_conv2d(&shape, x, operand, precision, bias, activation, io.out[0]);
        Ok(())
    })
}

/// The bias of each image and channel: one for each channel and a shift, which is of every image or of each.
fn shifted(bias: Option<&[f32]>, shift: &[f32], batch: usize, channels: usize) -> Vec<f32> {
    let one = |index: usize| shift[index % shift.len()] + bias.map_or(0.0, |bias| bias[index % channels]);
    (0..batch * channels).map(one).collect()
}

/// Elements before and after each axis.
fn margins(op: &OpView) -> Result<(Vec<usize>, Vec<usize>), Error> {
    let rank = op.ty("x")?.rank();
    let pad = op.ints("pad")?;
    let first = rank - pad.len() / 2;
    let margin =
        |axis: usize, side: usize| if axis < first { 0 } else { pad[2 * (axis - first) + side] as usize };
    Ok(((0..rank).map(|axis| margin(axis, 0)).collect(), (0..rank).map(|axis| margin(axis, 1)).collect()))
}

fn pad(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let (before, _) = margins(&op.view)?;
    let shape = &op.out(0).shape;
    let all = strides(shape);
    let mut out = vec![op.view.float("constant_val")? as f32; op.out(0).count()];
    let start: usize = before.iter().zip(&all).map(|(&before, &stride)| before * stride as usize).sum();
    for (at, &value) in offsets(x.shape(), &all, start).into_iter().zip(x.as_f32().unwrap_or_default()) {
        out[at] = value;
    }
    op.float_result(out)
}

fn lower_pad(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let (before, after) = margins(op)?;
    let shape = op.ty("x")?.shape.clone();
    let value = op.float("constant_val")? as f32;
    if shape.len() > mixbit_kernels::MAX_RANK {
        return plan.by_reference(op, pad);
    }
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::pad(io.floats[0], &shape, &before, &after, value, io.out[0]);
        Ok(())
    })
}

fn resize(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let (from, to) = (x.shape(), &op.out(0).shape);
    let rank = from.len();
    let [height, width] = [from[rank - 2], from[rank - 1]];
    let [out_height, out_width] = [to[rank - 2], to[rank - 1]];
    let values = x.as_f32().unwrap_or_default();
    let source = |index: usize| {
        let (row, column) = (index / out_width % out_height, index % out_width);
        let plane = index / (out_width * out_height);
        values[(plane * height + row * height / out_height) * width + column * width / out_width]
    };
    op.float_result((0..op.out(0).count()).map(source).collect())
}

fn lower_upsample(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let shape = &op.ty("x")?.shape;
    let rank = shape.len();
    let size = [shape[rank - 2], shape[rank - 1]];
    let planes = shape[..rank - 2].iter().product();
    let scale = [op.float("scale_factor_height")? as usize, op.float("scale_factor_width")? as usize];
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::upsample_nearest(io.floats[0], planes, size, scale, io.out[0]);
        Ok(())
    })
}

fn lower_resize(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let (from, to) = (&op.ty("x")?.shape, plan.shape(op.op().outputs[0]));
    let rank = from.len();
    let [height, width, out_height, out_width] = [from[rank - 2], from[rank - 1], to[rank - 2], to[rank - 1]];
    let columns: Vec<usize> = (0..out_width).map(|column| column * width / out_width).collect();
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
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
