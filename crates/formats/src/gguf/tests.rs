use super::*;
use mixbit_testkit::{Failures, fixture_root};

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn header(version: u32, tensors: u64, values: u64) -> Vec<u8> {
    [MAGIC, &version.to_le_bytes(), &tensors.to_le_bytes(), &values.to_le_bytes()].concat()
}

fn entry(name: &str, extents: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let extents: Vec<[u8; 8]> = extents.iter().map(|extent| extent.to_le_bytes()).collect();
    let rank = (extents.len() as u32).to_le_bytes();
    [text(name), rank.to_vec(), extents.concat(), kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()]
        .concat()
}

/// A file of the given entries and of 64 bytes of data.
fn file(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut file = [header(3, entries.len() as u64, 0), entries.concat()].concat();
    file.resize(file.len().next_multiple_of(32) + 64, 1);
    file
}

fn value(key: &str, kind: u32, bytes: &[u8]) -> Vec<u8> {
    [header(3, 0, 1), text(key), kind.to_le_bytes().to_vec(), bytes.to_vec()].concat()
}

fn array(kind: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
}

#[test]
fn hostile_files_are_refused() {
    let shaped = |shape: &[u8]| {
        let values = [text("comfy.gguf.orig_shape.a"), 9u32.to_le_bytes().to_vec(), shape.to_vec()].concat();
        let mut file = [header(3, 1, 1), values, entry("a", &[4], 24, 0)].concat();
        file.resize(file.len().next_multiple_of(32) + 4, 0);
        file
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("sound", file(&[entry("a", &[8, 2], 0, 0)]), "read [\"a\"]"),
        ("nothing", b"GGUF".to_vec(), "ends at byte 4, in the version"),
        ("version 1", header(1, 0, 0), "version 1 of GGUF"),
        ("big-endian", header(3u32.swap_bytes(), 0, 0), "big-endian"),
        ("many tensors", header(3, u64::MAX, 0), "it counts 18446744073709551615 tensors"),
        ("many values", header(3, 0, 1 << 40), "it counts 0 tensors and 1099511627776 values"),
        ("no values", header(3, 0, 2), "in a key"),
        ("a long key", [header(3, 0, 1), u64::MAX.to_le_bytes().to_vec()].concat(), "in a key"),
        ("a long text", value("a", 8, &u64::MAX.to_le_bytes()), "in a value"),
        ("an unknown value", value("a", 13, &[0; 8]), "unknown type 13"),
        ("an array that overflows", value("a", 9, &array(10, u64::MAX, &[])), "in an array"),
        ("an array of texts", value("a", 9, &array(8, u64::MAX, &[0; 64])), "in an array"),
        ("an array of arrays", value("a", 9, &array(9, 1, &[])), "an array of arrays"),
        ("an array of unknowns", value("a", 9, &array(99, 1, &[])), "unknown type 99"),
        ("alignment 0", value("general.alignment", 4, &[0; 4]), "the alignment is 0"),
        ("alignment 3", value("general.alignment", 4, &[3, 0, 0, 0]), "the alignment is 3"),
        ("alignment 2^31", value("general.alignment", 4, &[0, 0, 0, 128]), "the alignment is 2147483648"),
        ("a shape of four", shaped(&array(4, 2, &[2, 0, 0, 0, 2, 0, 0, 0])), "read [\"a\"]"),
        ("a shape of five", shaped(&array(4, 1, &[5, 0, 0, 0])), "its shape [4] is not that of [5]"),
        ("a negative shape", shaped(&array(5, 1, &[255; 4])), "is no shape"),
        ("a shape of texts", shaped(&array(8, 1, &[0; 8])), "unknown type 8"),
        ("a shape of many axes", shaped(&array(4, 1 << 40, &[])), "is no shape"),
        ("many axes", [header(3, 1, 0), text("a"), u32::MAX.to_le_bytes().to_vec()].concat(), "more than 8"),
        ("beyond memory", file(&[entry("a", &[1 << 40, 1 << 40], 0, 0)]), "larger than any memory"),
        ("beyond the file", file(&[entry("a", &[64], 0, 0)]), "lie outside of the file's 64"),
        ("behind the file", file(&[entry("a", &[1], 0, 1 << 40)]), "lie outside of the file's 64"),
        ("an offset that overflows", file(&[entry("a", &[1], 0, u64::MAX - 31)]), "lie outside"),
        ("not aligned", file(&[entry("a", &[1], 0, 4)]), "its offset 4 is not aligned to 32"),
        (
            "a part of a block",
            file(&[entry("a", &[48], 2, 0)]),
            "rows of 48 are no whole blocks of 32 (Q4_0)",
        ),
        ("a scalar of blocks", file(&[entry("a", &[], 8, 0)]), "rows of 1 are no whole blocks"),
        ("quantized as IQ4_XS", file(&[entry("a", &[256], 23, 0)]), "quantized as IQ4_XS, which is not"),
        ("quantized as TQ1_0", file(&[entry("a", &[256], 34, 0)]), "quantized as TQ1_0, which is not"),
        ("an unknown type", file(&[entry("a", &[1], 4, 0)]), "quantized as type 4"),
        ("twice", file(&[entry("a", &[1], 24, 0), entry("a", &[1], 24, 0)]), "in the header twice"),
        ("a name of control characters", file(&[entry("a\n", &[1], 0, 4)]), "tensor `a\\n`"),
    ];
    let mut failures = Failures::new("GGUF files");
    for (what, bytes, expected) in cases {
        failures.case(what, || {
            let message = match Gguf::from_bytes(&Bytes::new(bytes.clone())) {
                Ok(file) => format!("read {:?}", file.names()),
                Err(error) => error.to_string(),
            };
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}

#[test]
fn quantized_tensors_say_how_they_are_stored() {
    let file = crate::TensorFile::open(&fixture_root().join("checkpoints/types.gguf")).unwrap();
    let tensor = file.get("Q4_K").unwrap();
    assert_eq!((tensor.stored_type_name(), tensor.stored_len()), ("Q4_K", 288));
    assert!(file.metadata().keys().all(|key| !key.starts_with("test.t") || key == "test.truth"));
}

#[test]
fn damaged_files_are_refused_or_read() {
    let sound = std::fs::read(fixture_root().join("checkpoints/types.gguf")).unwrap();
    let read = |bytes: Vec<u8>| {
        let Ok(file) = Gguf::from_bytes(&Bytes::new(bytes)) else { return };
        for name in file.names() {
            let _ = file.get(name).unwrap().read();
        }
    };
    for at in (0..sound.len()).step_by(7) {
        read(sound[..at].to_vec());
    }
    for at in 0..sound.len().min(2000) {
        let mut changed = sound.clone();
        changed[at] ^= 0x41;
        read(changed);
    }
}

#[test]
fn blocks_of_the_widest_type_are_a_scale_and_its_numbers() {
    let q8_k = QUANTIZATIONS.iter().find(|quantization| quantization.name == "Q8_K").unwrap();
    let mut block = [0.5f32.to_le_bytes().as_slice(), &[0x7f, 0x80]].concat();
    block.resize(q8_k.bytes, 0);
    let mut values = [1f32; 256];
    (q8_k.decode)(&block, &mut values);
    assert_eq!(values[..3], [63.5, -64.0, 0.0]);
    assert!(QUANTIZATIONS.iter().all(|quantization| quantization.elements <= LARGEST));
}
