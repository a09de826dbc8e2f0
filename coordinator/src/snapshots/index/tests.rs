//! The index against plain rules, and against random histories.

use palimpsest_proto::contract::Contract;
use palimpsest_proto::internal::v1::SnapshotReport;
use proptest::prelude::*;

use super::super::chain::{Root, Salt};
use super::*;

const STRIDE: u64 = 2;

fn chain(tokens: &[u32]) -> Chain {
    let root = Root {
        model: b"",
        contract: &Contract::Full,
        stride: STRIDE,
        salt: Salt::default(),
    };
    Chain::of(&root, tokens)
}

/// Chains of different first tokens share nothing.
fn long(first: u32) -> Chain {
    chain(&[first; 40])
}

fn keep(chain: &Chain, position: u64, bytes: u64) -> Keep {
    Keep {
        name: chain.at(position).expect("a boundary"),
        position,
        bytes,
        after: None,
    }
}

fn index(memory: u64, store: u64) -> Index {
    Index::new(Room { memory, store }, 2)
}

fn said(name: Name, event: Event, error: &str) -> SnapshotReport {
    SnapshotReport {
        name: name.bytes(),
        event: event.into(),
        bytes: 10,
        error: error.into(),
        waited: error == WAITED,
    }
}

/// What a rank says that has not tried.
const WAITED: &str = "waited";

fn dropped(index: &mut Index) -> usize {
    index.orders().map_or(0, |orders| orders.drop.len())
}

#[test]
fn the_first_orders_of_an_epoch_ask_for_a_list() {
    let mut index = index(100, 0);
    assert!(index.orders().expect("orders").list);
    assert_eq!(index.orders(), None);
    index.begin_epoch();
    assert!(index.orders().expect("orders").list);
    assert_eq!(Index::new(Room::default(), 1).orders(), None, "it is off");
}

#[test]
fn the_longest_kept_prefix_is_found() {
    let mut index = index(100, 0);
    let a = long(1);
    index.kept(keep(&a, 4, 10));
    index.kept(keep(&a, 8, 10));
    let found = |most| index.in_memory(&a, most).map(|found| found.position);
    assert_eq!(found(99), Some(8));
    assert_eq!(found(7), Some(4));
    assert_eq!(found(3), None);
    assert_eq!(index.in_memory(&long(2), 99), None);
    assert_eq!(index.in_store(&a, 99), None);
}

#[test]
fn what_costs_least_to_read_again_goes_first() {
    let mut index = index(30, 0);
    let (short, deep) = (long(1), long(2));
    index.kept(keep(&deep, 30, 10));
    // It comes 2 tokens after one that is kept: that is all that would be read again.
    index.kept(Keep {
        after: index.in_memory(&deep, 30),
        ..keep(&deep, 32, 10)
    });
    index.kept(keep(&short, 4, 10));
    index.orders();
    assert!(index.make_room(long(3).at(2).expect("a name"), 10));
    assert!(index.in_memory(&short, 99).is_some());
    assert_eq!(
        index.in_memory(&deep, 99).map(|found| found.position),
        Some(30)
    );
    assert_eq!(dropped(&mut index), 1);
}

#[test]
fn what_is_used_no_more_goes_in_the_end() {
    let mut index = index(20, 0);
    let old = long(0);
    index.kept(keep(&old, 20, 10));
    for first in 1..40 {
        index.kept(keep(&long(first), 4, 10));
    }
    assert_eq!(index.in_memory(&old, 99), None);
}

#[test]
fn a_long_conversation_keeps_a_few_states_that_lie_apart() {
    let mut index = index(1000, 0);
    let text = chain(&[1; 400]);
    let mut after = None;
    for turn in 0..100 {
        // A long document first, then short turns.
        let position = 200 + turn * STRIDE;
        let keep = Keep {
            after,
            ..keep(&text, position, 10)
        };
        index.kept(keep);
        after = index.in_memory(&text, position);
        index.begin_with(after.expect("kept"));
        index.begun(keep.name);
        index.orders();
    }
    assert_eq!(index.held().in_memory, STATES_OF_A_TEXT as u64);
    let has = |position| index.in_memory(&text, position).map(|found| found.position);
    assert_eq!(has(398), Some(398), "the newest");
    assert_eq!(has(200), Some(200), "the document");
}

