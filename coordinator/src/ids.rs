//! Identifiers, as types of their own so that they cannot be mixed up.

use std::fmt;

/// A sequence on a worker group; never used twice in the life of a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// One incarnation of a worker group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Name of a request in logs and metadata: chosen by the client or drawn here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// Longest id that a client may choose, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// The client's id, if it is printable ASCII of at most [`Self::MAX_BYTES`] bytes; a random one
    /// for the empty string.
    pub fn parse(id: &str) -> Option<Self> {
        if id.is_empty() {
            return Some(Self(format!("{:032x}", rand::random::<u128>())));
        }
        let valid = id.len() <= Self::MAX_BYTES && id.bytes().all(|b| b.is_ascii_graphic());
        valid.then(|| Self(id.to_owned()))
    }

    /// The id of one of several choices of a request whose id is `request`. The beginning of a long
    /// id is kept, so that it stays one.
    pub fn of_choice(request: &str, index: usize) -> String {
        let end = format!("-{index}");
        let most = Self::MAX_BYTES - end.len();
        let kept = request.char_indices().map(|(at, c)| at + c.len_utf8());
        let kept = kept.take_while(|end| *end <= most).last().unwrap_or(0);
        format!("{}{end}", &request[..kept])
    }

    /// The id as text: printable ASCII.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's id of 128 characters with two choices was answered 400.
    #[test]
    fn a_choice_of_a_request_with_a_long_id_has_one_too() {
        assert_eq!(RequestId::of_choice("job", 3), "job-3");
        for bytes in [126, 127, 128] {
            let ids = [0, 15].map(|index| RequestId::of_choice(&"x".repeat(bytes), index));
            assert!(
                ids.iter().all(|id| RequestId::parse(id).is_some()),
                "{ids:?}"
            );
            assert_ne!(ids[0], ids[1]);
        }
    }

    #[test]
    fn ids_are_printable_and_bounded() {
        assert_eq!(RequestId::parse("job-7").unwrap().as_str(), "job-7");
        assert_ne!(RequestId::parse("").unwrap(), RequestId::parse("").unwrap());
        for bad in ["a b", "line\nbreak", "é", &"x".repeat(129)] {
            assert_eq!(RequestId::parse(bad), None);
        }
    }
}
