//! Errors as gRPC carries them: a class is a code, a reason is metadata.

use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::error::{Class, REASON_KEY, RequestError};

/// Time after which a full queue is worth another try.
const USUAL_PAUSE: Duration = Duration::from_secs(1);

impl Class {
    /// gRPC code of the class.
    pub const fn code(self) -> Code {
        match self {
            Self::InvalidRequest => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Conflict => Code::Aborted,
            Self::CapacityExhausted => Code::ResourceExhausted,
            Self::Unavailable => Code::Unavailable,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::GroupLost => Code::Aborted,
            Self::Internal => Code::Internal,
        }
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let mut status = Self::new(error.reason.class().code(), error.message);
        status
            .metadata_mut()
            .insert(REASON_KEY, MetadataValue::from_static(error.reason.tag()));
        if error.reason.class() == Class::CapacityExhausted {
            // Milliseconds, as gRPC retry policies read it.
            let pause = error.retry_after.unwrap_or(USUAL_PAUSE).as_millis();
            let pause = u64::try_from(pause).unwrap_or(u64::MAX);
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", pause.into());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn every_reason_has_its_own_tag_and_carries_it() {
        let mut tags: Vec<_> = Reason::ALL.iter().map(|r| r.tag()).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), Reason::ALL.len());
        for &reason in Reason::ALL {
            let status = Status::from(RequestError::new(reason, "text"));
            assert_eq!(status.code(), reason.class().code());
            assert_eq!(
                status.metadata().get(REASON_KEY).map(|v| v.as_bytes()),
                Some(reason.tag().as_bytes())
            );
        }
    }

    #[test]
    fn a_client_is_told_when_to_try_again() {
        let pause = |error: RequestError| {
            let status = Status::from(error);
            let value = status.metadata().get("grpc-retry-pushback-ms").cloned();
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        let full = RequestError::new(Reason::QueueFull, "text");
        assert_eq!(pause(full.clone()).as_deref(), Some("1000"));
        let later = full.to_retry_after(Duration::from_millis(2500));
        assert_eq!(pause(later).as_deref(), Some("2500"));
        assert_eq!(pause(RequestError::new(Reason::TooLong, "text")), None);
    }
}
