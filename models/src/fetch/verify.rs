//! Copying and hashing in one go.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

const COPY_BUFFER_BYTES: usize = 1 << 20;

/// What was copied.
pub(super) struct Copied {
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// Copies `reader` to its end into `writer` and hashes it on the way. `on_bytes` hears how many
/// bytes are done.
pub(super) fn copy_hashed(
    mut reader: impl Read,
    writer: &mut impl Write,
    on_bytes: impl Fn(u64),
) -> io::Result<Copied> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        writer.write_all(&buffer[..count])?;
        bytes += count as u64;
        on_bytes(bytes);
    }
    Ok(Copied {
        bytes,
        sha256: format!("{:x}", hasher.finalize()),
    })
}
