//! A request of the HTTP API: the first byte chooses the route, the rest is the body.
#![no_main]

use std::cell::RefCell;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use palimpsest_coordinator::api::http::{HttpLimits, router};
use palimpsest_fuzz::Fixture;
use tower_service::Service;

const ROUTES: [&str; 7] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/score",
    "/v1/embeddings",
];

thread_local! {
    static FIXTURE: RefCell<Fixture> = RefCell::new(Fixture::new());
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, body)) = data.split_first() else {
        return;
    };
    FIXTURE.with_borrow_mut(|fixture| {
        fixture.forget();
        let service = fixture.coordinator.service().clone();
        let mut router = router(service, HttpLimits::default());
        let request = Request::post(ROUTES[usize::from(choice) % ROUTES.len()])
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_vec()))
            .expect("a request");
        fixture.runtime.block_on(async {
            let response = router
                .call(request)
                .await
                .expect("the router always answers");
            assert_ne!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            response.into_body().collect().await.expect("a whole body");
        });
    });
});
