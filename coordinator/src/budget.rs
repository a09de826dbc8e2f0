//! The budget of requests on their way to admission.
//!
//! [`crate::admission`] bounds what waits in the queue. Before that, a request's body is read,
//! parsed and tokenised, and it holds memory that no queue counts. Each byte of a body is charged
//! here as it comes, weighted by what parsing makes of it, and a request that finds no room is
//! refused at once. A [`Charge`] gives everything back when its last copy is dropped: once the
//! request is admitted or refused, or when its client goes away.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes};
use futures::StreamExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use palimpsest_proto::error::{Reason, RequestError};
use tokio::task::AbortHandle;

/// Bytes that a byte of a body takes at most until its request is admitted, tokenisation apart
/// ([`crate::pool`]). `tests/peak_memory.rs` measures it.
pub const BODY_WEIGHT: u64 = 16;
/// Requests of at most so many bytes find room where larger ones do not, so that a few that come
/// slowly do not keep all others out.
const SMALL_BYTES: u64 = 4096;

/// What is left of a budget of `limit` bytes for requests of any size: an eighth is for small ones
/// alone.
pub const fn for_large(limit: u64) -> u64 {
    limit - limit / 8
}

/// What all requests before admission may hold together.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    held: AtomicU64,
}

/// What one request holds of a [`Budget`]. Copies share it, and the last one gives it back.
#[derive(Debug, Clone)]
pub struct Charge(Arc<Held>);

#[derive(Debug)]
struct Held {
    budget: Budget,
    bytes: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner {
            limit,
            held: AtomicU64::new(0),
        }))
    }

    /// What one request will hold; nothing yet.
    pub fn open(&self) -> Charge {
        Charge(Arc::new(Held {
            budget: self.clone(),
            bytes: AtomicU64::new(0),
        }))
    }

    /// What all requests hold now, in bytes.
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }
}

