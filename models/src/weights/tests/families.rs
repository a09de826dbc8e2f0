//! Files of families with differences of their own.

use super::{FeedForwardWeights, open, whole};

/// All experts of a GGUF file are one tensor; a directory has one for each.
#[test]
fn experts_are_found_one_by_one() {
    for (name, count) in [("mixtral", 5), ("gguf-mixtral", 5), ("gguf-qwen3-moe", 6)] {
        let model = open(name);
        let layer = model.weights().layer(1, &whole(&model)).unwrap();
        let FeedForwardWeights::Routed {
            router, experts, ..
        } = layer.feed_forward
        else {
            panic!("{name} has experts")
        };
        assert_eq!((router.rows, experts.len()), (count, count), "{name}");
        for expert in &experts {
            let shapes = [&expert.gate, &expert.up, &expert.down].map(|it| (it.rows, it.cols));
            assert_eq!(shapes, [(96, 32), (96, 32), (32, 96)], "{name}");
        }
        assert_ne!(experts[0].gate.bytes, experts[1].gate.bytes, "{name}");
    }
}

/// What GGUF metadata says of rotary scaling is what the configuration of the same model says.
#[test]
fn yarn_of_a_gguf_is_that_of_its_config() {
    let [file, directory] = ["gguf-yarn", "yarn"].map(|name| open(name).config().clone());
    assert_eq!(file.rope.rotary(), directory.rope.rotary());
    assert_eq!(file.context_length, directory.context_length);
    assert!(directory.rope.rotary().scale[0] > 1.1);
}
