//! What a hub of models says, and names of models; the first byte chooses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_hub::{Listing, ModelName, files_of, ids};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    match choice % 3 {
        0 => {
            let Ok(listing) = Listing::parse(rest) else {
                return;
            };
            let paths: Vec<&str> = listing
                .files
                .iter()
                .map(|file| file.path.as_str())
                .collect();
            for tag in [None, Some("Q4_K_M"), Some("model.gguf")] {
                for file in files_of(&paths, tag).unwrap_or_default() {
                    assert!(paths.contains(&file.as_str()), "{file}");
                    assert!(file.split('/').all(|part| !["", ".", ".."].contains(&part)));
                }
            }
        }
        1 => drop(ids(rest)),
        _ => {
            let text = String::from_utf8_lossy(rest);
            if let Ok(name) = text.parse::<ModelName>() {
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
    }
});
