//! Tokens of MIL text.

use super::ParseError;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Word(&'a str),
    Number(&'a str),
    /// A string without its quotes, escapes unresolved.
    Text(&'a str),
    Mark(char),
    Arrow,
    End,
}

/// A reader of tokens with one token of lookahead.
pub(super) struct Lexer<'a> {
    text: &'a str,
    /// The offsets of the next token's begin and end.
    start: usize,
    end: usize,
    next: Token<'a>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Result<Self, ParseError> {
        let mut lexer = Lexer { text, start: 0, end: 0, next: Token::End };
        lexer.advance()?;
        Ok(lexer)
    }

    /// The next token, without consuming it.
    pub(super) fn peek(&self) -> Token<'a> {
        self.next
    }

    /// Consumes the next token.
    pub(super) fn take(&mut self) -> Result<Token<'a>, ParseError> {
        let token = self.next;
        self.advance()?;
        Ok(token)
    }

    /// An error at the next token.
    pub(super) fn error(&self, what: impl Into<String>) -> ParseError {
        ParseError::at(self.text, self.start, what)
    }

    /// The offset of the next token.
    pub(super) fn position(&self) -> usize {
        self.start
    }

    pub(super) fn error_at(&self, position: usize, what: impl Into<String>) -> ParseError {
        ParseError::at(self.text, position, what)
    }

    fn advance(&mut self) -> Result<(), ParseError> {
        let rest = self.text[self.end..].trim_start();
        self.start = self.text.len() - rest.len();
        let (token, len) = match token(rest) {
            Ok(found) => found,
            Err(what) => return Err(self.error(what)),
        };
        self.end = self.start + len;
        self.next = token;
        Ok(())
    }
}

/// The token at the beginning of `rest`, and its length in bytes.
fn token(rest: &str) -> Result<(Token<'_>, usize), String> {
    let Some(first) = rest.chars().next() else { return Ok((Token::End, 0)) };
    let until = |part: &dyn Fn(usize, u8) -> bool| {
        rest.bytes().enumerate().position(|(at, byte)| !part(at, byte)).unwrap_or(rest.len())
    };
    if rest.starts_with("->") {
        return Ok((Token::Arrow, 2));
    }
    match first {
        'a'..='z' | 'A'..='Z' | '_' => {
            let len = until(&|_, byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'@'));
            Ok((Token::Word(&rest[..len]), len))
        }
        '0'..='9' | '-' | '+' => {
            // A sign is a part of a number at its beginning and in its exponent.
            let signed = |at: usize| at == 0 || matches!(rest.as_bytes()[at - 1], b'p' | b'P' | b'e' | b'E');
            let hex = rest.trim_start_matches(['-', '+']).starts_with("0x");
            let sign =
                |at: usize| signed(at) && (at == 0 || !hex || matches!(rest.as_bytes()[at - 1], b'p' | b'P'));
            let len = until(&|at, byte| {
                byte.is_ascii_alphanumeric() || byte == b'.' || (matches!(byte, b'-' | b'+') && sign(at))
            });
            Ok((Token::Number(&rest[..len]), len))
        }
        '"' => {
            let mut escaped = false;
            for (at, byte) in rest.bytes().enumerate().skip(1) {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => return Ok((Token::Text(&rest[1..at]), at + 1)),
                    _ => {}
                }
            }
            Err("a string does not end".to_string())
        }
        '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' | '=' | ',' | ';' | '?' => Ok((Token::Mark(first), 1)),
        other => Err(format!("`{}` is not a part of MIL text", other.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
        let mut lexer = Lexer::new(text)?;
        let mut out = Vec::new();
        while lexer.peek() != Token::End {
            out.push(lexer.take()?);
        }
        Ok(out)
    }

    #[test]
    fn tokens_are_told_apart() {
        use Token::{Arrow, Mark, Number, Text, Word};
        let found = tokens("a_1@b (-0x1.5p-17, 12)\n[\"x \\\" y\"] -> 1e-3 -inf 0x1e").unwrap();
        let expected = [
            Word("a_1@b"),
            Mark('('),
            Number("-0x1.5p-17"),
            Mark(','),
            Number("12"),
            Mark(')'),
            Mark('['),
            Text("x \\\" y"),
            Mark(']'),
            Arrow,
            Number("1e-3"),
            Number("-inf"),
            Number("0x1e"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(
            tokens("a\n  é").unwrap_err().to_string(),
            "line 2, column 3: `é` is not a part of MIL text"
        );
        assert_eq!(tokens("\"a\\\"").unwrap_err().to_string(), "line 1, column 1: a string does not end");
    }
}
