//! `weight.bin`: a header, then blobs at multiples of 64 bytes, each after a header of its own.
//!
//! ```text
//! 0     u32 count | u32 version 2 | zeros to 64
//! M     u32 0xDEADBEEF | u32 type | u64 bytes | u64 data offset, M + 64 | u64 padding bits | zeros to M + 64
//! M+64  data, packed
//! ```
//!
//! A specification refers to a blob by M. Padding bits fill the last byte of sub-byte types.

use std::io::{self, Write};

use mixbit_mil::{Bytes, DType, TensorType};

use super::schema::BLOB_CODES;

const ALIGNMENT: u64 = 64;
const VERSION: u32 = 2;
const SENTINEL: u32 = 0xDEAD_BEEF;

/// True if a weight file can hold elements of a type.
pub(super) fn holds(dtype: DType) -> bool {
    BLOB_CODES.of(dtype).is_some()
}

/// The data of the blob whose header is at `offset`, which must hold a value of type `ty`.
pub(super) fn read(file: &Bytes, offset: u64, ty: &TensorType) -> Result<Bytes, String> {
    let header = |at: usize, len: usize| {
        let start = usize::try_from(offset).ok()?.checked_add(at)?;
        file.get(start..start.checked_add(len)?)
    };
    let u32_at = |at| header(at, 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at| header(at, 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let version = file.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if version != Some(VERSION) {
        return Err(format!("the file is not a weight file of version {VERSION}"));
    }
    let fields = (u32_at(0), u32_at(4), u64_at(8), u64_at(16), u64_at(24), header(0, 64));
    let (Some(sentinel), Some(code), Some(size), Some(start), Some(padding), Some(_)) = fields else {
        return Err(format!("the file has only {} bytes", file.len()));
    };
    if sentinel != SENTINEL {
        return Err(format!("there is no blob: it begins with {sentinel:#x}"));
    }
    let found = BLOB_CODES.dtype(code.into());
    if found != Some(ty.dtype) {
        let found = found.map_or(format!("of unknown type {code}"), |dtype| format!("of {dtype}"));
        return Err(format!("the blob is {found}, but the value is {ty}"));
    }
    let expected = ty.byte_len();
    if expected.map(|len| len as u64) != Some(size) {
        return Err(format!("the blob has {size} bytes, but a value of type {ty} has {expected:?}"));
    }
    // Before iOS 18 the field could have any value, and there were no sub-byte types.
    if ty.dtype.bits() < 8 && padding != padding_bits(ty) {
        return Err(format!("the blob of type {ty} has {padding} bits of padding"));
    }
    let range =
        usize::try_from(start).ok().zip(start.checked_add(size).and_then(|end| usize::try_from(end).ok()));
    range
        .and_then(|(start, end)| file.slice(start..end))
        .ok_or_else(|| format!(
            "its {size} bytes from {start} are not all in the file of {}; the file was cut off: copy or download it again",
            file.len()
        ))
}

fn padding_bits(ty: &TensorType) -> u64 {
    let used = ty.count() as u128 * ty.dtype.bits() as u128;
    (8 * used.div_ceil(8) - used) as u64
}

/// The places of a file's blobs, each at the next multiple of 64.
#[derive(Debug)]
pub(super) struct Layout {
    types: Vec<TensorType>,
    offsets: Vec<u64>,
    end: u64,
}

impl Layout {
    pub(super) fn new() -> Self {
        Layout { types: Vec::new(), offsets: Vec::new(), end: ALIGNMENT }
    }

    /// Adds a blob and gives its offset; `None` for a type that a weight file can't hold.
    pub(super) fn add(&mut self, ty: &TensorType) -> Option<u64> {
        let len = ty.byte_len().filter(|_| holds(ty.dtype))?;
        let offset = self.end.checked_next_multiple_of(ALIGNMENT)?;
        self.end = offset.checked_add(ALIGNMENT)?.checked_add(len as u64)?;
        self.types.push(ty.clone());
        self.offsets.push(offset);
        Some(offset)
    }

    /// The number of blobs.
    pub(super) fn len(&self) -> usize {
        self.types.len()
    }

    /// Writes the file; `produce` writes the data of one blob after the other.
    pub(super) fn write(
        &self,
        writer: &mut dyn Write,
        mut produce: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let count = u32::try_from(self.len()).map_err(|_| io::Error::other("there are too many weights"))?;
        let mut header = [0; 64];
        header[..4].copy_from_slice(&count.to_le_bytes());
        header[4..8].copy_from_slice(&VERSION.to_le_bytes());
        writer.write_all(&header)?;
        let mut at = ALIGNMENT;
        for (index, (ty, &offset)) in self.types.iter().zip(&self.offsets).enumerate() {
            writer.write_all(&[0; 64][..(offset - at) as usize])?;
            let len = ty.byte_len().unwrap_or(0) as u64;
            let code = BLOB_CODES.of(ty.dtype).unwrap_or(0) as u32;
            let mut header = [0; 64];
            header[..4].copy_from_slice(&SENTINEL.to_le_bytes());
            header[4..8].copy_from_slice(&code.to_le_bytes());
            header[8..16].copy_from_slice(&len.to_le_bytes());
            header[16..24].copy_from_slice(&(offset + ALIGNMENT).to_le_bytes());
            header[24..32].copy_from_slice(&padding_bits(ty).to_le_bytes());
            writer.write_all(&header)?;
            let mut counting = Counting { writer, left: len };
            produce(index, &mut counting)?;
            if counting.left > 0 {
                return Err(io::Error::other(format!("a weight of type {ty} came short")));
            }
            at = offset + ALIGNMENT + len;
        }
        Ok(())
    }
}

/// A writer that passes on at most the bytes of a blob.
struct Counting<'a> {
    writer: &'a mut dyn Write,
    left: u64,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("a weight is longer than its type says"));
        }
        let written = self.writer.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types() -> [TensorType; 4] {
        [
            TensorType::new(DType::F16, [3]),
            TensorType::new(DType::U3, [5]),
            TensorType::new(DType::I4, [2, 64]),
            TensorType::new(DType::F32, [0]),
        ]
    }

    fn file() -> (Vec<u64>, Bytes) {
        let mut layout = Layout::new();
        let offsets = types().iter().map(|ty| layout.add(ty).unwrap()).collect();
        let mut bytes = Vec::new();
        let produce = |index: usize, writer: &mut dyn Write| {
            writer.write_all(&vec![index as u8 + 1; types()[index].byte_len().unwrap()])
        };
        layout.write(&mut bytes, produce).unwrap();
        (offsets, Bytes::new(bytes))
    }

    #[test]
    fn blobs_are_written_where_the_format_says_and_read_back() {
        let (offsets, file) = file();
        assert_eq!(offsets, [64, 192, 320, 448]);
        assert_eq!(file.len(), 512);
        assert_eq!(&file[..8], [4, 0, 0, 0, 2, 0, 0, 0]);
        // 0xDEADBEEF, code 12, 2 bytes at 256, 1 bit of padding.
        let header = [
            [0xef, 0xbe, 0xad, 0xde, 12, 0, 0, 0],
            [2, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(&file[192..224], header.as_flattened());
        for (index, (ty, offset)) in types().iter().zip(offsets).enumerate() {
            let data = read(&file, offset, ty).unwrap();
            assert_eq!(&*data, vec![index as u8 + 1; ty.byte_len().unwrap()]);
        }
    }

    #[test]
    fn blobs_that_lie_are_refused() {
        let (_, file) = file();
        let patched = |at: usize, bytes: &[u8]| {
            let mut file = file.to_vec();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            Bytes::new(file)
        };
        let half = TensorType::new(DType::F16, [3]);
        let cases: [(&str, Bytes, u64, TensorType, &str); 11] = [
            ("an offset beyond the file", file.clone(), 1 << 40, half.clone(), "only 512 bytes"),
            ("an offset that overflows", file.clone(), u64::MAX, half.clone(), "only 512 bytes"),
            ("a header that is cut", file.clone(), 470, half.clone(), "only 512 bytes"),
            ("the file's own header", file.clone(), 0, half.clone(), "no blob"),
            ("another element type", file.clone(), 64, TensorType::new(DType::BF16, [3]), "is of fp16"),
            ("another size", file.clone(), 64, TensorType::new(DType::F16, [4]), "has 6 bytes"),
            (
                "a size that overflows",
                file.clone(),
                64,
                TensorType::new(DType::F16, [usize::MAX, 8]),
                "6 bytes",
            ),
            (
                "data beyond the file",
                patched(80, &1000u64.to_le_bytes()),
                64,
                half.clone(),
                "not all in the file",
            ),
            (
                "data that overflows",
                patched(80, &u64::MAX.to_le_bytes()),
                64,
                half.clone(),
                "not all in the file",
            ),
            (
                "wrong padding",
                patched(192 + 24, &[0]),
                192,
                TensorType::new(DType::U3, [5]),
                "0 bits of padding",
            ),
            ("another version", patched(4, &[1]), 64, half, "version 2"),
        ];
        for (what, file, offset, ty, message) in cases {
            let error = read(&file, offset, &ty).unwrap_err();
            assert!(error.contains(message), "{what}: {error}");
        }
        assert!(read(&Bytes::new(vec![]), 0, &TensorType::scalar(DType::F16)).is_err());
    }

    #[test]
    fn producers_that_miss_their_size_are_refused() {
        for len in [5, 7] {
            let mut layout = Layout::new();
            layout.add(&TensorType::new(DType::F16, [3])).unwrap();
            let result = layout.write(&mut Vec::new(), |_, writer| writer.write_all(&vec![0; len]));
            assert!(result.is_err());
        }
        assert_eq!(Layout::new().add(&TensorType::new(DType::F64, [3])), None);
    }
}
