//! Models in several GGUF files.

use std::path::{Path, PathBuf};

use super::writer::{Writer, llama, with_tensors};
use super::{dense, message};
use crate::weights::GatedWeights;
use crate::{Model, inspect};

/// Tensors of the small Llama behind its embedding and norm: name, dimensions.
const LAYER: [(&str, &[u64]); 9] = [
    ("attn_norm", &[32]),
    ("attn_q", &[32, 32]),
    ("attn_k", &[32, 16]),
    ("attn_v", &[32, 16]),
    ("attn_output", &[32, 32]),
    ("ffn_norm", &[32]),
    ("ffn_gate", &[32, 64]),
    ("ffn_up", &[32, 64]),
    ("ffn_down", &[64, 32]),
];

fn place(writer: Writer, number: u32, count: u32) -> Writer {
    writer
        .size("split.no", number)
        .size("split.count", count)
        .size("split.tensors.count", 11)
}

fn layer(writer: Writer, tensors: &[(&str, &[u64])]) -> Writer {
    tensors.iter().fold(writer, |writer, (name, dims)| {
        let bytes = dims.iter().product::<u64>() as usize * 4;
        writer.tensor(&format!("blk.0.{name}.weight"), dims, 0, bytes)
    })
}

/// The small Llama in three parts.
fn parts() -> [Writer; 3] {
    let first = place(llama(), 0, 3)
        .tensor("token_embd.weight", &[32, 10], 0, 1280)
        .tensor("output_norm.weight", &[32], 0, 128);
    [
        first,
        layer(place(Writer::new(), 1, 3), &LAYER[..4]),
        layer(place(Writer::new(), 2, 3), &LAYER[4..]),
    ]
}

fn write(dir: &Path, number: usize, part: &Writer) -> PathBuf {
    let path = dir.join(format!("small-{number:05}-of-00003.gguf"));
    std::fs::write(&path, part.bytes()).unwrap();
    path
}

#[test]
fn any_part_opens_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (1..)
        .zip(&parts())
        .map(|(n, p)| write(dir.path(), n, p))
        .collect();
    let whole = dir.path().join("whole.gguf");
    std::fs::write(&whole, with_tensors(llama(), 0, 4096).bytes()).unwrap();
    let whole = Model::open(&whole).unwrap();
    for path in &paths {
        let model = Model::open(path).unwrap();
        assert_eq!(model.config().name, "small");
        assert_eq!(model.config().parameters, whole.config().parameters);
        assert_eq!(
            model.weights().stored_bytes(),
            whole.weights().stored_bytes()
        );
        let description = inspect(path).unwrap();
        assert_eq!(description.tensors.len(), 11);
        assert!(description.config.is_ok());
    }
    // Values lie in the files that have them.
    let mut third = std::fs::read(&paths[2]).unwrap();
    let end = third.len();
    third[end - 64 * 32 * 4..].fill(7);
    std::fs::write(&paths[2], third).unwrap();
    let model = Model::open(&paths[0]).unwrap();
    let part = crate::part::Part::whole(model.config());
    let layer = model.weights().layer(0, &part).unwrap();
    let GatedWeights { up, down, .. } = dense(layer.feed_forward);
    assert!(down.bytes.iter().all(|&byte| byte == 7));
    assert!(up.bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn what_is_wrong_with_parts_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = parts();
    let given = write(dir.path(), 1, &first);
    let says = |expected: &str| {
        let found = message(Model::open(&given));
        assert!(
            found.contains(expected),
            "{found}\nshould contain {expected}"
        );
    };
    let missing = "small-00002-of-00003.gguf: part 2 of the 3 files of this model is missing";
    says(missing);
    write(dir.path(), 2, &second);
    says("small-00003-of-00003.gguf: part 3 of the 3 files of this model is missing");
    write(dir.path(), 3, &second);
    says("by its name this is part 3 of 3, and it says that it is part 2 of 3");
    write(dir.path(), 3, &with_tensors(llama(), 0, 4096));
    says("and it says that it is part 1 of 1");
    write(
        dir.path(),
        3,
        &layer(place(Writer::new(), 2, 3), &LAYER[3..]),
    );
    says("small-00003-of-00003.gguf: tensor \"blk.0.attn_v.weight\" appears twice");
    write(
        dir.path(),
        3,
        &layer(place(Writer::new(), 2, 3), &LAYER[5..]),
    );
    says("the 3 parts hold 10 tensors, and the first one says 11");
    let path = write(dir.path(), 3, &third);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    says("small-00003-of-00003.gguf: tensor \"blk.0.ffn_down.weight\" lies at");
}
