//! Whole directories.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Copies a directory with all that is in it. Links become what they lead to; the copies can be written.
///
/// # Errors
/// The system's.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        match path.is_dir() {
            true => copy_tree(&path, &target)?,
            false => fs::write(target, fs::read(&path)?)?,
        }
    }
    Ok(())
}

/// The files below a directory by their paths in it, with their bytes.
///
/// # Errors
/// The system's.
pub fn read_tree(directory: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![directory.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(directory).unwrap_or(&path).to_path_buf();
                    files.insert(name, fs::read(path)?);
                }
            }
        }
    }
    Ok(files)
}
