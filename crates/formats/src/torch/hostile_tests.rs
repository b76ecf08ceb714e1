//! Pickles that are made to do harm.

use super::*;
use mixbit_testkit::Failures;

/// A file of the older form around a pickle.
fn series(pickle: &[u8]) -> Vec<u8> {
    let magic = [b"\x80\x02\x8a\x0a".as_slice(), &MAGIC, b"."].concat();
    [magic.as_slice(), b"\x80\x02M\xe9\x03.", b"\x80\x02}.", pickle, b"\x80\x02]."].concat()
}

fn message(file: Vec<u8>) -> String {
    match Torch::from_bytes(&Bytes::new(file)) {
        Ok(file) => format!("read: {:?}", file.names()),
        Err(error) => error.to_string(),
    }
}

/// A global of protocol 4, by its module and name.
fn stack_global(module: &str, name: &str) -> Vec<u8> {
    let text = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
    [text(module), text(name), vec![0x93]].concat()
}

#[test]
fn functions_are_refused_by_their_names_on_every_way_to_them() {
    let in_dict = |call: &[u8]| [b"\x80\x04}(X\x01\0\0\0a", call, b"u."].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("GLOBAL", b"cos\nsystem\n(S'id'\ntR.".to_vec(), "`os.system`"),
        ("GLOBAL alone", b"cposix\nsystem\n.".to_vec(), "`posix.system`"),
        ("GLOBAL, other line ends", b"cos\r\nsystem\r\n.".to_vec(), "`os\\r.system\\r`"),
        (
            "STACK_GLOBAL",
            [b"\x80\x04".to_vec(), stack_global("builtins", "exec"), b"\x8c\x01x\x85R.".to_vec()].concat(),
            "`builtins.exec`",
        ),
        (
            "STACK_GLOBAL of memos",
            b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93.".to_vec(),
            "`os.system`",
        ),
        ("INST", b"(S'id'\nios\nsystem\n.".to_vec(), "`os.system`"),
        ("OBJ", b"(csubprocess\nPopen\nS'id'\no.".to_vec(), "`subprocess.Popen`"),
        ("NEWOBJ", b"\x80\x02cwebbrowser\nopen\n)\x81.".to_vec(), "`webbrowser.open`"),
        ("NEWOBJ_EX", b"\x80\x04crunpy\nrun_path\n)}\x92.".to_vec(), "`runpy.run_path`"),
        ("BUILD", b"\x80\x02c__builtin__\neval\n}b.".to_vec(), "`__builtin__.eval`"),
        ("EXT1", b"\x80\x02\x82\x01.".to_vec(), "extension registry"),
        ("EXT2", b"\x80\x02\x83\x01\0.".to_vec(), "extension registry"),
        ("EXT4", b"\x80\x02\x84\x01\0\0\0.".to_vec(), "extension registry"),
        ("inside a dictionary", in_dict(b"cnt\nsystem\nX\x02\0\0\0id\x85R"), "`nt.system`"),
        ("getattr", in_dict(b"c__builtin__\ngetattr\n"), "`__builtin__.getattr`"),
        ("import", in_dict(b"cimportlib\nimport_module\n"), "`importlib.import_module`"),
        ("torch.load", in_dict(b"ctorch\nload\n"), "`torch.load`"),
        ("nested pickle", in_dict(b"ctorch.storage\n_load_from_bytes\n"), "`torch.storage._load_from_bytes`"),
        (
            "through a package",
            in_dict(&stack_global("pytorch_lightning", "os.system")),
            "lightning.os.system",
        ),
        (
            "an argument of an opaque class",
            in_dict(b"cpytorch_lightning.x\nModel\n(cos\npopen\nS'id'\ntRtR"),
            "`os.popen`",
        ),
        (
            "type of a tensor",
            in_dict(b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNtR"),
            "`os.system`",
        ),
        ("a persistent class", in_dict(b"(X\x06\0\0\0modulec__main__\nModel\ntQ"), "`__main__.Model`"),
        ("after a pickle that ends", b"\x80\x02}.cos\nsystem\n.".to_vec(), "`os.system`"),
        ("a name of control characters", in_dict(b"cos\x1b[2J\nsystem\n"), "`os\\u{1b}[2J.system`"),
    ];
    let mut failures = Failures::new("functions");
    for (what, pickle, expected) in &cases {
        failures.case(what, || {
            let message = message(series(pickle));
            let is_line = !message.contains(|character: char| character.is_control());
            if message.contains(expected) && is_line { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
    // Where the file is nothing but the pickle, whatever its protocol and name.
    for pickle in [&cases[0].1, &cases[3].1, &cases[5].1] {
        let error = crate::TensorFile::from_bytes("model.ckpt".as_ref(), Bytes::new(pickle.clone()));
        assert!(matches!(error, Err(crate::Error::Torch { problem: TorchError::Global { .. }, .. })));
    }
}

#[test]
fn malformed_pickles_are_refused() {
    let cases: [(&str, &[u8], &str); 26] = [
        ("nothing", b"", "it ends here"),
        ("no end", b"\x80\x02}", "it ends here"),
        ("empty stack", b".", "its stack is empty"),
        ("pop of nothing", b"0.", "its stack is empty"),
        ("a tuple of too few", b"N\x87.", "its stack is empty"),
        ("a pop below a mark", b"N(\x85.", "its stack is empty"),
        ("no mark", b"Nt.", "a mark is missing"),
        ("protocol 6", b"\x80\x06N.", "protocol 6"),
        ("an unknown opcode", b"\xff.", "opcode 0xff is unknown"),
        ("an empty memo", b"h\x07.", "memo 7 is empty"),
        ("a memo of words", b"gx\n.", "number of a memo"),
        ("a key without a value", b"}(Nu.", "a key of a dictionary has no value"),
        ("items of a number", b"K\x01NNs.", "sets an item of what is no dictionary"),
        ("appended to a number", b"K\x01Na.", "appends to what is no list"),
        ("added to a number", b"K\x01(N\x90.", "adds to what is no set"),
        ("a call of a number", b"K\x01)R.", "it calls what is no function"),
        ("a call without a tuple", b"ccollections\nOrderedDict\nNR.", "are no tuple"),
        ("a class changed", b"ccollections\nOrderedDict\n}b.", "it changes a class"),
        ("an incomplete tensor", b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "a tensor is incomplete"),
        ("a storage of no class", b"(X\x07\0\0\0storageNNNNtQ.", "as PyTorch does not name one"),
        ("a storage by a line", b"Pstorage\n.", "as PyTorch does not name one"),
        ("a negative length", b"\x8b\xff\xff\xff\xff.", "a length is negative"),
        ("a long number of 2 GB", b"\x8b\xff\xff\xff\x7f.", "was the file cut off?"),
        ("a text of 4 GB", b"X\xff\xff\xff\xff.", "was the file cut off?"),
        ("a text beyond memory", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "was the file cut off?"),
        ("bytes outside of the file", b"\x97.", "buffers are outside"),
    ];
    let mut failures = Failures::new("malformed pickles");
    for (what, pickle, expected) in cases {
        failures.case(what, || {
            // Not in a series, whose next part would end a pickle without an end.
            let message = unpickle(pickle).err().map_or("read".to_string(), |error| error.to_string());
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}

#[test]
fn bombs_are_refused_before_they_take_memory() {
    // Dictionaries that hold the one before them twice: 2^40 names.
    let mut laughs = b"\x80\x02}X\x01\0\0\0aK\x01sq\x00".to_vec();
    for level in 1..40u8 {
        laughs.extend([b"}(X\x01\0\0\0ah".as_slice(), &[level - 1], b"X\x01\0\0\0bh", &[level - 1]].concat());
        laughs.extend([b"uq".as_slice(), &[level]].concat());
    }
    laughs.push(b'.');
    let deep = |levels: usize| {
        let mut pickle = b"\x80\x02".to_vec();
        pickle.extend(b"}X\x01\0\0\0a".repeat(levels));
        pickle.extend(b"}");
        pickle.extend(b"s".repeat(levels));
        pickle.push(b'.');
        pickle
    };
    let long_text = [b"X\0\0\x10\0".as_slice(), &[b'x'; 1 << 20]].concat();
    // One text of 1 MB under 20,000 keys, and as 20,000 keys.
    let texts = |is_key: bool| {
        let mut pickle = [b"\x80\x02".as_slice(), &long_text, b"q\x00}("].concat();
        for number in 0..20_000u32 {
            let number = [b"J".as_slice(), &number.to_le_bytes()].concat();
            let name = [b"X\x04\0\0\0".as_slice(), format!("{:04x}", number[1]).as_bytes()].concat();
            let entry =
                if is_key { [b"h\x00".as_slice(), &number].concat() } else { [&name[..], b"h\x00"].concat() };
            pickle.extend(entry);
        }
        pickle.extend(b"u.");
        pickle
    };
    // A list of 100,000 pairs, of which each opcode would make a dictionary.
    let mut copies = b"\x80\x02](".to_vec();
    copies.extend(b"NN\x86".repeat(100_000));
    copies.extend(b"e\x85q\x00ccollections\nOrderedDict\nq\x01");
    copies.extend(b"h\x01h\x00R".repeat(100_000));
    copies.push(b'.');
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("billion laughs", laughs, "shared so often"),
        ("a dictionary in itself", b"\x80\x02}q\x00X\x01\0\0\0ah\x00s.".to_vec(), "nested in a circle"),
        (
            "an object in itself",
            b"\x80\x02cargparse\nNamespace\n)\x81q\x00}X\x08\0\0\0_modulesh\x00sb.".to_vec(),
            "",
        ),
        ("a list in itself", b"\x80\x02]q\x00h\x00a.".to_vec(), "holds no tensors"),
        ("100 levels", deep(100), "nested in a circle, or more than 64 deep"),
        ("500,000 levels", deep(500_000), "nested in a circle, or more than 64 deep"),
        ("500,000 tuples", [vec![b')'], vec![0x85; 500_000], vec![b'.']].concat(), "holds no tensors"),
        ("one text for many keys", texts(false), "shared so often"),
        ("one text as many keys", texts(true), "shared so often"),
        ("copies of a list", copies, "larger than any of weights"),
        ("marks", [vec![b'('; 3 << 20], vec![b'.']].concat(), "larger than any of weights"),
        ("duplicates", [vec![b'N'], vec![b'2'; 3 << 20], vec![b'.']].concat(), "larger than any of weights"),
        ("memos", [vec![b'N'], vec![0x94; 3 << 20], vec![b'.']].concat(), "larger than any of weights"),
    ];
    let mut failures = Failures::new("bombs");
    for (what, pickle, expected) in cases {
        failures.case(what, || {
            let message = message(series(&pickle));
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}

/// A tensor `a` of f32 with the given offset, sizes and strides, in a storage of 6 elements.
fn tensor(arguments: &[u8]) -> Vec<u8> {
    let mut file = series(b"");
    // Without the keys of no storage.
    file.truncate(file.len() - 4);
    file.extend(
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n",
    );
    file.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ");
    file.extend([arguments, b"\x89}tRs.\x80\x02]X\x01\0\0\x000a."].concat());
    file.extend(6u64.to_le_bytes());
    file.extend((0..6u8).flat_map(|value| f32::from(value).to_le_bytes()));
    file
}

#[test]
fn tensors_stay_inside_their_storages() {
    let cases: [(&str, &[u8], &str); 12] = [
        ("sound", b"K\x00K\x02K\x03\x86K\x03K\x01\x86", "read: [\"a\"]"),
        ("a gap", b"K\x00K\x02K\x02\x86K\x03K\x01\x86", "read: [\"a\"]"),
        ("too many", b"K\x00K\x07\x85K\x01\x85", "lies outside of its storage"),
        ("an offset behind the end", b"K\x05K\x02\x85K\x01\x85", "lies outside of its storage"),
        ("a stride behind the end", b"K\x00K\x02\x85K\x06\x85", "lies outside of its storage"),
        (
            "an offset that overflows",
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x02\x85K\x01\x85",
            "lies outside",
        ),
        (
            "a stride that overflows",
            b"K\x00K\x05\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85",
            "than any memory",
        ),
        ("a negative stride", b"K\x05K\x02\x85J\xff\xff\xff\xff\x85", "are no sizes"),
        ("a negative extent", b"K\x00J\xff\xff\xff\xff\x85K\x01\x85", "are no sizes"),
        ("unequal ranks", b"K\x00K\x01K\x01\x86K\x01\x85", "are no sizes"),
        (
            "an expanded gigabyte",
            b"K\x00J\0\0\0\x20\x85K\x00\x85",
            "repeats its elements to 2147483648 bytes",
        ),
        ("beyond memory", b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x00\x85", "than any memory"),
    ];
    let mut failures = Failures::new("tensors");
    for (what, arguments, expected) in cases {
        failures.case(what, || {
            let message = message(tensor(arguments));
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}

#[test]
fn a_view_of_a_storage_stays_inside_its_elements() {
    // Two from the third on; PyTorch wrote these before it had archives.
    let viewed = |arguments: &[u8]| {
        let file = tensor(arguments);
        let at = file.windows(4).position(|bytes| bytes == b"K\x06tQ").unwrap();
        let view = b"K\x06(X\x01\0\0\0vK\x02K\x02ttQ";
        Torch::from_bytes(&Bytes::new([&file[..at], view, &file[at + 4..]].concat()))
    };
    let file = viewed(b"K\x00K\x02\x85K\x01\x85").unwrap();
    assert_eq!(&*file.get("a").unwrap().read().unwrap(), [2f32, 3.0].map(f32::to_le_bytes).concat());
    let error = viewed(b"K\x00K\x03\x85K\x01\x85").unwrap_err().to_string();
    assert!(error.contains("lies outside of its storage"), "{error}");
}

#[test]
fn other_kinds_of_tensors_and_files_are_named() {
    let sound = tensor(b"K\x00K\x02K\x03\x86K\x03K\x01\x86");
    let replaced = |from: &str, to: &str| {
        let at = sound.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        [&sound[..at], to.as_bytes(), &sound[at + from.len()..]].concat()
    };
    let big_endian = series(b"\x80\x02}.");
    let at = big_endian.windows(4).position(|bytes| bytes == b"\x80\x02}.").unwrap();
    let big_endian =
        [&big_endian[..at], b"\x80\x02}X\x0d\0\0\0little_endian\x89s.", &big_endian[at + 4..]].concat();
    let cases = [
        (series(b"}S'a'\nctorch._utils\n_rebuild_sparse_tensor\n(tRs."), "tensor `a` is sparse"),
        (series(b"}S'a'\nctorch._utils\n_rebuild_qtensor\n(tRs."), "tensor `a` is quantized"),
        ([replaced("FloatStorage", "ComplexFloatStorage"), vec![0; 24]].concat(), "tensor `a` is complex"),
        (replaced("FloatStorage", "QInt8Storage"), "tensor `a` is quantized (qint8)"),
        (big_endian, "big-endian machine"),
        (b"\x80\x04N.".to_vec(), "that `torch.save` did not write"),
        (sound[..sound.len() - 1].to_vec(), "ends in the data of its tensors: was it cut off?"),
        (b"PK\x03\x04".to_vec(), "no ZIP directory: was it cut off?"),
    ];
    let mut failures = Failures::new("files");
    for (file, expected) in cases {
        failures.case(expected, || {
            let message = message(file.clone());
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}
