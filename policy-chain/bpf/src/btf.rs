//! Where the kernel's connection tracking has its tuples.
//!
//! `struct nf_conn` is described by the kernel's own type information where connection tracking is built in, and by the
//! module's (`/sys/kernel/btf/nf_conntrack`) where it is a module, as on most distributions. The relocations of aya read the
//! kernel's alone; so the one offset that the programs need is read here, and given to them as a setting.
//!
//! The format is that of the kernel's documentation, `Documentation/bpf/btf.rst`. A module's information is the second half of
//! one whole with the kernel's: its strings are numbered on from where the kernel's end.

use std::io;
use std::path::Path;

/// Type information of the kernel and its modules.
const DIRECTORY: &str = "/sys/kernel/btf";
/// Most bytes of a file that are read; the largest kernels have a tenth of it.
const LIMIT: u64 = 256 << 20;
/// `BTF_MAGIC`.
const MAGIC: u16 = 0xeb9f;
/// What is looked for.
const STRUCT: &[u8] = b"nf_conn";
/// Its member.
const MEMBER: &[u8] = b"tuplehash";

/// Why the offset is not known.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel tells nothing of its types (`CONFIG_DEBUG_INFO_BTF`), or the file cannot be read.
    #[error("cannot read the kernel's type information {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not in the format that is known.
    #[error("the type information {path} has a fault at byte {at}")]
    Format {
        /// The file.
        path: String,
        /// Where.
        at: usize,
    },
}

/// The offset in bytes of `tuplehash` in `struct nf_conn`; none: the kernel has no connection tracking (yet: its module is not
/// loaded).
///
/// # Errors
/// [`BtfError`].
pub fn conntrack_tuples() -> Result<Option<u32>, BtfError> {
    conntrack_tuples_in(Path::new(DIRECTORY))
}

