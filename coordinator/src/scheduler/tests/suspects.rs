//! Who is replayed alone, for how long, and who ends.

use super::*;

/// A scheduler with these sequences, each of so many prompt tokens.
fn scheduler(prompts: &[(u64, usize)]) -> Scheduler {
    let mut scheduler = Scheduler::new(limits(64, 8, 64, 256), Epoch(1));
    for &(id, prompt) in prompts {
        arrive(&mut scheduler, arrival(id, prompt, 9, 1));
    }
    scheduler
}

fn arrive(scheduler: &mut Scheduler, arrival: Arrival) {
    scheduler.on_event(Event::Arrive(Box::new(arrival)));
}

/// Who is in a step.
fn company(plan: &StepPlan) -> Vec<u64> {
    let mut ids: Vec<_> = plan.sequences.iter().map(|step| step.sequence).collect();
    ids.sort_unstable();
    ids
}

/// Carries out the next step, and says who was in it.
fn step(scheduler: &mut Scheduler) -> Vec<u64> {
    let plan = scheduler.plan().expect("somebody is ready");
    let sequences = plan.sequences.iter().map(|step| SequenceOutput {
        sequence: step.sequence,
        token: step.sample.then_some(1),
        ..Default::default()
    });
    scheduler.on_output(&StepOutput {
        sequences: sequences.collect(),
        ..Default::default()
    });
    company(&plan)
}

/// Loses the group in the next step, and says who was in it.
fn lose(scheduler: &mut Scheduler) -> (Vec<u64>, Option<Breaker>) {
    let plan = scheduler.plan().expect("somebody is ready");
    let lost = scheduler.restart(Epoch(plan.epoch + 1));
    (company(&plan), lost.broken_by)
}

#[test]
fn suspects_are_alone_until_they_have_passed() {
    let mut scheduler = scheduler(&[(1, 5), (2, 5)]);
    for _ in 0..2 {
        assert_eq!(lose(&mut scheduler), (vec![1, 2], None));
    }
    arrive(&mut scheduler, arrival(3, 5, 9, 1));
    arrive(&mut scheduler, arrival(4, 5, 9, 1));
    let steps: Vec<_> = (0..4).map(|_| step(&mut scheduler)).collect();
    assert_eq!(
        steps,
        [vec![1], vec![1, 3, 4], vec![2], vec![1, 2, 3, 4]],
        "one step alone takes each past the place of the loss"
    );
}

#[test]
fn who_breaks_a_group_alone_is_named_and_the_others_are_not() {
    let mut scheduler = scheduler(&[(1, 5), (2, 5)]);
    lose(&mut scheduler);
    lose(&mut scheduler);
    let breaker = Breaker {
        id: SequenceId(1),
        losses: 3,
    };
    assert_eq!(lose(&mut scheduler), (vec![1], Some(breaker)));
    scheduler.on_event(Event::Leave(SequenceId(1)));
    assert_eq!(step(&mut scheduler), [2], "it has yet to pass, alone");
    arrive(&mut scheduler, arrival(3, 5, 9, 1));
    assert_eq!(step(&mut scheduler), [2, 3]);
    // Once more in company: to its end in steps of its own, and not ended for the company's loss.
    assert_eq!(lose(&mut scheduler), (vec![2, 3], None));
    // The others have every other step.
    arrive(&mut scheduler, arrival(4, 5, 9, 1));
    let steps: Vec<_> = (0..6).map(|_| step(&mut scheduler)).collect();
    assert_eq!(
        steps,
        [
            vec![3, 4],
            vec![2],
            vec![3, 4],
            vec![2],
            vec![3, 4],
            vec![2]
        ]
    );
}

#[test]
fn a_group_that_is_lost_between_two_steps_makes_nobody_a_suspect() {
    let mut scheduler = scheduler(&[(1, 5), (2, 5)]);
    for epoch in 2..9 {
        assert_eq!(step(&mut scheduler), [1, 2]);
        let lost = scheduler.restart(Epoch(epoch));
        assert_eq!((lost.ran.len(), lost.broken_by), (2, None));
    }
}

#[test]
fn one_whose_company_has_left_was_not_alone() {
    let mut scheduler = scheduler(&[(1, 5), (2, 5)]);
    for _ in 0..3 {
        arrive(&mut scheduler, arrival(9, 5, 9, 1));
        scheduler.plan();
        scheduler.on_event(Event::Leave(SequenceId(9)));
        scheduler.on_event(Event::Leave(SequenceId(2)));
        assert_eq!(scheduler.restart(Epoch(2)).broken_by, None);
        if step(&mut scheduler) != [1] {
            panic!("it runs on");
        }
        scheduler.restart(Epoch(3));
    }
}

#[test]
fn the_warm_up_comes_before_any_priority_and_alone() {
    let mut scheduler = scheduler(&[(1, 5)]);
    arrive(
        &mut scheduler,
        Arrival {
            priority: Priority::client(i32::MAX),
            ..arrival(2, 5, 9, 60)
        },
    );
    arrive(
        &mut scheduler,
        Arrival {
            priority: Priority::WARM_UP,
            ..arrival(3, 1, 1, 60)
        },
    );
    assert_eq!(step(&mut scheduler), [3]);
    let plan = scheduler.plan().expect("two are ready");
    let order: Vec<_> = plan.sequences.iter().map(|step| step.sequence).collect();
    assert_eq!(order, [2, 1]);
}