impl Charge {
    /// Takes room for `bytes` more of a body.
    ///
    /// # Errors
    /// [`Reason::IntakeFull`]: others hold the rest of the budget.
    pub fn take(&self, bytes: usize) -> Result<(), RequestError> {
        let budget = &self.0.budget.0;
        let needed = (bytes as u64).saturating_mul(BODY_WEIGHT);
        let own = self.0.bytes.load(Ordering::Relaxed).saturating_add(needed);
        let limit = if own <= SMALL_BYTES * BODY_WEIGHT {
            budget.limit
        } else {
            for_large(budget.limit)
        };
        // The counters guard no other memory, so no ordering is needed.
        let taken = budget
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(needed).filter(|&sum| sum <= limit)
            });
        if taken.is_err() {
            let message = format!(
                "requests that are being read hold the {} bytes that are set aside for them: try \
                 again later",
                budget.limit
            );
            return Err(RequestError::new(Reason::IntakeFull, message));
        }
        self.0.bytes.fetch_add(needed, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.budget.0.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A body whose bytes are charged as they come. Where there is no room, it ends with what `refused`
/// makes of the reason.
pub fn counted(
    body: Body,
    charge: Charge,
    refused: impl Fn(RequestError) -> BoxError + Send + 'static,
) -> Body {
    let chunks = body.into_data_stream().map(move |chunk| {
        let chunk = chunk?;
        charge.take(chunk.len()).map_err(&refused)?;
        Ok::<_, BoxError>(chunk)
    });
    Body::from_stream(chunks)
}

/// The body of an answer that stands in memory whole, and is about as large as its request. It
/// keeps the request's charge until the client has read it. A client that has not read it after a
/// minute gets an error instead of the rest, and the charge is given back. Needs a tokio runtime.
pub fn held(body: Body, charge: Option<Charge>) -> Body {
    let kept = Arc::new(Mutex::new(Some(Kept {
        body,
        rest: Bytes::new(),
        _charge: charge,
    })));
    let late = Arc::downgrade(&kept);
    // A timer of its own, because a connection does not poll a body whose client takes nothing.
    let timer = tokio::spawn(async move {
        tokio::time::sleep(READ_TIME).await;
        if let Some(kept) = late.upgrade() {
            lock(&kept).take();
        }
    });
    Body::new(HeldBody {
        kept,
        timer: timer.abort_handle(),
    })
}

/// Time in which a client must read an answer that stands in memory whole.
const READ_TIME: Duration = Duration::from_secs(60);
/// Bytes of a body that are given out at once: a connection takes more only when these are on their
/// way.
const PIECE_BYTES: usize = 64 << 10;

struct HeldBody {
    /// `None` when its time was over.
    kept: Arc<Mutex<Option<Kept>>>,
    timer: AbortHandle,
}

struct Kept {
    body: Body,
    rest: Bytes,
    _charge: Option<Charge>,
}

fn lock(kept: &Mutex<Option<Kept>>) -> MutexGuard<'_, Option<Kept>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

impl Kept {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            if !self.rest.is_empty() {
                let size = self.rest.len().min(PIECE_BYTES);
                // A copy: a part of the answer that waits in a connection would keep all of it in
                // memory, when the charge has been given back.
                let piece = Bytes::copy_from_slice(&self.rest.split_to(size));
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.rest = Bytes::new();
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Trailers.
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Ok(Ok(bytes))) => self.rest = bytes,
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(rest));
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut *lock(&self.kept) {
            Some(kept) => kept.poll_frame(cx),
            None => Poll::Ready(Some(Err(axum::Error::new(
                "the answer was not read in time",
            )))),
        }
    }

    fn is_end_stream(&self) -> bool {
        let kept = lock(&self.kept);
        kept.as_ref()
            .is_some_and(|kept| kept.rest.is_empty() && kept.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = lock(&self.kept);
        kept.as_ref().map_or_else(SizeHint::new, Kept::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures::stream;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    const LIMIT: u64 = 100 * BODY_WEIGHT;

    #[test]
    fn a_charge_is_refused_beyond_the_limit_and_given_back_by_its_last_copy() {
        let budget = Budget::new(LIMIT);
        let (one, other) = (budget.open(), budget.open());
        one.take(60).unwrap();
        other.take(40).unwrap();
        let error = other.take(1).unwrap_err();
        assert_eq!(error.reason, Reason::IntakeFull);
        assert!(error.message.contains("1600 bytes"), "{error}");
        // What was refused is not counted, and a number too large does not wrap.
        assert!(one.take(usize::MAX).is_err());
        assert_eq!(budget.held(), LIMIT);
        let copy = one.clone();
        drop(one);
        assert_eq!(budget.held(), LIMIT);
        drop(copy);
        assert_eq!(budget.held(), 40 * BODY_WEIGHT);
        drop(other);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn a_body_is_charged_chunk_by_chunk_and_ends_where_there_is_no_room() {
        let budget = Budget::new(LIMIT);
        let charge = budget.open();
        let chunks = stream::iter((0..3).map(|_| Ok::<_, BoxError>(Bytes::from(vec![b'x'; 40]))));
        let body = counted(Body::from_stream(chunks), charge.clone(), BoxError::from);
        assert!(
            to_bytes(body, usize::MAX).await.is_err(),
            "120 bytes of 100"
        );
        assert_eq!(budget.held(), 80 * BODY_WEIGHT, "until the request is gone");
        drop(charge);
        assert_eq!(budget.held(), 0);
    }

    /// A client that goes away in mid-body: whoever reads it is dropped, and the charge with it.
    #[tokio::test]
    async fn a_body_that_is_given_up_gives_its_charge_back() {
        let budget = Budget::new(LIMIT);
        let (send, chunks) = mpsc::channel(1);
        let body = Body::from_stream(ReceiverStream::new(chunks));
        let body = counted(body, budget.open(), BoxError::from);
        let mut reading = Box::pin(to_bytes(body, usize::MAX));
        send.send(Ok::<_, BoxError>(Bytes::from_static(b"12345")))
            .await
            .unwrap();
        assert!(futures::poll!(&mut reading).is_pending());
        assert_eq!(budget.held(), 5 * BODY_WEIGHT);
        drop(reading);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn an_answer_holds_its_charge_until_it_is_read() {
        let budget = Budget::new(LIMIT);
        let charge = budget.open();
        charge.take(7).unwrap();
        let sent = vec![b'x'; 2 * PIECE_BYTES + 1];
        let mut body = held(Body::from(sent.clone()), Some(charge)).into_data_stream();
        let mut read = Vec::new();
        while let Some(piece) = body.next().await {
            assert_eq!(budget.held(), 7 * BODY_WEIGHT);
            read.push(piece.unwrap().len());
        }
        assert_eq!(read, [PIECE_BYTES, PIECE_BYTES, 1]);
        drop(body);
        assert_eq!(budget.held(), 0);
    }

    /// Four clients that took nothing of their answers kept everyone else out for ever.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_gives_its_charge_back() {
        let budget = Budget::new(LIMIT);
        let charge = budget.open();
        charge.take(7).unwrap();
        let answer = Body::from(vec![b'x'; 2 * PIECE_BYTES]);
        let mut body = held(answer, Some(charge)).into_data_stream();
        body.next().await.unwrap().unwrap();
        assert_eq!(budget.held(), 7 * BODY_WEIGHT);
        tokio::time::sleep(READ_TIME + Duration::from_secs(1)).await;
        assert_eq!(budget.held(), 0);
        assert!(body.next().await.unwrap().is_err());
    }

    /// Large bodies that came slowly kept small requests out.
    #[test]
    fn large_requests_leave_room_for_small_ones() {
        let limit = 64 * SMALL_BYTES * BODY_WEIGHT;
        let budget = Budget::new(limit);
        let large = budget.open();
        let most = (for_large(limit) / BODY_WEIGHT) as usize;
        large.take(most).unwrap();
        assert!(large.take(1).is_err());
        let next = budget.open();
        assert!(next.take(SMALL_BYTES as usize + 1).is_err());
        next.take(SMALL_BYTES as usize).unwrap();
        assert!(next.take(1).is_err(), "it is small no longer");
    }
}
