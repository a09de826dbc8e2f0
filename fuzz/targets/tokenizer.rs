//! A `tokenizer.json`, and a text that it encodes. They are parted by a NUL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_coordinator::text::Tokenizer;

fuzz_target!(init: {
    // The library panics on some files, which our reader catches and calls an error. The usual hook
    // would end the process before that; what nobody catches ends it all the same.
    std::panic::set_hook(Box::new(|_| {}));
}, |data: &[u8]| {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let (json, text) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let Ok(tokenizer) = Tokenizer::from_bytes(json) else {
        return;
    };
    if let Ok(ids) = tokenizer.encode(&String::from_utf8_lossy(text), true) {
        for id in ids {
            let _ = tokenizer.bytes(id);
        }
    }
});
