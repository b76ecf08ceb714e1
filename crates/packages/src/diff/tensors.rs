//! The tensors of two networks that belong together, and their distances.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use mixbit_mil::{
    Arg, Bytes, DType, Function, Progress, TensorType, Unit, WeightError, WeightRef, identifier,
};

use super::DiffError;
use super::structure::has_same_ops;
use crate::inspect::StoredTensor;
use crate::psnr::apple_psnr;

/// Elements that are decoded and compared at a time.
const BLOCK: usize = 1 << 14;

/// Suffixes that coremltools appends to names of constants that it rewrites.
const SUFFIXES: [&str; 5] = ["_pcs", "_palettized", "_quantized", "_sparsified", "_to_fp16"];

/// The tensors of two networks, those of A first in pairs.
pub struct Matched<'a> {
    /// In the order of A.
    pub pairs: Vec<[&'a StoredTensor; 2]>,
    /// The tensors without a counterpart, of each side, but for tables without a name.
    pub only: [Vec<&'a StoredTensor>; 2],
}

/// The distance of a tensor of B from that of A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distance {
    /// Every element is the same.
    Equal,
    /// The PSNR in dB; NaN where an element is not finite on one side only.
    Psnr(f64),
    /// The shapes or the element types can't be compared.
    Shape,
}

/// Pairs the tensors that belong together: by their names in the checkpoint; where either has none, by the
/// names of the constants, or by their place if the two graphs have the same ops.
pub(super) fn matched<'a>(tensors: [&'a [StoredTensor]; 2], graphs: [Option<&Function>; 2]) -> Matched<'a> {
    let mut rest = tensors.map(|tensors| tensors.iter().enumerate().collect::<Vec<_>>());
    let mut pairs = Vec::new();
    match_by(&mut rest, &mut pairs, |_, tensor| checkpoint_name(tensor).map(str::to_string));
    if let [Some(a), Some(b)] = graphs
        && has_same_ops(a, b)
    {
        let places = [places(a), places(b)];
        match_by(&mut rest, &mut pairs, |side, tensor| places[side].get(tensor.constant.as_str()).copied());
    }
    match_by(&mut rest, &mut pairs, |_, tensor| constant_name(tensor).map(|name| (name, squeezed(tensor))));
    match_by(&mut rest, &mut pairs, |_, tensor| constant_name(tensor));
    pairs.sort_by_key(|(order, _)| *order);
    let only = rest.map(|rest| {
        let tensors = rest.into_iter().map(|(_, tensor)| tensor);
        tensors.filter(|tensor| !is_unnamed(tensor)).collect()
    });
    Matched { pairs: pairs.into_iter().map(|(_, pair)| pair).collect(), only }
}

type Ordered<'a> = (usize, &'a StoredTensor);

/// Moves what has the same key on both sides from `rest` to `pairs`.
fn match_by<'a, K: std::hash::Hash + Eq>(
    rest: &mut [Vec<Ordered<'a>>; 2],
    pairs: &mut Vec<(usize, [&'a StoredTensor; 2])>,
    key: impl Fn(usize, &StoredTensor) -> Option<K>,
) {
    let [a, b] = rest;
    let mut by_key: HashMap<K, VecDeque<usize>> = HashMap::new();
    for &(order, tensor) in b.iter() {
        if let Some(key) = key(1, tensor) {
            by_key.entry(key).or_default().push_back(order);
        }
    }
    let of_b: HashMap<usize, &'a StoredTensor> = b.iter().copied().collect();
    let mut taken = Vec::new();
    a.retain(|&(order, tensor)| {
        let found = key(0, tensor).and_then(|key| by_key.get_mut(&key)?.pop_front());
        if let Some(other) = found {
            taken.push(other);
            pairs.push((order, [tensor, of_b[&other]]));
        }
        found.is_none()
    });
    taken.sort_unstable();
    b.retain(|(order, _)| taken.binary_search(order).is_err());
}

/// The name in the checkpoint, if the tensor carries one: a constant's own can't have dots.
fn checkpoint_name(tensor: &StoredTensor) -> Option<&str> {
    let name = tensor.weight.name();
    let is_of_checkpoint = name.contains('.') || (name != tensor.constant && !is_unnamed(tensor));
    is_of_checkpoint.then_some(name)
}

/// The name of the constant as the tools agree on it, if it is named after something.
fn constant_name(tensor: &StoredTensor) -> Option<String> {
    let name = identifier(checkpoint_name(tensor).unwrap_or(&tensor.constant));
    let mut name = name.strip_prefix("text_encoder_").unwrap_or(&name);
    while let Some(stem) = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)) {
        name = stem;
    }
    // A name that is only counted means something else in another graph.
    (!is_counted(name, "var")).then(|| name.to_string()).filter(|_| !is_unnamed(tensor))
}

/// True if a constant has the name that mixbit gives to what is no tensor of a checkpoint: a table of the
/// graph. What another graph has for it is a difference of the graphs.
fn is_unnamed(tensor: &StoredTensor) -> bool {
    is_counted(tensor.weight.name(), "const")
}

