//! Queries, keys and values of the same tokens: one product.

use std::sync::Arc;

use mixbit_engine::Error;
use mixbit_engine::geometry::linear_rows;
use mixbit_kernels::Mat;
use mixbit_mil::ValueId;

use super::graph::Graph;
use super::label;
use crate::ops::{Ending, lower_linear};
use crate::plan::PlanBuilder;

/// The layers that make an attention's operands of one value.
pub(super) struct Projections {
    /// The positions of the layers, and what the attention reads of each.
    linears: [usize; 3],
    values: [ValueId; 3],
}

impl Projections {
    /// ```text
    /// v = linear(x, w, b)                of three values, with weights of one shape
    /// v = reshape(v)                     where there is one
    /// ```
    /// Pushes the ops that they are to `ops`, if nobody else uses what they make.
    pub(super) fn find(graph: &Graph, values: [ValueId; 3], ops: &mut Vec<usize>) -> Option<Self> {
        let mut found = Vec::new();
        let mut layers = Vec::new();
        for value in values {
            let reshape = graph.own_maker(value, "reshape");
            let made = reshape.map_or(Some(value), |op| graph.view(op).get("x"))?;
            let linear = graph.own_maker(made, "linear")?;
            let view = graph.view(linear);
            let weight = view.get("weight").filter(|&id| graph.is_constant(id))?;
            layers.push((linear, view.get("x")?, graph.shape(weight), view.get("bias").is_some()));
            found.extend(reshape.into_iter().chain([linear]));
        }
        let &(_, x, weight, has_bias) = layers.first()?;
        let is_like_it =
            |layer: &(usize, ValueId, &[usize], bool)| (layer.1, layer.2, layer.3) == (x, weight, has_bias);
        if weight.len() != 2 || !layers.iter().all(is_like_it) {
            return None;
        }
        let linears = [0, 1, 2].map(|index| layers[index].0);
        ops.extend(found);
        Some(Projections { linears, values })
    }

    /// Adds the step, if the layers can be one; if not, a step for each. Says whether the values lie one after the other where the
    /// first is.
    pub(super) fn lower(&self, plan: &mut PlanBuilder) -> Result<bool, Error> {
        let function = plan.function();
        let views = self.linears.map(|index| function.view(&function.ops()[index]));
        let (x, rows) = (views[0].value("x")?, linear_rows(&views[0])?);
        let &[outs, depth] = &views[0].ty("weight")?.shape[..] else {
            return Err(views[0].invalid("not of rank 2").into());
        };
        let weights = views.iter().map(|view| view.value("weight")).collect::<Result<Vec<_>, _>>()?;
        let Some(kernel) = plan.linear_kernel(&weights, false, [outs, depth], rows)? else {
            for (view, value) in views.iter().zip(self.values) {
                lower_linear(view, plan, Ending::of(view))?;
                plan.alias(view.op().outputs[0], value)?;
                plan.count(mixbit_mil::multiply_adds(view));
            }
            return Ok(false);
        };
        let kernel = Arc::new(kernel);
        let packed = kernel.clone();
        let mut bias = Vec::new();
        for id in views.iter().filter_map(|view| view.get("bias")) {
            bias.extend(plan.constant_floats(id)?);
        }
        let label = label(plan, "linear+linear+linear", self.values[0]);
        plan.step_of_one_buffer(label, &[x], &self.values, move |io| {
            let left = Mat::new(io.floats[0], rows, depth).into();
            let mut rooms = Vec::new();
            let rights = kernel.operands(&mut rooms)?;
            let bias = (!bias.is_empty()).then_some(&bias[..]);
            mixbit_kernels::gemm_batched(io.out[0], left, &rights, kernel.precision(), bias);
            Ok(())
        })?;
        plan.prepare(move || packed.prepare());
        plan.count(views.iter().map(mixbit_mil::multiply_adds).sum());
        Ok(true)
    }
}
