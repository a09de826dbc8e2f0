//! A file of scorers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_engine::indexer::Indexer;

fuzz_target!(|data: &[u8]| {
    if let Ok(indexer) = Indexer::parse(data) {
        // What was read can be written, and read again.
        let bytes = indexer.to_bytes().expect("what was read can be written");
        Indexer::parse(&bytes).expect("what was written can be read");
    }
});
