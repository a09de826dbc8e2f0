//! What a key may ask for: `name=value` behind the digest of its line.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

/// Most requests in a minute that a line may name: their distance is 60 microseconds.
const MAX_PER_MINUTE: u32 = 1_000_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a key may ask for; `None`: what everybody may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyOptions {
    /// When the key is of no more use.
    pub expires: Option<SystemTime>,
    /// Requests that may be under way at once, waiting ones among them.
    pub max_requests: Option<u32>,
    /// Requests in a minute.
    pub max_per_minute: Option<u32>,
    /// Tokens of prompts and answers that all of them together may reserve.
    pub max_tokens: Option<u64>,
    /// Largest priority of a request.
    pub max_priority: Option<i32>,
}

/// What is wrong with an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    /// One that is not known, or has no value.
    #[error(
        "an option is expires=YYYY-MM-DD, max-requests=N, max-requests-per-minute=N, max-tokens=N \
         or max-priority=N, and `{0}` is none of them"
    )]
    Unknown(String),
    /// A value that it cannot have.
    #[error("{name} is {kind}")]
    Value {
        /// Name of the option.
        name: &'static str,
        /// What its value should be.
        kind: &'static str,
    },
    /// One that stands there twice.
    #[error("{0} stands there twice")]
    Twice(&'static str),
}

impl KeyOptions {
    /// Reads what stands behind a digest.
    ///
    /// # Errors
    /// [`BadOption`], the first one.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, BadOption> {
        let mut options = Self::default();
        for word in words {
            let unknown = || BadOption::Unknown(word.chars().take(32).collect());
            let (name, value) = word.split_once('=').ok_or_else(unknown)?;
            match name {
                "expires" => {
                    let kind = "the last day on which the key is valid, in UTC: YYYY-MM-DD";
                    put("expires", kind, end_of_day(value), &mut options.expires)?;
                }
                "max-requests" => {
                    let kind = "a number of requests from 1 on";
                    let number = value.parse().ok().filter(|&number| number > 0);
                    put("max-requests", kind, number, &mut options.max_requests)?;
                }
                "max-requests-per-minute" => {
                    let name = "max-requests-per-minute";
                    let kind = "a number of requests from 1 to 1000000";
                    let number = value.parse().ok();
                    let number = number.filter(|number| (1..=MAX_PER_MINUTE).contains(number));
                    put(name, kind, number, &mut options.max_per_minute)?;
                }
                "max-tokens" => {
                    let kind = "a number of tokens from 1 on";
                    let number = value.parse().ok().filter(|&number| number > 0);
                    put("max-tokens", kind, number, &mut options.max_tokens)?;
                }
                "max-priority" => {
                    let (kind, number) = ("a whole number", value.parse().ok());
                    put("max-priority", kind, number, &mut options.max_priority)?;
                }
                _ => return Err(unknown()),
            }
        }
        Ok(options)
    }
}

fn put<T>(
    name: &'static str,
    kind: &'static str,
    value: Option<T>,
    place: &mut Option<T>,
) -> Result<(), BadOption> {
    let value = value.ok_or(BadOption::Value { name, kind })?;
    if place.replace(value).is_some() {
        return Err(BadOption::Twice(name));
    }
    Ok(())
}

/// The first moment after a day (RFC 3339, `full-date`), in UTC.
fn end_of_day(date: &str) -> Option<SystemTime> {
    let is_date = date.len() == 10
        && date.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    if !is_date {
        return None;
    }
    let midnight = Timestamp::from_str(&format!("{date}T00:00:00Z")).ok()?;
    let midnight = Duration::from_secs(u64::try_from(midnight.seconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(midnight + DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KeyOptions, BadOption> {
        KeyOptions::parse(text.split_whitespace())
    }

    #[test]
    fn options_are_read_in_any_order() {
        assert_eq!(parse(""), Ok(KeyOptions::default()));
        let read = parse(
            "max-priority=-3 max-tokens=5000 expires=2001-09-09 max-requests-per-minute=90 \
             max-requests=4",
        );
        // `date --date=2001-09-10T00:00Z +%s`
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_080_000);
        assert_eq!(
            read,
            Ok(KeyOptions {
                expires: Some(expires),
                max_requests: Some(4),
                max_per_minute: Some(90),
                max_tokens: Some(5000),
                max_priority: Some(-3),
            })
        );
        parse("expires=2028-02-29").expect("a leap day");
    }

    #[test]
    fn what_is_no_option_is_named() {
        for bad in ["x=1", "expires", "Expires=2027-01-01", "max-requests"] {
            assert!(matches!(parse(bad), Err(BadOption::Unknown(_))), "{bad}");
        }
        for (bad, name) in [
            ("expires=2027-02-29", "expires"),
            ("expires=2027-1-01", "expires"),
            ("expires=2027-01-01T00:00:00Z", "expires"),
            ("expires=tomorrow", "expires"),
            ("max-requests=0", "max-requests"),
            ("max-requests=-1", "max-requests"),
            ("max-requests-per-minute=0", "max-requests-per-minute"),
            ("max-requests-per-minute=1000001", "max-requests-per-minute"),
            ("max-tokens=many", "max-tokens"),
            ("max-priority=2147483648", "max-priority"),
        ] {
            let found = parse(bad).expect_err(bad);
            assert!(
                matches!(found, BadOption::Value { name: found, .. } if found == name),
                "{bad}: {found}"
            );
        }
        let twice = parse("max-tokens=1 max-tokens=2");
        assert_eq!(twice, Err(BadOption::Twice("max-tokens")));
    }
}
