//! Pages of other sites that may ask over HTTP and read the answers (CORS).

use axum::http::HeaderValue;
use axum::http::uri::Authority;

/// Origins of such pages: scheme, host and port, as browsers send them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedOrigins {
    any: bool,
    /// In lower case, without the port that the scheme implies.
    origins: Vec<String>,
}

/// A text that cannot be the origin of a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("give an origin such as https://app.example:8443, without user and path; `*` is any")]
pub struct BadOrigin;

impl AllowedOrigins {
    /// The named origins; any where `*` is among them.
    ///
    /// # Errors
    /// [`BadOrigin`].
    pub fn new<'a>(origins: impl IntoIterator<Item = &'a str>) -> Result<Self, BadOrigin> {
        let mut allowed = Self::default();
        for origin in origins {
            if origin == "*" {
                allowed.any = true;
            } else {
                allowed.origins.push(normal(origin)?);
            }
        }
        Ok(allowed)
    }

    /// Whether no page of another site may ask.
    pub const fn is_empty(&self) -> bool {
        !self.any && self.origins.is_empty()
    }

    /// Whether pages of all sites may ask.
    pub const fn is_any(&self) -> bool {
        self.any
    }

    /// Whether a page of this origin may ask.
    pub fn allow(&self, origin: &HeaderValue) -> bool {
        let named = |origin: &str| self.origins.iter().any(|allowed| allowed == origin);
        self.any || origin.to_str().is_ok_and(named)
    }
}

/// An origin as browsers write it.
fn normal(origin: &str) -> Result<String, BadOrigin> {
    let origin = origin.strip_suffix('/').unwrap_or(origin);
    let (scheme, rest) = origin.split_once("://").ok_or(BadOrigin)?;
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(is_scheme) {
        return Err(BadOrigin);
    }
    let authority: Authority = rest.parse().map_err(|_| BadOrigin)?;
    let has_port = rest.len() > authority.host().len();
    let is_origin = !authority.host().is_empty()
        && !rest.contains(['@', '*'])
        && has_port == authority.port_u16().is_some();
    if !is_origin {
        return Err(BadOrigin);
    }
    let (scheme, host) = (scheme.to_ascii_lowercase(), authority.host());
    let host = host.to_ascii_lowercase();
    let implied = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    Ok(
        match authority.port_u16().filter(|port| Some(*port) != implied) {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(named: &str, origin: &'static str) -> bool {
        let allowed = AllowedOrigins::new([named]).expect("an origin");
        allowed.allow(&HeaderValue::from_static(origin))
    }

    #[test]
    fn an_origin_is_scheme_host_and_port_and_nothing_like_it() {
        for named in ["https://app.example", "HTTPS://App.Example:443/"] {
            assert!(allow(named, "https://app.example"), "{named}");
        }
        assert!(allow("http://localhost:3000", "http://localhost:3000"));
        assert!(allow("http://[::1]:3000", "http://[::1]:3000"));
        assert!(allow("app://console", "app://console"));
        for other in [
            "http://app.example",
            "https://app.example:8443",
            "https://app.example.evil.example",
            "https://evil.example",
            "https://xapp.example",
            "null",
            "",
        ] {
            assert!(!allow("https://app.example", other), "{other}");
            assert!(allow("*", other), "{other}");
        }
        assert!(AllowedOrigins::default().is_empty());
        assert!(!AllowedOrigins::new(["*"]).expect("any").is_empty());
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for bad in [
            "",
            "null",
            "app.example",
            "https://",
            "https://app.example/console",
            "https://app.example?a",
            "https://user@app.example",
            "https://*.app.example",
            "https://app.example:",
            "https://app.example:99999",
            "1s://app.example",
            "https://a b",
        ] {
            assert_eq!(AllowedOrigins::new([bad]), Err(BadOrigin), "{bad:?}");
        }
    }
}