/// True if a name is a word and numbers.
fn is_counted(name: &str, word: &str) -> bool {
    name.strip_prefix(word).is_some_and(|rest| rest.bytes().all(|b| b == b'_' || b.is_ascii_digit()))
}

/// The shape without axes of extent 1: a kernel is a matrix in other places.
fn squeezed(tensor: &StoredTensor) -> Vec<usize> {
    tensor.weight.ty().shape.iter().copied().filter(|&extent| extent != 1).collect()
}

/// The first use of each constant by its name: the op, its input, and the place in a list.
fn places(function: &Function) -> HashMap<&str, [usize; 3]> {
    let mut places = HashMap::new();
    for (op, args) in function.ops().iter().map(|op| &op.args).enumerate() {
        for (input, ids) in args.iter().map(Arg::values).enumerate() {
            for (index, &id) in ids.iter().enumerate() {
                places.entry(function.value(id).name.as_str()).or_insert([op, input, index]);
            }
        }
    }
    places
}

/// Compares every pair on all processors, a tensor each at a time. `progress` counts bytes.
///
/// # Errors
/// If a tensor can't be read, or `progress` stops the work.
pub(super) fn distances(
    pairs: &[[&StoredTensor; 2]],
    progress: &dyn Progress,
) -> Result<Vec<Distance>, DiffError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(pairs.len());
    let next = AtomicUsize::new(0);
    let mut distances = vec![Distance::Equal; pairs.len()];
    let bytes = |pair: &[&StoredTensor; 2]| pair.iter().map(|tensor| tensor.bytes() as u64).sum::<u64>();
    let (mut done, total) = (0, pairs.iter().map(bytes).sum());
    thread::scope(|scope| {
        let (results, received) = mpsc::channel();
        for _ in 0..threads {
            let (results, next) = (results.clone(), &next);
            scope.spawn(move || {
                // Ends when there is no more to do, or nobody waits for it.
                while let index = next.fetch_add(1, Ordering::Relaxed)
                    && let Some([a, b]) = pairs.get(index)
                    && results.send((index, distance(a, b))).is_ok()
                {}
            });
        }
        drop(results);
        for (index, distance) in received {
            distances[index] = distance?;
            done += bytes(&pairs[index]);
            progress.advance(done, total, Unit::Bytes)?;
        }
        Ok(distances)
    })
}

fn distance(a: &StoredTensor, b: &StoredTensor) -> Result<Distance, WeightError> {
    if squeezed(a) != squeezed(b) {
        return Ok(Distance::Shape);
    }
    let distance = distance_of_elements(&a.weight, &b.weight);
    a.weight.release();
    b.weight.release();
    distance
}

/// Compares elements decoded but not cast, so that the loss of a cast shows.
fn distance_of_elements(a: &WeightRef, b: &WeightRef) -> Result<Distance, WeightError> {
    let dtypes = [a.stored_dtype(), b.stored_dtype()];
    let [x, y] = [a.read_stored(), b.read_stored()];
    if dtypes[0] == dtypes[1] && x == y {
        return Ok(Distance::Equal);
    }
    if dtypes.iter().any(|dtype| !is_number(*dtype)) {
        return Ok(Distance::Shape);
    }
    let [wide, narrow] = dtypes.map(|dtype| BLOCK * dtype.bits() / 8);
    let mut sums = Sums::default();
    for (x, y) in x.chunks(wide).zip(y.chunks(narrow)) {
        sums.add(&numbers(dtypes[0], x)?, &numbers(dtypes[1], y)?);
    }
    Ok(sums.distance())
}

fn is_number(dtype: DType) -> bool {
    dtype.bits() >= 8
}

/// Stored elements as numbers. Floats of 64 bits are rounded to 32.
fn numbers(dtype: DType, bytes: &[u8]) -> Result<Vec<f64>, WeightError> {
    macro_rules! read {
        ($ty:ty) => {
            bytes.as_chunks().0.iter().map(|&chunk| <$ty>::from_le_bytes(chunk) as f64).collect()
        };
    }
    Ok(match dtype {
        DType::I8 => read!(i8),
        DType::I16 => read!(i16),
        DType::I32 => read!(i32),
        DType::I64 => read!(i64),
        DType::U16 => read!(u16),
        DType::U32 => read!(u32),
        DType::U64 => read!(u64),
        dtype if dtype.is_float() => {
            let ty = TensorType::new(dtype, [bytes.len() * 8 / dtype.bits()]);
            let block = WeightRef::new("", ty, Bytes::new(bytes.to_vec()))?.cast(DType::F32);
            let bytes = block.read()?;
            bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk).into()).collect()
        }
        _ => bytes.iter().map(|&byte| byte.into()).collect(),
    })
}

/// The running comparison of two tensors.
#[derive(Default)]
struct Sums {
    count: usize,
    /// The largest finite magnitude in A.
    peak: f64,
    squares: f64,
    differs: bool,
    /// True if an element is not finite on one side only, or not the same infinity.
    is_broken: bool,
}

