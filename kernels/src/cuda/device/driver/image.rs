//! The kernels as the driver takes them: those of this program, or of a file that was compiled
//! where there is no Rust.

use std::path::Path;

use crate::error::{Error, Result};

/// Names a fatbin that is loaded in place of the program's own kernels.
const VARIABLE: &str = "PALIMPSEST_KERNELS";
/// What every fatbin of nvcc begins with.
const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();

/// Bytes at an address that the driver may read words from.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// Kernels of all targets, empty when this program was built without nvcc.
static EMBEDDED: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// Whether this program has kernels for a GPU.
pub fn has_kernels() -> bool {
    !EMBEDDED.0.is_empty()
}

/// A fatbin.
pub(super) enum Image {
    Embedded,
    /// Its bytes in whole words, so that they are aligned.
    Read(Vec<u64>),
}

impl Image {
    /// That of the file that the environment names, else the embedded one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a file that cannot be read or is no fatbin.
    pub(super) fn of_environment() -> Result<Self> {
        match std::env::var_os(VARIABLE) {
            Some(file) => Self::read(Path::new(&file)),
            None => Ok(Self::Embedded),
        }
    }

    fn read(file: &Path) -> Result<Self> {
        let refuse =
            |why: String| Error::Unavailable(format!("{VARIABLE}={}: {why}", file.display()));
        let bytes = std::fs::read(file).map_err(|error| refuse(error.to_string()))?;
        if !bytes.starts_with(&MAGIC) {
            return Err(refuse(
                "this is no fatbin; compile one with nvcc -fatbin".into(),
            ));
        }
        let mut words = vec![0u64; bytes.len().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
        Ok(Self::Read(words))
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Embedded) && !has_kernels()
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Embedded => EMBEDDED.0.as_ptr(),
            Self::Read(words) => words.as_ptr().cast(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_finds_kernels_at_an_aligned_address() {
        assert!(Image::Embedded.as_ptr().addr().is_multiple_of(64));
    }

    #[test]
    fn a_file_must_be_a_fatbin() {
        let file = std::env::temp_dir().join(format!("image-{}.fatbin", std::process::id()));
        let said = |file: &Path| Image::read(file).err().expect("refused").to_string();
        assert!(said(Path::new("/nothing/here")).contains(VARIABLE));
        std::fs::write(&file, b"ELF").expect("a file");
        assert!(said(&file).contains("no fatbin"));
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 2, 3, 4, 5]);
        std::fs::write(&file, &bytes).expect("a file");
        let Ok(Image::Read(words)) = Image::read(&file) else {
            panic!("a fatbin is taken");
        };
        assert_eq!(
            bytemuck::cast_slice::<u64, u8>(&words)[..bytes.len()],
            bytes
        );
        std::fs::remove_file(file).ok();
    }
}