fn conntrack_tuples_in(directory: &Path) -> Result<Option<u32>, BtfError> {
    let read = |name: &str| -> Result<Option<(String, Vec<u8>)>, BtfError> {
        let path = directory.join(name);
        let text = path.display().to_string();
        match file(&path) {
            Ok(bytes) => Ok(Some((text, bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BtfError::Read { path: text, source }),
        }
    };
    let Some((path, kernel)) = read("vmlinux")? else {
        let (path, source) = (directory.join("vmlinux").display().to_string(), io::ErrorKind::NotFound.into());
        return Err(BtfError::Read { path, source });
    };
    let fault = |path: &str| {
        let path = path.to_owned();
        move |at| BtfError::Format { path, at }
    };
    let kernel = Types::of(&kernel, &[]).map_err(fault(&path))?;
    if let Some(offset) = kernel.offset(STRUCT, MEMBER).map_err(fault(&path))? {
        return Ok(Some(offset));
    }
    let Some((path, module)) = read("nf_conntrack")? else { return Ok(None) };
    let module = Types::of(&module, kernel.strings).map_err(fault(&path))?;
    module.offset(STRUCT, MEMBER).map_err(fault(&path))
}

fn file(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The types of one file. Faults are told by where in the file they are.
struct Types<'a> {
    /// Strings that come before its own.
    base: &'a [u8],
    strings: &'a [u8],
    types: &'a [u8],
    /// Where the types are in the file.
    at: usize,
}

impl<'a> Types<'a> {
    /// `struct btf_header`.
    fn of(file: &'a [u8], base: &'a [u8]) -> Result<Self, usize> {
        let word = |at| word(file, at);
        if file.first_chunk().map(|magic| u16::from_ne_bytes(*magic)) != Some(MAGIC) {
            return Err(0);
        }
        let header = word(4)?;
        let part = |offset: usize, length: usize| {
            let from = header.checked_add(offset).ok_or(offset)?;
            let until = from.checked_add(length).ok_or(offset)?;
            file.get(from..until).ok_or(from)
        };
        let (types, strings) = (part(word(8)?, word(12)?)?, part(word(16)?, word(20)?)?);
        Ok(Self { base, strings, types, at: header.saturating_add(word(8)?) })
    }

    /// Whether the string of this number is `name`.
    fn is(&self, number: usize, name: &[u8]) -> bool {
        let rest = match number.checked_sub(self.base.len()) {
            Some(own) => self.strings.get(own..),
            None => self.base.get(number..),
        };
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The offset in bytes of a member of a structure that is defined here.
    fn offset(&self, name: &[u8], member: &[u8]) -> Result<Option<u32>, usize> {
        let mut at = 0;
        while at < self.types.len() {
            let own = |error: usize| self.at.saturating_add(error);
            let (title, info) = (word(self.types, at).map_err(own)?, word(self.types, at + 4).map_err(own)?);
            let (kind, count) = (info >> 24 & 31, info & 0xffff);
            let body = at + 12;
            let length = match kind {
                // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
                2 | 7..=12 | 16 | 18 => 0,
                // Integers, variables, declaration tags.
                1 | 14 | 17 => 4,
                3 => 12,
                // Structures, unions, sections, 64-bit enumerations.
                4 | 5 | 15 | 19 => 12 * count,
                // Enumerations, prototypes.
                6 | 13 => 8 * count,
                _ => return Err(own(at)),
            };
            if kind == 4 && self.is(title, name) {
                for number in 0..count {
                    let field = body + 12 * number;
                    if self.is(word(self.types, field).map_err(own)?, member) {
                        let bits = word(self.types, field + 8).map_err(own)?;
                        // With the flag, the upper byte is a bit field's size.
                        let bits = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits };
                        return Ok(u32::try_from(bits / 8).ok());
                    }
                }
            }
            at = body + length;
        }
        Ok(None)
    }
}

/// A 32-bit number in the host's order.
fn word(bytes: &[u8], at: usize) -> Result<usize, usize> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(at)?;
    usize::try_from(u32::from_ne_bytes(*found)).or(Err(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these types and strings.
    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).unwrap();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut file = MAGIC.to_ne_bytes().to_vec();
        file.extend([1, 0]);
        for word in [24, 0, length(types.len()), length(types.len()), length(strings.len())] {
            file.extend(word.to_ne_bytes());
        }
        [file, types, strings.to_vec()].concat()
    }

    fn info(kind: u32, count: u32) -> u32 {
        kind << 24 | count
    }

    #[test]
    fn a_member_is_found_where_connection_tracking_is_built_in() {
        // An integer, another structure with a member of that name, then the one that is meant.
        let strings = b"\0int\0nf_conn\0tuplehash\0lock\0other\0";
        let (int, conn, tuples, lock, other) = (1, 5, 13, 23, 28);
        let types = [
            [int, info(1, 0), 4, 32].to_vec(),
            [other, info(4, 1), 4, tuples, 1, 64].to_vec(),
            [conn, info(4, 2), 200, lock, 1, 0, tuples, 1, 128].to_vec(),
        ];
        let file = btf(&types.concat(), strings);
        assert_eq!(Types::of(&file, &[]).unwrap().offset(STRUCT, MEMBER), Ok(Some(16)));
    }

    #[test]
    fn a_modules_strings_go_on_where_the_kernels_end() {
        let kernel = btf(&[1, info(7, 0), 0], b"\0nf_conn\0");
        // The structure's name is the kernel's string, the member's its own, after the module's first byte.
        let base = u32::try_from(b"\0nf_conn\0".len()).unwrap();
        let module = btf(&[1, 1 << 31 | info(4, 1), 200, base + 1, 1, 24 << 3], b"\0tuplehash\0");
        let directory = std::env::temp_dir().join(format!("sluice-btf-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("vmlinux"), kernel).unwrap();
        let without = conntrack_tuples_in(&directory);
        std::fs::write(directory.join("nf_conntrack"), module).unwrap();
        let with = conntrack_tuples_in(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!((without.unwrap(), with.unwrap()), (None, Some(24)));
    }

    #[test]
    fn what_is_no_type_information_is_told_by_where_it_ends() {
        let whole = btf(&[5, info(4, 1), 4, 5, 1, 64], b"\0abc\0nf_conn\0");
        assert!(Types::of(b"ELF", &[]).is_err());
        for length in 0..whole.len() {
            assert!(Types::of(whole.get(..length).unwrap(), &[]).is_err(), "{length} bytes");
        }
        let unknown = btf(&[0, info(25, 0), 0], b"\0");
        assert_eq!(Types::of(&unknown, &[]).unwrap().offset(STRUCT, MEMBER), Err(24));
    }

    #[test]
    fn this_kernel_tells() {
        // Where it is a module, only what loads it makes it known.
        if let Some(offset) = conntrack_tuples().unwrap() {
            assert!((8..256).contains(&offset) && offset % 8 == 0, "{offset}");
        }
    }
}
