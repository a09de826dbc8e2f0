//! Small texts from outside; the first byte chooses the parser: key files, records of a registry,
//! server-sent events of another server, trace parents, contracts of a plan.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_coordinator::keys::ApiKeys;
use palimpsest_coordinator::trace;
use palimpsest_proto::contract::Contract;
use palimpsest_proto::v1::KvContract;
use palimpsest_registry::{GroupRecord, RankRecord};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    match choice % 6 {
        0 => drop(ApiKeys::parse(&text)),
        1 => drop(serde_json::from_slice::<RankRecord>(rest)),
        2 => drop(serde_json::from_slice::<GroupRecord>(rest)),
        3 => drop(trace::parent(Some(&text))),
        4 => {
            let mut events = palimpsest_load::sse::EventReader::default();
            for piece in rest.chunks(7) {
                if events.push(piece).is_err() {
                    return;
                }
            }
        }
        _ => {
            if let Ok(contract) = KvContract::decode(rest)
                && let Ok(contract) = Contract::try_from(&contract)
            {
                let wire = KvContract::from(&contract);
                assert_eq!(Contract::try_from(&wire), Ok(contract));
            }
        }
    }
});
