//! Git LFS pointers: the text that Git leaves where a large file was not downloaded.

/// True if a file is a pointer, not the file itself.
pub(crate) fn is_pointer(file: &[u8]) -> bool {
    file.starts_with(b"version https://git-lfs.github.com/")
}
