use mixbit_testkit::Failures;

use super::*;

/// An `.npy` file of the given header text.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
}

fn parse(bytes: Vec<u8>) -> Result<WeightRef, NpyError> {
    parse_npy("x", Bytes::new(bytes))
}

#[test]
fn arrays_are_read() {
    for (descr, dtype) in DTYPES {
        let data: Vec<u8> = (0..6 * (dtype.bits() / 8) as u8).collect();
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2, 3), }}   \n");
        let array = parse(npy(&header, &data)).unwrap();
        assert_eq!(array.ty(), &TensorType::new(dtype, [2, 3]));
        assert_eq!(&*array.read().unwrap(), data);
    }
    let scalar = parse(npy("{'shape': (), 'fortran_order': False, 'descr': '<f4'}", &[0; 4])).unwrap();
    assert_eq!(scalar.ty().shape, [0usize; 0]);
    let vector = parse(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", &[0; 4])).unwrap();
    assert_eq!(vector.ty().shape, [1]);
}

#[test]
fn other_versions_are_read_or_refused() {
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}";
    let wide = |version: u8| {
        [MAGIC, &[version, 0], &(header.len() as u32).to_le_bytes(), header.as_bytes(), &[9]].concat()
    };
    assert_eq!(&*parse(wide(2)).unwrap().read().unwrap(), [9]);
    assert_eq!(&*parse(wide(3)).unwrap().read().unwrap(), [9]);
    assert!(matches!(parse(wide(4)), Err(NpyError::Unsupported { .. })));
}

#[test]
fn hostile_arrays_are_refused() {
    let of = |fields: &str| npy(&format!("{{{fields}}}"), &[0; 4]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "does not start as an .npy file"),
        ("magic only", MAGIC.to_vec(), "ends in its header"),
        ("cut header", npy("{'descr': '<f4'", &[])[..12].to_vec(), "ends in its header"),
        ("long header", [MAGIC, &[2, 0, 255, 255, 255, 255]].concat(), "longer than any"),
        ("not a dict", npy("hello", &[]), "can't be read"),
        ("not text", [MAGIC, &[1, 0, 2, 0, 0xff, 0xfe]].concat(), "not text"),
        ("no shape", of("'descr': '<f4', 'fortran_order': False"), "can't be read"),
        ("unknown key", of("'descr': '<f4', 'other': 3"), "can't be read"),
        ("unclosed", of("'descr': '<f4"), "array of records"),
        ("negative", of("'descr': '<f4', 'fortran_order': False, 'shape': (-1,)"), "can't be read"),
        (
            "overflow",
            of("'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)"),
            "has 4 bytes",
        ),
        (
            "too short",
            of("'descr': '<f4', 'fortran_order': False, 'shape': (2,)"),
            "of type tensor<fp32, [2]> has 4 bytes",
        ),
        ("too long", of("'descr': '<f4', 'fortran_order': False, 'shape': (0,)"), "has 4 bytes"),
        (
            "Fortran",
            of("'descr': '<f4', 'fortran_order': True, 'shape': (1,)"),
            "Fortran order is not supported",
        ),
        ("big endian", of("'descr': '>f4', 'fortran_order': False, 'shape': (1,)"), "element type `>f4`"),
        ("objects", of("'descr': '|O', 'fortran_order': False, 'shape': (1,)"), "element type `|O`"),
        ("records", of("'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)"), "array of records"),
    ];
    let mut failures = Failures::new("hostile npy");
    for (name, bytes, expected) in cases {
        failures.case(name, || {
            let message =
                parse(bytes).map(|_| "accepted".to_string()).unwrap_or_else(|error| error.to_string());
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}

/// A ZIP archive as NumPy writes it: sizes of the local headers in ZIP64 fields, 32-bit sizes in the
/// directory.
fn npz(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let offset = file.len() as u32;
        let len = data.len() as u32;
        let zip64 =
            [&[1u8, 0, 16, 0][..], &u64::from(len).to_le_bytes(), &u64::from(len).to_le_bytes()].concat();
        let fixed = |size: u32| {
            [&[45u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &size.to_le_bytes(), &size.to_le_bytes()]
                .concat()
        };
        file.extend(
            [&b"PK\x03\x04"[..], &fixed(u32::MAX), &(name.len() as u16).to_le_bytes(), &20u16.to_le_bytes()]
                .concat(),
        );
        file.extend([name.as_bytes(), &zip64, data].concat());
        directory.extend(
            [&b"PK\x01\x02\x2d\x03"[..], &fixed(len), &(name.len() as u16).to_le_bytes(), &[0; 12]].concat(),
        );
        directory.extend([&offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let (start, len, count) = (file.len() as u32, directory.len() as u32, members.len() as u16);
    file.extend(directory);
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count.to_le_bytes(), &count.to_le_bytes()].concat());
    file.extend([&len.to_le_bytes()[..], &start.to_le_bytes(), &[0, 0]].concat());
    file
}

fn byte_array(value: u8) -> Vec<u8> {
    npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}", &[value])
}

#[test]
fn archives_are_read() {
    let archive =
        Npz::from_bytes(Bytes::new(npz(&[("b.npy", byte_array(2)), ("a.npy", byte_array(1))]))).unwrap();
    assert_eq!(archive.names(), ["a", "b"]);
    assert_eq!(&*archive.get("b").unwrap().read().unwrap(), [2]);
    assert!(archive.get("c").is_none());
}

#[test]
fn damaged_archives_never_panic() {
    let valid = npz(&[("a.npy", byte_array(1)), ("b.npy", byte_array(2))]);
    let open = |bytes: Vec<u8>| Npz::from_bytes(Bytes::new(bytes));
    for len in 0..valid.len() {
        assert!(open(valid[..len].to_vec()).is_err(), "cut to {len} bytes");
    }
    let mut refused = 0;
    for at in 0..valid.len() {
        for value in [0, 1, 8, 0x7f, 0xff] {
            let mut bytes = valid.clone();
            bytes[at] = value;
            refused += usize::from(open(bytes).is_err());
        }
    }
    assert!(refused > valid.len(), "{refused}");
    let message = open(npz(&[("a.npy", byte_array(1)), ("a", byte_array(2))])).unwrap_err().to_string();
    assert_eq!(message, "array `a`: the file is malformed: the name is there twice");
}

#[test]
fn compressed_archives_are_refused() {
    let mut archive = npz(&[("a.npy", byte_array(1))]);
    let directory = archive.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    archive[directory + 10] = 8;
    let message = Npz::from_bytes(Bytes::new(archive)).unwrap_err().to_string();
    assert!(message.contains("array `a`: a compressed archive"), "{message}");
}
