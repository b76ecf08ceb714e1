//! Finished measurements on disk, so that none is made twice.
//!
//! Each process appends lines of JSON to a file of its own and reads those of all. A line is one measurement; the last
//! one of a file may be cut short by a kill, and is then ignored. The first line says what was measured, and files of
//! something else are refused.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::Shard;
use super::measure::Distortion;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Key {
    /// One layer in another form, the others as they are.
    Isolated { layer: String, scheme: String },
    /// The first layers in the order of harm, all in another form, up to and with one.
    Cumulative { layer: String, scheme: String },
    /// One layer computed in 8-bit integers.
    Int8 { layer: String },
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: Key,
    /// Square and peaks of each sample.
    distortion: Vec<[f64; 3]>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Header {
    measured: String,
}

/// Measurements by what was measured.
pub(super) struct Journal {
    directory: PathBuf,
    /// What all files must say that they measured.
    measured: String,
    found: HashMap<Key, Vec<Distortion>>,
    /// The file of this process; none if it only reads.
    own: Option<File>,
}

/// The ends of the files' names.
const EXTENSION: &str = "measurements.jsonl";

impl Journal {
    /// Reads what was measured in a directory, and opens the file of a shard.
    pub(super) fn open(directory: &Path, shard: Option<Shard>, measured: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("{} can't be made", directory.display()))?;
        let mut journal = Journal {
            directory: directory.to_path_buf(),
            measured: measured.to_string(),
            found: HashMap::new(),
            own: None,
        };
        journal.reload()?;
        if let Some(shard) = shard {
            let name = format!("{}-of-{}.{EXTENSION}", shard.index + 1, shard.count);
            let path = directory.join(name);
            journal.begin(&path).with_context(|| format!("{} can't be written", path.display()))?;
        }
        Ok(journal)
    }

    /// Opens the own file, takes a cut last line off it, and begins it if it is empty.
    fn begin(&mut self, path: &Path) -> anyhow::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
        self.own = Some(file);
        if whole == 0 {
            let header = Header { measured: self.measured.clone() };
            self.append(&serde_json::to_string(&header)?)?;
        }
        Ok(())
    }

    /// Reads what all processes have measured so far.
    pub(super) fn reload(&mut self) -> anyhow::Result<()> {
        let entries = fs::read_dir(&self.directory);
        let entries = entries.with_context(|| format!("{} can't be listed", self.directory.display()))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
        paths.retain(|path| path.to_string_lossy().ends_with(EXTENSION));
        paths.sort();
        for path in paths {
            self.read(&path)?;
        }
        Ok(())
    }

    fn read(&mut self, path: &Path) -> anyhow::Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.lines();
        let Some(first) = lines.next() else { return Ok(()) };
        let header: Header = serde_json::from_str(first)
            .with_context(|| format!("{}: its first line does not say what was measured", path.display()))?;
        if header.measured != self.measured {
            bail!(
                "{} holds measurements of another model or with other options ({}, not {}): give another --output, or \
                 delete it",
                path.display(),
                header.measured,
                self.measured
            );
        }
        for (index, line) in lines.enumerate() {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("{}: line {} is no measurement", path.display(), index + 2))?;
            let distortion =
                line.distortion.iter().map(|&[square, a, b]| Distortion { square, peaks: [a, b] });
            self.found.insert(line.key, distortion.collect());
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Key) -> Option<&[Distortion]> {
        self.found.get(key).map(Vec::as_slice)
    }

    /// Keeps a measurement. It is on disk when this returns.
    pub(super) fn insert(&mut self, key: Key, distortion: Vec<Distortion>) -> anyhow::Result<()> {
        let numbers = distortion.iter().map(|one| [one.square, one.peaks[0], one.peaks[1]]).collect();
        self.append(&serde_json::to_string(&Line { key: key.clone(), distortion: numbers })?)?;
        self.found.insert(key, distortion);
        Ok(())
    }

    fn append(&mut self, line: &str) -> anyhow::Result<()> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let written = own.write_all(format!("{line}\n").as_bytes()).and_then(|()| own.sync_data());
        written.with_context(|| format!("a measurement can't be kept in {}", self.directory.display()))
    }
}

#[cfg(test)]
mod tests {
    use mixbit_testkit::Scratch;

    use super::*;

    fn key(layer: &str) -> Key {
        Key::Isolated { layer: layer.to_string(), scheme: "palette-4".to_string() }
    }

    const HALF: Option<Shard> = Some(Shard { index: 0, count: 2 });
    const ONE: Distortion = Distortion { square: 0.1 + 0.2, peaks: [1.0 / 3.0, 2.0] };

    #[test]
    fn measurements_are_found_again_exactly() {
        let scratch = Scratch::new();
        let mut journal = Journal::open(scratch.path(), HALF, "model a").unwrap();
        journal.insert(key("a"), vec![ONE]).unwrap();
        let mut other = Journal::open(scratch.path(), Some(Shard { index: 1, count: 2 }), "model a").unwrap();
        assert_eq!(other.get(&key("a")), Some(&[ONE][..]));
        other.insert(key("b"), vec![ONE, ONE]).unwrap();
        journal.reload().unwrap();
        assert_eq!(journal.get(&key("b")), Some(&[ONE, ONE][..]));
        let error = Journal::open(scratch.path(), HALF, "model b").err().unwrap();
        assert!(error.to_string().contains("another model"), "{error}");
    }

    #[test]
    fn a_line_that_a_kill_cut_is_taken_off() {
        let scratch = Scratch::new();
        let mut journal = Journal::open(scratch.path(), Some(Shard::WHOLE), "m").unwrap();
        journal.insert(key("a"), vec![ONE]).unwrap();
        journal.insert(key("b"), vec![ONE]).unwrap();
        drop(journal);
        let path = scratch.path().join("1-of-1.measurements.jsonl");
        let bytes = fs::read(&path).unwrap();
        for len in (0..bytes.len()).rev().step_by(7) {
            fs::write(&path, &bytes[..len]).unwrap();
            let mut journal = Journal::open(scratch.path(), Some(Shard::WHOLE), "m").unwrap();
            journal.insert(key("c"), vec![ONE]).unwrap();
            let journal = Journal::open(scratch.path(), Some(Shard::WHOLE), "m").unwrap();
            assert_eq!(journal.get(&key("c")), Some(&[ONE][..]), "cut at {len}");
        }
        fs::write(&path, b"{\"measured\":\"m\"}\ngarbage\n").unwrap();
        let error = Journal::open(scratch.path(), Some(Shard::WHOLE), "m").err().unwrap();
        assert!(error.to_string().contains("line 2 is no measurement"), "{error}");
    }
}
