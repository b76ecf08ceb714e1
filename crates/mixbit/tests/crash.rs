//! Every file operation of a command fails once, and ends the process once: the next run gives what a run
//! without faults gives, and in between nothing looks complete that is not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mixbit_formats::coreml;
use mixbit_testkit::{Failures, Scratch, fixture_root, read_tree};

type Error = Box<dyn std::error::Error>;

/// The exit code of a process that a planned fault ends.
const CRASHED: i32 = 86;

struct Case {
    name: &'static str,
    /// The command that makes the directory that the other starts from.
    before: &'static [&'static str],
    command: &'static [&'static str],
}

const CASES: [Case; 5] = [
    Case {
        name: "convert",
        before: &[],
        command: &["convert", "--convert-vae-decoder", "--bundle-resources-for-swift-cli"],
    },
    Case {
        name: "convert over another package",
        before: &["convert", "--convert-vae-decoder", "--latent-h", "16", "--latent-w", "16"],
        command: &["convert", "--convert-vae-decoder", "--force"],
    },
    Case {
        name: "convert over another form, which is removed",
        before: &["convert", "--convert-unet", "--chunk-unet"],
        command: &["convert", "--convert-unet", "--force"],
    },
    Case {
        name: "palettize",
        before: &[],
        command: &["palettize", "--part", "text_encoder", "--nbits", "2", "--min-size", "100"],
    },
    Case {
        name: "analyze",
        before: &["analyze", "--effort", "low", "--steps", "2", "--min-size", "4000", "--target-bits", "4"],
        command: &[
            "analyze",
            "--effort",
            "low",
            "--steps",
            "2",
            "--min-size",
            "4000",
            "--target-bits",
            "4,5",
        ],
    },
];

/// Runs a command on the tiny model, with a planned fault, and gives its exit code and errors.
fn run(command: &[&str], output: &Path, fault: Option<String>) -> Result<(Option<i32>, String), Error> {
    let mut mixbit = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    mixbit.args(command).arg("--quiet").arg("--model").arg(fixture_root().join("pipelines/sd15"));
    if command[0] == "analyze" {
        mixbit.args(["--no-images", "--threads", "1"]);
    }
    mixbit.arg("--output").arg(output).stdin(Stdio::null()).env_remove("MIXBIT_FAULT");
    if let Some(fault) = fault {
        mixbit.env("MIXBIT_FAULT", fault);
    }
    let output = mixbit.output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn write(tree: &BTreeMap<PathBuf, Vec<u8>>, directory: &Path) -> Result<(), Error> {
    for (path, bytes) in tree {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap_or(directory))?;
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// Reads every package that is there under its own name.
fn packages_are_whole(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|extension| extension == "mlpackage") && !is_hidden {
            coreml::read(&path)?;
        }
    }
    Ok(())
}

/// Runs a case and ends it at every operation, then fails every one. Gives the number of operations.
fn with_faults(case: &Case) -> Result<u64, Error> {
    let scratch = Scratch::new();
    let before = scratch.path().join("before");
    fs::create_dir(&before)?;
    if !case.before.is_empty() {
        run(case.before, &before, None)?;
    }
    let before = read_tree(&before)?;
    let whole = scratch.path().join("whole");
    write(&before, &whole)?;
    let (code, errors) = run(case.command, &whole, None)?;
    assert_eq!(code, Some(0), "{errors}");
    let expected = read_tree(&whole)?;
    let directory = scratch.path().join("faulty");
    let check = |fault: String, codes: &[i32]| -> Result<bool, Error> {
        write(&before, &directory)?;
        let (code, errors) = run(case.command, &directory, Some(fault.clone()))?;
        let is_done = code == Some(0);
        assert!(is_done || code.is_some_and(|code| codes.contains(&code)), "{fault}: {code:?}, {errors}");
        assert!(code != Some(1) || errors.contains("planned fault"), "{fault}: {errors}");
        assert!(!is_done || read_tree(&directory)? == expected, "{fault}: success with another result");
        packages_are_whole(&directory)?;
        let (code, errors) = run(case.command, &directory, None)?;
        assert_eq!(code, Some(0), "after {fault}: {errors}");
        assert!(read_tree(&directory)? == expected, "after {fault}: {:?}", read_tree(&directory)?.keys());
        fs::remove_dir_all(&directory)?;
        Ok(is_done)
    };
    let mut operations = 0;
    while !check(format!("crash {}", operations + 1), &[CRASHED])? {
        operations += 1;
    }
    for number in 1..=operations {
        check(format!("fail {number}"), &[1])?;
    }
    Ok(operations)
}

#[test]
fn every_file_operation_may_fail_or_be_the_last() {
    let mut failures = Failures::new("faults");
    for case in &CASES {
        failures.case(case.name, || match with_faults(case)? {
            operations if operations > 10 => Ok::<(), Error>(()),
            operations => Err(format!("only {operations} operations").into()),
        });
    }
    failures.finish();
}
