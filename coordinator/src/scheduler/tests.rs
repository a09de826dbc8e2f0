mod group;
mod shares;
mod suspects;

use std::collections::{BTreeMap, BTreeSet};

use palimpsest_proto::internal::v1::{SequenceInit, SequenceOutput};
use proptest::prelude::*;

use self::group::Group;
use super::*;
use crate::flow::Flow;

fn arrival(id: u64, prompt: usize, new: u32, bytes: u64) -> Arrival {
    Arrival {
        id: SequenceId(id),
        priority: Priority::client(0),
        flow: Flow::Local,
        prompt: (0..prompt as u32).collect(),
        max_new_tokens: new,
        stop_ids: [].into(),
        init: SequenceInit::default(),
        cost: Cost {
            pages: bytes,
            latent: 0,
        },
        retention_report: false,
        map_every: 0,
        reuse: None,
    }
}

fn limits(stride: u64, max_running: usize, busy: u64, idle: u64) -> Limits {
    Limits {
        stride,
        max_running,
        tokens: TokenBudget { busy, idle },
        step_target: Duration::from_secs(1),
        company: Company::default(),
        max_replays: 2,
        room: Cost {
            pages: 100,
            latent: 0,
        },
    }
}

#[derive(Debug, Clone)]
enum Act {
    Arrive {
        prompt: usize,
        new: u32,
        bytes: u64,
        priority: i32,
    },
    Leave(usize),
    Pause(usize),
    Resume(usize),
    Step,
}

fn arrive() -> impl Strategy<Value = Act> {
    let fields = (1..90usize, 1..6u32, 1..=100u64, 0..3i32);
    fields.prop_map(|(prompt, new, bytes, priority)| Act::Arrive {
        prompt,
        new,
        bytes,
        priority,
    })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => arrive(),
        1 => (0..40usize).prop_map(Act::Leave),
        1 => (0..40usize).prop_map(Act::Pause),
        1 => (0..40usize).prop_map(Act::Resume),
        5 => Just(Act::Step),
    ]
}

