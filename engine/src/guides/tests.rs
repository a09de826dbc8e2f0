//! Guides of sequences, without a model.

use std::time::Duration;

use palimpsest_guide::Error;
use palimpsest_models::tokenizer::TokenizerFiles;
use palimpsest_proto::v1::Guide;

use super::{Guides, Rules};

/// Tokens `a`, `b`, `c`, and one that ends.
fn guides() -> Guides {
    let file = serde_json::json!({
        "added_tokens": [{"id": 3, "content": "<end>", "special": true}],
        "decoder": {"type": "ByteLevel"},
        "model": {"vocab": {"a": 0, "b": 1, "c": 2}},
    });
    let tokenizer = TokenizerFiles {
        tokenizer_json: file.to_string().into_bytes(),
        chat_template: None,
        bos_token: None,
        eos_token: None,
        eos_ids: vec![3],
    };
    Guides::new(tokenizer, 4)
}

fn texts(texts: &[&str]) -> Rules {
    let texts = texts.iter().map(|&text| text.to_owned());
    Rules::Answer(Guide::of_texts(texts.collect()))
}

fn words(guided: &mut super::Guided) -> Result<Vec<u32>, Error> {
    come(guided.request())
}

/// The words of a mask, once it has come.
fn come(mut pending: super::Pending) -> Result<Vec<u32>, Error> {
    while !pending.wait(Duration::from_millis(100)) {}
    let made = pending.made().expect("it has come");
    made.map(|mask| mask.words().to_vec()).map_err(Clone::clone)
}

#[test]
fn sequences_are_guided_apart_whatever_order_they_ask_in() {
    let mut guides = guides();
    // More of them than lanes.
    let mut guided: Vec<_> = (0..9).map(|_| guides.open(texts(&["ab", "acb"]))).collect();
    let pending: Vec<_> = guided.iter_mut().map(super::Guided::request).collect();
    for mask in pending.into_iter().rev() {
        assert_eq!(come(mask), Ok(vec![0b0001]));
    }
    for (index, guided) in guided.iter_mut().enumerate() {
        guided.observe(&[0]);
        assert_eq!(words(guided), Ok(vec![0b0110]));
        guided.observe(&[if index % 2 == 0 { 1 } else { 2 }]);
    }
    for (index, guided) in guided.iter_mut().enumerate() {
        let expected = if index % 2 == 0 { 0b1000 } else { 0b0010 };
        assert_eq!(words(guided), Ok(vec![expected]));
    }
}

#[test]
fn what_is_wrong_comes_with_every_mask_and_concerns_one_sequence() {
    let mut guides = guides();
    let mut bad = guides.open(texts(&[]));
    let mut good = guides.open(texts(&["a"]));
    for _ in 0..2 {
        assert!(matches!(words(&mut bad), Err(Error::Empty(_))));
        assert_eq!(words(&mut good), Ok(vec![0b0001]));
    }
    good.observe(&[1]);
    for _ in 0..2 {
        assert_eq!(words(&mut good), Err(Error::NotAllowed));
    }
    let mut nowhere = Guides::default().open(texts(&["a"]));
    assert!(matches!(words(&mut nowhere), Err(Error::Tokenizer(_))));
}

#[test]
fn a_mask_is_waited_for_no_longer_than_it_may_be() {
    let (reply, mut pending) = super::Pending::new();
    assert!(!pending.wait(Duration::from_millis(1)));
    assert_eq!(pending.made(), None);
    reply.send(Err(Error::NotAllowed)).expect("somebody waits");
    assert!(pending.wait(Duration::ZERO));
    assert_eq!(pending.made(), Some(Err(&Error::NotAllowed)));
    // A thread that is gone says nothing.
    let (reply, mut pending) = super::Pending::new();
    drop(reply);
    assert!(pending.wait(Duration::from_secs(9)));
    assert_eq!(pending.made(), Some(Err(&Error::Stuck)));
}
