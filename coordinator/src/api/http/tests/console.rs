//! The page for people, and the route that is made for it.

use axum::http::HeaderMap;

use super::*;
use crate::api::http::console::{FILES, PAGE};

/// Bytes of all files together.
const MOST_BYTES: usize = 200_000;

struct Page {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Server {
    async fn page(&self, request: Request) -> Page {
        let mut router = self.router.clone();
        let response = router.call(request).await.expect("it is infallible");
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        Page {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.into()).unwrap(),
        }
    }
}

fn get_of(path: &str) -> Request {
    Request::get(path).body(Body::empty()).unwrap()
}

/// A text between two others, wherever they stand.
fn between<'a>(text: &'a str, before: &'a str, behind: char) -> impl Iterator<Item = &'a str> {
    text.split(before)
        .skip(1)
        .filter_map(move |rest| rest.split(behind).next())
}

#[tokio::test]
async fn the_console_needs_no_key_and_what_it_asks_does() {
    let server = Server::start(with_key("")).await;
    let page = server.page(get_of("/console")).await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(
        page.headers[header::CONTENT_TYPE],
        "text/html; charset=utf-8"
    );
    let policy = page.headers[header::CONTENT_SECURITY_POLICY]
        .to_str()
        .unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    assert_eq!(page.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    for file in &FILES {
        let found = server
            .page(get_of(&format!("/console/{}", file.name)))
            .await;
        assert_eq!(
            (found.status, found.text.as_str()),
            (StatusCode::OK, file.text)
        );
        assert_eq!(found.headers[header::CONTENT_SECURITY_POLICY], policy);
    }
    let script = server.page(get_of("/console/app.js")).await;
    assert_eq!(
        script.headers[header::CONTENT_TYPE],
        "text/javascript; charset=utf-8"
    );
    for path in [
        "/console/nowhere.js",
        "/console/index.html",
        "/console/..%2fmain.rs",
    ] {
        assert_eq!(
            server.page(get_of(path)).await.status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    for path in ["/v1/group", "/v1/models", "/v1/sessions"] {
        let refused = server.page(get_of(path)).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// A key in an address would stand in histories and in the logs of proxies.
#[tokio::test]
async fn a_key_in_the_consoles_address_is_not_used_and_removed() {
    let server = Server::start(with_key("")).await;
    for path in [
        "/console?key=secret",
        "/console?api_key=secret&x",
        "/console?",
    ] {
        let moved = server.page(get_of(path)).await;
        assert_eq!(moved.status, StatusCode::SEE_OTHER, "{path}");
        assert_eq!(
            moved.headers[header::LOCATION],
            "console#address-cleaned",
            "{path}"
        );
    }
    let with_slash = server.page(get_of("/console/?key=secret")).await;
    assert_eq!(with_slash.headers[header::LOCATION], "../console");
    // Neither is it used by what the page asks.
    let refused = server.page(get_of("/v1/group?key=secret")).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let taken = server.page(with_secret(get_of("/v1/group"))).await;
    assert_eq!(taken.status, StatusCode::OK);
}

#[tokio::test]
async fn the_console_is_not_shown_under_the_name_of_another_host() {
    let server = Server::start(Config::default()).await;
    let asked = |host: &'static str| {
        let mut request = get_of("/console");
        let host = HeaderValue::from_static(host);
        request.headers_mut().insert(header::HOST, host);
        server.page(request)
    };
    assert_eq!(asked("localhost:8000").await.status, StatusCode::OK);
    let refused = asked("evil.example").await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(
        refused.text.contains("host_not_allowed"),
        "{}",
        refused.text
    );
}

#[tokio::test]
async fn a_server_without_a_console_has_none() {
    let server = Server::start(Config {
        console: false,
        ..Config::default()
    })
    .await;
    for path in ["/console", "/console/", "/console/app.js"] {
        assert_eq!(
            server.page(get_of(path)).await.status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert_eq!(
        server.page(get_of("/v1/group")).await.status,
        StatusCode::OK
    );
}

/// What the page loads is there, is small, and comes from its own origin. No text becomes markup.
#[test]
fn the_files_of_the_console_load_each_other_and_nothing_else() {
    let bytes: usize = FILES.iter().map(|file| file.text.len()).sum();
    let bytes = bytes + PAGE.text.len();
    assert!(bytes < MOST_BYTES, "{bytes}");
    let is_there = |name: &str| FILES.iter().any(|file| file.name == name);
    let links = between(PAGE.text, "href=\"", '"').chain(between(PAGE.text, "src=\"", '"'));
    let loaded: Vec<&str> = links.filter(|link| !link.starts_with('#')).collect();
    assert!(loaded.len() >= 4, "{loaded:?}");
    for link in loaded {
        let name = link
            .strip_prefix("console/")
            .unwrap_or("an address of another place");
        assert!(is_there(name), "{link}");
    }
    assert!(!PAGE.text.contains("style="));
    let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase());
    let handler = between(PAGE.text, " on", '=').find(|rest| is_word(rest));
    assert_eq!(handler, None);
    for file in FILES.iter().filter(|file| file.name.ends_with(".js")) {
        for import in between(file.text, "from \"", '"') {
            let name = import.strip_prefix("./").unwrap_or(import);
            assert!(is_there(name), "{} imports {import}", file.name);
        }
        for word in [
            "innerHTML",
            "outerHTML",
            "eval(",
            "document.write",
            "https://",
            "localStorage",
        ] {
            assert!(!file.text.contains(word), "{} has {word}", file.name);
        }
    }
    let style = FILES
        .iter()
        .find(|file| file.name == "console.css")
        .unwrap();
    assert!(!style.text.contains("url(") && !style.text.contains("@import"));
}

/// Every element that a script looks for by its name is in the page, once.
#[test]
fn scripts_name_elements_that_the_page_has() {
    let ids: Vec<&str> = between(PAGE.text, "id=\"", '"').collect();
    for file in FILES.iter().filter(|file| file.name.ends_with(".js")) {
        for name in between(file.text, "$(\"", '"') {
            let count = ids.iter().filter(|id| **id == name).count();
            assert_eq!(count, 1, "{}: {name}", file.name);
        }
    }
    // Each field has a label, and each label a field.
    for name in between(PAGE.text, "for=\"", '"') {
        assert!(ids.contains(&name), "{name}");
    }
}

#[tokio::test]
async fn the_group_is_told_with_its_ranks() {
    let server = Server::start(Config::default()).await;
    let group = server.page(get_of("/v1/group")).await.text;
    let group: Value = serde_json::from_str(&group).unwrap();
    assert_eq!(
        (&group["readiness"], &group["model"]),
        (&json!("ready"), &json!("fake"))
    );
    assert_eq!(group["ranks"].as_array().unwrap().len(), 1);
    assert_eq!(group["ranks"][0]["rank"], 0);
    assert_eq!(group["stride"], server.service().model.info.stride);
}
