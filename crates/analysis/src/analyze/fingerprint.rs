//! The checksum that identifies an analysis.

use super::subject::Subject;

/// The checksum of a network's layers, its results on all samples, and a text.
pub(super) fn fingerprint(subject: &Subject<'_>, text: &str) -> u64 {
    let mut hash = Fnv::new();
    for layer in &subject.layers {
        hash.text(&format!("{} {:?}", layer.name, layer.ty().shape));
    }
    subject.evaluator.fingerprint().iter().for_each(|bits| hash.bytes(&bits.to_le_bytes()));
    hash.text(text);
    hash.0
}

/// The checksum of a text.
pub(super) fn of_text(text: &str) -> u64 {
    let mut hash = Fnv::new();
    hash.text(text);
    hash.0
}

/// FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(&[0]);
    }
}
