//! Names under which a service without keys may be called.
//!
//! A page in a browser on this machine can reach what listens on loopback. By DNS rebinding its own
//! name comes to mean 127.0.0.1, and then the browser takes the service for a part of that site;
//! but the name stays in each request. An address cannot be rebound, and neither can `localhost`.

use std::net::IpAddr;

/// Names beside addresses and `localhost`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    any: bool,
    /// In lower case, without a port.
    names: Vec<String>,
}

/// A name that cannot be one of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("give a host's name alone, such as llm.example, without scheme, port and path; `*` is any")]
pub struct BadHost;

impl AllowedHosts {
    /// The named hosts; any where `*` is among them.
    ///
    /// # Errors
    /// [`BadHost`].
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, BadHost> {
        let mut allowed = Self::default();
        for name in names {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            match name {
                "*" => allowed.any = true,
                _ if !name.is_empty() && name.chars().all(is_name) => {
                    allowed.names.push(name.to_ascii_lowercase());
                }
                _ => return Err(BadHost),
            }
        }
        Ok(allowed)
    }

    /// Whether a request may be for `host`, which has no port.
    pub fn serve(&self, host: &str) -> bool {
        self.any || is_local_name(host) || address(host).is_some() || self.names(host)
    }

    /// Whether a page of `host` may ask, whatever host it asks.
    pub fn trust(&self, host: &str) -> bool {
        let is_loopback = address(host).is_some_and(|address| address.is_loopback());
        self.any || is_local_name(host) || is_loopback || self.names(host)
    }

    fn names(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.names
            .iter()
            .any(|name| name.eq_ignore_ascii_case(host))
    }
}

fn is_local_name(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// The address that a host is, in brackets where it is one of IPv6.
fn address(host: &str) -> Option<IpAddr> {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_what_was_named_are_served() {
        let allowed = AllowedHosts::new(["llm.example"]).expect("a name");
        for host in [
            "127.0.0.1",
            "10.1.2.3",
            "[::1]",
            "[2001:db8::1]",
            "localhost",
            "LocalHost",
            "llm.example",
            "LLM.example.",
        ] {
            assert!(allowed.serve(host), "{host}");
        }
        for host in [
            "evil.example",
            "xllm.example",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil",
        ] {
            assert!(!allowed.serve(host), "{host}");
        }
        assert!(AllowedHosts::new(["*"]).expect("any").serve("evil.example"));
        // An address is no page's own because it is one.
        assert!(!allowed.trust("10.1.2.3") && allowed.trust("127.0.0.1"));
        assert!(allowed.trust("[::1]") && allowed.trust("llm.example"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "http://a", "a:80", "a/b", "*.a", "a b"] {
            assert_eq!(AllowedHosts::new([bad]), Err(BadHost), "{bad:?}");
        }
    }
}