#[test]
fn what_two_have_begun_with_is_no_part_of_one_conversation() {
    let mut index = index(1000, 0);
    let text = chain(&[1; 400]);
    let mut after = None;
    for turn in 1..50 {
        let keep = Keep {
            after,
            ..keep(&text, turn * STRIDE, 10)
        };
        index.kept(keep);
        after = index.in_memory(&text, keep.position);
        for _ in 0..2 {
            index.begin_with(after.expect("kept"));
            index.begun(keep.name);
        }
        index.orders();
    }
    assert_eq!(index.held().in_memory, 49);
}

#[test]
fn what_the_present_plan_begins_with_stays() {
    let mut index = index(10, 0);
    let a = long(1);
    index.kept(keep(&a, 4, 10));
    index.orders();
    index.begin_with(index.in_memory(&a, 99).expect("kept"));
    let other = long(2).at(2).expect("a name");
    index.orders();
    assert!(
        !index.make_room(other, 10),
        "its sequence had no room in the last plan"
    );
    index.begun(a.at(4).expect("a name"));
    assert!(!index.make_room(other, 10), "it is in this one");
    index.orders();
    assert!(index.make_room(other, 10), "the plan has been made");
    assert!(
        !index.make_room(long(3).at(2).expect("a name"), 10),
        "the room is taken"
    );
    assert!(
        !index.make_room(long(3).at(2).expect("a name"), 11),
        "it never fits"
    );
}

#[test]
fn a_rank_that_did_not_keep_it_leaves_it_nowhere() {
    let mut index = index(10, 0);
    index.orders();
    index.kept(keep(&long(1), 4, 0));
    assert_eq!(index.in_memory(&long(1), 99), None);
    assert_eq!(dropped(&mut index), 1);
}

#[test]
fn something_is_done_when_every_rank_has_done_it() {
    let mut index = index(100, 100);
    let a = long(1);
    let name = a.at(4).expect("a name");
    assert!(!index.want(name, Want::Store), "it is nowhere");
    index.kept(keep(&a, 4, 10));
    assert!(index.want(name, Want::Store));
    assert!(!index.want(name, Want::Store), "it is under way");
    index.report(&[said(name, Event::Stored, "")]);
    assert!(index.has_pending() && index.in_store(&a, 99).is_none());
    index.report(&[said(name, Event::Stored, "")]);
    assert!(!index.has_pending() && index.in_store(&a, 99).is_some());
    let ended = index.take_ended();
    assert_eq!((ended.len(), &ended[0].fate), (1, &Fate::Done));
}

#[test]
fn what_cannot_be_read_is_not_asked_for_again_until_it_is_written_anew() {
    let mut index = index(100, 100);
    let a = long(1);
    let name = a.at(4).expect("a name");
    index.report(&[
        said(name, Event::InStore, ""),
        said(name, Event::InStore, ""),
    ]);
    index.orders();
    assert!(index.want(name, Want::Fetch));
    index.report(&[said(name, Event::Fetched, "slow")]);
    assert!(index.has_pending(), "the other rank has not answered");
    index.report(&[said(name, Event::Fetched, "")]);
    assert!(!index.has_pending());
    assert_eq!(index.in_memory(&a, 99), None);
    assert_eq!(index.in_store(&a, 99), None, "nobody asks for it again");
    assert!(!index.want(name, Want::Fetch));
    let orders = index.orders().expect("orders");
    assert_eq!(
        (orders.drop.len(), orders.erase.len()),
        (1, 0),
        "it may be whole"
    );
    assert_eq!(index.take_ended()[0].fate, Fate::Failed("slow".into()));

    index.kept(keep(&a, 4, 10));
    assert!(index.want(name, Want::Store));
    for _ in 0..2 {
        index.report(&[said(name, Event::Stored, "")]);
    }
    assert!(index.in_store(&a, 99).is_some());
}

