//! The parser of MIL text.

use std::collections::{BTreeMap, HashMap, HashSet};

use half::f16;

use super::lexer::{Lexer, Token};
use super::{Dialect, ParseError, Place};
use crate::{
    Arg, Assembler, Constant, DType, Declared, Function, Literal, Opset, Program, TensorType, ValueId,
    WeightRef,
};

/// The most levels of nested types and values.
const DEPTH_LIMIT: usize = 32;

/// The most parts of a function's attributes, which hold little but default shapes.
const NODE_LIMIT: usize = 100_000;

/// A reference to a value in a weight file.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    /// The function that it is in.
    pub function: &'a str,
    /// The name of the value, or of the op's first result if the value stands inside an op.
    pub name: &'a str,
    /// The op's input that the value is bound to, if it stands inside an op.
    pub input: Option<&'a str>,
    /// The file, such as `@model_path/weights/weight.bin`.
    pub path: &'a str,
    /// The offset of the blob in the file.
    pub offset: u64,
    /// The value's type.
    pub ty: &'a TensorType,
}

/// A lookup of a blob's weight, or the reason why it fails.
type Resolve<'a> = &'a mut dyn FnMut(Blob) -> Result<WeightRef, String>;

/// Parses a program. `resolve` finds the values in weight files.
///
/// ```
/// let text = r#"program(1.3)
/// {
///     func main<ios16>(tensor<fp16, [1, 4]> x) {
///             fp16 two = const()[val = fp16(0x1p+1)];
///             tensor<fp16, [1, 4]> y = mul(x = x, y = two);
///         } -> (y);
/// }"#;
/// let program = mixbit_mil::text::parse(text, &mut |blob| Err(format!("no file {}", blob.path)))?;
/// assert_eq!(program.functions[0].ops().len(), 1);
/// # Ok::<(), mixbit_mil::text::ParseError>(())
/// ```
///
/// # Errors
/// [`ParseError`] with the place of the fault: in the text or the program, or an error of `resolve`.
pub fn parse(text: &str, resolve: Resolve) -> Result<Program, ParseError> {
    let mut parser = Parser { lexer: Lexer::new(text)?, resolve, placed: HashMap::new(), function: "" };
    parser.header()?;
    parser.mark('{')?;
    let mut functions: Vec<Function> = Vec::new();
    let mut names = HashSet::new();
    while !parser.accept('}')? {
        let position = parser.lexer.position();
        let function = parser.function()?;
        if !names.insert(function.name.clone()) {
            let what = format!("two functions are named `{}`", function.name);
            return Err(parser.lexer.error_at(position, what));
        }
        functions.push(function);
    }
    match parser.lexer.peek() {
        Token::End => Ok(Program { functions, default_function: None }),
        _ => Err(parser.lexer.error("the text goes on after the program")),
    }
}

/// The build information of a program's text, by key. Empty if there is none.
///
/// # Errors
/// [`ParseError`] if the text does not begin as a program.
pub fn build_info(text: &str) -> Result<BTreeMap<String, String>, ParseError> {
    let mut nowhere = |_: Blob| Err(String::new());
    let mut parser =
        Parser { lexer: Lexer::new(text)?, resolve: &mut nowhere, placed: HashMap::new(), function: "" };
    let mut info = BTreeMap::new();
    for (name, node) in parser.header()? {
        let Node::Group(entries) = node else { continue };
        for entry in entries.iter().filter(|_| name == "buildInfo") {
            let Node::Group(pair) = entry else { continue };
            let [Node::Text(key), Node::Text(value)] = &pair[..] else { continue };
            info.insert(parser.unescape(key)?, parser.unescape(value)?);
        }
    }
    Ok(info)
}

struct Parser<'a, 'r> {
    lexer: Lexer<'a>,
    resolve: Resolve<'r>,
    /// Constants of the function by their place in a weight file, so that one that several ops use stays one
    /// value.
    placed: HashMap<Place, ValueId>,
    /// The function's name.
    function: &'a str,
}

