//! A virtual machine for the pickles that PyTorch writes, protocols 0 to 5.
//!
//! Follows the opcodes that CPython's `pickletools` describes. A pickle is a program that builds a value on a
//! stack. Here values are indices into one list, so that sharing copies nothing and nothing recurses. Every
//! opcode adds at most one value, and there are at most [`OPCODE_LIMIT`] of them. No function is called:
//! those of [`globals`](super::globals) are understood or passed over, others are refused.

mod objects;
mod reader;

use std::borrow::Cow;
use std::collections::HashMap;

use super::error::{OPCODE_LIMIT, TorchError};
use super::globals::{Element, Global};

use reader::Reader;

/// The place of a value in [`Unpickled::values`].
pub(super) type Id = u32;

/// A value.
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A larger integer, as two's complement, little-endian.
    Long(&'a [u8]),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Id>),
    Tuple(Box<[Id]>),
    /// The entries in the order of their assignment; a later one replaces an earlier of the same key.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<Storage>),
    Tensor(Box<Tensor>),
    /// A tensor of a kind that is not supported.
    Unsupported(&'static str),
    /// A value that is passed over. An object of a class can have attributes.
    Opaque(Option<Id>),
}

/// A storage, whose bytes lie outside of the pickle.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) key: Id,
    /// The type of its elements; without one it has bytes.
    pub(super) element: Option<&'static Element>,
    /// The number of its elements.
    pub(super) count: u64,
    /// The elements of another storage that it stands for: the first, and their number.
    pub(super) view: Option<(u64, u64)>,
}

/// A tensor: a storage and a view of it. The parts are checked by `super::tensor`.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) storage: Id,
    /// The first element.
    pub(super) offset: Id,
    pub(super) shape: Id,
    pub(super) strides: Id,
    /// The element type, where it is not the storage's.
    pub(super) element: Option<&'static Element>,
}

/// A pickle that has been read.
#[derive(Debug)]
pub(super) struct Unpickled<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(super) root: Id,
    /// The bytes of the pickle, up to its end.
    pub(super) len: usize,
}

impl<'a> Unpickled<'a> {
    pub(super) fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    pub(super) fn root(&self) -> &Value<'a> {
        self.value(self.root)
    }
}

/// Reads one pickle at the start of `bytes`.
///
/// # Errors
/// [`TorchError::Global`] if it names a function that is not understood, [`TorchError::Pickle`] if it is
/// malformed, [`TorchError::TooLong`].
pub(super) fn unpickle(bytes: &[u8]) -> Result<Unpickled<'_>, TorchError> {
    let mut machine = Machine {
        reader: Reader::new(bytes),
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        spent: 0,
    };
    loop {
        machine.reader.start_opcode();
        machine.spend(1)?;
        let opcode = machine.reader.byte()?;
        if opcode == b'.' {
            let root = machine.pop()?;
            let len = machine.reader.position();
            return Ok(Unpickled { values: machine.values, root, len });
        }
        machine.step(opcode)?;
    }
}

