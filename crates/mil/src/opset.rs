//! Opsets: versions of the set of MIL ops.

use std::fmt;

/// A set of MIL ops, named after the system that introduced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Opset {
    Ios15,
    Ios16,
    Ios17,
    Ios18,
    Ios26,
}

impl Opset {
    /// Every opset, oldest first.
    pub const ALL: [Opset; 5] = [Opset::Ios15, Opset::Ios16, Opset::Ios17, Opset::Ios18, Opset::Ios26];

    /// The name in MIL text, such as `ios16`.
    pub fn name(self) -> &'static str {
        ["ios15", "ios16", "ios17", "ios18", "ios26"][self as usize]
    }
}

impl fmt::Display for Opset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
