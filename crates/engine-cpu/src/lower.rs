//! From nodes to steps.

use std::sync::Arc;

use mixbit_engine::Error;
use mixbit_engine::fuse::{Affine, Attention, Gated, GroupNorm, Heads, JointProjections, LayerNorm, Node};
use mixbit_engine::geometry::linear_rows;
use mixbit_kernels::{AttentionShape, AxisShape, GroupNormShape, HeadLayout, Mat, NormParams};
use mixbit_mil::{OpView, ValueId};

use crate::ops::{kernel, lower_conv, lower_gated_conv, lower_gated_linear, lower_linear, lowering};
use crate::plan::{Label, PlanBuilder};

/// Adds the steps of a node to a plan.
///
/// # Errors
/// If an op is not supported, or a constant can't be read.
pub(crate) fn lower(node: &Node, plan: &mut PlanBuilder) -> Result<(), Error> {
    let function = plan.function();
    let view = |position: usize| function.view(&function.ops()[position]);
    let label = |output: ValueId| Label::of_node(node, function, output);
    match node {
        Node::Op(op) => lower_op(&view(*op), plan),
        Node::GroupNorm(norm) | Node::FlatGroupNorm(norm) => group_norm(norm, label(norm.output), plan),
        Node::LayerNorm(norm) => layer_norm(norm, label(norm.output), plan),
        Node::Attention(node) => attention(node, label(node.output.value), plan),
        Node::JointProjections(joint) => match projections(joint, label(joint.outputs[0]), plan)? {
            true => Ok(()),
            false => node.single_ops().iter().try_for_each(|op| lower(op, plan)),
        },
        Node::Gated(gated) => {
            let label = label(gated.output);
            match gated.layer.map(view) {
                Some(layer) if layer.kind() == "conv" => lower_gated_conv(&layer, plan, label, gated),
                Some(layer) => lower_gated_linear(&layer, plan, label, gated),
                None => geglu(gated, label, plan),
            }
        }
        Node::Linear(epilogue) => {
            lower_linear(&view(epilogue.ops[0]), plan, label(epilogue.output), epilogue)
        }
        Node::Conv(epilogue) => lower_conv(&view(epilogue.ops[0]), plan, label(epilogue.output), epilogue),
    }
}

fn lower_op(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let lowering = lowering(op.kind()).ok_or_else(|| Error::Unsupported {
        backend: "cpu",
        op: op.label(),
        what: "the op has no lowering".to_string(),
    })?;
    (lowering.lower)(op, plan)?;
    plan.count(mixbit_mil::multiply_adds(op));
    Ok(())
}

fn group_norm(norm: &GroupNorm, label: Label, plan: &mut PlanBuilder) -> Result<(), Error> {
    let &GroupNorm { batch, channels, spatial, groups, epsilon, gain, .. } = norm;
    let mut parameter = |id: Option<ValueId>, absent: f32| match id {
        Some(id) => plan.constant_floats(id),
        None => Ok(vec![absent; channels]),
    };
    let (mut gamma, beta) = (parameter(norm.gamma, 1.0)?, parameter(norm.beta, 0.0)?);
    gamma.iter_mut().for_each(|gamma| *gamma *= gain);
    let activation = norm.activation.map(kernel);
    plan.step(label, &[norm.input], &[norm.output], move |io| {
        let shape = GroupNormShape { batch, channels, spatial, groups };
        let params = NormParams { gamma: Some(&gamma), beta: Some(&beta), epsilon, activation };
        mixbit_kernels::group_norm(&shape, io.floats[0], &params, io.out[0]);
        Ok(())
    })
}

fn layer_norm(norm: &LayerNorm, label: Label, plan: &mut PlanBuilder) -> Result<(), Error> {
    let ([outer, axis, inner], epsilon) = (norm.shape, norm.epsilon);
    let (mut gamma, mut beta) = (vec![1.0; axis], vec![0.0; axis]);
    for step in &norm.affine {
        match *step {
            Affine::Scale(scale) => {
                let scale = plan.constant_floats(scale)?;
                gamma.iter_mut().zip(&scale).for_each(|(gamma, scale)| *gamma *= scale);
                beta.iter_mut().zip(&scale).for_each(|(beta, scale)| *beta *= scale);
            }
            Affine::Shift(shift) => beta = plan.constant_floats(shift)?,
        }
    }
    plan.step(label, &[norm.input], &[norm.output], move |io| {
        let shape = AxisShape { outer, axis, inner };
        let params = NormParams { gamma: Some(&gamma), beta: Some(&beta), epsilon, activation: None };
        mixbit_kernels::layer_norm(&shape, io.floats[0], &params, io.out[0]);
        Ok(())
    })
}

