//! `config.json` alone, and behind a line of `---` a `generation_config.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_models::config::ModelConfig;

fuzz_target!(|data: &[u8]| {
    const LINE: &[u8] = b"\n---\n";
    let at = data.windows(LINE.len()).position(|window| window == LINE);
    let (config, generation) = match at {
        Some(at) => (&data[..at], Some(&data[at + LINE.len()..])),
        None => (data, None),
    };
    let Ok(config) = ModelConfig::from_json(config, generation, "fuzzed") else {
        return;
    };
    // What is accepted is what the engine computes with.
    assert_eq!(config.heads % config.kv_heads, 0);
    assert!(config.rms_eps.is_finite() && config.rms_eps >= 0.0);
    let frequencies = config.rope.inv_freq();
    assert!(frequencies.len() <= config.head_dim / 2);
    assert!(
        frequencies.iter().all(|it| it.is_finite()),
        "{frequencies:?}"
    );
});
