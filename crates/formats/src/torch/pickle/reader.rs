//! The arguments of opcodes.

use crate::torch::error::TorchError;

/// A position in a pickle.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    opcode: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0, opcode: 0 }
    }

    /// Notes the position of an opcode, for messages.
    pub(super) fn start_opcode(&mut self) {
        self.opcode = self.at;
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn malformed(&self, what: impl Into<String>) -> TorchError {
        TorchError::Pickle { at: self.opcode, what: what.into() }
    }

    /// The next bytes. Their number is checked against the file.
    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], TorchError> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let taken = taken.ok_or_else(|| self.malformed("it ends here: was the file cut off?"))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TorchError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Result<u8, TorchError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, TorchError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, TorchError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, TorchError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length that the format stores as a signed number of four bytes.
    pub(super) fn length4(&mut self) -> Result<u64, TorchError> {
        let len = self.u32()? as i32;
        u64::try_from(len).map_err(|_| self.malformed("a length is negative"))
    }

    /// The bytes before the next line feed.
    pub(super) fn line(&mut self) -> Result<&'a [u8], TorchError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or_else(|| self.malformed("a line has no end: was the file cut off?"))?;
        self.at += end + 1;
        Ok(&rest[..end])
    }
}

/// A Python string literal without its quotes.
pub(super) fn unquoted(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii();
    let quote = *line.first().filter(|quote| matches!(quote, b'\'' | b'"'))?;
    (line.len() >= 2).then(|| line[1..].strip_suffix(&[quote])).flatten()
}

/// A text whose special characters are escaped as in Python's literals: in texts of Unicode `\u` and `\U`
/// alone. Escapes that can't be read stay as they are.
pub(super) fn unescaped(bytes: &[u8], is_unicode: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        let escape = (*first == b'\\').then(|| escaped(after, is_unicode)).flatten();
        match escape {
            Some((character, len)) => {
                text.push(character);
                rest = &after[len..];
            }
            None => {
                // The bytes of both literals are those of Latin-1.
                text.push(char::from(*first));
                rest = after;
            }
        }
    }
    text
}

/// The character of an escape and its bytes after the backslash.
fn escaped(after: &[u8], is_unicode: bool) -> Option<(char, usize)> {
    let digits = |len: usize| {
        let digits = std::str::from_utf8(after.get(1..=len)?).ok()?;
        let code = u32::from_str_radix(digits, 16).ok()?;
        Some((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), len + 1))
    };
    match (after.first()?, is_unicode) {
        (b'u', true) => digits(4),
        (b'U', true) => digits(8),
        (b'x', false) => digits(2),
        (b'n', false) => Some(('\n', 1)),
        (b'r', false) => Some(('\r', 1)),
        (b't', false) => Some(('\t', 1)),
        (quote @ (b'\\' | b'\'' | b'"'), false) => Some((char::from(*quote), 1)),
        _ => None,
    }
}