#[test]
fn what_a_rank_has_not_tried_is_asked_for_again() {
    let mut index = index(100, 100);
    let a = long(1);
    let name = a.at(4).expect("a name");
    index.report(&[
        said(name, Event::InStore, ""),
        said(name, Event::InStore, ""),
    ]);
    index.orders();
    assert!(index.want(name, Want::Fetch));
    index.report(&[said(name, Event::Fetched, WAITED)]);
    index.report(&[said(name, Event::Fetched, "")]);
    assert_eq!(index.in_memory(&a, 99), None);
    assert!(
        index.in_store(&a, 99).is_some(),
        "what is there may well be good"
    );
    assert!(index.want(name, Want::Fetch));
}

#[test]
fn what_comes_too_late_is_dropped() {
    let mut index = index(100, 100);
    let name = long(1).at(4).expect("a name");
    index.orders();
    index.report(&[said(name, Event::Fetched, "")]);
    assert_eq!(dropped(&mut index), 1);
}

#[test]
fn nothing_goes_for_what_never_fits() {
    let mut index = index(30, 15);
    let (a, b) = (long(1), long(2));
    index.kept(keep(&a, 4, 10));
    index.kept(keep(&b, 4, 20));
    assert!(index.want(a.at(4).expect("a name"), Want::Store));
    for _ in 0..2 {
        index.report(&[said(a.at(4).expect("a name"), Event::Stored, "")]);
    }
    assert!(
        !index.want(b.at(4).expect("a name"), Want::Store),
        "20 bytes in 15"
    );
    assert!(index.in_store(&a, 99).is_some());
    assert!(!index.make_room(long(3).at(2).expect("a name"), 31));
    assert_eq!(index.held().in_memory, 2);
}

#[test]
fn only_what_every_rank_lists_is_there() {
    let mut index = index(100, 100);
    let (a, b) = (long(1), long(2));
    let [at_a, at_b] = [&a, &b].map(|chain| chain.at(4).expect("a name"));
    index.orders();
    index.report(&[
        said(at_a, Event::InMemory, ""),
        said(at_b, Event::InMemory, ""),
        said(at_a, Event::InMemory, ""),
    ]);
    assert!(index.in_memory(&a, 99).is_some() && index.in_memory(&b, 99).is_none());
    assert_eq!(dropped(&mut index), 1);
}

#[test]
fn files_that_only_some_ranks_have_are_removed() {
    let mut index = index(100, 100);
    let name = long(1).at(4).expect("a name");
    index.doom(name);
    index.orders();
    index.report(&[said(name, Event::InStore, "")]);
    assert_eq!(index.take_erased(), [], "one rank still has its file");
    assert_eq!(index.orders().expect("orders").erase, [name.bytes()]);
    for _ in 0..2 {
        assert_eq!(index.take_erased(), []);
        index.report(&[said(name, Event::Erased, "")]);
    }
    assert_eq!(index.take_erased(), [Erased { name, error: None }]);
}

#[test]
fn nothing_counts_as_gone_while_a_rank_cannot_look() {
    let mut index = index(100, 100);
    let [lost, other] = [1, 2].map(|first| long(first).at(4).expect("a name"));
    let unlisted = SnapshotReport {
        name: bytes::Bytes::new(),
        ..said(lost, Event::NotListed, "the disk is gone")
    };
    index.doom(lost);
    index.orders();
    index.report(&[said(other, Event::InStore, ""), unlisted]);
    index.report(&[]);
    assert!(index.may_be_kept(lost) && index.may_be_kept(other));
    assert_eq!(index.take_erased(), []);
    assert_eq!(index.orders(), None, "the other rank keeps its file");
    // The next group may see more.
    index.begin_epoch();
    index.orders();
    index.report(&[]);
    assert_eq!(index.take_erased().len(), 1);
}

#[test]
fn a_lost_group_ends_what_was_under_way() {
    let mut index = index(100, 100);
    let a = long(1);
    index.kept(keep(&a, 4, 10));
    assert!(index.want(a.at(4).expect("a name"), Want::Store));
    index.begin_epoch();
    assert!(matches!(&index.take_ended()[0].fate, Fate::Failed(_)));
    assert!(!index.has_pending() && index.in_memory(&a, 99).is_none());
}

