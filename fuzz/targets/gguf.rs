//! A GGUF file: its header and metadata, then the model that it says it is, with tokenizer and
//! weights of the first layer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_models::gguf::Gguf;
use palimpsest_models::{Model, part::Part};

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::parse(data) else { return };
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let _ = gguf.texts(data, key);
    }
    let _ = gguf.numbers(data, "tokenizer.ggml.scores");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, data).expect("the file is written");
    let Ok(model) = Model::open(&path) else {
        return;
    };
    let _ = model.tokenizer();
    let _ = model.weights().layer(0, &Part::whole(model.config()));
});
