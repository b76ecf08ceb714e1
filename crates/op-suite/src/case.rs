//! Cases of single ops.

use std::fmt::Debug;
use std::ops::Range;

use half::{bf16, f16};
use mixbit_engine::Tensor;
use mixbit_mil::{Builder, Bytes, DType, Function, Opset, Source, TensorType, WeightRef};

/// An op with its operands and attributes.
#[derive(Clone)]
pub struct Case {
    /// MIL's name of the op.
    pub op: String,
    /// The op with its operands and attributes, for messages.
    pub label: String,
    pub(crate) operands: Vec<Operand>,
    attributes: Vec<(&'static str, Source)>,
    opset: Opset,
    /// Results known from elsewhere, one list of values for each output.
    pub(crate) expected: Option<Vec<Vec<f64>>>,
    /// The results' shapes, known from elsewhere.
    pub(crate) expected_shapes: Option<Vec<Vec<usize>>>,
    /// True if NaN and infinities in the operands are tried.
    pub(crate) poisoned: bool,
    pub(crate) half: bool,
}

/// A tensor that an op reads.
#[derive(Clone)]
pub(crate) struct Operand {
    input: &'static str,
    shape: Vec<usize>,
    pub(crate) values: Values,
    constant: bool,
    /// The type in which a constant lies in its file, if not the one that it is declared with.
    stored: Option<DType>,
    /// True if this is the value of the operand before.
    again: bool,
}

/// The elements of an operand.
#[derive(Clone)]
pub(crate) enum Values {
    /// Of the element type that the case is run with.
    Floats(Vec<f32>),
    Ints(DType, Vec<i32>),
    /// Of a constant only: little-endian, packed where the type is narrower than a byte.
    Bytes(DType, Vec<u8>),
}

/// The inputs of a function by name.
pub type Inputs = Vec<(String, Tensor)>;

/// A case of an op that has no operands yet.
pub(crate) fn case(op: &str) -> Case {
    Case {
        op: op.to_string(),
        label: op.to_string(),
        operands: Vec::new(),
        attributes: Vec::new(),
        opset: Opset::Ios17,
        expected: None,
        expected_shapes: None,
        poisoned: true,
        half: true,
    }
}

/// Evenly distributed values that depend on nothing but the arguments (SplitMix64).
pub(crate) fn noise(count: usize, seed: u64, range: Range<f32>) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    };
    (0..count).map(|_| range.start + (range.end - range.start) * next() as f32).collect()
}

impl Case {
    /// Adds an operand with values from -2 to 2.
    pub(crate) fn input(self, name: &'static str, shape: &[usize]) -> Self {
        self.input_in(name, shape, -2.0..2.0)
    }

    /// Adds an operand with values in a range.
    pub(crate) fn input_in(self, name: &'static str, shape: &[usize], range: Range<f32>) -> Self {
        let values = noise(shape.iter().product(), 1 + self.operands.len() as u64, range);
        self.input_of(name, shape, values)
    }

    /// Adds an operand with these values.
    pub(crate) fn input_of(self, name: &'static str, shape: &[usize], values: Vec<f32>) -> Self {
        self.operand(name, shape, Values::Floats(values))
    }

    /// Adds an operand of integers or truth values.
    pub(crate) fn ints(self, name: &'static str, dtype: DType, shape: &[usize], values: &[i32]) -> Self {
        self.operand(name, shape, Values::Ints(dtype, values.to_vec()))
    }

    /// Adds a constant as its bytes.
    pub(crate) fn bytes(self, name: &'static str, dtype: DType, shape: &[usize], bytes: &[u8]) -> Self {
        self.operand(name, shape, Values::Bytes(dtype, bytes.to_vec())).constant()
    }

    fn operand(mut self, input: &'static str, shape: &[usize], values: Values) -> Self {
        self.label += &format!(" {input}{shape:?}");
        self.operands.push(Operand {
            input,
            shape: shape.to_vec(),
            values,
            constant: false,
            stored: None,
            again: false,
        });
        self
    }

    /// Makes the last operand a constant.
    pub(crate) fn constant(mut self) -> Self {
        self.label += " const";
        self.operands.last_mut().expect("an operand").constant = true;
        self
    }

    /// Makes the last operand a constant that is stored in another type.
    pub(crate) fn stored(mut self, dtype: DType) -> Self {
        self.label += &format!(" in {dtype}");
        let last = self.operands.last_mut().expect("an operand");
        (last.constant, last.stored) = (true, Some(dtype));
        self
    }

    /// Binds the last operand's value to another input too.
    pub(crate) fn again(mut self, name: &'static str) -> Self {
        self.label += &format!(" {name} again");
        let mut operand = self.operands.last().expect("an operand").clone();
        (operand.input, operand.again) = (name, true);
        self.operands.push(operand);
        self
    }