/// An index with a state in both tiers, and its name.
fn in_both_tiers() -> (Index, Chain, Name) {
    let mut index = index(100, 100);
    let a = long(1);
    let name = a.at(4).expect("a name");
    index.orders();
    index.report(&[]);
    index.kept(keep(&a, 4, 10));
    index.want(name, Want::Store);
    index.orders();
    for _ in 0..2 {
        index.report(&[said(name, Event::Stored, "")]);
    }
    (index, a, name)
}

#[test]
fn what_is_doomed_is_gone_when_every_rank_says_so() {
    let (mut index, a, name) = in_both_tiers();
    for _ in 0..3 {
        // However many have begun with it.
        index.begin_with(index.in_memory(&a, 99).expect("kept"));
        index.begun(name);
        index.orders();
    }
    index.doom(name);
    assert!(index.has_pending(), "an idle group is told as well");
    assert_eq!(index.in_memory(&a, 99), None, "nobody begins with it");
    assert_eq!(index.in_store(&a, 99), None);
    assert!(!index.want(name, Want::Store));
    let orders = index.orders().expect("orders");
    assert_eq!((orders.drop.len(), orders.erase.len()), (1, 1));
    index.report(&[said(name, Event::Erased, "")]);
    assert_eq!(index.take_erased(), []);
    index.report(&[said(name, Event::Erased, "")]);
    let gone = Erased { name, error: None };
    assert_eq!(index.take_erased(), [gone]);
    assert!(!index.has_pending());
    assert_eq!(index.held(), Held::default());
}

#[test]
fn what_a_sequence_is_to_begin_with_goes_when_it_has() {
    let (mut index, a, name) = in_both_tiers();
    index.begin_with(index.in_memory(&a, 99).expect("kept"));
    index.doom(name);
    let orders = index.orders().expect("orders");
    assert_eq!((orders.drop.len(), orders.erase.len()), (0, 1));
    for _ in 0..2 {
        index.report(&[said(name, Event::Erased, "")]);
    }
    assert_eq!(index.take_erased(), [], "it is in memory");
    index.begun(name);
    index.orders();
    // The plan that begins with it has been made.
    assert_eq!(index.orders().expect("orders").drop.len(), 1);
    index.report(&[]);
    assert_eq!(index.take_erased().len(), 1);
}

#[test]
fn what_is_written_when_it_is_doomed_goes_when_it_is_there() {
    let mut index = index(100, 100);
    let a = long(1);
    let name = a.at(4).expect("a name");
    index.orders();
    index.kept(keep(&a, 4, 10));
    index.want(name, Want::Store);
    index.orders();
    index.doom(name);
    assert_eq!(index.orders().map_or(0, |orders| orders.erase.len()), 0);
    for _ in 0..2 {
        index.report(&[said(name, Event::Stored, "")]);
    }
    assert_eq!(index.orders().expect("orders").erase.len(), 1);
    for _ in 0..2 {
        index.report(&[said(name, Event::Erased, "")]);
    }
    assert_eq!(index.take_erased().len(), 1);
}

#[test]
fn what_cannot_be_removed_is_said_and_can_be_doomed_again() {
    let (mut index, a, name) = in_both_tiers();
    index.doom(name);
    index.orders();
    index.report(&[
        said(name, Event::Erased, "full"),
        said(name, Event::Erased, ""),
    ]);
    let error = Some("full".to_owned());
    assert_eq!(index.take_erased(), [Erased { name, error }]);
    assert_eq!(index.in_store(&a, 99), None, "a part of it may be gone");
    assert!(index.may_be_kept(name) && !index.has_pending());
    index.doom(name);
    assert_eq!(index.orders().expect("orders").erase.len(), 1);
}

#[test]
fn what_is_doomed_when_its_group_is_lost_goes_from_the_next_one() {
    let (mut index, _, name) = in_both_tiers();
    index.doom(name);
    index.orders();
    index.begin_epoch();
    index.orders();
    // The ranks of the next epoch still have it.
    let listed = said(name, Event::InStore, "");
    index.report(&[listed.clone(), listed]);
    assert_eq!(index.take_erased(), []);
    assert_eq!(index.orders().expect("orders").erase.len(), 1);
    for _ in 0..2 {
        index.report(&[said(name, Event::Erased, "")]);
    }
    assert_eq!(index.take_erased().len(), 1);
}

