//! The part of protocol buffers' wire format that Core ML needs.
//!
//! Hand-written rather than generated. A message is read in place, so a file of empty messages takes no
//! memory. No unknown field is dropped silently. The same value always gives the same bytes. Generated
//! structs offer none of this, and the format has only four kinds of field.

use super::CoreMlError;
use super::schema::map_entry;

/// An undecoded message and its offset in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    at: usize,
    value: Wire<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

fn malformed(at: usize, what: impl Into<String>) -> CoreMlError {
    CoreMlError::Malformed { at, what: what.into() }
}

impl<'a> Message<'a> {
    /// A whole file.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Message { bytes, at: 0 }
    }

    /// The fields, in the order of the file. After an error there are no more.
    pub(super) fn fields(self) -> Fields<'a> {
        Fields { rest: self }
    }

    /// An error about this message.
    pub(super) fn malformed(self, what: impl Into<String>) -> CoreMlError {
        malformed(self.at, what)
    }

    /// An entry of a map from strings to messages.
    pub(super) fn entry(self) -> Result<(&'a str, Message<'a>), CoreMlError> {
        let (mut key, mut value) = ("", Message { bytes: &[], at: self.at });
        for field in self.fields() {
            let field = field?;
            match field.number {
                map_entry::KEY => key = field.text()?,
                map_entry::VALUE => value = field.message()?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    /// An entry of a map from strings to strings.
    pub(super) fn text_entry(self) -> Result<(&'a str, &'a str), CoreMlError> {
        let (mut key, mut value) = ("", "");
        for field in self.fields() {
            let field = field?;
            match field.number {
                map_entry::KEY => key = field.text()?,
                map_entry::VALUE => value = field.text()?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    /// Takes the first `count` bytes, or `None` if there are fewer.
    fn skip(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(count)?;
        *self = Message { bytes: tail, at: self.at + count };
        Some(head)
    }

    fn varint(&mut self) -> Result<u64, CoreMlError> {
        let mut value = 0u64;
        for (index, &byte) in self.bytes.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            if index == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.skip(index + 1);
                return Ok(value);
            }
        }
        Err(malformed(self.at, "a number does not end"))
    }
}

/// The fields of a message; see [`Message::fields`].
pub(super) struct Fields<'a> {
    rest: Message<'a>,
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<Field<'a>, CoreMlError> {
        let rest = &mut self.rest;
        let start = rest.at;
        let tag = rest.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|&number| number > 0);
        let number = number.ok_or_else(|| malformed(start, "a field has no valid number"))?;
        let mut at = rest.at;
        let cut = |at| malformed(at, format!("field {number} is cut short"));
        let value = match tag & 7 {
            0 => Wire::Varint(rest.varint()?),
            1 => Wire::Fixed64(rest.skip(8).and_then(|b| b.try_into().ok()).ok_or_else(|| cut(at))?),
            2 => {
                let len = rest.varint()?;
                at = rest.at;
                let bytes = usize::try_from(len).ok().and_then(|len| rest.skip(len));
                Wire::Bytes(bytes.ok_or_else(|| cut(at))?)
            }
            5 => Wire::Fixed32(rest.skip(4).and_then(|b| b.try_into().ok()).ok_or_else(|| cut(at))?),
            kind => return Err(malformed(start, format!("field {number} is of unknown kind {kind}"))),
        };
        Ok(Field { number, at, value })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, CoreMlError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.bytes.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest.bytes = &[];
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    fn wrong(&self, what: &str) -> CoreMlError {
        malformed(self.at, format!("field {} is not {what}", self.number))
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], CoreMlError> {
        match self.value {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong("bytes")),
        }
    }

    pub(super) fn message(self) -> Result<Message<'a>, CoreMlError> {
        match self.value {
            Wire::Bytes(bytes) => Ok(Message { bytes, at: self.at }),
            _ => Err(self.wrong("a message")),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, CoreMlError> {
        match self.value {
            Wire::Bytes(bytes) => std::str::from_utf8(bytes).map_err(|_| self.wrong("UTF-8 text")),
            _ => Err(self.wrong("text")),
        }
    }

    pub(super) fn number(self) -> Result<u64, CoreMlError> {
        match self.value {
            Wire::Varint(value) => Ok(value),
            _ => Err(self.wrong("a number")),
        }
    }

    /// A number that must be a size.
    pub(super) fn size(self) -> Result<usize, CoreMlError> {
        usize::try_from(self.number()?).map_err(|_| self.wrong("a size"))
    }

    /// Calls `each` with the numbers of a repeated field, packed or single.
    pub(super) fn numbers(self, mut each: impl FnMut(u64)) -> Result<(), CoreMlError> {
        match self.value {
            Wire::Varint(value) => each(value),
            Wire::Bytes(bytes) => {
                let mut rest = Message { bytes, at: self.at };
                while !rest.bytes.is_empty() {
                    each(rest.varint()?);
                }
            }
            _ => return Err(self.wrong("numbers")),
        }
        Ok(())
    }

    /// The bytes of a repeated field of fixed width, packed or single.
    pub(super) fn fixed(&self, width: usize) -> Result<&[u8], CoreMlError> {
        let bytes: &[u8] = match &self.value {
            Wire::Fixed32(bytes) => bytes,
            Wire::Fixed64(bytes) => bytes,
            Wire::Bytes(bytes) => bytes,
            Wire::Varint(_) => return Err(self.wrong("numbers")),
        };
        if bytes.len().is_multiple_of(width) { Ok(bytes) } else { Err(self.wrong("numbers of that width")) }
    }
}

/// A message under construction. Defaults of proto3 (zero, empty) are left out unless stated otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn new() -> Self {
        Writer::default()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn tag(&mut self, number: u32, kind: u64) {
        self.varint(u64::from(number) << 3 | kind);
    }

    /// Writes a field of bytes, even if it is empty.
    pub(super) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.tag(number, 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes a message, even if it is empty.
    pub(super) fn message(&mut self, number: u32, message: &Writer) {
        self.bytes(number, &message.bytes);
    }

    /// Writes a text, unless it is empty.
    pub(super) fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(number, text.as_bytes());
        }
    }

    /// Writes a number, unless it is zero.
    pub(super) fn number(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.tag(number, 0);
            self.varint(value);
        }
    }

    /// Writes packed numbers, unless there are none.
    pub(super) fn numbers(&mut self, number: u32, values: impl IntoIterator<Item = u64>) {
        let mut packed = Writer::new();
        values.into_iter().for_each(|value| packed.varint(value));
        if !packed.bytes.is_empty() {
            self.message(number, &packed);
        }
    }

    /// Writes an entry of a map from strings to messages.
    pub(super) fn entry(&mut self, number: u32, key: &str, value: &Writer) {
        let mut entry = Writer::new();
        entry.bytes(map_entry::KEY, key.as_bytes());
        entry.message(map_entry::VALUE, value);
        self.message(number, &entry);
    }

    /// Writes an entry of a map from strings to strings.
    pub(super) fn text_entry(&mut self, number: u32, key: &str, value: &str) {
        let mut entry = Writer::new();
        entry.bytes(map_entry::KEY, key.as_bytes());
        entry.bytes(map_entry::VALUE, value.as_bytes());
        self.message(number, &entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_round_trip() {
        let mut inner = Writer::new();
        inner.text(1, "é");
        let mut writer = Writer::new();
        writer.number(1, 300);
        writer.number(2, u64::MAX);
        writer.numbers(3, [0, 1, 128]);
        writer.entry(100, "key", &inner);
        writer.number(4, 0);
        writer.text(5, "");
        let bytes = writer.into_bytes();
        let fields: Vec<_> = Message::new(&bytes).fields().collect::<Result<_, _>>().unwrap();
        assert_eq!(fields.iter().map(|field| field.number).collect::<Vec<_>>(), [1, 2, 3, 100]);
        assert_eq!((fields[0].number().unwrap(), fields[1].number().unwrap()), (300, u64::MAX));
        let mut numbers = Vec::new();
        fields[2].numbers(|value| numbers.push(value)).unwrap();
        assert_eq!(numbers, [0, 1, 128]);
        let (key, value) = fields[3].message().unwrap().entry().unwrap();
        assert_eq!(key, "key");
        assert_eq!(value.fields().next().unwrap().unwrap().text().unwrap(), "é");
    }

    #[test]
    fn what_lies_is_refused_with_its_place() {
        let cases: [(&[u8], usize, &str); 8] = [
            (&[0x08], 1, "does not end"),
            (&[0x08, 0xff], 1, "does not end"),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], 1, "does not end"),
            (&[0x0a, 0x05, 1], 2, "field 1 is cut short"),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], 11, "field 1 is cut short"),
            (&[0x0d, 0, 0, 0], 1, "field 1 is cut short"),
            (&[0x0b], 0, "unknown kind 3"),
            (&[0x00, 0x00], 0, "no valid number"),
        ];
        for (bytes, place, what) in cases {
            let mut fields = Message::new(bytes).fields();
            let error = fields.next().unwrap().unwrap_err();
            let CoreMlError::Malformed { at, .. } = error else { panic!("{error}") };
            assert!(at == place && error.to_string().contains(what), "{bytes:?}: {error}");
            assert!(fields.next().is_none());
        }
        let text = Message::new(&[0x0a, 1, 0xff]).fields().next().unwrap().unwrap();
        assert!(text.text().unwrap_err().to_string().contains("not UTF-8"));
    }
}