    /// Binds an attribute.
    pub(crate) fn arg<S: Into<Source> + Debug>(mut self, name: &'static str, value: S) -> Self {
        self.label += &format!(" {name}={value:?}");
        self.attributes.push((name, value.into()));
        self
    }

    /// For ops and inputs that came with iOS 18.
    pub(crate) fn ios18(mut self) -> Self {
        self.opset = Opset::Ios18;
        self
    }

    /// Sets the known results.
    pub(crate) fn expect(mut self, outputs: &[&[f64]]) -> Self {
        self.expected = Some(outputs.iter().map(|values| values.to_vec()).collect());
        self
    }

    /// Leaves NaN and infinities out, for a reason.
    pub(crate) fn finite(mut self) -> Self {
        self.poisoned = false;
        self
    }

    /// Leaves half precision out, for a reason.
    pub(crate) fn wide(mut self) -> Self {
        self.half = false;
        self
    }

    /// True if the case is run in half precision too: where it has floats.
    pub fn runs_in_half(&self) -> bool {
        self.half && self.has_floats()
    }

    /// True if the case depends on the float type.
    pub fn has_floats(&self) -> bool {
        self.operands.iter().any(|operand| matches!(operand.values, Values::Floats(_)))
    }

    /// The case with one float of an operand replaced; `None` if the operand has none.
    pub(crate) fn with_value(&self, operand: usize, at: usize, value: f32) -> Option<Case> {
        let mut case = self.clone();
        (case.expected, case.expected_shapes) = (None, None);
        let Values::Floats(values) = &mut case.operands[operand].values else { return None };
        *values.get_mut(at)? = value;
        Some(case)
    }

    /// The function with all floats of type `element`, and its inputs.
    ///
    /// # Errors
    /// If the op does not take the operands.
    pub fn function(&self, element: DType) -> Result<(Function, Inputs), mixbit_mil::Error> {
        let mut b = Builder::new("main", self.opset);
        let mut inputs = Inputs::new();
        let mut bound: Vec<(&'static str, Vec<mixbit_mil::ValueId>)> = Vec::new();
        let mut last = None;
        for (index, operand) in self.operands.iter().enumerate() {
            let name = format!("operand{index}");
            let id = match (last.filter(|_| operand.again), operand.constant) {
                (Some(last), _) => last,
                (None, true) => b.weight(operand.weight(&name, element)),
                (None, false) => {
                    let (ty, tensor) = operand.tensor(element);
                    inputs.push((name.clone(), tensor));
                    b.input(&name, ty)?
                }
            };
            last = Some(id);
            match bound.iter_mut().find(|(input, _)| *input == operand.input) {
                Some((_, ids)) => ids.push(id),
                None => bound.push((operand.input, vec![id])),
            }
        }
        let mut op = b.op(&self.op);
        for (input, ids) in bound {
            op = match ids[..] {
                [id] => op.arg(input, id),
                _ => op.arg(input, ids),
            };
        }
        for (name, value) in &self.attributes {
            op = op.arg(name, value.clone());
        }
        let results = op.add_all()?;
        let function = b.finish(&results)?;
        mixbit_mil::verify(&function)?;
        Ok((function, inputs))
    }
}

impl Operand {
    fn tensor(&self, element: DType) -> (TensorType, Tensor) {
        let (dtype, tensor) = match &self.values {
            Values::Floats(values) => {
                let round = |&x: &f32| if element == DType::F16 { f16::from_f32(x).to_f32() } else { x };
                (element, Tensor::from_f32(&self.shape, values.iter().map(round).collect()))
            }
            Values::Ints(dtype, values) => (*dtype, Tensor::from_i32(&self.shape, values.clone())),
            Values::Bytes(dtype, _) => panic!("operand `{}` of {dtype} bytes is not a constant", self.input),
        };
        (TensorType::new(dtype, self.shape.clone()), tensor.expect("as many values as the shape has"))
    }

    fn weight(&self, name: &str, element: DType) -> WeightRef {
        let (declared, stored, bytes) = match &self.values {
            Values::Floats(values) => {
                let stored = self.stored.unwrap_or(element);
                (element, stored, encode_floats(values, stored))
            }
            Values::Ints(dtype, values) => (*dtype, *dtype, encode_ints(values, *dtype)),
            Values::Bytes(dtype, bytes) => (*dtype, *dtype, bytes.clone()),
        };
        let ty = TensorType::new(stored, self.shape.clone());
        let weight = WeightRef::new(name, ty, Bytes::new(bytes)).expect("bytes of the type's length");
        if stored == declared { weight } else { weight.cast(declared) }
    }
}

fn encode_floats(values: &[f32], dtype: DType) -> Vec<u8> {
    let bytes = |&x: &f32| match dtype {
        DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

fn encode_ints(values: &[i32], dtype: DType) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()[..dtype.bits() / 8].to_vec()).collect()
}