/// A value of an attribute that is not a tensor.
enum Node<'a> {
    Text(&'a str),
    Number(&'a str),
    Group(Vec<Node<'a>>),
}

impl<'a> Parser<'a, '_> {
    fn expected(&self, what: &str) -> ParseError {
        let found = match self.lexer.peek() {
            Token::Word(text) | Token::Number(text) => text.chars().take(40).collect(),
            Token::Text(_) => "a string".to_string(),
            Token::Mark(mark) => mark.to_string(),
            Token::Arrow => "->".to_string(),
            Token::End => "the end".to_string(),
        };
        self.lexer.error(format!("expected {what}, found {found}"))
    }

    fn accept(&mut self, mark: char) -> Result<bool, ParseError> {
        let found = self.lexer.peek() == Token::Mark(mark);
        if found {
            self.lexer.take()?;
        }
        Ok(found)
    }

    fn mark(&mut self, mark: char) -> Result<(), ParseError> {
        if self.accept(mark)? { Ok(()) } else { Err(self.expected(&format!("`{mark}`"))) }
    }

    fn any_word(&mut self, what: &str) -> Result<&'a str, ParseError> {
        let Token::Word(word) = self.lexer.peek() else { return Err(self.expected(what)) };
        self.lexer.take()?;
        Ok(word)
    }

    fn word(&mut self, word: &str) -> Result<(), ParseError> {
        if self.lexer.peek() != Token::Word(word) {
            return Err(self.expected(&format!("`{word}`")));
        }
        self.lexer.take()?;
        Ok(())
    }

    /// Items separated by commas, up to `close`.
    fn list(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Result<(), ParseError>,
    ) -> Result<(), ParseError> {
        if self.accept(close)? {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.accept(close)? {
                return Ok(());
            }
            self.mark(',')?;
        }
    }

    /// The version and the program's attributes.
    fn header(&mut self) -> Result<Vec<(&'a str, Node<'a>)>, ParseError> {
        self.word("program")?;
        self.mark('(')?;
        let known = |token| Dialect::ALL.iter().any(|&(_, version)| token == Token::Number(version));
        if !known(self.lexer.peek()) {
            return Err(self.lexer.error("a version other than 1.0 and 1.3 is not supported"));
        }
        self.lexer.take()?;
        self.mark(')')?;
        self.group_attributes()
    }

    fn function(&mut self) -> Result<Function, ParseError> {
        self.word("func")?;
        let name = self.any_word("a function's name")?;
        self.mark('<')?;
        let opset = match self.lexer.peek() {
            Token::Word(word) => Opset::ALL.into_iter().find(|opset| opset.name() == word),
            _ => None,
        };
        let opset = opset.ok_or_else(|| self.expected("an opset from ios15 to ios18"))?;
        self.lexer.take()?;
        self.mark('>')?;
        self.mark('(')?;
        let position = self.lexer.position();
        let mut inputs = Vec::new();
        self.list(')', |parser| {
            inputs.push(parser.named()?);
            Ok(())
        })?;
        let defaults = default_shapes(&self.group_attributes()?);
        self.function = name;
        self.placed.clear();
        let mut assembler = Assembler::new(name, opset);
        for (name, declared) in inputs {
            let open = || defaults.get(name).map(|shape| TensorType::new(declared.dtype, shape.clone()));
            let ty = declared.fixed().or_else(open).filter(|ty| declared.admits(ty));
            let ty = ty.ok_or_else(|| {
                self.lexer.error_at(position, format!("input `{name}` has no fixed or default shape"))
            })?;
            assembler.input(name, ty).map_err(|error| self.lexer.error_at(position, error.to_string()))?;
        }
        self.mark('{')?;
        while !self.accept('}')? {
            self.statement(&mut assembler)?;
        }
        if self.lexer.peek() != Token::Arrow {
            return Err(self.expected("`->`"));
        }
        self.lexer.take()?;
        let position = self.lexer.position();
        self.mark('(')?;
        let mut outputs = Vec::new();
        self.list(')', |parser| {
            outputs.push(parser.any_word("an output")?);
            Ok(())
        })?;
        self.mark(';')?;
        assembler.finish(&outputs).map_err(|error| self.lexer.error_at(position, error.to_string()))
    }

    /// A type and a name.
    fn named(&mut self) -> Result<(&'a str, Declared), ParseError> {
        let ty = self.tensor_type()?;
        Ok((self.any_word("a name")?, ty))
    }

    fn dtype(&mut self) -> Result<DType, ParseError> {
        let dtype = match self.lexer.peek() {
            Token::Word(word) => DType::from_name(word),
            _ => None,
        };
        let dtype = dtype.ok_or_else(|| self.expected("an element type"))?;
        self.lexer.take()?;
        Ok(dtype)
    }

    /// `tensor<fp16, [1, ?]>`, or an element type alone.
    fn tensor_type(&mut self) -> Result<Declared, ParseError> {
        if self.lexer.peek() != Token::Word("tensor") {
            return Ok(Declared { dtype: self.dtype()?, shape: Vec::new() });
        }
        self.lexer.take()?;
        self.mark('<')?;
        let dtype = self.dtype()?;
        self.mark(',')?;
        self.mark('[')?;
        let mut shape = Vec::new();
        self.list(']', |parser| {
            if shape.len() == DEPTH_LIMIT {
                return Err(parser.lexer.error(format!("a tensor has more than {DEPTH_LIMIT} dimensions")));
            }
            shape.push(match parser.accept('?')? {
                true => None,
                false => Some(parser.size()?),
            });
            Ok(())
        })?;
        self.mark('>')?;
        Ok(Declared { dtype, shape })
    }

    fn size<T: std::str::FromStr>(&mut self) -> Result<T, ParseError> {
        let size = match self.lexer.peek() {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        let size = size.ok_or_else(|| self.expected("a size"))?;
        self.lexer.take()?;
        Ok(size)
    }

    fn statement(&mut self, assembler: &mut Assembler) -> Result<(), ParseError> {
        let position = self.lexer.position();
        let mut outputs = Vec::new();
        self.list('=', |parser| {
            outputs.push(parser.named()?);
            Ok(())
        })?;
        let Some(&(first, _)) = outputs.first() else { return Err(self.expected("a result")) };
        let kind = self.any_word("an op")?;
        let mut args = Vec::new();
        self.mark('(')?;
        self.list(')', |parser| {
            let input = parser.any_word("an input")?;
            parser.mark('=')?;
            args.push((input, parser.arg(assembler, first, input)?));
            Ok(())
        })?;
        let mut value = None;
        if self.accept('[')? {
            self.list(']', |parser| {
                let attribute = parser.any_word("an attribute")?;
                parser.mark('=')?;
                match (kind, attribute) {
                    (_, "name") => drop(parser.literal(first, None)?.0),
                    ("const", "val") => value = Some(parser.literal(first, None)?),
                    _ => args.push((attribute, parser.inline(assembler, first, attribute)?)),
                }
                Ok(())
            })?;
        }
        self.mark(';')?;
        let at = |error: crate::Error| self.lexer.error_at(position, error.to_string());
        if kind != "const" {
            return assembler.op(kind, &args, &outputs).map_err(at);
        }
        match (&outputs[..], value) {
            ([(name, declared)], Some((constant, place)))
                if args.is_empty() && declared.admits(constant.ty()) =>
            {
                let id = assembler.constant(name, constant).map_err(at)?;
                if let Some(place) = place {
                    self.placed.entry(place).or_insert(id);
                }
                Ok(())
            }
            _ => Err(self.lexer.error_at(position, format!("const `{first}` has no value of its type"))),
        }
    }

    /// A name, a list of names, or an inline value.
    fn arg(&mut self, assembler: &mut Assembler, first: &str, input: &str) -> Result<Arg, ParseError> {
        if !self.accept('(')? {
            return self.single(assembler, first, input);
        }
        let mut ids = Vec::new();
        self.list(')', |parser| {
            ids.extend_from_slice(parser.single(assembler, first, input)?.values());
            Ok(())
        })?;
        Ok(Arg::Many(ids))
    }

    fn single(&mut self, assembler: &mut Assembler, first: &str, input: &str) -> Result<Arg, ParseError> {
        let Token::Word(word) = self.lexer.peek() else { return Err(self.expected("a value")) };
        if let Some(id) = assembler.value(word) {
            self.lexer.take()?;
            return Ok(Arg::One(id));
        }
        if word != "tensor" && DType::from_name(word).is_none() {
            return Err(self.lexer.error(format!("`{word}` is not made before it is used")));
        }
        self.inline(assembler, first, input)
    }

    fn inline(&mut self, assembler: &mut Assembler, first: &str, input: &str) -> Result<Arg, ParseError> {
        let name = format!("{first}_{input}");
        let (constant, place) = self.literal(first, Some(input))?;
        if let Some(&id) = place.as_ref().and_then(|place| self.placed.get(place))
            && assembler.function().value(id).ty == *constant.ty()
        {
            return Ok(Arg::One(id));
        }
        let id = assembler.unnamed(&name, constant).map_err(|error| self.lexer.error(error.to_string()))?;
        if let Some(place) = place {
            self.placed.entry(place).or_insert(id);
        }
        Ok(Arg::One(id))
    }

    /// A typed value, and its place if it is in a weight file.
    fn literal(&mut self, name: &str, input: Option<&str>) -> Result<(Constant, Option<Place>), ParseError> {
        let position = self.lexer.position();
        let ty = self.tensor_type()?.fixed();
        let ty = ty.ok_or_else(|| self.lexer.error_at(position, "a value has no fixed type"))?;
        self.mark('(')?;
        let constant = if self.lexer.peek() == Token::Word("BLOBFILE") {
            let (weight, place) = self.blob(name, input, &ty)?;
            (Constant::Weight(weight), Some(place))
        } else {
            let mut elements = Elements { ty: &ty, bytes: Vec::new(), bits: 0, strings: Vec::new() };
            self.nested(&ty.shape, &mut elements)?;
            let Elements { bytes, strings, .. } = elements;
            let literal = match ty.dtype {
                DType::Str => Literal::from_strings(&ty.shape, strings),
                _ => Literal::from_bytes(ty.clone(), bytes),
            };
            let what = || self.lexer.error_at(position, format!("a value of type {ty} is too large"));
            (Constant::Literal(literal.ok_or_else(what)?), None)
        };
        self.mark(')')?;
        Ok(constant)
    }

    fn blob(
        &mut self,
        name: &str,
        input: Option<&str>,
        ty: &TensorType,
    ) -> Result<(WeightRef, Place), ParseError> {
        let position = self.lexer.position();
        self.word("BLOBFILE")?;
        self.mark('(')?;
        self.word("path")?;
        self.mark('=')?;
        self.tensor_type()?;
        self.mark('(')?;
        let Token::Text(path) = self.lexer.peek() else { return Err(self.expected("a path")) };
        let path = self.unescape(path)?;
        self.lexer.take()?;
        self.mark(')')?;
        self.mark(',')?;
        self.word("offset")?;
        self.mark('=')?;
        self.tensor_type()?;
        self.mark('(')?;
        let offset = self.size()?;
        self.mark(')')?;
        self.mark(')')?;
        let weight = (self.resolve)(Blob { function: self.function, name, input, path: &path, offset, ty });
        let weight = weight.map_err(|what| self.lexer.error_at(position, what))?;
        match weight.ty() == ty {
            true => Ok((weight, (path, offset))),
            false => Err(self.lexer.error_at(position, format!("`{name}` is {}, not {ty}", weight.ty()))),
        }
    }

    /// The elements of a tensor, a list for each axis.
    fn nested(&mut self, shape: &[usize], elements: &mut Elements) -> Result<(), ParseError> {
        let Some((&extent, inner)) = shape.split_first() else {
            self.element(elements)?;
            return Ok(());
        };
        self.mark('[')?;
        for index in 0..extent {
            if index > 0 {
                self.mark(',')?;
            }
            self.nested(inner, elements)?;
        }
        self.mark(']')
    }

    fn element(&mut self, elements: &mut Elements) -> Result<(), ParseError> {
        let fits = match (self.lexer.peek(), elements.ty.dtype) {
            (Token::Text(text), DType::Str) => {
                elements.strings.push(self.unescape(text)?);
                true
            }
            (Token::Word(word @ ("true" | "false")), DType::Bool) => elements.int((word == "true").into()),
            (Token::Word(word) | Token::Number(word), dtype) if dtype.is_float() => {
                number(word).is_some_and(|value| elements.float(value))
            }
            (Token::Number(text), dtype) if dtype.is_int() => {
                let value = match text.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).map(i128::from),
                    None => text.parse(),
                };
                value.is_ok_and(|value| elements.int(value))
            }
            _ => false,
        };
        if !fits {
            return Err(self.expected(&format!("a value of type {}", elements.ty.dtype)));
        }
        self.lexer.take()?;
        Ok(())
    }

    fn unescape(&self, text: &str) -> Result<String, ParseError> {
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            out.push(match c {
                '\\' => match chars.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some(c @ ('"' | '\\' | '\'')) => c,
                    _ => return Err(self.lexer.error("a string has an unknown escape")),
                },
                c => c,
            });
        }
        Ok(out)
    }

    /// The attributes of a program or function, of any type.
    fn group_attributes(&mut self) -> Result<Vec<(&'a str, Node<'a>)>, ParseError> {
        let mut attributes = Vec::new();
        let mut left = NODE_LIMIT;
        if self.accept('[')? {
            self.list(']', |parser| {
                let name = parser.any_word("an attribute")?;
                parser.mark('=')?;
                parser.any_type(DEPTH_LIMIT)?;
                parser.mark('(')?;
                attributes.push((name, parser.node(DEPTH_LIMIT, &mut left)?));
                parser.mark(')')
            })?;
        }
        Ok(attributes)
    }

    /// Skips a type of any kind.
    fn any_type(&mut self, depth: usize) -> Result<(), ParseError> {
        let compound = matches!(self.lexer.peek(), Token::Word("dict" | "list" | "tuple"));
        if !compound {
            self.tensor_type()?;
            return Ok(());
        }
        self.lexer.take()?;
        if depth == 0 {
            return Err(self.lexer.error("types nest too deep"));
        }
        self.mark('<')?;
        self.list('>', |parser| match parser.lexer.peek() {
            // The length of a list.
            Token::Mark('?') | Token::Number(_) => parser.lexer.take().map(drop),
            _ => parser.any_type(depth - 1),
        })
    }

    fn node(&mut self, depth: usize, left: &mut usize) -> Result<Node<'a>, ParseError> {
        if depth == 0 || *left == 0 {
            return Err(self.lexer.error("an attribute is too deep or too large"));
        }
        *left -= 1;
        let close = match self.lexer.peek() {
            Token::Text(text) => {
                self.lexer.take()?;
                return Ok(Node::Text(text));
            }
            Token::Number(text) | Token::Word(text) => {
                self.lexer.take()?;
                return Ok(Node::Number(text));
            }
            Token::Mark('(') => ')',
            Token::Mark('[') => ']',
            Token::Mark('{') => '}',
            _ => return Err(self.expected("a value")),
        };
        self.lexer.take()?;
        let mut nodes = Vec::new();
        self.list(close, |parser| {
            nodes.push(parser.node(depth - 1, left)?);
            Ok(())
        })?;
        Ok(Node::Group(nodes))
    }
}

