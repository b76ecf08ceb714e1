use mixbit_testkit::Failures;

use super::*;
use mixbit_testkit::Scratch;

/// A file of a header and data as they are given, valid or not.
fn raw(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A valid file of tensors by name, type, shape and bytes.
pub(crate) fn file(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        let end = data.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    raw(format!("{{{}}}", entries.join(",")).as_bytes(), &data)
}

fn parse(bytes: Vec<u8>) -> Result<SafeTensors, SafeTensorsError> {
    SafeTensors::from_bytes(Bytes::new(bytes))
}

#[test]
fn every_element_type_is_read() {
    for (name, dtype) in DTYPES {
        let width = dtype.bits() / 8;
        let bytes: Vec<u8> = (0..6 * width as u8).collect();
        let weights = parse(file(&[("t", name, &[2, 3], &bytes)])).unwrap();
        let tensor = weights.require("t", &[2, 3]).unwrap();
        assert_eq!((tensor.ty().dtype, &*tensor.read().unwrap()), (dtype, &bytes[..]));
    }
}

#[test]
fn scalars_and_empty_tensors_are_read_in_any_order() {
    let header = br#"{"z":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},"__metadata__":{"format":"pt"},
        "none":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},
        "scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   "#;
    let weights = parse(raw(header, &[0, 0, 128, 63, 5, 6])).unwrap();
    assert_eq!(weights.names(), ["none", "scalar", "z"]);
    assert_eq!(weights.metadata()["format"], "pt");
    assert_eq!(&*weights.get("scalar").unwrap().read().unwrap(), 1f32.to_le_bytes());
    assert_eq!(weights.get("none").unwrap().read().unwrap().len(), 0);
    assert_eq!(&*weights.get("z").unwrap().read().unwrap(), [5, 6]);
    assert!(weights.get("y").is_none());
    assert!(parse(raw(b"{}", &[])).unwrap().names().is_empty());
}

