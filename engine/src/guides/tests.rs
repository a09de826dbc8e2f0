//! Guides of sequences, without a model.

use palimpsest_guide::Error;
use palimpsest_models::tokenizer::TokenizerFiles;
use palimpsest_proto::v1::Guide;

use super::Guides;
use crate::cancel::Cancel;

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

fn texts(texts: &[&str]) -> Guide {
    Guide::of_texts(texts.iter().map(|&text| text.to_owned()).collect())
}

fn words(guided: &mut super::Guided) -> Result<Vec<u32>, Error> {
    let mask = guided.request().wait(&Cancel::default());
    let mask = mask.expect("nobody abandons it");
    mask.map(|mask| mask.words().to_vec())
}

#[test]
fn sequences_are_guided_apart_whatever_order_they_ask_in() {
    let mut guides = guides();
    // More of them than lanes.
    let mut guided: Vec<_> = (0..9)
        .map(|_| guides.open(&texts(&["ab", "acb"])))
        .collect();
    let pending: Vec<_> = guided.iter_mut().map(super::Guided::request).collect();
    for mask in pending.into_iter().rev() {
        let mask = mask.wait(&Cancel::default()).expect("nobody abandons it");
        assert_eq!(mask.expect("a mask").words(), [0b0001]);
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
    let mut bad = guides.open(&texts(&[]));
    let mut good = guides.open(&texts(&["a"]));
    for _ in 0..2 {
        assert!(matches!(words(&mut bad), Err(Error::Empty(_))));
        assert_eq!(words(&mut good), Ok(vec![0b0001]));
    }
    good.observe(&[1]);
    for _ in 0..2 {
        assert_eq!(words(&mut good), Err(Error::NotAllowed));
    }
    let mut nowhere = Guides::default().open(&texts(&["a"]));
    assert!(matches!(words(&mut nowhere), Err(Error::Tokenizer(_))));
}

#[test]
fn a_step_that_is_abandoned_waits_for_no_mask() {
    let (_reply, pending) = super::Pending::new();
    let cancel = Cancel::default();
    cancel.cancel();
    let waited = pending.wait(&cancel);
    assert!(matches!(waited, Err(crate::Error::Cancelled)));
}
