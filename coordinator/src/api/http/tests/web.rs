//! Browsers, proxies, and names: what is the same on every route.

use axum::http::{HeaderMap, Method};

use super::*;
use crate::origins::AllowedOrigins;

const PAGE: &str = "https://app.example";

fn with_page(config: Config) -> Config {
    Config {
        cors: AllowedOrigins::new([PAGE]).unwrap(),
        ..config
    }
}

/// A request that a page of `origin` makes.
fn of_page(method: Method, path: &str, origin: &str, body: &str) -> Request {
    let request = Request::builder().method(method).uri(path);
    let request = request.header(header::ORIGIN, origin);
    let request = request.header(header::CONTENT_TYPE, "application/json");
    request.body(Body::from(body.to_owned())).unwrap()
}

/// What a browser asks before a page may send JSON, or a key.
fn preflight(path: &str, origin: &str) -> Request {
    let mut request = of_page(Method::OPTIONS, path, origin, "");
    let headers = request.headers_mut();
    let asked = HeaderValue::from_static("authorization,content-type,x-stainless-os");
    headers.insert(
        header::ACCESS_CONTROL_REQUEST_METHOD,
        HeaderValue::from_static("POST"),
    );
    headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, asked);
    request
}

fn leave(headers: &HeaderMap) -> Option<&str> {
    let origin = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    origin.map(|origin| origin.to_str().unwrap())
}

#[tokio::test]
async fn a_page_that_has_leave_asks_and_reads_and_others_do_not() {
    let server = Server::start(with_page(Config::default())).await;
    let body = completion(json!({})).to_string();
    let asked = server.send(preflight("/v1/completions", PAGE)).await;
    assert_eq!(asked.status, StatusCode::OK);
    assert_eq!(leave(&asked.headers), Some(PAGE));
    let methods = asked.headers[header::ACCESS_CONTROL_ALLOW_METHODS]
        .to_str()
        .unwrap();
    assert!(
        methods.contains("POST") && methods.contains("DELETE"),
        "{methods}"
    );
    let headers = asked.headers[header::ACCESS_CONTROL_ALLOW_HEADERS]
        .to_str()
        .unwrap();
    assert_eq!(headers, "authorization,content-type,x-stainless-os");
    assert!(asked.headers.contains_key(REQUEST_ID));
    // No cookie of anybody is asked for.
    assert!(
        !asked
            .headers
            .contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS)
    );
    let taken = server
        .send(of_page(Method::POST, "/v1/completions", PAGE, &body))
        .await;
    assert_eq!(taken.status, StatusCode::OK, "{}", taken.json);
    assert_eq!(leave(&taken.headers), Some(PAGE));
    let exposed = taken.headers[header::ACCESS_CONTROL_EXPOSE_HEADERS]
        .to_str()
        .unwrap();
    assert!(
        exposed.contains("x-request-id") && exposed.contains("retry-after"),
        "{exposed}"
    );

    for other in ["https://evil.example", "https://app.example:8443", "null"] {
        let asked = server.send(preflight("/v1/completions", other)).await;
        assert_eq!(leave(&asked.headers), None, "{other}");
        let refused = of_page(Method::POST, "/v1/completions", other, &body);
        let refused = server.send(refused).await;
        assert_eq!(
            refused.json["error"]["code"], "origin_not_allowed",
            "{other}"
        );
        assert_eq!(leave(&refused.headers), None, "{other}");
    }
    // A name that has come to mean this machine is refused whatever page asks it.
    let mut rebound = of_page(Method::POST, "/v1/completions", PAGE, &body);
    let host = HeaderValue::from_static("app.example");
    rebound.headers_mut().insert(header::HOST, host);
    let rebound = server.send(rebound).await;
    assert_eq!(rebound.json["error"]["code"], "host_not_allowed");
}

#[tokio::test]
async fn a_page_with_leave_shows_a_key_where_others_do() {
    let server = Server::start(with_page(with_key(""))).await;
    let body = completion(json!({})).to_string();
    // Browsers send no key with the question whether they may send one.
    let asked = server.send(preflight("/v1/completions", PAGE)).await;
    assert_eq!(
        (asked.status, leave(&asked.headers)),
        (StatusCode::OK, Some(PAGE))
    );
    let refused = server
        .send(of_page(Method::POST, "/v1/completions", PAGE, &body))
        .await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    // The page reads why.
    assert_eq!(leave(&refused.headers), Some(PAGE));
    let taken = with_secret(of_page(Method::POST, "/v1/completions", PAGE, &body));
    assert_eq!(server.send(taken).await.status, StatusCode::OK);
    // Where keys are, whoever has one may ask; a page without leave does not read the answer.
    let other = "https://evil.example";
    let other = with_secret(of_page(Method::POST, "/v1/completions", other, &body));
    let other = server.send(other).await;
    assert_eq!(
        (other.status, leave(&other.headers)),
        (StatusCode::OK, None)
    );
}

