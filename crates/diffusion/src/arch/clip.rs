//! The layers that CLIP's text and image encoders share.

use mixbit_mil::{ValueId, identifier};

use super::ArchError;
use super::layers::{Activation, Bias, Net};

/// Fields of every transformers configuration that don't affect this network.
pub(super) const UNRELATED: &[&str] = &[
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// The activation with the given transformers name.
pub(super) fn activation(name: &str) -> Result<Activation, ArchError> {
    match name {
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
            Ok(Activation::GeluTanh)
        }
        "silu" | "swish" => Ok(Activation::Silu),
        "relu" => Ok(Activation::Relu),
        "mish" => Ok(Activation::Mish),
        _ => Err(ArchError::config(
            "hidden_act",
            format!(
                "\"{name}\" is not supported; supported: quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, silu, relu, mish"
            ),
        )),
    }
}

/// The parameters of every layer of an encoder.
#[derive(Clone, Copy)]
pub(super) struct Layers {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) heads: usize,
    pub(super) activation: Activation,
    pub(super) epsilon: f64,
}

impl Layers {
    /// Rejects a number of heads that doesn't divide the channels.
    pub(super) fn check(&self) -> Result<(), ArchError> {
        if self.hidden_size.is_multiple_of(self.heads) {
            return Ok(());
        }
        let what = format!("{} heads don't divide hidden_size {}", self.heads, self.hidden_size);
        Err(ArchError::config("num_attention_heads", what))
    }

    /// One layer over (batch, tokens, hidden_size). `mask` is added to the scores.
    pub(super) fn build(
        &self,
        net: &mut Net,
        path: &str,
        x: ValueId,
        mask: Option<ValueId>,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let part = |part: &str| format!("{path}.{part}");
        let norm = |net: &mut Net, x, module: &str| {
            let path = part(module);
            net.layer_norm(x, &path, -1, self.epsilon, &identifier(&path))
        };
        let linear = |net: &mut Net, x, module: &str, out| {
            let path = part(module);
            net.linear(x, &path, out, Bias::Yes, &identifier(&path))
        };
        let id = identifier(&part("self_attn"));
        let normed = norm(net, x, "layer_norm1")?;
        let query = linear(net, normed, "self_attn.q_proj", self.hidden_size)?;
        let key = linear(net, normed, "self_attn.k_proj", self.hidden_size)?;
        let value = linear(net, normed, "self_attn.v_proj", self.hidden_size)?;
        let attended = net.sequence_attention([query, key, value], self.heads, mask, &id)?;
        let attended = linear(net, attended, "self_attn.out_proj", self.hidden_size)?;
        let x = net.sum(x, attended, &id)?;

        let normed = norm(net, x, "layer_norm2")?;
        let inner = linear(net, normed, "mlp.fc1", self.intermediate_size)?;
        let inner = net.activate(inner, self.activation, &identifier(&part("mlp.activation")))?;
        let fed = linear(net, inner, "mlp.fc2", self.hidden_size)?;
        net.sum(x, fed, name)
    }
}
