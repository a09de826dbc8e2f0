//! The sequence by which a group shows that it serves.

use palimpsest_proto::contract::NO_MEMORY;
use palimpsest_proto::internal::v1::SequenceInit;
use palimpsest_proto::v1::Sampling;

use crate::flow::Flow;
use crate::ids::SequenceId;
use crate::model::{self, ServedModel};
use crate::scheduler::{Arrival, Cost, Priority};

/// Whether the first step of a group can run at all: without room for it the driver would wait for
/// ever.
///
/// # Errors
/// [`model::Error::DefaultNeverFits`].
pub fn check_room(model: &ServedModel) -> Result<(), model::Error> {
    let needed = arrival(model).cost;
    if needed.fits(&model.room) {
        return Ok(());
    }
    let contract = &model.default_contract;
    let memory = contract.memory();
    Err(model::Error::DefaultNeverFits {
        budget: contract.budget().unwrap_or(0),
        policy: contract.policy().to_owned(),
        memory: memory
            .map_or(NO_MEMORY, |memory| memory.name.as_str())
            .to_owned(),
        needed,
        room: model.room,
    })
}

/// One token under the default contract: touches every kernel, and fits any arena that serves at
/// all.
pub(super) fn arrival(model: &ServedModel) -> Arrival {
    let contract = &model.default_contract;
    let token = model
        .info
        .eos_ids
        .first()
        .copied()
        .filter(|&id| u64::from(id) < model.info.vocabulary)
        .unwrap_or(0);
    let sampling = Sampling {
        temperature: Some(0.0),
        top_p: Some(1.0),
        repetition_penalty: Some(1.0),
        seed: Some(0),
        ..Default::default()
    };
    Arrival {
        id: SequenceId(0),
        priority: Priority::WARM_UP,
        flow: Flow::Local,
        prompt: [token].into(),
        max_new_tokens: 1,
        stop_ids: [].into(),
        cost: Cost::of(contract, &model.geometry, 2),
        init: SequenceInit {
            kv: Some(contract.into()),
            sampling: Some(sampling),
            max_tokens: 2,
            prompt_tokens: 1,
            ..Default::default()
        },
        retention_report: false,
        map_every: 0,
        reuse: None,
    }
}
