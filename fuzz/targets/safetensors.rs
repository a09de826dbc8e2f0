//! A directory of safetensors: the first half of the input is `config.json`, the rest
//! `model.safetensors`, parted by a line of `---`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_models::{Model, part::Part};

fuzz_target!(|data: &[u8]| {
    const LINE: &[u8] = b"\n---\n";
    let Some(at) = data.windows(LINE.len()).position(|window| window == LINE) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("the file is written");
    };
    write("config.json", &data[..at]);
    write("model.safetensors", &data[at + LINE.len()..]);
    write("tokenizer.json", b"{}");
    let Ok(model) = Model::open(folder.path()) else {
        return;
    };
    let _ = model.tokenizer();
    let _ = model.weights().layer(0, &Part::whole(model.config()));
});
