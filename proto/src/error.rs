//! Error classes and the only mapping of them to gRPC and HTTP codes.
//!
//! An error is classified once, nearest its cause, as a [`Reason`]; the reason has a [`Class`]; the
//! class has the codes. The message is for the client: it says what to do and never holds a prompt.

use std::time::Duration;

/// What a client can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Change the request.
    InvalidRequest,
    /// Ask for something that exists.
    NotFound,
    /// What is asked for is in a state that does not allow it: try again when that has changed.
    Conflict,
    /// Try again later, or ask for less.
    CapacityExhausted,
    /// Try again, perhaps elsewhere.
    Unavailable,
    /// The time the client gave is over.
    DeadlineExceeded,
    /// The client went away.
    Cancelled,
    /// The group failed after the first token was sent: start the request again.
    GroupLost,
    /// A fault of the service.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $tag:literal, $class:ident;)*) => {
        /// Why a request failed. The tag is stable: clients and metrics may use it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
            /// Stable snake_case tag.
            pub const fn tag(self) -> &'static str { match self { $(Self::$name => $tag,)* } }
            /// Class of the reason.
            pub const fn class(self) -> Class { match self { $(Self::$name => Class::$class,)* } }
        }
    };
}

reasons! {
    /// Neither text, chat nor token ids, or none of content.
    EmptyPrompt = "empty_prompt", InvalidRequest;
    /// A token id that the vocabulary does not have.
    TokenOutOfRange = "token_out_of_range", InvalidRequest;
    /// Prompt and answer together are longer than this service takes.
    TooLong = "too_long", InvalidRequest;
    /// A sampling value that is not a number or outside its range.
    BadSampling = "bad_sampling", InvalidRequest;
    /// Stop strings or token limits out of range.
    BadStopping = "bad_stopping", InvalidRequest;
    /// A guide of the answer that cannot be compiled, costs too much, or asks for what is not
    /// supported.
    BadGuide = "bad_guide", InvalidRequest;
    /// An answer that its guide does not let go on: it allows no token here, or has become too
    /// complex.
    GuideFailed = "guide_failed", InvalidRequest;
    /// A salt that is too long, or too many positions at which states are to be kept.
    BadReuse = "bad_reuse", InvalidRequest;
    /// A place between two texts, for a model without the tokens for it or beside what does not go
    /// with it.
    BadInfill = "bad_infill", InvalidRequest;
    /// An embedding by an unknown pooling, or with an answer beside it.
    BadEmbedding = "bad_embedding", InvalidRequest;
    /// No completion to be scored, too many, or one without a token.
    BadScore = "bad_score", InvalidRequest;
    /// A priority outside the range that clients may ask for.
    BadPriority = "bad_priority", InvalidRequest;
    /// A KV contract that cannot be kept: unknown policy, budget too small, parts that do not go
    /// together.
    BadContract = "bad_contract", InvalidRequest;
    /// A request id that cannot stand in logs and metadata.
    BadRequestId = "bad_request_id", InvalidRequest;
    /// The conversation cannot be rendered.
    BadChat = "bad_chat", InvalidRequest;
    /// A priority above what the client's API key may ask for.
    PriorityNotAllowed = "priority_not_allowed", InvalidRequest;
    /// The request would never fit, however long it waited.
    NeverFits = "never_fits", InvalidRequest;
    /// The answer could be, or has become, larger than what is held of one.
    AnswerTooLarge = "answer_too_large", InvalidRequest;
    /// A model that is not served here.
    UnknownModel = "unknown_model", NotFound;
    /// A field of a session that cannot be, or an input that its log does not take.
    BadSession = "bad_session", InvalidRequest;
    /// A request of a session under another KV contract than the session's.
    SessionContract = "session_contract", InvalidRequest;
    /// A session that is not there: never made, forgotten, or another tenant's.
    SessionUnknown = "session_unknown", NotFound;
    /// A session under this name is there already.
    SessionExists = "session_exists", Conflict;
    /// Another request works on the session.
    SessionBusy = "session_busy", Conflict;
    /// The session was made with another model than the one that is served.
    SessionModel = "session_model", Conflict;
    /// The session's record cannot be read.
    SessionDamaged = "session_damaged", Internal;
    /// As many sessions, or bytes of them, as may be.
    SessionLimit = "session_limit", CapacityExhausted;
    /// The place that keeps sessions did not do what was asked.
    StoreUnavailable = "store_unavailable", Unavailable;
    /// The queue of waiting requests is full.
    QueueFull = "queue_full", CapacityExhausted;
    /// The client's API key has as much under way as it may.
    KeyLimit = "key_limit", CapacityExhausted;
    /// The client's API key has sent as many requests in a minute as it may.
    RateLimited = "rate_limited", CapacityExhausted;
    /// Requests that are being read and tokenised hold all the memory that is set aside for them.
    IntakeFull = "intake_full", CapacityExhausted;
    /// The service is shutting down.
    Draining = "draining", Unavailable;
    /// No worker group is ready.
    NoReadyGroup = "no_ready_group", Unavailable;
    /// The deadline passed before the request started.
    DeadlineInQueue = "deadline_in_queue", DeadlineExceeded;
    /// The deadline passed while tokens were made.
    DeadlineInExecution = "deadline_in_execution", DeadlineExceeded;
    /// The client dropped the stream.
    ClientGone = "client_gone", Cancelled;
    /// The client did not read its stream for too long.
    SlowReader = "slow_reader", Cancelled;
    /// A rank failed before the first token.
    RankFailed = "rank_failed", Unavailable;
    /// A rank failed in mid-stream, or every group that ran the request was lost.
    GroupLost = "group_lost", GroupLost;
    /// A fault of the service; the log has the details under the request id.
    Internal = "internal", Internal;
}

impl Class {
    /// HTTP status of the class.
    pub const fn http(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::CapacityExhausted => 429,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
            Self::Cancelled => 499,
            Self::GroupLost => 502,
            Self::Internal => 500,
        }
    }
}

/// A classified failure of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{}]", .reason.tag())]
pub struct RequestError {
    /// Cause.
    pub reason: Reason,
    /// For the client: what is wrong and what to do. No prompt text.
    pub message: String,
    /// Path in a `GenerateRequest` of the field at fault, where one is: `kv.budget`.
    pub field: Option<&'static str>,
    /// When the same request may succeed, where that is known.
    pub retry_after: Option<Duration>,
}

impl RequestError {
    /// A failure for `reason` with a message for the client.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            field: None,
            retry_after: None,
        }
    }

    /// The failure, with the path of the field at fault.
    #[must_use]
    pub fn in_field(self, path: &'static str) -> Self {
        Self {
            field: Some(path),
            ..self
        }
    }

    /// The failure, with the time after which the same request may succeed.
    #[must_use]
    pub fn to_retry_after(self, time: Duration) -> Self {
        Self {
            retry_after: Some(time),
            ..self
        }
    }
}

/// Metadata key under which a status carries the reason's tag.
pub const REASON_KEY: &str = "palimpsest-reason";
