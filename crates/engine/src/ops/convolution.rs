//! Convolution, padding and resizing.

use mixbit_mil::ops::ConvGeometry;

use super::{Definition, Operands};
use crate::geometry::{conv_extents, offsets, pad_margins, strides};
use crate::{Error, Tensor};

pub(super) static DEFINITIONS: &[Definition] = &[
    Definition { op: "conv", eval: conv },
    Definition { op: "pad", eval: pad },
    Definition { op: "resize_nearest_neighbor", eval: resize },
    Definition { op: "upsample_nearest_neighbor", eval: resize },
];

fn conv(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let geometry = ConvGeometry::of(&op.view)?;
    let ([batch, channels, height, width], [outs, per_group, taps_y, taps_x]) = conv_extents(&op.view)?;
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

fn pad(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let (before, _) = pad_margins(&op.view)?;
    let shape = &op.out(0).shape;
    let all = strides(shape);
    let mut out = vec![op.view.float("constant_val")? as f32; op.out(0).count()];
    let start: usize = before.iter().zip(&all).map(|(&before, &stride)| before * stride as usize).sum();
    for (at, &value) in offsets(x.shape(), &all, start).into_iter().zip(x.as_f32().unwrap_or_default()) {
        out[at] = value;
    }
    op.float_result(out)
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
