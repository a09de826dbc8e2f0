//! A `GenerateRequest` as bytes on the wire: decoded, checked, and answered to the end.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use palimpsest_fuzz::Fixture;
use palimpsest_proto::error::Reason;
use palimpsest_proto::v1::GenerateRequest;
use prost::Message;

thread_local! {
    static FIXTURE: RefCell<Fixture> = RefCell::new(Fixture::new());
}

fuzz_target!(|data: &[u8]| {
    let Ok(request) = GenerateRequest::decode(data) else {
        return;
    };
    FIXTURE.with_borrow_mut(|fixture| {
        fixture.forget();
        let service = fixture.coordinator.service().clone();
        fixture.runtime.block_on(async {
            match service.generate(request, None).await {
                Ok(mut answer) => while answer.next().await.is_some() {},
                Err(error) => assert_ne!(error.reason, Reason::Internal, "{}", error.message),
            }
        });
    });
});
