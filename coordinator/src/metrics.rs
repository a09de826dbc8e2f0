//! What a dashboard wants to know. Figures are taken where they arise: when an answer ends, and
//! once per step.

mod plain;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palimpsest_proto::v1::Usage;
use palimpsest_tls::{Refusal, Refused};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::snapshots::Held;

/// Label of finished requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Labels of a tenant's requests. Tenants are those of the file of keys, so there are as many as
/// the operator has named.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantOutcome {
    tenant: Arc<str>,
    outcome: &'static str,
}

/// Label of a tenant's tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantName {
    tenant: Arc<str>,
}

/// Label of a place where snapshots are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tier {
    tier: &'static str,
}

/// Labels of connections that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedConnection {
    port: &'static str,
    reason: &'static str,
}

/// Labels of `vllm:cache_config_info`, by which routers know how many tokens a server can hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfig {
    block_size: u64,
    num_gpu_blocks: u64,
}

/// All figures of a coordinator; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    first_token: Histogram,
    inter_token: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    requests: Family<Outcome, Counter>,
    tenant_requests: Family<TenantOutcome, Counter>,
    tenant_tokens: Family<TenantName, Counter>,
    refused_connections: Family<RefusedConnection, Counter>,
    /// What each port has refused, of which the family is a copy.
    ports: Mutex<Vec<(&'static str, Refused)>>,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    evicted_tokens: Counter,
    cached_tokens: Counter,
    snapshots: Family<Tier, Gauge>,
    snapshot_bytes: Family<Tier, Gauge>,
    steps: Counter,
    mask_wait: Counter<f64, AtomicU64>,
    running: Gauge,
    queued: Gauge,
    reserved: Gauge,
    capacity: Gauge,
    usage: Gauge<f64, AtomicU64>,
    cache_config: Family<CacheConfig, Gauge>,
    epoch: Gauge,
    group_ready: Gauge,
    sessions: Gauge,
    session_bytes: Gauge,
    responses: Gauge,
    response_bytes: Gauge,
    step_age: Gauge<f64, AtomicU64>,
    /// Milliseconds from `started` to the last step's end.
    last_step: AtomicU64,
    started: Instant,
}