struct World {
    scheduler: Scheduler,
    group: Group,
    limits: Limits,
    costs: BTreeMap<u64, u64>,
    in_flight: Option<StepPlan>,
    gone: BTreeSet<u64>,
    tokens: BTreeMap<u64, u32>,
    wanted: BTreeMap<u64, u32>,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits, Epoch(1)),
            group: Group::default(),
            limits,
            costs: BTreeMap::new(),
            in_flight: None,
            gone: BTreeSet::new(),
            tokens: BTreeMap::new(),
            wanted: BTreeMap::new(),
        }
    }

    /// Half a step: finishes the one under way, or begins one. Returns whether anything happened.
    fn step(&mut self) -> bool {
        if let Some(plan) = self.in_flight.take() {
            // The ranks answer after events that came meanwhile; what left is unknown to the
            // group's view of pauses.
            let output = self.group.execute(&plan, &self.costs, &self.limits);
            for progress in self.scheduler.on_output(&output) {
                let Progress::Token { id, ended, .. } = progress else {
                    panic!("no failures here")
                };
                assert!(
                    !self.gone.contains(&id.0),
                    "{id} made progress after it left"
                );
                *self.tokens.entry(id.0).or_default() += 1;
                if ended.is_some() {
                    assert_eq!(self.tokens[&id.0], self.wanted[&id.0]);
                    self.group.finished.insert(id.0);
                    self.gone.insert(id.0);
                    // It is released with the next plan and must not be asked for in it.
                    self.group.decoding.remove(&id.0);
                }
            }
            return true;
        }
        self.in_flight = self.scheduler.plan();
        self.in_flight.is_some()
    }

    fn act(&mut self, act: Act) {
        let pick = |n: usize, world: &Self| {
            world
                .costs
                .keys()
                .nth(n % world.costs.len().max(1))
                .copied()
        };
        match act {
            Act::Arrive {
                prompt,
                new,
                bytes,
                priority,
            } => {
                let id = self.costs.len() as u64;
                self.costs.insert(id, bytes);
                self.wanted.insert(id, new);
                let arrival = Arrival {
                    priority: Priority::client(priority),
                    ..arrival(id, prompt, new, bytes)
                };
                self.scheduler.on_event(Event::Arrive(Box::new(arrival)));
            }
            Act::Step => {
                self.step();
            }
            // Between a plan and its output only the scheduler knows of these events; the checks of
            // the group are about plans made after them, so the tests send them between steps.
            other => {
                if self.in_flight.is_some() {
                    self.step();
                }
                match other {
                    Act::Leave(n) => {
                        if let Some(id) = pick(n, self) {
                            self.scheduler.on_event(Event::Leave(SequenceId(id)));
                            self.gone.insert(id);
                            self.group.decoding.remove(&id);
                        }
                    }
                    Act::Pause(n) => {
                        if let Some(id) = pick(n, self)
                            && self.group.holds(id)
                        {
                            self.scheduler.on_event(Event::Pause(SequenceId(id)));
                            self.group.paused.insert(id);
                        }
                    }
                    Act::Resume(n) => {
                        if let Some(id) = pick(n, self) {
                            self.scheduler.on_event(Event::Resume(SequenceId(id)));
                            self.group.paused.remove(&id);
                        }
                    }
                    Act::Arrive { .. } | Act::Step => unreachable!(),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_history_keeps_the_contract_and_ends(
        stride in 1..40u64, max_running in 1..6usize, busy in 1..50u64, idle in 1..99u64,
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let mut world = World::new(limits(stride, max_running, busy, idle));
        for act in acts {
            world.act(act);
        }
        // As in `act`: the group judges a plan by what was known when it was made.
        if world.in_flight.is_some() {
            world.step();
        }
        for id in world.costs.keys().copied().collect::<Vec<_>>() {
            world.scheduler.on_event(Event::Resume(SequenceId(id)));
        }
        world.group.paused.clear();
        // Every step moves at least one token of the 90 + 5 of each sequence, or chooses one of the
        // 5 that was late: more steps mean that something hangs.
        let mut steps = 0;
        while world.step() {
            steps += 1;
            prop_assert!(steps < 2 * (100 * world.costs.len() + 10), "no end");
        }
        prop_assert_eq!(world.scheduler.load(), Sequences::default());
        prop_assert_eq!(world.scheduler.reserved_bytes(), 0);
        prop_assert_eq!(world.group.held(), Vec::<u64>::new(), "not released");
        prop_assert_eq!(world.gone.len(), world.costs.len());
    }
}

#[test]
fn decodes_come_first_and_prompts_are_read_one_after_the_other() {
    let mut world = World::new(limits(16, 8, 16, 64));
    world.act(Act::Arrive {
        prompt: 4,
        new: 6,
        bytes: 1,
        priority: 0,
    });
    for _ in 0..2 {
        world.act(Act::Step);
    }
    world.act(Act::Arrive {
        prompt: 64,
        new: 1,
        bytes: 1,
        priority: 0,
    });
    world.act(Act::Arrive {
        prompt: 64,
        new: 1,
        bytes: 1,
        priority: 0,
    });
    let mut order = Vec::new();
    for _ in 0..4 {
        let plan = world.scheduler.plan().unwrap();
        order.push(
            plan.sequences
                .iter()
                .map(|s| (s.sequence, s.tokens.len()))
                .collect::<Vec<_>>(),
        );
        let output = world.group.execute(&plan, &world.costs, &world.limits);
        world.scheduler.on_output(&output);
    }
    let expected = [
        [(0, 1), (1, 16)],
        [(0, 1), (1, 16)],
        [(0, 1), (1, 16)],
        [(0, 1), (1, 16)],
    ];
    assert_eq!(order, expected);
}

#[test]
fn priority_then_arrival_and_nobody_overtakes_the_head() {
    let mut scheduler = Scheduler::new(limits(16, 8, 16, 64), Epoch(1));
    for (id, priority, bytes) in [(0, 0, 60), (1, 0, 60), (2, 5, 60), (3, 0, 10)] {
        scheduler.on_event(Event::Arrive(Box::new(Arrival {
            priority: Priority::client(priority),
            ..arrival(id, 3, 1, bytes)
        })));
    }
    let mut started = Vec::new();
    while let Some(plan) = scheduler.plan() {
        started.push(
            plan.sequences
                .iter()
                .map(|s| s.sequence)
                .collect::<Vec<_>>(),
        );
        let sequences = plan.sequences.iter().map(|s| SequenceOutput {
            sequence: s.sequence,
            token: s.sample.then_some(1),
            ..Default::default()
        });
        scheduler.on_output(&StepOutput {
            sequences: sequences.collect(),
            ..Default::default()
        });
    }
    // 3 would have fitted beside 2 and beside 0, but 0 and 1 were there before it.
    assert_eq!(started, [vec![2], vec![0], vec![1, 3], vec![]]);
}

#[test]
fn a_sequence_that_leaves_in_mid_step_is_released_by_the_next_plan() {
    let mut scheduler = Scheduler::new(limits(16, 8, 16, 64), Epoch(1));
    scheduler.on_event(Event::Arrive(Box::new(arrival(4, 3, 9, 1))));
    let plan = scheduler.plan().unwrap();
    assert_eq!(scheduler.plan(), None, "one step at a time");
    scheduler.on_event(Event::Leave(SequenceId(4)));
    let late = SequenceOutput {
        sequence: 4,
        token: Some(1),
        ..Default::default()
    };
    assert_eq!(
        scheduler.on_output(&StepOutput {
            sequences: vec![late],
            ..Default::default()
        }),
        []
    );
    let next = scheduler.plan().unwrap();
    assert_eq!(
        (plan.release, next.release, next.sequences),
        (vec![], vec![4], vec![])
    );
}

#[test]
fn a_failed_sequence_holds_nothing_and_a_lost_group_holds_nothing() {
    let mut scheduler = Scheduler::new(limits(16, 8, 16, 64), Epoch(1));
    for id in 0..3 {
        scheduler.on_event(Event::Arrive(Box::new(arrival(id, 3, 9, 50))));
    }
    scheduler.plan().unwrap();
    let bad = SequenceOutput {
        sequence: 0,
        error: "out of pages".into(),
        ..Default::default()
    };
    let output = StepOutput {
        sequences: vec![bad],
        ..Default::default()
    };
    let failed = Progress::Failed {
        id: SequenceId(0),
        error: "out of pages".into(),
        by: Cause::Rank,
    };
    assert_eq!(scheduler.on_output(&output), [failed]);
    let next = scheduler.plan().unwrap();
    assert!(next.release.is_empty());
    let lost = scheduler.restart(Epoch(2));
    assert_eq!(lost.ran, [SequenceId(1), SequenceId(2)]);
    assert_eq!(lost.broken_by, None);
    assert_eq!(
        (scheduler.load(), scheduler.reserved_bytes()),
        (
            Sequences {
                waiting: 2,
                running: 0
            },
            0
        ),
        "they wait again"
    );
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.epoch, plan.step, plan.release), (2, 1, vec![]));
    assert!(
        plan.sequences
            .iter()
            .all(|step| step.init.is_some() && step.position == 0)
    );
}

/// Runs a sequence to its end, on a new group after every so many steps; `sampled` is what a rank
/// samples at a position.
fn run_over_groups(mut arrival: Arrival, steps_per_group: usize) -> Vec<u32> {
    arrival.max_new_tokens = 12;
    let (prompt, limits) = (arrival.prompt.clone(), limits(4, 8, 3, 6));
    let mut scheduler = Scheduler::new(limits, Epoch(1));
    let (mut answer, mut seen, mut epoch) = (Vec::new(), Vec::new(), 1);
    scheduler.on_event(Event::Arrive(Box::new(arrival)));
    for number in 1.. {
        if answer.len() == 12 {
            return answer;
        }
        if number % (steps_per_group + 1) == 0 {
            epoch += 1;
            assert_eq!(scheduler.restart(Epoch(epoch)).ran, [SequenceId(0)]);
            seen.clear();
        }
        let plan = scheduler.plan().unwrap();
        let step = &plan.sequences[0];
        assert_eq!(
            (step.position, plan.epoch, step.init.is_some()),
            (seen.len() as u64, epoch, seen.is_empty())
        );
        seen.extend_from_slice(&step.tokens);
        let known: Vec<u32> = prompt.iter().chain(&answer).copied().collect();
        assert_eq!(seen, known[..seen.len()], "the group reads what was said");
        assert_eq!(step.sample, seen == known, "nothing is sampled twice");
        let token = step.sample.then_some(100 + 3 * seen.len() as u32);
        let one = SequenceOutput {
            sequence: 0,
            token,
            ..Default::default()
        };
        let progress = scheduler.on_output(&StepOutput {
            sequences: vec![one],
            ..Default::default()
        });
        answer.extend(token);
        assert_eq!(progress.len(), usize::from(step.sample));
    }
    unreachable!("the sequence ends")
}

#[test]
fn a_sequence_goes_on_over_lost_groups_as_if_on_one() {
    let whole = run_over_groups(arrival(0, 7, 9, 50), usize::MAX - 1);
    assert_eq!(whole.len(), 12);
    // Fewer steps than a replay takes would never end.
    for steps in 9..20 {
        assert_eq!(
            run_over_groups(arrival(0, 7, 9, 50), steps),
            whole,
            "{steps} steps per group"
        );
    }
}

#[test]
fn retention_is_asked_for_when_it_can_have_changed() {
    let asked = reported_at(Arrival {
        retention_report: true,
        ..arrival(0, 6, 7, 1)
    });
    assert_eq!(asked, [6, 8, 12]);
}

#[test]
fn retention_for_maps_is_asked_for_while_a_prompt_is_read() {
    let mapped = |map_every, prompt, new| {
        reported_at(Arrival {
            map_every,
            ..arrival(0, prompt, new, 1)
        })
    };
    assert_eq!(mapped(4, 10, 4), [4, 8, 10, 12]);
    assert_eq!(mapped(8, 18, 0), [8, 16, 18]);
    assert_eq!(mapped(0, 18, 4), [0u64; 0]);
}

/// Where the ranks are asked what they retain, in tokens of a sequence at stride 4.
fn reported_at(arrival: Arrival) -> Vec<u64> {
    let mut scheduler = Scheduler::new(limits(4, 8, 16, 64), Epoch(1));
    scheduler.on_event(Event::Arrive(Box::new(arrival)));
    let mut asked = Vec::new();
    while let Some(plan) = scheduler.plan() {
        let Some(step) = plan.sequences.first() else {
            break;
        };
        asked.extend(
            step.retention_report
                .then_some(step.position + step.tokens.len() as u64),
        );
        let token = step.sample.then_some(1);
        let one = SequenceOutput {
            sequence: 0,
            token,
            ..Default::default()
        };
        scheduler.on_output(&StepOutput {
            sequences: vec![one],
            ..Default::default()
        });
    }
    asked
}
