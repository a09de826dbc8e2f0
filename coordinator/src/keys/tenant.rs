//! Who asks with a key, and what it has under way.

use std::sync::{Arc, Mutex, PoisonError};

use palimpsest_proto::error::{Reason, RequestError};
use tokio::time::Instant;

use super::options::KeyOptions;
use super::rate::Rate;

/// What the requests under way of one key take, and how many it has sent lately.
#[derive(Debug, Default)]
pub(super) struct InUse {
    amount: Mutex<Amount>,
    rate: Rate,
}

#[derive(Debug, Default)]
struct Amount {
    requests: u32,
    tokens: u64,
}

impl InUse {
    fn with<T>(&self, act: impl FnOnce(&mut Amount) -> T) -> T {
        act(&mut self.amount.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whose key was shown, and what it may ask for. Two keys of one tenant are counted apart.
#[derive(Debug)]
pub struct Tenant {
    name: Arc<str>,
    options: KeyOptions,
    in_use: Arc<InUse>,
}

impl Tenant {
    /// `in_use` outlives a file that is read again: what is under way stays counted.
    pub(super) fn new(name: Arc<str>, options: KeyOptions, in_use: Arc<InUse>) -> Self {
        Self {
            name,
            options,
            in_use,
        }
    }

    /// As the file of keys names it: for logs and metrics.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What its key may ask for.
    pub fn options(&self) -> &KeyOptions {
        &self.options
    }

    /// Counts a request that comes now, whatever it asks for and however many answers it has.
    ///
    /// # Errors
    /// `RateLimited` with the time after which one may come.
    pub fn arrive(&self) -> Result<(), RequestError> {
        let Some(most) = self.options.max_per_minute else {
            return Ok(());
        };
        self.in_use
            .rate
            .take(most, Instant::now())
            .map_err(|pause| {
                let message = format!(
                    "this API key may send {most} requests per minute: try again in {:.1} s",
                    pause.as_secs_f64()
                );
                RequestError::new(Reason::RateLimited, message).to_retry_after(pause)
            })
    }

    /// Requests that may begin now beside those under way; `None`: any number. Where tokens have a
    /// bound, one: what others will reserve is not known.
    pub fn room(&self) -> Option<u32> {
        if self.options.max_tokens.is_some() {
            return Some(1);
        }
        let most = self.options.max_requests?;
        let under_way = self.in_use.with(|amount| amount.requests);
        Some(most.saturating_sub(under_way))
    }

    /// A place for one more request of this priority.
    ///
    /// # Errors
    /// `PriorityNotAllowed`, and `KeyLimit` when as many are under way as may be.
    pub fn begin(self: &Arc<Self>, priority: i32) -> Result<TenantPermit, RequestError> {
        if let Some(most) = self.options.max_priority.filter(|&most| priority > most) {
            let message = format!(
                "priority {priority} is more than this API key may ask for: send {most} or less"
            );
            return Err(RequestError::new(Reason::PriorityNotAllowed, message).in_field("priority"));
        }
        self.in_use.with(|amount| {
            if let Some(most) = self.options.max_requests
                && amount.requests >= most
            {
                let message = format!(
                    "{most} requests of this API key are under way, as many as may be: try again \
                     when one has ended"
                );
                return Err(RequestError::new(Reason::KeyLimit, message));
            }
            amount.requests += 1;
            Ok(TenantPermit {
                tenant: self.clone(),
                tokens: 0,
            })
        })
    }
}

/// A request of a tenant that is under way, until it is dropped.
#[derive(Debug)]
pub struct TenantPermit {
    tenant: Arc<Tenant>,
    tokens: u64,
}

impl TenantPermit {
    /// Whose it is.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// Counts the tokens that the request reserves. One that alone passes the limit may go when
    /// nothing else is under way.
    ///
    /// # Errors
    /// `KeyLimit`, and nothing is counted.
    pub fn reserve(&mut self, tokens: u64) -> Result<(), RequestError> {
        let options = self.tenant.options;
        self.tenant.in_use.with(|amount| {
            if let Some(most) = options.max_tokens
                && amount.tokens > 0
                && amount.tokens.saturating_add(tokens) > most
            {
                let message = format!(
                    "requests of this API key that are under way reserve {} tokens, with {tokens} \
                     more its limit of {most} is passed: try again when one has ended",
                    amount.tokens
                );
                return Err(RequestError::new(Reason::KeyLimit, message));
            }
            amount.tokens = amount.tokens.saturating_add(tokens);
            self.tokens = self.tokens.saturating_add(tokens);
            Ok(())
        })
    }
}

impl Drop for TenantPermit {
    fn drop(&mut self) {
        self.tenant.in_use.with(|amount| {
            amount.requests -= 1;
            amount.tokens = amount.tokens.saturating_sub(self.tokens);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tenant(options: KeyOptions) -> Arc<Tenant> {
        Arc::new(Tenant::new("research".into(), options, Arc::default()))
    }

    fn reason<T>(found: Result<T, RequestError>) -> Option<Reason> {
        found.err().map(|error| error.reason)
    }

    #[test]
    fn requests_of_a_key_have_a_bound_and_give_their_place_back() {
        let tenant = tenant(KeyOptions {
            max_requests: Some(2),
            ..KeyOptions::default()
        });
        assert_eq!(tenant.room(), Some(2));
        let first = tenant.begin(0).expect("a place");
        assert_eq!(tenant.room(), Some(1));
        let _second = tenant.begin(0).expect("a place");
        assert_eq!(tenant.room(), Some(0));
        assert_eq!(reason(tenant.begin(0)), Some(Reason::KeyLimit));
        drop(first);
        tenant.begin(0).expect("the place of the first");
    }

    #[test]
    fn tokens_of_a_key_have_a_bound_and_a_long_request_may_go_alone() {
        let tenant = tenant(KeyOptions {
            max_tokens: Some(100),
            ..KeyOptions::default()
        });
        assert_eq!(tenant.room(), Some(1));
        let mut long = tenant.begin(0).expect("a place");
        long.reserve(150).expect("nothing else is under way");
        let mut short = tenant.begin(0).expect("a place");
        assert_eq!(reason(short.reserve(1)), Some(Reason::KeyLimit));
        drop(long);
        short.reserve(60).expect("room again");
        let mut third = tenant.begin(0).expect("a place");
        assert_eq!(reason(third.reserve(41)), Some(Reason::KeyLimit));
        third.reserve(40).expect("the rest");
        assert_eq!(reason(third.reserve(u64::MAX)), Some(Reason::KeyLimit));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_a_key_in_a_minute_have_a_bound() {
        let tenant = tenant(KeyOptions {
            max_per_minute: Some(2),
            ..KeyOptions::default()
        });
        tenant.arrive().expect("the first");
        tenant.arrive().expect("the second");
        let refused = tenant.arrive().expect_err("a third at once");
        assert_eq!(refused.reason, Reason::RateLimited);
        assert_eq!(refused.retry_after, Some(Duration::from_secs(30)));
        assert!(refused.message.contains("30.0 s"), "{refused}");
        tokio::time::advance(Duration::from_secs(30)).await;
        tenant.arrive().expect("half a minute later");
        tenant.arrive().expect_err("none at once");
    }

    /// A client's priority was without bound: any key could go before all others.
    #[test]
    fn a_key_may_ask_for_no_more_than_its_priority() {
        let tenant = tenant(KeyOptions {
            max_priority: Some(0),
            ..KeyOptions::default()
        });
        for allowed in [i32::MIN, -1, 0] {
            tenant.begin(allowed).expect("no more than 0");
        }
        let refused = tenant.begin(1).expect_err("more than 0");
        assert_eq!(refused.reason, Reason::PriorityNotAllowed);
        assert_eq!(refused.field, Some("priority"));
        assert_eq!(tenant.in_use.with(|amount| amount.requests), 0);
    }
}
