//! The ring on one thread.

use std::sync::Arc;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::CacheState;
use palimpsest_proto::v1::RetentionReport;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ring::{Item, Lag, ReaderState, Reading, Token, ring};

fn token(id: u32) -> Token {
    let cache = CacheState::default();
    Token {
        number: 9,
        id,
        logprob: None,
        cache,
        retention: None,
        prompt_logprobs: Vec::new(),
        embedding: None,
        ended: None,
        cached: 0,
        at: Instant::now(),
    }
}

#[tokio::test]
async fn a_full_ring_says_so_and_half_an_empty_one_wakes_the_engine() {
    let driver = Arc::new(Notify::new());
    let (writer, mut reader) = ring(4, driver.clone());
    let full: Vec<_> = (0..4).map(|id| writer.push(token(id))).collect();
    assert_eq!(full, [false, false, false, true]);
    assert_eq!(reader.token().await.unwrap().unwrap().number, 0);
    assert!(!writer.has_room());
    let second = reader.token().await.unwrap().unwrap();
    assert_eq!((second.number, second.id), (1, 1));
    driver.notified().await;
    assert!(writer.has_room());
    drop(reader);
    driver.notified().await;
    assert_eq!(writer.reader(), ReaderState::Gone);
    let (writer, reader) = ring(4, Arc::default());
    assert_eq!(writer.reader(), ReaderState::Reads);
    reader.done();
    assert_eq!(writer.reader(), ReaderState::Done);
}

#[tokio::test]
async fn a_reader_is_behind_from_a_full_ring_to_an_empty_one() {
    let (writer, mut reader) = ring(2, Arc::default());
    writer.push(token(0));
    assert_eq!(writer.lag(), None);
    let full = token(1);
    let since = full.at;
    writer.push(full);
    reader.token().await.unwrap();
    writer.push(token(2));
    reader.token().await.unwrap();
    assert_eq!(writer.lag(), Some(Lag { since, taken: 2 }));
    let now = Instant::now();
    writer.restart_lag(now);
    assert_eq!(
        writer.lag(),
        Some(Lag {
            since: now,
            taken: 0
        })
    );
    reader.token().await.unwrap();
    assert_eq!(writer.lag(), None);
    writer.restart_lag(now);
    assert_eq!(writer.lag(), None);
}

#[tokio::test]
async fn an_end_comes_behind_the_tokens_and_a_dropped_writer_answers() {
    let (writer, mut reader) = ring(4, Arc::default());
    writer.push(token(1));
    writer.fail(RequestError::new(Reason::GroupLost, "first"));
    drop(writer);
    assert!(reader.token().await.unwrap().is_some());
    assert_eq!(reader.token().await.unwrap_err().reason, Reason::GroupLost);
    let (writer, mut reader) = ring(4, Arc::default());
    drop(writer);
    assert_eq!(reader.token().await.unwrap_err().reason, Reason::Internal);
}

/// A report may have megabytes, and a slow reader's ring hundreds of tokens.
#[tokio::test]
async fn a_ring_holds_the_last_report_alone() {
    let (writer, mut reader) = ring(4, Arc::default());
    for id in 0..3 {
        writer.push(Token {
            retention: (id < 2).then(RetentionReport::default),
            ..token(id)
        });
    }
    let mut reported = Vec::new();
    for _ in 0..3 {
        let token = reader.token().await.unwrap().unwrap();
        reported.push(token.retention.is_some());
    }
    assert_eq!(reported, [false, true, false]);
}

fn reading(fed: u64) -> Reading {
    Reading {
        fed,
        cache: CacheState::default(),
        retention: RetentionReport::default(),
    }
}

#[tokio::test]
async fn a_reader_has_the_last_reading_before_the_tokens_and_none_that_is_old() {
    let (writer, mut reader) = ring(4, Arc::default());
    writer.tell(reading(16));
    writer.tell(reading(32));
    writer.push(token(0));
    let first = reader.next().await.unwrap();
    assert!(matches!(first, Some(Item::Reading(found)) if found == reading(32)));
    let second = reader.next().await.unwrap();
    assert!(matches!(second, Some(Item::Token(found)) if found.number == 0));
    // A token that has a report of its own makes a reading old.
    writer.tell(reading(48));
    writer.push(Token {
        retention: Some(RetentionReport::default()),
        ..token(1)
    });
    let third = reader.next().await.unwrap();
    assert!(matches!(third, Some(Item::Token(found)) if found.number == 1));
}
