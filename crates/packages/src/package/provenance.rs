//! The source of a package and the options that it was made with, in its metadata.

use std::collections::BTreeMap;

use mixbit_formats::{hex, sha256};
use mixbit_mil::{Arg, Constant, Def, Function, WeightRef, Weights};
use serde_json::{Map, Value};

use super::keys;

/// Bytes of one sample of a tensor.
const SAMPLE: usize = 4096;

/// The number of samples of a large tensor, the first and the last bytes among them. The system reads the end
/// of one tensor and the start of the next together.
const SAMPLES: usize = 3;

/// The checksum of a component's weights: of the names, types and shapes of all tensors, of small tensors
/// whole, and of three samples of 4096 bytes, evenly spaced, of each larger one.
///
/// It costs a few thousand reads of one page each, where a hash of everything would read the source a second
/// time: from a cold disk about a seventh of that for Stable Diffusion 1.5, and the conversion needs these
/// pages anyway. It tells apart other checkpoints, fine-tunes, merges, other element types and cut or
/// exchanged tensors: these change nearly every value of a tensor. It misses a change of a few values between
/// the samples of a large tensor, such as one row of the token embeddings; `--force` writes packages of such
/// a model again.
pub(crate) fn of_weights(weights: &dyn Weights) -> String {
    let mut names = weights.names();
    names.sort_unstable();
    let line = |name| Some(format!("{name} {}\n", of_weight(&weights.get(name)?)));
    checksum(names.into_iter().filter_map(line).collect::<String>().as_bytes())
}

/// The checksum of a network that was read from a package: of its ops and constants, as [`of_weights`] takes
/// them.
pub(crate) fn of_function(function: &Function) -> String {
    let mut text = String::new();
    for op in function.ops() {
        let arguments = op.args.iter().flat_map(Arg::values).map(|&id| function.value(id));
        text += op.def.name;
        for value in arguments {
            let constant = match &value.def {
                Def::Const(Constant::Weight(weight)) => of_weight(weight),
                Def::Const(Constant::Literal(literal)) => {
                    checksum(format!("{:?} {:?}", literal.bytes(), literal.strings()).as_bytes())
                }
                _ => String::new(),
            };
            text += &format!(" {} {} {constant}", value.name, value.ty);
        }
        text.push('\n');
    }
    checksum(text.as_bytes())
}

fn of_weight(weight: &WeightRef) -> String {
    let content: String = match weight.encoding() {
        Some(encoding) => encoding.operands().map(|operand| of_weight(operand) + " ").collect(),
        None => of_bytes(&weight.read_stored()),
    };
    format!("{} {:?} {content}", weight.stored_dtype(), weight.ty().shape)
}

fn of_bytes(bytes: &[u8]) -> String {
    if bytes.len() <= SAMPLE * SAMPLES {
        return checksum(bytes);
    }
    let last = bytes.len() - SAMPLE;
    let starts = (0..SAMPLES).map(|index| last * index / (SAMPLES - 1));
    checksum(&starts.flat_map(|start| &bytes[start..start + SAMPLE]).copied().collect::<Vec<u8>>())
}

/// The first 16 bytes of SHA-256.
pub(super) fn checksum(bytes: &[u8]) -> String {
    hex(&sha256(bytes)[..16])
}

/// Options by their names on the command line, as metadata keeps them.
pub(crate) fn options_text(options: &[(&'static str, String)]) -> String {
    let options = options.iter().map(|(name, value)| ((*name).to_string(), Value::from(value.as_str())));
    Value::Object(options.collect::<Map<_, _>>()).to_string()
}

/// Adds an option to those of a package.
pub(crate) fn add_option(metadata: &mut BTreeMap<String, String>, name: &str, value: &str) {
    let mut options = options_of(metadata.get(keys::OPTIONS).map_or("", String::as_str));
    options.insert(name.to_string(), Value::from(value));
    metadata.insert(keys::OPTIONS.to_string(), Value::Object(options).to_string());
}

/// The options that metadata keeps; none if it is malformed.
pub(crate) fn options_of(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{Bytes, DType, TensorType};

    use super::*;

    struct One(WeightRef);

    impl Weights for One {
        fn names(&self) -> Vec<&str> {
            vec![self.0.name()]
        }

        fn get(&self, _: &str) -> Option<WeightRef> {
            Some(self.0.clone())
        }
    }

    fn checksum(name: &str, ty: TensorType, bytes: &[u8]) -> String {
        of_weights(&One(WeightRef::new(name, ty, Bytes::new(bytes.to_vec())).unwrap()))
    }

    #[test]
    fn other_tensors_have_other_checksums() {
        let large = TensorType::new(DType::U8, [1000, 100]);
        let bytes: Vec<u8> = (0..100_000u32).map(|index| (index % 251) as u8).collect();
        let plain = checksum("a", large.clone(), &bytes);
        assert_eq!(plain, checksum("a", large.clone(), &bytes));
        let changed = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            checksum("a", large.clone(), &bytes)
        };
        for at in [0, SAMPLE - 1, 99_999, 100_000 - SAMPLE] {
            assert_ne!(plain, changed(at), "{at}");
        }
        // The documented limit: a byte between the samples.
        assert_eq!(plain, changed(SAMPLE + 1));
        assert_ne!(plain, checksum("b", large.clone(), &bytes));
        assert_ne!(plain, checksum("a", TensorType::new(DType::U8, [100, 1000]), &bytes));
        assert_ne!(plain, checksum("a", TensorType::new(DType::F16, [1000, 50]), &bytes));
        assert_ne!(
            checksum("a", TensorType::new(DType::U8, [2]), &[0, 1]),
            checksum("a", TensorType::new(DType::U8, [2]), &[0, 2])
        );
    }
}
