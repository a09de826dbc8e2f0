//! Who is served before whom: flows, and prompts of one flow.

use super::*;

fn of(name: &str, arrival: Arrival) -> Arrival {
    Arrival {
        flow: Flow::Tenant(name.into()),
        ..arrival
    }
}

/// A scheduler over a machine whose clock only counts.
struct Clocked {
    scheduler: Scheduler,
    seconds: f64,
    /// When each sequence had its first token, in seconds.
    first: BTreeMap<u64, f64>,
    /// Tokens of prompts that were read, by sequence.
    read: BTreeMap<u64, u64>,
}

impl Clocked {
    /// On two cores of a small model: 1 ms a step, and 1.3 for each of its tokens.
    fn new(max_running: usize) -> Self {
        let mut limits = limits(256, max_running, 256, 1024);
        limits.room.pages = u64::MAX;
        Self {
            scheduler: Scheduler::new(limits, Epoch(1)),
            seconds: 0.0,
            first: BTreeMap::new(),
            read: BTreeMap::new(),
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        self.scheduler.on_event(Event::Arrive(Box::new(arrival)));
    }

    /// Carries a step out; false when there is none.
    fn step(&mut self) -> bool {
        let Some(plan) = self.scheduler.plan() else {
            return false;
        };
        let rows: usize = plan.sequences.iter().map(|step| step.tokens.len()).sum();
        let seconds = 0.001 + 0.0013 * rows as f64;
        self.seconds += seconds;
        let mut output = StepOutput {
            seconds,
            ..Default::default()
        };
        for step in &plan.sequences {
            if !self.first.contains_key(&step.sequence) {
                *self.read.entry(step.sequence).or_default() += step.tokens.len() as u64;
            }
            if step.sample {
                self.first.entry(step.sequence).or_insert(self.seconds);
            }
            output.sequences.push(SequenceOutput {
                sequence: step.sequence,
                token: step.sample.then_some(1),
                ..Default::default()
            });
        }
        self.scheduler.on_output(&output);
        true
    }

    fn finish(&mut self) {
        while self.step() {}
    }
}

/// Four equal prompts at once all had their first token at the end of all reading.
#[test]
fn prompts_of_one_length_are_done_one_after_the_other() {
    let mut clocked = Clocked::new(16);
    // What a step takes anyhow is known.
    clocked.arrive(arrival(0, 4, 30, 1));
    clocked.finish();
    let begin = clocked.seconds;
    (1..5).for_each(|id| clocked.arrive(arrival(id, 4096, 1, 1)));
    clocked.finish();
    let all = clocked.seconds - begin;
    for id in 1..5 {
        let share = (clocked.first[&id] - begin) / all;
        let expected = id as f64 / 4.0;
        assert!((share - expected).abs() < 0.05, "{id} after {share}");
    }
}

#[test]
fn a_short_question_does_not_wait_for_a_long_document() {
    let mut clocked = Clocked::new(16);
    clocked.arrive(arrival(1, 30_000, 1, 1));
    (0..20).for_each(|_| assert!(clocked.step()));
    let asked = clocked.seconds;
    clocked.arrive(arrival(2, 20, 1, 1));
    clocked.finish();
    let waited = clocked.first[&2] - asked;
    assert!(waited < 0.5, "{waited} s");
}

/// However many short prompts come, a long one of the same flow is read.
#[test]
fn a_long_document_is_read_beside_any_number_of_short_questions() {
    let mut clocked = Clocked::new(16);
    // What a step takes anyhow is known, so prompts share none.
    clocked.arrive(arrival(5_000, 4, 30, 1));
    clocked.finish();
    let long = 5_000;
    clocked.arrive(arrival(0, long, 1, 1));
    for id in 1..2_000 {
        clocked.arrive(arrival(id, 200, 1, 1));
    }
    while !clocked.first.contains_key(&0) {
        assert!(clocked.step());
    }
    let others: u64 = clocked.read.range(1..2_000).map(|(_, read)| read).sum();
    // Those that run have waited, too: each has been overtaken by the 15 others.
    let most = reading::PATIENCE * long as u64 + 15 * 200;
    assert!(others > most / 2 && others <= most, "{others}");
}

/// A flow with many streams took all places and all tokens of prompts.
#[test]
fn flows_that_wait_get_equal_tokens_of_prompts() {
    let mut clocked = Clocked::new(16);
    for id in 0..60 {
        clocked.arrive(of("many", arrival(id, 3000, 1, 1)));
    }
    for id in 60..64 {
        clocked.arrive(of("few", arrival(id, 3000, 1, 1)));
    }
    let mut steps = 0;
    while clocked.first.len() < 6 {
        assert!(clocked.step());
        steps += 1;
        let sum = |ids: std::ops::Range<u64>| clocked.read.range(ids).map(|(_, n)| n).sum::<u64>();
        let (many, few) = (sum(0..60), sum(60..64));
        // A piece is a stride at most, and a step is charged when it is planned.
        assert!(
            many.abs_diff(few) <= 256,
            "{many} and {few} after {steps} steps"
        );
    }
}

#[test]
fn places_go_to_the_flow_that_was_served_least_and_priorities_come_first() {
    let mut scheduler = Scheduler::new(limits(16, 2, 16, 64), Epoch(1));
    for id in 0..6 {
        scheduler.on_event(Event::Arrive(Box::new(of("many", arrival(id, 3, 1, 1)))));
    }
    scheduler.on_event(Event::Arrive(Box::new(of("few", arrival(6, 3, 1, 1)))));
    scheduler.on_event(Event::Arrive(Box::new(of("few", arrival(7, 3, 1, 1)))));
    let urgent = Arrival {
        priority: Priority::client(1),
        ..of("many", arrival(8, 3, 1, 1))
    };
    scheduler.on_event(Event::Arrive(Box::new(urgent)));
    let mut started = Vec::new();
    while let Some(plan) = scheduler.plan() {
        started.extend(plan.sequences.iter().map(|step| step.sequence));
        let sequences = plan.sequences.iter().map(|step| SequenceOutput {
            sequence: step.sequence,
            token: step.sample.then_some(1),
            ..Default::default()
        });
        scheduler.on_output(&StepOutput {
            sequences: sequences.collect(),
            ..Default::default()
        });
    }
    assert_eq!(started, [8, 6, 0, 7, 1, 2, 3, 4, 5]);
}

/// One that waits for room keeps its turn, though flows come that were served less.
#[test]
fn nobody_overtakes_one_that_waits_for_room() {
    let mut scheduler = Scheduler::new(limits(16, 8, 16, 64), Epoch(1));
    let mut arrive = |arrival| scheduler.on_event(Event::Arrive(Box::new(arrival)));
    arrive(of("a", arrival(0, 3, 9, 60)));
    arrive(of("a", arrival(1, 3, 9, 60)));
    scheduler.plan().unwrap();
    for id in 2..5 {
        let newcomer = of(&format!("flow {id}"), arrival(id, 3, 9, 10));
        scheduler.on_event(Event::Arrive(Box::new(newcomer)));
    }
    scheduler.on_output(&StepOutput::default());
    scheduler.on_event(Event::Leave(SequenceId(0)));
    let plan = scheduler.plan().unwrap();
    let started: BTreeSet<_> = plan.sequences.iter().map(|step| step.sequence).collect();
    assert!(started.contains(&1), "{started:?}");
}
