//! Requests that a page in somebody's browser makes without being asked to, where no key tells them
//! from others. (Browsers cannot make gRPC's requests: those need HTTP/2 trailers and a content
//! type that no page may send to another site.)

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};

use super::error::HttpError;
use crate::hosts::AllowedHosts;
use crate::origins::AllowedOrigins;

/// Whom requests without a key may come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trusted<'a> {
    /// Hosts that are asked, and whose pages may ask.
    pub hosts: &'a AllowedHosts,
    /// Origins whose pages may ask and read the answers. They say nothing of the host that is
    /// asked: a name that was rebound is refused whatever page asks it.
    pub origins: &'a AllowedOrigins,
}

/// Refuses requests for another host's name, and from another site's pages.
///
/// # Errors
/// `host_not_allowed`, `origin_not_allowed`, `unsupported_content_type`.
pub(super) fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    trusted: Trusted<'_>,
) -> Result<(), HttpError> {
    let host = host(uri, headers, trusted.hosts)?;
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let page = origin.to_str().ok().and_then(|origin| origin.parse().ok());
    let is_ours = page.as_ref().and_then(Uri::authority).is_some_and(|page| {
        trusted.hosts.trust(page.host())
            || host.is_some_and(|host| host.as_str().eq_ignore_ascii_case(page.as_str()))
    });
    if !is_ours && !trusted.origins.allow(origin) {
        let message = "a page of another site may not ask: name its origin with --cors, or its \
                       host with --allowed-host, or give the service keys";
        return Err(refusal("origin_not_allowed", message));
    }
    // What a form can send, a browser sends without asking first.
    if *method == Method::POST && !is_json(headers) {
        let message = "send `content-type: application/json`, as pages must";
        return Err(HttpError::protocol(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_type",
            message,
        ));
    }
    Ok(())
}

/// The host that is asked, if the request says; no browser leaves it out.
fn host(
    uri: &Uri,
    headers: &HeaderMap,
    allowed: &AllowedHosts,
) -> Result<Option<Authority>, HttpError> {
    // HTTP/2 has it in the address; whoever sends both, must send the same in both.
    let named = headers.get_all(header::HOST).iter();
    let named = named.map(|host| host.to_str().ok().and_then(|host| host.parse().ok()));
    let mut found = None;
    for host in named.chain(uri.authority().cloned().map(Some)) {
        let is_served =
            |host: &Authority| !host.as_str().contains('@') && allowed.serve(host.host());
        let Some(host) = host.filter(is_served) else {
            let message = "the service is not known by this host: ask it by address or as \
                           localhost, name the host with --allowed-host, or give the service keys";
            return Err(refusal("host_not_allowed", message));
        };
        found = Some(host);
    }
    Ok(found)
}