/// The default shapes of inputs, by name, of a function's `FlexibleShapeInformation`.
fn default_shapes(attributes: &[(&str, Node)]) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    for (_, node) in attributes.iter().filter(|(name, _)| *name == "FlexibleShapeInformation") {
        let Node::Group(parts) = node else { continue };
        for part in parts {
            let Node::Group(pair) = part else { continue };
            let [Node::Text("DefaultShapes"), Node::Group(entries)] = &pair[..] else { continue };
            for entry in entries {
                let Node::Group(entry) = entry else { continue };
                let [Node::Text(name), Node::Group(extents)] = &entry[..] else { continue };
                let extent = |node: &Node| match node {
                    Node::Number(text) => text.parse().ok(),
                    _ => None,
                };
                if let Some(shape) = extents.iter().map(extent).collect() {
                    shapes.insert((*name).to_string(), shape);
                }
            }
        }
    }
    shapes
}

/// The elements of a literal so far.
struct Elements<'a> {
    ty: &'a TensorType,
    bytes: Vec<u8>,
    /// The number of bits, for types narrower than a byte.
    bits: usize,
    strings: Vec<String>,
}

impl Elements<'_> {
    /// Appends an integer or truth value; false if it does not fit.
    fn int(&mut self, value: i128) -> bool {
        let width = self.ty.dtype.bits();
        let signed = matches!(self.ty.dtype, DType::I4 | DType::I8 | DType::I16 | DType::I32 | DType::I64);
        let (low, high) = match signed {
            true => (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1),
            false => (0, (1i128 << width) - 1),
        };
        if !(low..=high).contains(&value) {
            return false;
        }
        if width >= 8 {
            self.bytes.extend_from_slice(&value.to_le_bytes()[..width / 8]);
            return true;
        }
        for bit in 0..width {
            if self.bits.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((value >> bit & 1) as u8) << (self.bits % 8);
            self.bits += 1;
        }
        true
    }

    /// Appends a float, rounded to the type; false if it is too large for it.
    fn float(&mut self, value: f64) -> bool {
        let rounded = match self.ty.dtype {
            DType::F16 => {
                let rounded = f16::from_f64(value);
                self.bytes.extend_from_slice(&rounded.to_le_bytes());
                rounded.to_f64()
            }
            DType::BF16 => {
                let rounded = half::bf16::from_f64(value);
                self.bytes.extend_from_slice(&rounded.to_le_bytes());
                rounded.to_f64()
            }
            DType::F32 => {
                self.bytes.extend_from_slice(&(value as f32).to_le_bytes());
                (value as f32).into()
            }
            _ => {
                self.bytes.extend_from_slice(&value.to_le_bytes());
                value
            }
        };
        rounded.is_finite() == value.is_finite()
    }
}

