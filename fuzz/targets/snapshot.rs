//! The file of a snapshot, behind its checksum: what was changed is given one that holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_engine::snapshot::Snapshot;
use palimpsest_engine::snapshot::file::{describe, seal};

fuzz_target!(|data: &[u8]| {
    // Few mutants have the checksum of what they hold.
    let sealed = seal(data);
    for bytes in [Some(data), sealed.as_deref()].into_iter().flatten() {
        let Ok(description) = describe(bytes) else {
            continue;
        };
        let identity = description.header.identity();
        if let Ok(snapshot) = Snapshot::decode(bytes, &identity) {
            assert!(snapshot.bytes() < 64 * bytes.len() + 4096, "more than the file has");
            // What was read can be written, read again, and is the same.
            let again = snapshot.encode(&identity).expect("what was read can be written");
            let again = Snapshot::decode(&again, &identity).expect("what was written can be read");
            assert_eq!(again.bytes(), snapshot.bytes());
            let extent = snapshot.extent().clone();
            Snapshot::join(vec![snapshot], &extent).expect("it covers itself");
        }
    }
});
