//! A `GenerateRequest`, a `ScoreRequest` or a `ModelInferRequest` as bytes on the wire: decoded,
//! checked, and answered to the end.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use palimpsest_coordinator::api::grpc::kserve;
use palimpsest_coordinator::service::Call;
use palimpsest_fuzz::Fixture;
use palimpsest_proto::error::Reason;
use palimpsest_proto::v1::{GenerateRequest, ScoreRequest};
use prost::Message;

thread_local! {
    static FIXTURE: RefCell<Fixture> = RefCell::new(Fixture::new());
}

fuzz_target!(|data: &[u8]| {
    let own = GenerateRequest::decode(data).ok();
    let of_kserve = kserve::read(data.to_vec().into()).ok();
    let of_kserve = of_kserve.map(|asked| asked.request);
    for request in own.into_iter().chain(of_kserve) {
        FIXTURE.with_borrow_mut(|fixture| answer(fixture, request));
    }
    if let Ok(request) = ScoreRequest::decode(data) {
        FIXTURE.with_borrow_mut(|fixture| score(fixture, request));
    }
});

fn score(fixture: &Fixture, request: ScoreRequest) {
    fixture.forget();
    let service = fixture.coordinator.service().clone();
    let call = Call::default();
    let scored = fixture.runtime.block_on(service.score(&call, request));
    if let Err(error) = scored {
        assert_ne!(error.reason, Reason::Internal, "{}", error.message);
    }
}

fn answer(fixture: &Fixture, request: GenerateRequest) {
    fixture.forget();
    let service = fixture.coordinator.service().clone();
    fixture.runtime.block_on(async {
        match service.generate(request, None).await {
            Ok(mut answer) => while answer.next().await.is_some() {},
            Err(error) => assert_ne!(error.reason, Reason::Internal, "{}", error.message),
        }
    });
}