fn geglu(gated: &Gated, label: Label, plan: &mut PlanBuilder) -> Result<(), Error> {
    let width = gated.width;
    plan.step(label, &[gated.input], &[gated.output], move |io| {
        mixbit_kernels::geglu(io.floats[0], width, io.out[0]);
        Ok(())
    })
}

fn attention(node: &Attention, label: Label, plan: &mut PlanBuilder) -> Result<(), Error> {
    let &Attention { batch, heads, queries, keys, dim, value_dim, scale, .. } = node;
    let shape = AttentionShape { batch, heads, queries, keys, dim, value_dim };
    let operands = [node.query.value, node.key.value, node.value.value];
    let are_joint = plan.are_joint(&operands);
    let read = if are_joint { &operands[..1] } else { &operands[..] };
    let reads: Vec<ValueId> = read.iter().copied().chain(node.mask.map(|mask| mask.value)).collect();
    let strides = node.mask.map(|mask| mask.strides);
    let [query, key, value, out] = [node.query, node.key, node.value, node.output].map(layout);
    let (precision, partition) = (plan.precision(), plan.partition(&shape));
    plan.step(label, &reads, &[node.output.value], move |io| {
        let (operands, mask) = io.floats.split_at(io.floats.len() - usize::from(strides.is_some()));
        let [queries, keys, values] = match *operands {
            [queries, keys, values] => [queries, keys, values],
            // One after the other, equally long.
            _ => [0, 1, 2].map(|index| {
                let len = operands[0].len() / 3;
                &operands[0][index * len..][..len]
            }),
        };
        let mask =
            strides.map(|[row, column]| Mat::with_strides(mask[0], shape.queries, shape.keys, row, column));
        let args = mixbit_kernels::Attention {
            shape,
            query: mixbit_kernels::Heads { data: queries, layout: query },
            key: mixbit_kernels::Heads { data: keys, layout: key },
            value: mixbit_kernels::Heads { data: values, layout: value },
            scale,
            mask,
            partition,
        };
        mixbit_kernels::attention(&args, precision, io.out[0], out);
        Ok(())
    })
}

fn layout(heads: Heads) -> HeadLayout {
    let Heads { batch, head, token, channel, .. } = heads;
    HeadLayout { batch, head, token, channel }
}

/// Adds one step for three layers; `false` if their weights are computed, or of several precisions.
fn projections(joint: &JointProjections, label: Label, plan: &mut PlanBuilder) -> Result<bool, Error> {
    let function = plan.function();
    let layers = joint.layers.map(|layer| function.view(&function.ops()[layer]));
    let rows = linear_rows(&layers[0])?;
    let &[outs, depth] = &layers[0].ty("weight")?.shape[..] else { return Ok(false) };
    let weights = layers.iter().map(|layer| layer.value("weight")).collect::<Result<Vec<_>, _>>()?;
    let Some(kernel) = plan.linear_kernel(&weights, false, [outs, depth], rows)? else { return Ok(false) };
    let kernel = Arc::new(kernel);
    let packed = kernel.clone();
    let mut bias = Vec::new();
    for id in layers.iter().filter_map(|layer| layer.get("bias")) {
        bias.extend(plan.constant_floats(id)?);
    }
    plan.step_of_one_buffer(label, &[joint.input], &joint.outputs, move |io| {
        let left = Mat::new(io.floats[0], rows, depth).into();
        let mut scratch = Vec::new();
        let rights = kernel.operands(&mut scratch)?;
        let bias = (!bias.is_empty()).then_some(&bias[..]);
        mixbit_kernels::gemm_batched(io.out[0], left, &rights, kernel.precision(), bias);
        Ok(())
    })?;
    plan.prepare(move || packed.prepare());
    Ok(true)
}
