use super::*;

fn admission(max_queued: usize, max_queued_tokens: u64) -> Admission {
    let admission = Admission::new(&Config {
        max_queued,
        max_queued_tokens,
        ..Config::default()
    });
    admission.set_gate(Gate::Open);
    admission
}

fn asker(name: &str, priority: i32) -> Asker {
    Asker {
        flow: Flow::Tenant(name.into()),
        priority,
    }
}

impl Admission {
    fn ask(&self, name: &str, tokens: u64) -> Result<Permit, RequestError> {
        self.admit_prompt(asker(name, 0), tokens)
    }
}

fn lost(permits: &[Permit]) -> Vec<bool> {
    permits.iter().map(Permit::is_lost).collect()
}

/// One client could fill the queue, and all others were refused.
#[test]
fn a_full_queue_is_shared_and_the_newest_of_the_largest_flow_goes() {
    let queue = admission(4, 1000);
    let many: Vec<_> = (0..4).map(|_| queue.ask("many", 1).unwrap()).collect();
    assert!(
        queue.ask("many", 1).is_err(),
        "a flow displaces nobody of its own"
    );
    queue.check(&asker("few", 0)).unwrap();
    let _first = queue.ask("few", 1).unwrap();
    assert_eq!(lost(&many), [false, false, false, true]);
    let _second = queue.ask("few", 1).unwrap();
    assert_eq!(lost(&many), [false, false, true, true]);
    assert!(queue.ask("few", 1).is_err(), "each has its half");
    assert!(queue.check(&asker("few", 0)).is_err());
    let full = Queued {
        requests: 4,
        tokens: 4,
    };
    assert_eq!(queue.waiting(), full);
    drop(many);
    let half = Queued {
        requests: 2,
        tokens: 2,
    };
    assert_eq!(
        queue.waiting(),
        half,
        "a lost place is not given back twice"
    );
}

#[test]
fn tokens_are_shared_as_requests_are_and_nobody_loses_more_than_would_be_fair() {
    let queue = admission(100, 100);
    let many: Vec<_> = [40, 30, 30]
        .map(|tokens| queue.ask("many", tokens).unwrap())
        .into();
    let _few = queue.ask("few", 30).unwrap();
    assert_eq!(lost(&many), [false, false, true], "of one prompt");
    assert!(
        queue.ask("few", 40).is_err(),
        "70 would be unfair to the 40 that were left"
    );
    // A long prompt alone stays, however many tokens it has.
    let queue = admission(100, 100);
    let long = queue.ask("long", 90).unwrap();
    assert!(queue.ask("few", 20).is_err());
    assert!(!long.is_lost());
}

#[test]
fn nobody_loses_a_place_to_a_smaller_priority() {
    let queue = admission(2, 1000);
    let urgent = |tokens| queue.admit_prompt(asker("many", 1), tokens).unwrap();
    let urgent = [urgent(1), urgent(1)];
    assert!(queue.ask("few", 1).is_err());
    assert_eq!(lost(&urgent), [false, false]);
    queue.admit_prompt(asker("few", 1), 1).unwrap();
    assert_eq!(lost(&urgent), [false, true]);
}
