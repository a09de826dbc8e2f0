//! A chat template and a message, parted by a NUL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_coordinator::text::ChatTemplate;
use palimpsest_proto::v1::{Chat, ChatMessage};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (source, content) = text.split_once('\0').unwrap_or((&text, "hello"));
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else {
        return;
    };
    let chat = Chat {
        messages: vec![
            ChatMessage::new("system", content),
            ChatMessage::new("user", content),
        ],
        ..Default::default()
    };
    if let Err(error) = template.render(&chat) {
        assert!(!error.to_string().is_empty());
    }
});
