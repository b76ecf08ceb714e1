//! The transformers of the UNet: `Transformer2DModel` with `BasicTransformerBlock`s.

use mixbit_mil::{ValueId, identifier};

use super::super::ArchError;
use super::super::heads::Heads;
use super::super::layers::{Bias, Conv, Groups, ints};
use super::{Activation, Attention, Unet};

/// The epsilon of the transformer's group norm; diffusers has no field for it.
const GROUP_EPSILON: f64 = 1e-6;
/// The epsilon of the blocks' layer norms; diffusers has no field for it.
const LAYER_EPSILON: f64 = 1e-5;
/// The ratio of the feed-forward layers' channels to the block's.
const WIDENING: usize = 4;

/// The operands of one attention: the query, the states it attends to and the number of heads.
struct Look {
    query: ValueId,
    states: ValueId,
    heads: usize,
}

impl Unet<'_> {
    /// `depth` transformer blocks over the pixels of an image (batch, channels, height, width), added to it.
    pub(super) fn transformer(
        &mut self,
        path: &str,
        x: ValueId,
        attention: &Attention,
        depth: usize,
    ) -> Result<ValueId, ArchError> {
        let shape = self.net.shape(x).to_vec();
        let channels = self.net.channels(x);
        let id = identifier(path);
        let groups = Groups { count: self.config.norm_num_groups, epsilon: GROUP_EPSILON };
        let normed = self.net.group_norm(x, &format!("{path}.norm"), groups)?;
        let projected = self.pass(normed, &format!("{path}.proj_in"))?;
        let pixels: usize = shape[2..].iter().product();
        let sequence = ints(&[shape[0], channels, 1, pixels])?;
        let mut tokens = self.net.reshape(projected, &sequence, &format!("{id}_tokens"))?;
        for block in 0..depth {
            tokens = self.block(&format!("{path}.transformer_blocks.{block}"), tokens, attention)?;
        }
        let image = self.net.reshape(tokens, &ints(&shape)?, &format!("{id}_image"))?;
        let image = self.pass(image, &format!("{path}.proj_out"))?;
        self.net.sum(image, x, &id)
    }

    /// The projection before or after a transformer's blocks.
    fn pass(&mut self, x: ValueId, path: &str) -> Result<ValueId, ArchError> {
        let channels = self.net.channels(x);
        match self.config.use_linear_projection {
            true => self.net.project(x, path, channels, Bias::Yes),
            false => self.net.conv(x, path, Conv::same(channels, 1)),
        }
    }

    fn block(&mut self, path: &str, x: ValueId, attention: &Attention) -> Result<ValueId, ArchError> {
        let text = self
            .text
            .ok_or_else(|| ArchError::config("cross_attention_dim", "there is no text to attend to"))?;
        let heads = attention.heads;
        let normed = self.norm(path, "norm1", x)?;
        let states = if attention.only_cross_attention { text } else { normed };
        let x = self.attend(&format!("{path}.attn1"), Look { query: normed, states, heads }, x)?;
        let normed = self.norm(path, "norm2", x)?;
        let x = self.attend(&format!("{path}.attn2"), Look { query: normed, states: text, heads }, x)?;
        let normed = self.norm(path, "norm3", x)?;
        self.feed_forward(&format!("{path}.ff"), normed, x)
    }

    fn norm(&mut self, path: &str, part: &str, x: ValueId) -> Result<ValueId, ArchError> {
        let path = format!("{path}.{part}");
        self.net.layer_norm(x, &path, 1, LAYER_EPSILON, &identifier(&path))
    }

    /// Attention with its projections, added to `residual`.
    fn attend(&mut self, path: &str, look: Look, residual: ValueId) -> Result<ValueId, ArchError> {
        let channels = self.net.channels(look.query);
        let query = self.net.project(look.query, &format!("{path}.to_q"), channels, Bias::No)?;
        let key = self.net.project(look.states, &format!("{path}.to_k"), channels, Bias::No)?;
        let value = self.net.project(look.states, &format!("{path}.to_v"), channels, Bias::No)?;
        let id = identifier(path);
        let heads = Heads { count: look.heads, upcast: self.config.upcast_attention };
        let attended = heads.attend(&mut self.net, self.options.attention, [query, key, value], &id)?;
        let out = self.net.project(attended, &format!("{path}.to_out.0"), channels, Bias::Yes)?;
        self.net.sum(out, residual, &id)
    }

    /// GEGLU and a linear layer, added to `residual`.
    fn feed_forward(&mut self, path: &str, x: ValueId, residual: ValueId) -> Result<ValueId, ArchError> {
        let channels = self.net.channels(x);
        let inner = WIDENING * channels;
        let id = identifier(path);
        let both = self.net.project(x, &format!("{path}.net.0.proj"), 2 * inner, Bias::Yes)?;
        let sizes = ints(&[inner; 2])?;
        let op = self.net.op("split").arg("x", both).arg("split_sizes", sizes).arg("axis", 1);
        let halves = op.named(&format!("{id}_halves")).add_all()?;
        let gate = self.net.activate(halves[1], Activation::Gelu, &format!("{id}_gate"))?;
        let gated =
            self.net.op("mul").arg("x", halves[0]).arg("y", gate).named(&format!("{id}_gated")).add()?;
        let out = self.net.project(gated, &format!("{path}.net.2"), channels, Bias::Yes)?;
        self.net.sum(out, residual, &id)
    }
}