/// A number as C writes it: decimal, hexadecimal, `inf` or `nan`.
fn number(text: &str) -> Option<f64> {
    let (sign, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let value = match magnitude {
        "inf" | "infinity" => f64::INFINITY,
        "nan" => f64::NAN,
        _ => match magnitude.strip_prefix("0x").or_else(|| magnitude.strip_prefix("0X")) {
            Some(hex) => hex_float(hex)?,
            None if magnitude.starts_with(|c: char| c.is_ascii_digit()) => magnitude.parse().ok()?,
            None => return None,
        },
    };
    Some(sign * value)
}

/// `1.8p+1`, without `0x`. At most 15 significant digits: more than any type of MIL holds.
fn hex_float(text: &str) -> Option<f64> {
    let (digits, exponent) = text.split_once(['p', 'P']).unwrap_or((text, "0"));
    let mut exponent: i32 = exponent.parse().ok().filter(|exponent: &i32| exponent.abs() < 100_000)?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let significant = digits.trim_start_matches(['0', '.']);
    if whole.len() + fraction.len() == 0 || significant.len() > 16 || fraction.len() > 1000 {
        return None;
    }
    let mut mantissa: u64 = 0;
    for c in whole.chars().chain(fraction.chars()) {
        mantissa = mantissa << 4 | u64::from(c.to_digit(16)?);
    }
    exponent -= 4 * fraction.len() as i32;
    // In steps, so that the factors stay in the range of f64 if the product does.
    let mut value = mantissa as f64;
    while exponent != 0 && value != 0.0 && value.is_finite() {
        let step = exponent.clamp(-1000, 1000);
        value *= 2f64.powi(step);
        exponent -= step;
    }
    Some(value)
}

#[cfg(test)]
mod tests;
