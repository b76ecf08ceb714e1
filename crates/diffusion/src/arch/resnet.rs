//! The residual block that the UNet and the autoencoder share: diffusers' `ResnetBlock2D`.

use mixbit_mil::{ValueId, identifier};

use super::ArchError;
use super::layers::{Activation, Bias, Conv, Groups, Net};

/// The parameters of a residual block.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) out: usize,
    pub(super) groups: Groups,
    pub(super) activation: Activation,
    /// The divisor of the sum of the block and its shortcut.
    pub(super) scale: f64,
}

/// The time embedding (batch, channels, 1, 1) and the way it is applied.
#[derive(Clone, Copy)]
pub(super) struct Time {
    /// The embedding, already activated.
    pub(super) embedding: ValueId,
    /// If true, it scales and shifts after the second norm. Otherwise it is added before that norm.
    pub(super) scale_shift: bool,
}

/// Builds the block over an image (batch, channels, height, width). If the numbers of channels differ, the
/// shortcut is a convolution.
pub(super) fn build(
    net: &mut Net,
    path: &str,
    x: ValueId,
    block: &Block,
    time: Option<Time>,
) -> Result<ValueId, ArchError> {
    let id = identifier(path);
    let part = |part: &str| format!("{path}.{part}");
    let mut hidden = net.group_norm(x, &part("norm1"), block.groups)?;
    hidden = net.activate(hidden, block.activation, &format!("{id}_act1"))?;
    hidden = net.conv(hidden, &part("conv1"), Conv::same(block.out, 3))?;
    match time {
        Some(Time { embedding, scale_shift: false }) => {
            let shift = net.project(embedding, &part("time_emb_proj"), block.out, Bias::Yes)?;
            hidden = net.sum(hidden, shift, &format!("{id}_shifted"))?;
            hidden = net.group_norm(hidden, &part("norm2"), block.groups)?;
        }
        Some(Time { embedding, scale_shift: true }) => {
            let both = net.project(embedding, &part("time_emb_proj"), 2 * block.out, Bias::Yes)?;
            let op = net.op("split").arg("x", both).arg("num_splits", 2).arg("axis", 1);
            let halves = op.named(&format!("{id}_scale_shift")).add_all()?;
            let scale =
                net.op("add").arg("x", halves[0]).arg("y", 1.0).named(&format!("{id}_scale")).add()?;
            hidden = net.group_norm(hidden, &part("norm2"), block.groups)?;
            hidden = net.op("mul").arg("x", hidden).arg("y", scale).named(&format!("{id}_scaled")).add()?;
            hidden = net.sum(hidden, halves[1], &format!("{id}_shifted"))?;
        }
        None => hidden = net.group_norm(hidden, &part("norm2"), block.groups)?,
    }
    hidden = net.activate(hidden, block.activation, &format!("{id}_act2"))?;
    hidden = net.conv(hidden, &part("conv2"), Conv::same(block.out, 3))?;
    let shortcut = match net.channels(x) == block.out {
        true => x,
        false => net.conv(x, &part("conv_shortcut"), Conv::same(block.out, 1))?,
    };
    if block.scale == 1.0 {
        return net.sum(shortcut, hidden, &id);
    }
    let sum = net.sum(shortcut, hidden, &format!("{id}_sum"))?;
    Ok(net.op("real_div").arg("x", sum).arg("y", block.scale).named(&id).add()?)
}
