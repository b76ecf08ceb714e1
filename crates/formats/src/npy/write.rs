//! The writer of `.npz` archives, as `numpy.savez` makes them: uncompressed members.

use std::io::{self, Write};

use mixbit_mil::TensorType;

use super::{DTYPES, NpyError};
use crate::{Error, write_atomically};

/// The multiple at which an array begins after its header, as NumPy aligns it.
const ALIGNMENT: usize = 64;

/// The most bytes of an archive without ZIP64.
const LIMIT: u64 = u32::MAX as u64;

/// The date of members in MS-DOS form, 1 January 1980: the same arrays give the same bytes.
const DATE: u16 = 0x21;

/// An array to be written.
#[derive(Clone, Debug)]
pub struct NamedArray {
    /// The name, without `.npy`.
    pub name: String,
    /// The element type and the shape.
    pub ty: TensorType,
    /// The elements, row-major, little-endian.
    pub bytes: Vec<u8>,
}

/// Writes an `.npz` archive, whole or not at all. `numpy.load` reads it.
///
/// # Errors
/// [`Error::Npy`] for an element type that NumPy lacks, or arrays of more than 4 GiB; [`Error::Write`].
pub fn write_npz(path: &std::path::Path, arrays: &[NamedArray]) -> Result<(), Error> {
    let members = members(arrays).map_err(|problem| Error::Npy { path: path.to_path_buf(), problem })?;
    write_atomically(path, |file| write_archive(file, &members))
}

/// A file of the archive.
struct Member<'a> {
    name: String,
    header: Vec<u8>,
    data: &'a [u8],
    offset: u32,
    crc: u32,
}

impl Member<'_> {
    fn len(&self) -> u32 {
        // `members` has checked that the whole archive is shorter.
        (self.header.len() + self.data.len()) as u32
    }
}

fn members(arrays: &[NamedArray]) -> Result<Vec<Member<'_>>, NpyError> {
    let too_large =
        || NpyError::Unsupported { what: "writing arrays of more than 4 GiB together".to_string() };
    let (mut members, mut end) = (Vec::new(), 0u64);
    for array in arrays {
        if array.ty.byte_len() != Some(array.bytes.len()) {
            return Err(NpyError::Size { ty: array.ty.clone(), found: array.bytes.len() });
        }
        let header = header(&array.ty)?;
        let crc = crc32(crc32(0, &header), &array.bytes);
        let offset = u32::try_from(end).map_err(|_| too_large())?;
        let member = Member { name: format!("{}.npy", array.name), header, data: &array.bytes, offset, crc };
        // The local header and that of the directory.
        end += (30 + 46 + 2 * member.name.len() + member.header.len() + member.data.len()) as u64;
        members.push(member);
    }
    if end >= LIMIT || members.len() >= usize::from(u16::MAX) {
        return Err(too_large());
    }
    // The directory stands behind all members: offsets count only what is before it.
    let mut offset = 0;
    for member in &mut members {
        member.offset = offset;
        offset += 30 + member.name.len() as u32 + member.len();
    }
    Ok(members)
}

/// The header of an array in version 1.0 of NumPy's format.
fn header(ty: &TensorType) -> Result<Vec<u8>, NpyError> {
    let descr = DTYPES.iter().find(|(_, dtype)| *dtype == ty.dtype).map(|(descr, _)| *descr);
    let descr =
        descr.ok_or_else(|| NpyError::Unsupported { what: format!("an array of {} elements", ty.dtype) })?;
    let extents: Vec<String> = ty.shape.iter().map(usize::to_string).collect();
    let comma = if extents.len() == 1 { "," } else { "" };
    let dict =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", extents.join(", "));
    // Magic, version and length, then the text with its final line feed.
    let len = (10 + dict.len() + 1).next_multiple_of(ALIGNMENT) - 10;
    let length = u16::try_from(len)
        .map_err(|_| NpyError::Unsupported { what: format!("an array of {} axes", ty.rank()) })?;
    let mut header = super::MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend(length.to_le_bytes());
    header.extend(dict.bytes());
    header.resize(10 + len - 1, b' ');
    header.push(b'\n');
    Ok(header)
}

fn write_archive(writer: &mut dyn Write, members: &[Member<'_>]) -> io::Result<()> {
    for member in members {
        writer.write_all(b"PK\x03\x04")?;
        writer.write_all(&entry(member))?;
        writer.write_all(member.name.as_bytes())?;
        writer.write_all(&member.header)?;
        writer.write_all(member.data)?;
    }
    let mut directory = Vec::new();
    for member in members {
        directory.extend(b"PK\x01\x02");
        // Made by version 2.0 of the format.
        directory.extend(20u16.to_le_bytes());
        directory.extend(entry(member));
        // No comment, disk 0, no attributes.
        directory.extend([0; 10]);
        directory.extend(member.offset.to_le_bytes());
        directory.extend(member.name.bytes());
    }
    let start = members.last().map_or(0, |last| last.offset + 30 + last.name.len() as u32 + last.len());
    writer.write_all(&directory)?;
    writer.write_all(b"PK\x05\x06\0\0\0\0")?;
    for _ in 0..2 {
        writer.write_all(&(members.len() as u16).to_le_bytes())?;
    }
    writer.write_all(&(directory.len() as u32).to_le_bytes())?;
    writer.write_all(&start.to_le_bytes())?;
    writer.write_all(&[0; 2])
}

/// The fields that a member's header and its entry in the directory have in common.
fn entry(member: &Member<'_>) -> Vec<u8> {
    let mut entry = Vec::new();
    // Needs version 2.0; UTF-8 names; stored; time 0.
    for field in [20, 0x800, 0, 0, DATE] {
        entry.extend(u16::to_le_bytes(field));
    }
    for field in [member.crc, member.len(), member.len()] {
        entry.extend(field.to_le_bytes());
    }
    entry.extend((member.name.len() as u16).to_le_bytes());
    entry.extend([0; 2]);
    entry
}

/// The CRC-32 of ZIP (polynomial 0xEDB88320), continued from an earlier part's.
fn crc32(before: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = value >> 1 ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!before, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{DType, Weights};
    use mixbit_testkit::Scratch;

    use super::*;
    use crate::npy::Npz;

    #[test]
    fn the_checksum_is_that_of_zip() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(crc32(0, b"1234"), b"56789"), 0xcbf4_3926);
    }

    #[test]
    fn arrays_read_back() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a.npz");
        let array = |name: &str, dtype, shape: &[usize]| {
            let ty = TensorType::new(dtype, shape);
            let bytes = (0..ty.byte_len().unwrap()).map(|at| at as u8).collect();
            NamedArray { name: name.to_string(), ty, bytes }
        };
        let arrays = [
            array("scalar", DType::I32, &[]),
            array("vector", DType::F16, &[3]),
            array("matrix", DType::F32, &[2, 5]),
            array("empty", DType::Bool, &[0, 4]),
        ];
        write_npz(&path, &arrays).unwrap();
        let read = Npz::open(&path).unwrap();
        assert_eq!(read.names(), ["empty", "matrix", "scalar", "vector"]);
        for array in &arrays {
            let found = read.get(&array.name).unwrap();
            assert_eq!(found.ty(), &array.ty);
            assert_eq!(&*found.read().unwrap(), array.bytes);
        }
        let error = write_npz(&path, &[array("b", DType::BF16, &[1])]).unwrap_err();
        assert!(error.to_string().contains("an array of bf16 elements"), "{error}");
    }
}