#[tokio::test]
async fn browsers_hear_nothing_where_no_page_has_leave() {
    let server = Server::start(Config::default()).await;
    let asked = server
        .send(preflight("/v1/completions", "http://localhost:3000"))
        .await;
    assert_eq!(asked.status, StatusCode::NO_CONTENT);
    assert_eq!(leave(&asked.headers), None);
    assert!(
        !asked
            .headers
            .contains_key(header::ACCESS_CONTROL_ALLOW_METHODS)
    );
}

/// OPTIONS was answered 405.
#[tokio::test]
async fn every_route_says_which_methods_it_has_and_names_the_request() {
    let server = Server::start(Config::default()).await;
    for (path, methods) in [
        ("/v1/chat/completions", "POST"),
        ("/v1/completions", "POST"),
        ("/v1/messages", "POST"),
        ("/v1/messages/count_tokens", "POST"),
        ("/v1/responses", "POST"),
        ("/v1/responses/resp_x", "GET,HEAD,DELETE"),
        ("/v1/sessions", "GET,HEAD,POST"),
        ("/v1/models", "GET,HEAD"),
        ("/v1/models/fake", "GET,HEAD"),
        ("/tokenize", "POST"),
        ("/v1/score", "POST"),
        ("/health", "GET,HEAD"),
        ("/metrics", "GET,HEAD"),
        ("/openapi.json", "GET,HEAD"),
    ] {
        let ask = |method| Request::builder().method(method).uri(path);
        let options = ask(Method::OPTIONS).header(REQUEST_ID, "mine");
        let options = server.send(options.body(Body::empty()).unwrap()).await;
        assert_eq!(options.status, StatusCode::NO_CONTENT, "{path}");
        assert_eq!(options.headers[header::ALLOW], methods, "{path}");
        assert_eq!(options.headers[REQUEST_ID], "mine", "{path}");
        // What cannot be a name is replaced.
        let head = ask(Method::HEAD).header(REQUEST_ID, "not one");
        let head = server.send(head.body(Body::empty()).unwrap()).await;
        let found = methods.contains("HEAD") && path != "/v1/responses/resp_x";
        assert_eq!(head.status.is_success(), found, "{path}: {}", head.status);
        assert_eq!(head.json, Value::Null, "{path}");
        assert_eq!(head.headers[REQUEST_ID].len(), 32, "{path}");
    }
    let nowhere = server
        .send(Request::get("/nowhere").body(Body::empty()).unwrap())
        .await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    assert_eq!(nowhere.headers[REQUEST_ID].len(), 32);
}

/// The routes of processes that serve nobody yet, and of the port of probes.
#[tokio::test]
async fn probes_name_their_requests_too() {
    let server = Server::start(Config::default()).await;
    let probes = probes_router(server.service().clone());
    let nobody = AllowedOrigins::default();
    for mut router in [probes, waiting_router(&nobody)] {
        for path in ["/health", "/readyz", "/v1/models"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router.call(request).await.expect("it is infallible");
            assert_eq!(response.headers()[REQUEST_ID].len(), 32, "{path}");
        }
    }
    let request = Request::get("/v1/models").body(Body::empty()).unwrap();
    let refused = waiting_router(&nobody)
        .call(request)
        .await
        .expect("it is infallible");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
}

/// Pages were told of no leave until a group was there, so they could not show that none was.
#[tokio::test]
async fn a_page_reads_what_is_said_before_a_group_is_there() {
    let page = AllowedOrigins::new([PAGE]).unwrap();
    let mut router = waiting_router(&page);
    for (request, status) in [
        (of_page(Method::GET, "/health", PAGE, ""), 200),
        (of_page(Method::GET, "/readyz", PAGE, ""), 503),
        (of_page(Method::GET, "/version", PAGE, ""), 200),
        (of_page(Method::POST, "/v1/completions", PAGE, "{}"), 503),
        (preflight("/v1/completions", PAGE), 200),
    ] {
        let path = request.uri().clone();
        let response = router.call(request).await.expect("it is infallible");
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert_eq!(leave(response.headers()), Some(PAGE), "{path}");
    }
    let other = of_page(Method::GET, "/health", "https://evil.example", "");
    let other = router.call(other).await.expect("it is infallible");
    assert_eq!(leave(other.headers()), None);
    // Anthropic's clients read their own shape of it.
    let request = of_page(Method::POST, "/v1/messages", PAGE, "{}");
    let refused = router.call(request).await.expect("it is infallible");
    let body = to_bytes(refused.into_body(), usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["error"]["type"], "overloaded_error", "{body}");
}

/// The library refuses such a name by itself, in plain text.
#[tokio::test]
async fn a_name_that_is_no_text_is_refused_as_other_faults_are() {
    let server = Server::start(Config::default()).await;
    for (method, path) in [
        (Method::GET, "/v1/models/%ff"),
        (Method::GET, "/v1/sessions/%ff"),
        (Method::DELETE, "/v1/sessions/%ff"),
        (Method::POST, "/v1/sessions/%ff/append"),
        (Method::POST, "/v1/sessions/%ff/suspend"),
        (Method::GET, "/v1/responses/%ff"),
        (Method::GET, "/v1/responses/%ff/input_items"),
    ] {
        let request = Request::builder().method(method).uri(path);
        let refused = server.send(request.body(Body::from("{}")).unwrap()).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{path}");
        let error = &refused.json["error"];
        assert_eq!(error["code"], "invalid_path", "{path}: {}", refused.json);
    }
}