/// State of the driver after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub queued: usize,
    /// Bytes that they reserve on each rank.
    pub reserved_bytes: u64,
    /// Bytes that a rank has.
    pub capacity_bytes: u64,
    /// The group's epoch.
    pub epoch: u64,
    /// Snapshots that are kept.
    pub kept: Held,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        // 1 ms to 9 h, by a factor of two.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 25));
        let inner = Inner {
            registry: Registry::default(),
            first_token: seconds(),
            inter_token: seconds(),
            queue: seconds(),
            prefill: seconds(),
            decode: seconds(),
            requests: Family::default(),
            tenant_requests: Family::default(),
            tenant_tokens: Family::default(),
            refused_connections: Family::default(),
            ports: Mutex::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            evicted_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            snapshots: Family::default(),
            snapshot_bytes: Family::default(),
            steps: Counter::default(),
            mask_wait: Counter::default(),
            running: Gauge::default(),
            queued: Gauge::default(),
            reserved: Gauge::default(),
            capacity: Gauge::default(),
            usage: Gauge::default(),
            cache_config: Family::default(),
            epoch: Gauge::default(),
            group_ready: Gauge::default(),
            sessions: Gauge::default(),
            session_bytes: Gauge::default(),
            responses: Gauge::default(),
            response_bytes: Gauge::default(),
            step_age: Gauge::default(),
            last_step: AtomicU64::new(0),
            started: Instant::now(),
        };
        Self(Arc::new(inner.registered()))
    }

    /// What routers may assume of the cache: blocks of `block_size` tokens, `blocks` of them.
    pub fn cache_config(&self, block_size: u64, blocks: u64) {
        let family = &self.0.cache_config;
        family.clear();
        family
            .get_or_create(&CacheConfig {
                block_size,
                num_gpu_blocks: blocks,
            })
            .set(1);
    }

    /// Prometheus' text, in the OpenMetrics format.
    pub fn encode(&self) -> String {
        let inner = &*self.0;
        let busy = inner.running.get() > 0;
        let since = inner
            .started
            .elapsed()
            .saturating_sub(Duration::from_millis(
                inner.last_step.load(Ordering::Relaxed),
            ));
        inner
            .step_age
            .set(if busy { since.as_secs_f64() } else { 0.0 });
        inner.count_refused();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &inner.registry);
        text
    }

    /// The same in Prometheus' older text format.
    pub fn encode_plain(&self) -> String {
        plain::of(&self.encode())
    }

    /// A step has ended.
    pub fn step(&self, load: Load) {
        let inner = &*self.0;
        inner.steps.inc();
        inner.last_step.store(
            inner.started.elapsed().as_millis() as u64,
            Ordering::Relaxed,
        );
        self.load(load);
    }

    /// A step waited so long for the masks of guides.
    pub fn mask_wait(&self, seconds: f64) {
        self.0.mask_wait.inc_by(seconds);
    }

    /// The driver's state has changed.
    pub fn load(&self, load: Load) {
        let inner = &*self.0;
        inner.running.set(load.running as i64);
        inner.queued.set(load.queued as i64);
        inner.reserved.set(load.reserved_bytes.cast_signed());
        inner.capacity.set(load.capacity_bytes.cast_signed());
        let Held {
            in_memory,
            memory_bytes,
            in_store,
            store_bytes,
        } = load.kept;
        let tiers = [
            ("memory", in_memory, memory_bytes),
            ("store", in_store, store_bytes),
        ];
        for (tier, count, bytes) in tiers {
            let tier = Tier { tier };
            let set = |gauges: &Family<Tier, Gauge>, value: u64| {
                gauges.get_or_create(&tier).set(value.cast_signed());
            };
            set(&inner.snapshots, count);
            set(&inner.snapshot_bytes, bytes);
        }
        inner
            .usage
            .set(load.reserved_bytes as f64 / load.capacity_bytes.max(1) as f64);
        inner.epoch.set(load.epoch.cast_signed());
    }

    /// Whether a worker group serves and requests are taken.
    pub fn group_ready(&self, ready: bool) {
        self.0.group_ready.set(ready.into());
    }

    /// Sessions that are open, and the bytes of their records.
    pub fn sessions(&self, open: usize, bytes: u64) {
        self.0.sessions.set(open as i64);
        self.0.session_bytes.set(bytes.cast_signed());
    }

    /// Responses that are kept, and the bytes of their records.
    pub fn responses(&self, kept: usize, bytes: u64) {
        self.0.responses.set(kept as i64);
        self.0.response_bytes.set(bytes.cast_signed());
    }

    /// Time between two tokens of an answer.
    pub fn inter_token(&self, gap: Duration) {
        self.0.inter_token.observe(gap.as_secs_f64());
    }

    /// A request has ended: `eos`, `stop`, `length`, `cancelled` or the tag of an error.
    pub fn ended(&self, outcome: &'static str) {
        self.0.requests.get_or_create(&Outcome { outcome }).inc();
    }

    /// A request was refused before it had an answer: `outcome` is the tag of the error.
    pub fn refused(&self, tenant: Option<&Arc<str>>, outcome: &'static str) {
        self.ended(outcome);
        self.tenant_ended(tenant, outcome);
    }

    /// Tells of the connections that a port refuses from now on. A port that serves again under
    /// the same name goes on counting.
    pub fn watch_port(&self, port: &'static str, refused: Refused) {
        let mut ports = self.0.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push((port, refused));
    }

    /// The same of a tenant's request, where there are tenants.
    pub fn tenant_ended(&self, tenant: Option<&Arc<str>>, outcome: &'static str) {
        if let Some(tenant) = tenant.cloned() {
            let labels = TenantOutcome { tenant, outcome };
            self.0.tenant_requests.get_or_create(&labels).inc();
        }
    }

    /// Tokens that were made for a tenant, also in answers that came to no end.
    pub fn tenant_tokens(&self, tenant: Option<&Arc<str>>, tokens: u64) {
        if let Some(tenant) = tenant.cloned() {
            let labels = TenantName { tenant };
            self.0.tenant_tokens.get_or_create(&labels).inc_by(tokens);
        }
    }

    /// What a request that came to its end cost.
    pub fn usage(&self, usage: &Usage) {
        let inner = &*self.0;
        if usage.generated_tokens > 0 {
            inner.first_token.observe(usage.first_token_seconds);
        }
        inner.queue.observe(usage.queue_seconds);
        inner.prefill.observe(usage.prefill_seconds);
        inner.decode.observe(usage.decode_seconds);
        inner.prompt_tokens.inc_by(usage.prompt_tokens);
        inner.generated_tokens.inc_by(usage.generated_tokens);
        inner.evicted_tokens.inc_by(usage.evicted_tokens);
        inner.cached_tokens.inc_by(usage.cached_tokens);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    /// Brings the family of refused connections to what the ports have counted.
    fn count_refused(&self) {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for why in Refusal::ALL {
            let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
            for (port, refused) in &*ports {
                *sums.entry(port).or_default() += refused.of(why);
            }
            for (port, sum) in sums {
                let reason = why.tag();
                let labels = RefusedConnection { port, reason };
                let counter = self.refused_connections.get_or_create_owned(&labels);
                // Whoever counts holds the lock of the ports.
                counter.inc_by(sum.saturating_sub(counter.get()));
            }
        }
    }

    fn registered(mut self) -> Self {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("palimpsest");
        self.register_times(own);
        self.register_counts(own);
        self.register_group(own);
        self.register_gateway_names(&mut registry);
        self.registry = registry;
        self
    }

    /// Histograms of the parts of a request.
    fn register_times(&self, registry: &mut Registry) {
        let times = [
            (
                "time_to_first_token",
                "From arrival to the first token",
                &self.first_token,
            ),
            (
                "inter_token",
                "Between two tokens of an answer",
                &self.inter_token,
            ),
            ("queue", "From arrival to the first step", &self.queue),
            (
                "prefill",
                "From the first step to the first token",
                &self.prefill,
            ),
            ("decode", "From the first token to the last", &self.decode),
        ];
        for (name, help, time) in times {
            registry.register_with_unit(name, help, Unit::Seconds, time.clone());
        }
        registry.register_with_unit(
            "mask_wait",
            "Time that steps waited for the masks of guides",
            Unit::Seconds,
            self.mask_wait.clone(),
        );
    }

    /// What has been done since the start.
    fn register_counts(&self, registry: &mut Registry) {
        registry.register(
            "snapshots",
            "States of prompts and answers that are kept",
            self.snapshots.clone(),
        );
        registry.register_with_unit(
            "snapshot",
            "Bytes of kept states on the fullest rank",
            Unit::Bytes,
            self.snapshot_bytes.clone(),
        );
        registry.register(
            "requests",
            "Requests that have ended",
            self.requests.clone(),
        );
        registry.register(
            "tenant_requests",
            "Requests of a tenant that have ended",
            self.tenant_requests.clone(),
        );
        registry.register(
            "tenant_generated_tokens",
            "Tokens made for a tenant",
            self.tenant_tokens.clone(),
        );
        registry.register(
            "refused_connections",
            "Connections that came to nothing",
            self.refused_connections.clone(),
        );
        let counts = [
            ("prompt_tokens", "Tokens of prompts", &self.prompt_tokens),
            (
                "cached_prompt_tokens",
                "Tokens of prompts that were not read, because their state was kept",
                &self.cached_tokens,
            ),
            (
                "generated_tokens",
                "Tokens of answers",
                &self.generated_tokens,
            ),
            (
                "evicted_tokens",
                "Entries evicted, mean per KV head",
                &self.evicted_tokens,
            ),
            ("steps", "Steps of the worker group", &self.steps),
        ];
        for (name, help, count) in counts {
            registry.register(name, help, count.clone());
        }
    }

    /// How the worker group stands now.
    fn register_group(&self, registry: &mut Registry) {
        let gauges = [
            ("requests_running", "Requests that run", &self.running),
            ("requests_queued", "Requests that wait", &self.queued),
            (
                "kv_reserved_bytes",
                "Cache reserved by requests, on each rank",
                &self.reserved,
            ),
            ("kv_capacity_bytes", "Cache that a rank has", &self.capacity),
            ("group_epoch", "Epoch of the worker group", &self.epoch),
            (
                "group_ready",
                "1 while a worker group serves, else 0",
                &self.group_ready,
            ),
            ("sessions", "Sessions that are open", &self.sessions),
            (
                "session_bytes",
                "Bytes of the records of sessions",
                &self.session_bytes,
            ),
            ("responses", "Responses that are kept", &self.responses),
            (
                "response_bytes",
                "Bytes of the records of responses",
                &self.response_bytes,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "step_age_seconds",
            "Since the last step, while requests run",
            self.step_age.clone(),
        );
    }

    /// The names that gateways and autoscalers of the Kubernetes Gateway API look for.
    fn register_gateway_names(&self, registry: &mut Registry) {
        registry.register(
            "vllm:num_requests_running",
            "Requests that run",
            self.running.clone(),
        );
        registry.register(
            "vllm:num_requests_waiting",
            "Requests that wait",
            self.queued.clone(),
        );
        registry.register(
            "vllm:kv_cache_usage_perc",
            "Share of the cache that is reserved",
            self.usage.clone(),
        );
        registry.register(
            "vllm:cache_config_info",
            "Tokens of a full cache that fit",
            self.cache_config.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_under_their_names() {
        let metrics = Metrics::new();
        metrics.step(Load {
            running: 2,
            queued: 3,
            reserved_bytes: 10,
            capacity_bytes: 40,
            epoch: 7,
            kept: Held {
                in_memory: 5,
                memory_bytes: 50,
                ..Held::default()
            },
        });
        metrics.cache_config(256, 12);
        metrics.group_ready(true);
        metrics.sessions(8, 900);
        metrics.responses(3, 700);
        metrics.ended("eos");
        let ports = [Refused::default(), Refused::default()];
        for refused in ports {
            metrics.watch_port("http", refused);
        }
        let tenant = Arc::from("a \"b\"");
        metrics.refused(Some(&tenant), "intake_full");
        metrics.tenant_ended(Some(&tenant), "eos");
        metrics.tenant_tokens(Some(&tenant), 9);
        metrics.tenant_ended(None, "eos");
        metrics.usage(&Usage {
            prompt_tokens: 5,
            generated_tokens: 1,
            evicted_tokens: 4,
            first_token_seconds: 0.5,
            ..Default::default()
        });
        let text = metrics.encode();
        for line in [
            "palimpsest_requests_running 2",
            "palimpsest_requests_queued 3",
            "vllm:num_requests_waiting 3",
            "vllm:kv_cache_usage_perc 0.25",
            "vllm:cache_config_info{block_size=\"256\",num_gpu_blocks=\"12\"} 1",
            "palimpsest_group_epoch 7",
            "palimpsest_group_ready 1",
            "palimpsest_sessions 8",
            "palimpsest_session_bytes 900",
            "palimpsest_responses 3",
            "palimpsest_response_bytes 700",
            "palimpsest_requests_total{outcome=\"eos\"} 1",
            "palimpsest_tenant_requests_total{tenant=\"a \\\"b\\\"\",outcome=\"eos\"} 1",
            "palimpsest_tenant_generated_tokens_total{tenant=\"a \\\"b\\\"\"} 9",
            "palimpsest_requests_total{outcome=\"intake_full\"} 1",
            "palimpsest_tenant_requests_total{tenant=\"a \\\"b\\\"\",outcome=\"intake_full\"} 1",
            "palimpsest_refused_connections_total{port=\"http\",reason=\"handshake\"} 0",
            "palimpsest_prompt_tokens_total 5",
            "palimpsest_evicted_tokens_total 4",
            "palimpsest_time_to_first_token_seconds_count 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
