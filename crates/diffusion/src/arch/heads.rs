//! Multi-head attention of (batch, channels, 1, tokens) without the projections, in each of Apple's forms.

use mixbit_mil::{DType, ValueId};

use super::layers::{Net, int};
use super::{ArchError, AttentionImplementation};

/// Queries per chunk in the chunked form.
const CHUNK: usize = 512;
/// Limit on the pieces (heads times chunks) of one attention, beyond any size that can run.
const MAX_PIECES: usize = 1 << 12;

/// The heads of an attention. Their number divides the channels.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    /// True if the probabilities are computed in `fp32` regardless of the compute type.
    pub(super) upcast: bool,
}

impl Heads {
    /// The attention's result (batch, channels, 1, query tokens).
    pub(super) fn attend(
        self,
        net: &mut Net,
        implementation: AttentionImplementation,
        projected: [ValueId; 3],
        id: &str,
    ) -> Result<ValueId, ArchError> {
        let tokens = net.shape(projected[0]).last().copied().unwrap_or(0);
        match implementation {
            AttentionImplementation::Original => self.original(net, projected, id),
            AttentionImplementation::SplitEinsum => self.split(net, projected, tokens, id),
            AttentionImplementation::SplitEinsumV2 => self.split(net, projected, CHUNK, id),
        }
    }

    /// Attention with the heads as a batch axis. The channels of a head stay before the tokens.
    fn original(
        self,
        net: &mut Net,
        [query, key, value]: [ValueId; 3],
        id: &str,
    ) -> Result<ValueId, ArchError> {
        let (batch, channels) = (net.shape(query)[0], net.channels(query));
        let name = |part: &str| format!("{id}_{part}");
        let per_head = [int(batch)?, int(self.count)?, int(channels / self.count)?, -1];
        let query = net.reshape(query, &per_head, &name("q_heads"))?;
        let key = net.reshape(key, &per_head, &name("k_heads"))?;
        let value = net.reshape(value, &per_head, &name("v_heads"))?;
        let query = self.upcast(net, query, &name("q_upcast"))?;
        let key = self.upcast(net, key, &name("k_upcast"))?;
        let scores = net.matmul(query, key, [true, false], &name("scores"))?;
        let probabilities = self.probabilities(net, scores, channels, 3, id)?;
        let attended = net.matmul(value, probabilities, [false, true], &name("attended"))?;
        net.reshape(attended, &[int(batch)?, int(channels)?, 1, -1], &name("merged"))
    }

    /// Each head separately, as the Neural Engine prefers, with at most `chunk` queries at a time.
    fn split(
        self,
        net: &mut Net,
        [query, key, value]: [ValueId; 3],
        chunk: usize,
        id: &str,
    ) -> Result<ValueId, ArchError> {
        let channels = net.channels(query);
        let width = channels / self.count;
        let tokens = net.shape(query)[3];
        let pieces = self.count.saturating_mul(tokens.div_ceil(chunk));
        if pieces > MAX_PIECES {
            let what = format!("{id} would be split into {pieces} pieces, more than {MAX_PIECES}");
            return Err(ArchError::Option { option: "attention", what });
        }
        let query = self.upcast(net, query, &format!("{id}_q_upcast"))?;
        let key = net.transpose(key, &[0, 3, 2, 1], &format!("{id}_k_transposed"))?;
        let key = self.upcast(net, key, &format!("{id}_k_upcast"))?;
        let mut attended = Vec::with_capacity(self.count);
        for head in 0..self.count {
            let name = |part: &str| format!("{id}_head_{head}_{part}");
            let own = [head * width, width];
            let query = net.slice(query, 1, own, &name("q"))?;
            let key = net.slice(key, 3, own, &name("k"))?;
            let value = net.slice(value, 1, own, &name("v"))?;
            if tokens <= chunk {
                attended.push(self.one_head(net, [query, key, value], channels, &name("attended"))?);
                continue;
            }
            let mut chunks = Vec::with_capacity(tokens.div_ceil(chunk));
            for start in (0..tokens).step_by(chunk) {
                let name = |part: &str| name(&format!("chunk_{}_{part}", start / chunk));
                let part = net.slice(query, 3, [start, chunk.min(tokens - start)], &name("q"))?;
                chunks.push(self.one_head(net, [part, key, value], channels, &name("attended"))?);
            }
            attended.push(net.concat(&chunks, 3, &name("chunks"))?);
        }
        net.concat(&attended, 1, &format!("{id}_merged"))
    }

    /// One head: queries and values (batch, width, 1, tokens), keys (batch, tokens, 1, width).
    fn one_head(
        self,
        net: &mut Net,
        [query, key, value]: [ValueId; 3],
        channels: usize,
        id: &str,
    ) -> Result<ValueId, ArchError> {
        let scores = net.einsum("bkhc,bchq->bkhq", [key, query], &format!("{id}_scores"))?;
        let probabilities = self.probabilities(net, scores, channels, 1, id)?;
        net.einsum("bchk,bkhq->bchq", [value, probabilities], id)
    }

    /// The softmax of the scaled scores over `axis`, in the compute type.
    fn probabilities(
        self,
        net: &mut Net,
        scores: ValueId,
        channels: usize,
        axis: i32,
        id: &str,
    ) -> Result<ValueId, ArchError> {
        let scale = ((channels / self.count) as f64).sqrt().recip();
        let scaled = net.op("mul").arg("x", scores).arg("y", scale).named(&format!("{id}_scaled")).add()?;
        let softmax = net.op("softmax").arg("x", scaled).arg("axis", axis);
        let probabilities = softmax.named(&format!("{id}_probabilities")).add()?;
        if self.is_upcast(net) {
            let dtype = net.dtype();
            return net.cast(probabilities, dtype, &format!("{id}_downcast"));
        }
        Ok(probabilities)
    }

    fn upcast(self, net: &mut Net, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
        if self.is_upcast(net) { net.cast(x, DType::F32, name) } else { Ok(x) }
    }

    fn is_upcast(self, net: &Net) -> bool {
        self.upcast && net.dtype() != DType::F32
    }
}