/// One thing that happens to an index.
#[derive(Debug, Clone)]
enum Happens {
    Kept(u32, u64, u64),
    Want(u32, u64, bool),
    Said(u32, u64, bool, bool),
    Begins(u32),
    Orders,
    Replaced(u32, u64),
    Doomed(u32, u64),
    Erased(u32, u64, bool),
    Epoch,
}

fn happens() -> impl Strategy<Value = Happens> {
    let (first, at) = (0u32..4, 1u64..6);
    prop_oneof![
        4 => (first.clone(), at.clone(), 1u64..9).prop_map(|(f, a, b)| Happens::Kept(f, a, b)),
        3 => (first.clone(), at.clone(), any::<bool>())
            .prop_map(|(f, a, s)| Happens::Want(f, a, s)),
        4 => (first.clone(), at.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(f, a, s, ok)| Happens::Said(f, a, s, ok)),
        2 => first.clone().prop_map(Happens::Begins),
        3 => Just(Happens::Orders),
        1 => (first.clone(), at.clone()).prop_map(|(f, a)| Happens::Replaced(f, a)),
        1 => (first.clone(), at.clone()).prop_map(|(f, a)| Happens::Doomed(f, a)),
        2 => (first, at, any::<bool>()).prop_map(|(f, a, ok)| Happens::Erased(f, a, ok)),
        1 => Just(Happens::Epoch),
    ]
}

proptest! {
    /// Whatever happens, the bounds hold, the figures are those of the entries, and nothing is
    /// dropped that the plan under way begins with.
    #[test]
    fn bounds_hold(history in prop::collection::vec(happens(), 1..120)) {
        let mut index = index(20, 30);
        let mut begun = Vec::new();
        for event in history {
            match event {
                Happens::Kept(first, at, bytes) => {
                    let keep = keep(&long(first), at * STRIDE, bytes);
                    index.report(&[]);
                    index.kept(keep);
                }
                Happens::Want(first, at, store) => {
                    let name = long(first).at(at * STRIDE).expect("a name");
                    index.want(name, if store { Want::Store } else { Want::Fetch });
                }
                Happens::Said(first, at, store, is_good) => {
                    let name = long(first).at(at * STRIDE).expect("a name");
                    let event = if store { Event::Stored } else { Event::Fetched };
                    index.report(&[said(name, event, if is_good { "" } else { "bad" })]);
                }
                Happens::Begins(first) => {
                    if let Some(found) = index.in_memory(&long(first), 99) {
                        index.begin_with(found);
                        begun.push(found.name);
                    }
                }
                Happens::Orders => {
                    // Every other one has no room in this plan.
                    let later = begun.split_off(begun.len() / 2);
                    begun.iter().for_each(|name| index.begun(*name));
                    let orders = index.orders().unwrap_or_default();
                    for name in begun.drain(..).chain(later.clone()) {
                        prop_assert!(!orders.drop.contains(&name.bytes()));
                    }
                    begun = later;
                }
                Happens::Replaced(first, at) => {
                    index.replace(long(first).at(at * STRIDE).expect("a name"));
                }
                Happens::Doomed(first, at) => {
                    index.doom(long(first).at(at * STRIDE).expect("a name"));
                }
                Happens::Erased(first, at, is_good) => {
                    let name = long(first).at(at * STRIDE).expect("a name");
                    let error = if is_good { "" } else { "bad" };
                    index.report(&[said(name, Event::Erased, error)]);
                }
                Happens::Epoch => {
                    index.begin_epoch();
                    begun.clear();
                }
            }
            let held = index.held();
            prop_assert!(held.store_bytes <= 30, "{held:?}");
            let mut counted = Held::default();
            for entry in index.entries.values() {
                prop_assert!(!entry.is_gone());
                if entry.memory != Place::Absent {
                    counted.in_memory += 1;
                    counted.memory_bytes += entry.bytes;
                }
                if entry.store != Place::Absent {
                    counted.in_store += 1;
                    counted.store_bytes += entry.bytes;
                }
            }
            prop_assert_eq!(held, counted);
            let coming = index.entries.values().flat_map(|e| [&e.memory, &e.store]);
            prop_assert_eq!(index.pending, coming.filter(|place| place.is_coming()).count());
        }
    }
}