/// The bytes of an answer to a client that takes gzip, and its headers.
async fn zipped(server: &Server, mut request: Request) -> (HeaderMap, Bytes) {
    let gzip = HeaderValue::from_static("gzip, br");
    request.headers_mut().insert(header::ACCEPT_ENCODING, gzip);
    let mut router = server.router.clone();
    let response = router.call(request).await.expect("it is infallible");
    let (parts, body) = response.into_parts();
    (parts.headers, to_bytes(body, usize::MAX).await.unwrap())
}

#[tokio::test]
async fn whole_answers_are_compressed_for_those_who_take_gzip_and_streams_are_not() {
    let server = Server::start(Config::default()).await;
    let request = || Request::get("/openapi.json").body(Body::empty()).unwrap();
    let (headers, bytes) = zipped(&server, request()).await;
    assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
    assert_eq!(
        headers[header::CONTENT_LENGTH],
        bytes.len().to_string().as_str()
    );
    assert!(bytes.starts_with(&[0x1f, 0x8b]) && bytes.len() < OPENAPI.len() / 4);
    let plain = server.send(request()).await;
    assert!(!plain.headers.contains_key(header::CONTENT_ENCODING));
    assert_eq!(plain.json["info"]["title"], "Palimpsest");

    // An answer that is about as large as its request gives the request's room back.
    let text = json!({"prompt": "hello é\n".repeat(1000)}).to_string();
    let (headers, bytes) = zipped(&server, post_of("/tokenize", Body::from(text))).await;
    assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
    assert!(bytes.starts_with(&[0x1f, 0x8b]));
    assert_eq!(server.held(), 0);

    let long = json!({"max_tokens": 2000, "stream": true, "ignore_eos": true});
    let long = post_of("/v1/completions", Body::from(completion(long).to_string()));
    let (headers, bytes) = zipped(&server, long).await;
    assert!(!headers.contains_key(header::CONTENT_ENCODING));
    assert!(bytes.starts_with(b"data: {") && bytes.len() > 100_000);
    // Compression would make it longer, or nearly.
    let short = Request::get("/version").body(Body::empty()).unwrap();
    let (headers, bytes) = zipped(&server, short).await;
    assert!(!headers.contains_key(header::CONTENT_ENCODING) && bytes.starts_with(b"{"));
    // What is too long for one go is sent as it is.
    let text = json!({"prompt": "x".repeat(300_000)}).to_string();
    let (headers, _) = zipped(&server, post_of("/tokenize", Body::from(text))).await;
    assert!(!headers.contains_key(header::CONTENT_ENCODING));
}

#[tokio::test]
async fn a_model_is_found_under_all_its_names_and_answers_under_the_first() {
    let server = Server::start(Config {
        served_names: vec!["main".into(), "org/other".into()],
        ..Config::default()
    })
    .await;
    let get = |path: &str| server.send(Request::get(path).body(Body::empty()).unwrap());
    let list = get("/v1/models").await.json;
    let data = list["data"].as_array().unwrap().iter();
    let names: Vec<&Value> = data.map(|model| &model["id"]).collect();
    assert_eq!(names, ["main", "org/other"]);
    assert_eq!(get("/v1/models/org/other").await.json["id"], "org/other");
    let own = get("/v1/models/fake").await;
    assert_eq!(own.status, StatusCode::NOT_FOUND);
    assert_eq!(own.json["error"]["code"], "model_not_found");
    for name in ["main", "org/other", ""] {
        let body = completion(json!({"model": name}));
        let reply = server.post("/v1/completions", &body).await;
        assert_eq!(reply.json["model"], "main", "{}", reply.json);
    }
    let body = completion(json!({"model": "fake"}));
    let refused = server.post("/v1/completions", &body).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_key_may_stand_where_anthropics_clients_have_it() {
    let server = Server::start(with_key("")).await;
    let ask = |name: &'static str, value: &'static str| {
        let mut request = post_of(
            "/v1/completions",
            Body::from(completion(json!({})).to_string()),
        );
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
        server.send(request)
    };
    assert_eq!(ask("x-api-key", "secret").await.status, StatusCode::OK);
    assert_eq!(
        ask("x-api-key", "wrong").await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        ask("x-api-key", "Bearer secret").await.status,
        StatusCode::UNAUTHORIZED
    );
    // A key that is shown twice counts where all routes have it.
    let mut both = post_of(
        "/v1/completions",
        Body::from(completion(json!({})).to_string()),
    );
    let wrong = HeaderValue::from_static("Bearer wrong");
    both.headers_mut().insert(header::AUTHORIZATION, wrong);
    both.headers_mut()
        .insert("x-api-key", HeaderValue::from_static("secret"));
    assert_eq!(server.send(both).await.status, StatusCode::UNAUTHORIZED);
}