fn refusal(code: &'static str, message: &str) -> HttpError {
    HttpError::protocol(StatusCode::FORBIDDEN, code, message)
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE);
    let given = given
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let kind = given.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of the refusal of a POST with these headers; empty where there is none.
    fn verdict(allowed: &[&str], lines: &[(&'static str, &'static str)]) -> &'static str {
        verdict_with(allowed, &[], lines)
    }

    fn verdict_with(
        hosts: &[&str],
        origins: &[&str],
        lines: &[(&'static str, &'static str)],
    ) -> &'static str {
        let hosts = AllowedHosts::new(hosts.iter().copied()).expect("names");
        let origins = AllowedOrigins::new(origins.iter().copied()).expect("origins");
        let trusted = Trusted {
            hosts: &hosts,
            origins: &origins,
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        let uri = Uri::from_static("/v1/completions");
        check(&Method::POST, &uri, &headers, trusted).map_or_else(|error| error.body.code, |()| "")
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

    /// Guards against DNS rebinding: the page's name has come to mean this machine.
    #[test]
    fn a_host_must_be_an_address_localhost_or_named() {
        for (host, code) in [
            ("127.0.0.1:8000", ""),
            ("[::1]:8000", ""),
            ("10.0.0.7", ""),
            ("localhost:8000", ""),
            ("LOCALHOST", ""),
            ("llm.example:443", ""),
            ("evil.example", "host_not_allowed"),
            ("evil.example:8000", "host_not_allowed"),
            ("localhost.evil.example", "host_not_allowed"),
            ("127.0.0.1.evil.example", "host_not_allowed"),
            ("evil.example@127.0.0.1", "host_not_allowed"),
            ("", "host_not_allowed"),
            ("a b", "host_not_allowed"),
        ] {
            assert_eq!(verdict(&["llm.example"], &[("host", host)]), code, "{host}");
        }
        // Old clients that send none are no browsers.
        assert_eq!(verdict(&[], &[]), "");
        assert_eq!(verdict(&["*"], &[("host", "evil.example")]), "");
        let both = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert_eq!(verdict(&[], &both), "host_not_allowed");
        let http2 = Uri::from_static("http://evil.example/v1/models");
        let trusted = Trusted {
            hosts: &AllowedHosts::default(),
            origins: &AllowedOrigins::default(),
        };
        let refused = check(&Method::GET, &http2, &HeaderMap::new(), trusted);
        assert_eq!(refused.expect_err("another host").status, 403);
    }

    /// Guards against posts from a page of another site.
    #[test]
    fn an_origin_must_be_the_host_itself_this_machine_or_named() {
        for (origin, code) in [
            ("http://10.0.0.7:8000", ""),
            ("http://localhost:3000", ""),
            ("http://127.0.0.1:3000", ""),
            ("https://llm.example", ""),
            ("http://10.0.0.7:9", "origin_not_allowed"),
            ("http://203.0.113.1", "origin_not_allowed"),
            ("https://evil.example", "origin_not_allowed"),
            ("null", "origin_not_allowed"),
            ("", "origin_not_allowed"),
        ] {
            let lines = [("host", "10.0.0.7:8000"), ("origin", origin), JSON];
            assert_eq!(verdict(&["llm.example"], &lines), code, "{origin}");
        }
    }

    /// Leave for an origin is leave for its pages alone: neither for another port, nor for a host
    /// that was rebound, nor for what forms send.
    #[test]
    fn an_origin_that_may_read_the_answers_may_ask() {
        let host = ("host", "10.0.0.7:8000");
        let origin = ("origin", "https://app.example");
        let ask = |lines: &[_]| verdict_with(&[], &["https://app.example"], lines);
        assert_eq!(ask(&[host, origin, JSON]), "");
        assert_eq!(verdict(&[], &[host, origin, JSON]), "origin_not_allowed");
        let other = ("origin", "https://app.example:8443");
        assert_eq!(ask(&[host, other, JSON]), "origin_not_allowed");
        assert_eq!(
            ask(&[("host", "app.example"), origin, JSON]),
            "host_not_allowed"
        );
        let form = ("content-type", "text/plain");
        assert_eq!(ask(&[host, origin, form]), "unsupported_content_type");
        let any = |lines: &[_]| verdict_with(&[], &["*"], lines);
        assert_eq!(any(&[host, other, JSON]), "");
        assert_eq!(
            any(&[("host", "evil.example"), other, JSON]),
            "host_not_allowed"
        );
    }

    #[test]
    fn a_page_must_send_what_no_form_can() {
        let host = ("host", "localhost:8000");
        let origin = ("origin", "http://localhost:8000");
        assert_eq!(verdict(&[], &[host, origin, JSON]), "");
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
        ] {
            let lines = [host, origin, ("content-type", kind)];
            assert_eq!(verdict(&[], &lines), "unsupported_content_type", "{kind}");
        }
        assert_eq!(verdict(&[], &[host, origin]), "unsupported_content_type");
        // Who is no page may send what curl does.
        let form = ("content-type", "application/x-www-form-urlencoded");
        assert_eq!(verdict(&[], &[host, form]), "");
    }
}