/// A header with one tensor `t` of the given fields and ten bytes of data.
fn one(fields: &str) -> Vec<u8> {
    raw(format!(r#"{{"t":{{{fields}}}}}"#).as_bytes(), &[0; 10])
}

#[test]
fn hostile_files_are_refused_with_a_reason() {
    let many_axes = format!(r#""dtype":"U8","shape":[{}1],"data_offsets":[0,10]"#, "1,".repeat(64));
    let u8s = |name: &str, begin: usize, end: usize| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
    };
    let two = |a: String, b: String| raw(format!("{{{a},{b}}}").as_bytes(), &[0; 10]);
    let deep = raw(format!("{{\"t\":{}", "[".repeat(100_000)).as_bytes(), &[]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "has 0 bytes, too few"),
        ("seven bytes", vec![1; 7], "has 7 bytes, too few"),
        ("no header", 0u64.to_le_bytes().to_vec(), "does not start with `{`"),
        (
            "10 GB header",
            10_000_000_000u64.to_le_bytes().to_vec(),
            "claims 10000000000 bytes, the limit is 100000000",
        ),
        ("largest header", u64::MAX.to_le_bytes().to_vec(), "the limit is"),
        (
            "header beyond file",
            [&99_999_999u64.to_le_bytes()[..], b"{}"].concat(),
            "the file has 2 after its length",
        ),
        ("git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00".to_vec(), "git lfs pull"),
        ("zip", b"PK\x03\x04\0\0\0\0\x08\0archive/data.pkl".to_vec(), "claims 67324752 bytes, the file has"),
        ("space first", raw(b" {}", &[]), "does not start with `{`"),
        ("not JSON", raw(b"{]", &[]), "malformed"),
        ("cut JSON", raw(br#"{"t":{"dtype":"#, &[]), "malformed"),
        ("text after JSON", raw(b"{} {}", &[]), "malformed"),
        ("deep JSON", deep, "malformed"),
        ("bad UTF-8", raw(b"{\"\xff\xfe\":{}}", &[]), "malformed"),
        ("array", raw(b"{\"t\":[]}", &[]), "malformed"),
        ("metadata of numbers", raw(br#"{"__metadata__":{"a":1}}"#, &[]), "malformed"),
        (
            "metadata twice",
            raw(br#"{"__metadata__":{},"__metadata__":{}}"#, &[]),
            "duplicate field `__metadata__`",
        ),
        ("no shape", one(r#""dtype":"U8","data_offsets":[0,10]"#), "missing field `shape`"),
        (
            "shape twice",
            one(r#""dtype":"U8","shape":[10],"shape":[10],"data_offsets":[0,10]"#),
            "duplicate field",
        ),
        ("negative shape", one(r#""dtype":"U8","shape":[-10],"data_offsets":[0,10]"#), "malformed"),
        ("fractional shape", one(r#""dtype":"U8","shape":[10.5],"data_offsets":[0,10]"#), "malformed"),
        ("one offset", one(r#""dtype":"U8","shape":[10],"data_offsets":[0]"#), "malformed"),
        ("three offsets", one(r#""dtype":"U8","shape":[10],"data_offsets":[0,10,10]"#), "malformed"),
        ("65 axes", one(&many_axes), "at most 64 axes"),
        (
            "unknown type",
            one(r#""dtype":"F8_E8M0","shape":[10],"data_offsets":[0,10]"#),
            "tensor `t` has elements of type F8_E8M0",
        ),
        (
            "huge shape",
            one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,10]"#),
            "larger than any memory",
        ),
        (
            "huge but for a zero",
            one(r#""dtype":"U8","shape":[18446744073709551615,18446744073709551615,0],"data_offsets":[0,0]"#),
            "larger than any memory",
        ),
        (
            "wrong size",
            one(r#""dtype":"F16","shape":[2,2],"data_offsets":[0,10]"#),
            "tensor `t` of type tensor<fp16, [2, 2]> has 10 bytes",
        ),
        (
            "reversed offsets",
            one(r#""dtype":"U8","shape":[1],"data_offsets":[10,9]"#),
            "lies at bytes 10 to 9",
        ),
        (
            "beyond the file",
            one(r#""dtype":"U8","shape":[11],"data_offsets":[0,11]"#),
            "lies at bytes 0 to 11 of data with 10",
        ),
        (
            "far beyond the file",
            one(r#""dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]"#),
            "of data with 10",
        ),
        (
            "hole at the start",
            one(r#""dtype":"U8","shape":[9],"data_offsets":[1,10]"#),
            "starts at byte 1 of the data, the one before it ends at 0",
        ),
        (
            "trailing data",
            one(r#""dtype":"U8","shape":[9],"data_offsets":[0,9]"#),
            "end at byte 9 of the data, the file has 10",
        ),
        ("trailing data, no tensor", raw(b"{}", &[0]), "end at byte 0 of the data, the file has 1"),
        ("hole", two(u8s("a", 0, 4), u8s("b", 5, 10)), "tensor `b` starts at byte 5"),
        (
            "overlap",
            two(u8s("a", 0, 6), u8s("b", 4, 10)),
            "tensor `b` starts at byte 4 of the data, the one before it ends at 6",
        ),
        ("same bytes", two(u8s("a", 0, 10), u8s("b", 0, 10)), "starts at byte 0"),
        ("same name", two(u8s("a", 0, 5), u8s("a", 5, 10)), "tensor `a` is in the header twice"),
        ("name over two lines", two(u8s("a\\nb", 0, 5), u8s("a\\nb", 5, 10)), "tensor `a\\nb` is in"),
    ];
    let mut failures = Failures::new("hostile safetensors");
    for (name, bytes, expected) in cases {
        failures.case(name, || match parse(bytes) {
            Ok(_) => Err("accepted".to_string()),
            Err(error) => {
                let message = error.to_string();
                let right = message.contains(expected) && !message.contains('\n');
                if right { Ok(()) } else { Err(message) }
            }
        });
    }
    failures.finish();
}

/// A small generator for mutations (xorshift64*), so that failures repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

#[test]
fn damaged_files_never_panic_and_never_lie() {
    let valid = file(&[
        ("a", "F32", &[2, 2], &[1; 16]),
        ("b", "U8", &[3], &[2; 3]),
        ("c", "F16", &[0], &[]),
        ("d", "I64", &[], &[3; 8]),
    ]);
    let mut random = Random(0x5eed);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = b"0123456789{}[],:\""[random.below(17)],
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at + 1),
            }
        }
        let len = bytes.len();
        let Ok(weights) = parse(bytes) else {
            refused += 1;
            continue;
        };
        accepted += 1;
        // What is accepted covers the data exactly and can be read in full.
        let total: usize =
            weights.names().iter().map(|name| weights.get(name).unwrap().read().unwrap().len()).sum();
        assert_eq!(total, weights.data.len());
        assert!(total < len);
    }
    assert!(accepted > 100 && refused > 1000, "{accepted} accepted, {refused} refused");
}

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_string(), ty: TensorType::new(dtype, shape) }
}

#[test]
fn what_is_written_is_read() {
    let scratch = Scratch::new();
    let path = scratch.path().join("model.safetensors");
    let specs = [
        spec("odd", DType::U8, &[3]),
        spec("narrow \"quoted\"", DType::F16, &[5]),
        spec("wide", DType::F32, &[2, 2]),
        spec("none", DType::F32, &[0]),
        spec("scalar", DType::I64, &[]),
    ];
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let mut order = Vec::new();
    let content = |index: usize| vec![index as u8 + 1; specs[index].ty.byte_len().unwrap()];
    write(&path, &metadata, &specs, |index, writer| {
        order.push(index);
        content(index).iter().try_for_each(|byte| writer.write_all(&[*byte]))
    })
    .unwrap();
    assert_eq!(order, [4, 2, 3, 1, 0], "wide elements come first");
    let weights = SafeTensors::open(&path).unwrap();
    assert_eq!(weights.metadata(), &metadata);
    let file = std::fs::read(&path).unwrap();
    assert_eq!((file.len() - weights.data.len()) % 8, 0);
    for (index, spec) in specs.iter().enumerate() {
        let tensor = weights.require(&spec.name, &spec.ty.shape).unwrap();
        assert_eq!(tensor.ty(), &spec.ty);
        assert_eq!(&*tensor.read().unwrap(), content(index));
        let (_, range) = &weights.tensors[&*spec.name];
        assert!((range.start * 8).is_multiple_of(spec.ty.dtype.bits()), "{} is not aligned", spec.name);
    }
    assert_eq!(scratch.names(), ["model.safetensors"]);
}

#[test]
fn wrong_producers_write_nothing() {
    let bytes_of =
        |count: usize| move |_: usize, writer: &mut dyn std::io::Write| writer.write_all(&vec![0; count]);
    let one = [spec("t", DType::F16, &[2])];
    let twice = [spec("t", DType::F16, &[2]), spec("t", DType::F16, &[2])];
    let cases: [(&[TensorSpec], usize, &str); 7] = [
        (&one, 3, "tensor `t` of type tensor<fp16, [2]>: got 3 of its 4 bytes"),
        (&one, 5, "got more bytes than it has"),
        (&one, 0, "got 0 of its 4 bytes"),
        (&twice, 4, "the name is taken"),
        (&[spec("__metadata__", DType::F16, &[2])], 4, "the name is taken"),
        (&[spec("t", DType::U4, &[2])], 1, "no such element type"),
        (&[spec("t", DType::F16, &[usize::MAX])], 1, "larger than any file"),
    ];
    let scratch = Scratch::new();
    for (specs, count, expected) in cases {
        let path = scratch.path().join("out");
        let error = write(&path, &BTreeMap::new(), specs, bytes_of(count)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(scratch.names().is_empty());
    }
}

#[test]
fn metadata_may_be_null_and_floats_may_have_8_bits() {
    let header = r#"{"__metadata__":null,"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    // 1.5 and the largest number.
    bytes.extend([0x3c, 0x7e]);
    let file = SafeTensors::from_bytes(Bytes::new(bytes)).unwrap();
    assert!(file.metadata().is_empty());
    let weight = file.get("a").unwrap();
    assert_eq!((weight.stored_type_name(), weight.stored_len()), ("fp8 (e4m3)", 2));
    let wide = weight.cast(DType::F32);
    let found: Vec<f32> =
        wide.read().unwrap().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert_eq!(found, [1.5, 448.0]);
}