struct Machine<'a> {
    reader: Reader<'a>,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// The heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// The opcodes so far, and the entries that were copied.
    spent: usize,
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Result<(), TorchError> {
        match opcode {
            0x80 => self.protocol(),
            // The length of a frame, which only helps readers of streams.
            0x95 => self.reader.u64().map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.pop() {
                Err(_) if self.marks.pop().is_some() => Ok(()),
                popped => popped.map(drop),
            },
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G' => self.number(opcode),
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d => self.text(opcode),
            b'B' | b'C' | 0x8e | 0x96 => self.bytes(opcode),
            b']' | b'l' | b'a' | b'e' => self.list(opcode),
            b')' | b't' | 0x85 | 0x86 | 0x87 => self.tuple(opcode),
            b'}' | b'd' | b's' | b'u' => self.dict(opcode),
            0x8f..=0x91 => self.set(opcode),
            b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94 => self.memoize(opcode),
            b'c' | 0x93 | b'i' | b'o' | b'R' | 0x81 | 0x92 | b'b' | b'P' | b'Q' | 0x82..=0x84 => {
                self.object(opcode)
            }
            0x97 | 0x98 => Err(self.malformed("its buffers are outside of the file")),
            other => Err(self.malformed(format!("the opcode {other:#04x} is unknown"))),
        }
    }

    fn protocol(&mut self) -> Result<(), TorchError> {
        match self.reader.byte()? {
            0..=5 => Ok(()),
            version => Err(self.malformed(format!("protocol {version} is unknown"))),
        }
    }

    fn number(&mut self, opcode: u8) -> Result<(), TorchError> {
        let value = match opcode {
            b'J' => Value::Int(i64::from(self.reader.u32()? as i32)),
            b'K' => Value::Int(i64::from(self.reader.byte()?)),
            b'M' => Value::Int(i64::from(self.reader.u16()?)),
            b'G' => Value::Float(f64::from_bits(self.reader.u64()?.swap_bytes())),
            0x8a | 0x8b => {
                let len =
                    if opcode == 0x8a { u64::from(self.reader.byte()?) } else { self.reader.length4()? };
                long(self.reader.take(len)?)
            }
            _ => {
                let line = self.reader.line()?;
                let text = std::str::from_utf8(line).unwrap_or_default().trim();
                let value = match (opcode, text) {
                    (b'I', "00") => Some(Value::Bool(false)),
                    (b'I', "01") => Some(Value::Bool(true)),
                    (b'F', _) => text.parse().ok().map(Value::Float),
                    // Larger integers are no sizes.
                    _ => match text.trim_end_matches('L') {
                        digits if is_integer(digits) => {
                            Some(digits.parse().map_or(Value::Opaque(None), Value::Int))
                        }
                        _ => None,
                    },
                };
                value.ok_or_else(|| self.malformed("a number can't be read"))?
            }
        };
        self.push(value)
    }

    fn text(&mut self, opcode: u8) -> Result<(), TorchError> {
        let text = match opcode {
            b'V' => Cow::Owned(reader::unescaped(self.reader.line()?, true)),
            b'S' => {
                let line = self.reader.line()?;
                let quoted = reader::unquoted(line).ok_or_else(|| self.malformed("a text has no quotes"))?;
                Cow::Owned(reader::unescaped(quoted, false))
            }
            _ => {
                let len = match opcode {
                    b'U' | 0x8c => u64::from(self.reader.byte()?),
                    b'T' => self.reader.length4()?,
                    b'X' => u64::from(self.reader.u32()?),
                    _ => self.reader.u64()?,
                };
                // Python writes half of a surrogate pair as no UTF-8 has it.
                String::from_utf8_lossy(self.reader.take(len)?)
            }
        };
        self.push(Value::Text(text))
    }

    /// Bytes have no place among weights, but in NumPy's arrays.
    fn bytes(&mut self, opcode: u8) -> Result<(), TorchError> {
        let len = match opcode {
            b'C' => u64::from(self.reader.byte()?),
            b'B' => u64::from(self.reader.u32()?),
            _ => self.reader.u64()?,
        };
        self.reader.take(len)?;
        self.push(Value::Opaque(None))
    }

    fn list(&mut self, opcode: u8) -> Result<(), TorchError> {
        let items = match opcode {
            b']' => return self.push(Value::List(Vec::new())),
            b'a' => vec![self.pop()?],
            _ => self.pop_mark()?,
        };
        if opcode == b'l' {
            return self.push(Value::List(items));
        }
        let list = self.top()?;
        match &mut self.values[list as usize] {
            Value::List(list) => list.extend(items),
            // A subclass of lists.
            Value::Opaque(_) => {}
            _ => return Err(self.malformed("it appends to what is no list")),
        }
        Ok(())
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), TorchError> {
        let items = match opcode {
            b't' => self.pop_mark()?,
            b')' => Vec::new(),
            _ => {
                let start = self.room(usize::from(opcode - 0x84))?;
                self.stack.split_off(start)
            }
        };
        self.push(Value::Tuple(items.into()))
    }

    fn dict(&mut self, opcode: u8) -> Result<(), TorchError> {
        let items = match opcode {
            b'}' => return self.push(Value::Dict(Vec::new())),
            b's' => {
                let start = self.room(2)?;
                self.stack.split_off(start)
            }
            _ => self.pop_mark()?,
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.malformed("a key of a dictionary has no value"));
        }
        let entries = pairs.iter().map(|[key, value]| (*key, *value));
        if opcode == b'd' {
            return self.push(Value::Dict(entries.collect()));
        }
        let dict = self.top()?;
        match &mut self.values[dict as usize] {
            Value::Dict(dict) => dict.extend(entries),
            // A subclass of dictionaries.
            Value::Opaque(_) => {}
            _ => return Err(self.malformed("it sets an item of what is no dictionary")),
        }
        Ok(())
    }

    /// Sets are passed over: no tensor can be reached through one.
    fn set(&mut self, opcode: u8) -> Result<(), TorchError> {
        if opcode == 0x8f {
            return self.push(Value::Opaque(None));
        }
        self.pop_mark()?;
        if opcode == 0x91 {
            return self.push(Value::Opaque(None));
        }
        match self.top_value()? {
            Value::Opaque(_) => Ok(()),
            _ => Err(self.malformed("it adds to what is no set")),
        }
    }

    fn memoize(&mut self, opcode: u8) -> Result<(), TorchError> {
        let key = match opcode {
            b'h' | b'q' => u64::from(self.reader.byte()?),
            b'j' | b'r' => u64::from(self.reader.u32()?),
            0x94 => self.memo.len() as u64,
            _ => {
                let line = self.reader.line()?;
                let key = std::str::from_utf8(line).ok().and_then(|text| text.trim().parse().ok());
                key.ok_or_else(|| self.malformed("the number of a memo can't be read"))?
            }
        };
        if matches!(opcode, b'g' | b'h' | b'j') {
            let value = self.memo.get(&key).copied();
            let value = value.ok_or_else(|| self.malformed(format!("memo {key} is empty")))?;
            self.stack.push(value);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), TorchError> {
        let id = Id::try_from(self.values.len()).map_err(|_| TorchError::TooLong)?;
        self.values.push(value);
        self.stack.push(id);
        Ok(())
    }

    /// The height of the stack without its top `count` values.
    fn room(&self, count: usize) -> Result<usize, TorchError> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let height = self.stack.len().checked_sub(count).filter(|height| *height >= bottom);
        height.ok_or_else(|| self.malformed("its stack is empty"))
    }

    fn pop(&mut self) -> Result<Id, TorchError> {
        let height = self.room(1)?;
        let top = self.stack[height];
        self.stack.truncate(height);
        Ok(top)
    }

    fn top(&self) -> Result<Id, TorchError> {
        Ok(self.stack[self.room(1)?])
    }

    fn top_value(&self) -> Result<&Value<'a>, TorchError> {
        Ok(&self.values[self.top()? as usize])
    }

    /// The values above the last mark, which is removed.
    fn pop_mark(&mut self) -> Result<Vec<Id>, TorchError> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn spend(&mut self, steps: usize) -> Result<(), TorchError> {
        self.spent = self.spent.saturating_add(steps);
        if self.spent > OPCODE_LIMIT { Err(TorchError::TooLong) } else { Ok(()) }
    }

    fn malformed(&self, what: impl Into<String>) -> TorchError {
        self.reader.malformed(what)
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// An integer in two's complement, little-endian.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = if is_negative { [0xff; 8] } else { [0; 8] };
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}