impl Sums {
    fn add(&mut self, a: &[f64], b: &[f64]) {
        self.count += a.len();
        for (&a, &b) in a.iter().zip(b) {
            if a.is_finite() {
                self.peak = self.peak.max(a.abs());
            }
            if a == b || (a.is_nan() && b.is_nan()) {
                continue;
            }
            self.differs = true;
            match a.is_finite() && b.is_finite() {
                true => self.squares += (a - b).powi(2),
                false => self.is_broken = true,
            }
        }
    }

    /// Apple's definition of the PSNR.
    fn distance(&self) -> Distance {
        if !self.differs {
            return Distance::Equal;
        }
        if self.is_broken {
            return Distance::Psnr(f64::NAN);
        }
        Distance::Psnr(apple_psnr(self.peak, self.squares / self.count.max(1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, constant: &str, shape: &[usize], values: &[f32]) -> StoredTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let weight = WeightRef::new(name, TensorType::new(DType::F32, shape), Bytes::new(bytes)).unwrap();
        StoredTensor { weight, constant: constant.to_string(), is_table: false }
    }

    /// The same elements stored as `dtype`.
    fn stored_as(dtype: DType, tensor: &StoredTensor) -> StoredTensor {
        let bytes = tensor.weight.cast(dtype).read().unwrap().into_owned();
        let ty = tensor.weight.ty().with_dtype(dtype);
        let weight = WeightRef::new(tensor.weight.name(), ty, Bytes::new(bytes)).unwrap();
        StoredTensor { weight, constant: tensor.constant.clone(), is_table: false }
    }

    #[test]
    fn distances_are_of_values_whatever_they_are_stored_as() {
        let many: Vec<f32> = (0..BLOCK + 5).map(|i| i as f32 / 64.0).collect();
        let a = tensor("w", "w", &[many.len()], &many);
        let half = stored_as(DType::F16, &tensor("w", "w", &[3], &[1.0, -2.0, 0.5]));
        let same = tensor("w", "w", &[1, 3, 1], &[1.0, -2.0, 0.5]);
        assert_eq!(distance(&half, &same).unwrap(), Distance::Equal);
        let mut other = many.clone();
        *other.last_mut().unwrap() += 1.0;
        let Distance::Psnr(psnr) = distance(&a, &tensor("w", "w", &[many.len()], &other)).unwrap() else {
            panic!("the last block was not compared")
        };
        let peak = f64::from(*many.last().unwrap());
        assert!((psnr - 20.0 * (peak * (many.len() as f64).sqrt()).log10()).abs() < 1e-3, "{psnr}");
        assert_eq!(distance(&a, &half).unwrap(), Distance::Shape);
    }

    #[test]
    fn the_psnr_is_apples_and_nan_is_not_hidden() {
        let of = |a: &[f32], b: &[f32]| {
            distance(&tensor("w", "w", &[a.len()], a), &tensor("w", "w", &[b.len()], b)).unwrap()
        };
        let Distance::Psnr(psnr) = of(&[1.0, -2.0], &[1.1, -1.9]) else { panic!("no PSNR") };
        assert!((psnr - 26.02).abs() < 0.01, "{psnr}");
        assert_eq!(of(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY]), Distance::Equal);
        for broken in [[f32::NAN, 2.0], [f32::NEG_INFINITY, 2.0]] {
            assert!(matches!(of(&[1.0, 2.0], &broken), Distance::Psnr(psnr) if psnr.is_nan()));
        }
    }

    #[test]
    fn names_of_tools_and_checkpoints_meet() {
        let names = |a: &[(&str, &str)], b: &[(&str, &str)]| -> (Vec<[String; 2]>, [usize; 2]) {
            let list = |names: &[(&str, &str)]| -> Vec<StoredTensor> {
                names.iter().map(|(name, constant)| tensor(name, constant, &[1], &[0.0])).collect()
            };
            let (a, b) = (list(a), list(b));
            let found = matched([&a, &b], [None, None]);
            let pairs = found.pairs.iter().map(|pair| pair.map(|tensor| tensor.weight.name().to_string()));
            (pairs.collect(), [found.only[0].len(), found.only[1].len()])
        };
        let checkpoint = [("conv_in.weight", "conv_in_weight"), ("a.bias", "a_bias"), ("const_3", "const_3")];
        let foreign = [
            ("var_3_to_fp16", "var_3_to_fp16"),
            ("a_bias_to_fp16", "a_bias_to_fp16"),
            ("conv_in_weight_to_fp16_palettized", "conv_in_weight_to_fp16_palettized"),
        ];
        let (pairs, only) = names(&checkpoint, &foreign);
        let expected =
            [["conv_in.weight", "conv_in_weight_to_fp16_palettized"], ["a.bias", "a_bias_to_fp16"]];
        assert_eq!((pairs, only), (expected.map(|pair| pair.map(str::to_string)).to_vec(), [0, 1]));
        // The same name twice: in order.
        let twice = [("x.weight", "x_weight"), ("x.weight", "x_weight_1")];
        assert_eq!(names(&twice, &twice[..1]).1, [1, 0]);
    }
}
