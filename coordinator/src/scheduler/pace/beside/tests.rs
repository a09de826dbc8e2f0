//! Both promises, on machines of several kinds, with a clock that only counts.

use std::time::Duration;

use proptest::prelude::*;

use super::super::TokenBudget;
use super::super::{Pace, Who};
use super::*;

const STRIDE: u64 = 256;
const MOST: TokenBudget = TokenBudget {
    busy: STRIDE,
    idle: 4 * STRIDE,
};

/// Seconds of a step: its weights, its rows, and what small pieces cost more.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// Reading the weights.
    step: f64,
    row: f64,
    /// What a row costs more where it is alone. Of `n` rows each costs `1 / n` of it.
    small: f64,
}

impl Machine {
    fn seconds(&self, work: Work) -> f64 {
        let rows = work.prefill + work.decodes;
        let small = if rows > 0 { self.small } else { 0.0 };
        self.step + rows as f64 * self.row + small * (rows.min(16) as f64)
    }
}

/// What came of a reading.
#[derive(Debug)]
struct Read {
    seconds: f64,
    /// Between two tokens of the others, in order of length.
    gaps: Vec<f64>,
}

impl Read {
    fn quantile(&self, share: f64) -> f64 {
        self.gaps[((self.gaps.len() - 1) as f64 * share) as usize]
    }
}

/// Reads a prompt beside so many that decode. Pieces end at boundaries; `noise` is what a step
/// takes more or less, by its number.
fn read(
    pace: &mut Pace,
    machine: Machine,
    (tokens, decodes): (u64, u64),
    noise: impl Fn(usize) -> f64,
) -> Read {
    let who = if decodes == 0 {
        Who::Nobody
    } else {
        Who::InStep(decodes)
    };
    let mut gaps = Vec::new();
    let mut position = 0;
    while position < tokens {
        let piece = pace.allowance(who).min(STRIDE - position % STRIDE);
        let work = Work {
            prefill: piece.min(tokens - position),
            decodes,
            is_reading: true,
        };
        let seconds = machine.seconds(work) * noise(gaps.len());
        pace.observe(work, seconds);
        position += work.prefill;
        gaps.push(seconds);
        assert!(gaps.len() < 100_000, "no progress");
    }
    let seconds = gaps.iter().sum();
    gaps.sort_by(f64::total_cmp);
    Read { seconds, gaps }
}

fn pace() -> Pace {
    Pace::new(MOST, Duration::from_secs(1), Company::default())
}

/// One that decodes alone for a while.
fn decode(pace: &mut Pace, machine: Machine, decodes: u64) -> f64 {
    let work = Work {
        decodes,
        ..Work::default()
    };
    (0..20).for_each(|_| pace.observe(work, machine.seconds(work)));
    machine.seconds(work)
}

/// Two cores and a small model: rows cost more than weights, and small pieces more than large ones.
const TWO_CORES: Machine = Machine {
    step: 0.001,
    row: 0.0013,
    small: 0.0005,
};
/// A large model on a processor: weights dominate.
const LARGE: Machine = Machine {
    step: 0.2,
    row: 0.002,
    small: 0.0,
};
/// An accelerator.
const FAST: Machine = Machine {
    step: 0.005,
    row: 0.000_01,
    small: 0.0,
};

/// While a prompt was read, the median gap of another stream went from 19 to 1,190 ms.
#[test]
fn both_promises_hold_on_machines_of_all_kinds() {
    for machine in [TWO_CORES, LARGE, FAST] {
        for decodes in [1, 4, 16] {
            let mut pace = pace();
            let alone = read(&mut pace, machine, (8192, 0), |_| 1.0).seconds;
            let undisturbed = decode(&mut pace, machine, decodes);
            let beside = read(&mut pace, machine, (8192, decodes), |_| 1.0);
            let ratio = beside.seconds / alone;
            assert!(
                ratio < 1.5 || machine.step == FAST.step,
                "{machine:?}, {decodes}: {ratio}"
            );
            let median = beside.quantile(0.5) / undisturbed;
            assert!(median <= 3.0, "{machine:?}, {decodes}: {median}");
            let longest = beside.quantile(1.0) / undisturbed;
            assert!(longest < 21.0, "{machine:?}, {decodes}: {longest}");
        }
    }
}

/// Where weights dominate, no step need be long.
#[test]
fn where_all_that_is_owed_fits_every_gap_is_within_its_factor() {
    for machine in [LARGE, FAST] {
        let mut pace = pace();
        read(&mut pace, machine, (8192, 0), |_| 1.0);
        let undisturbed = decode(&mut pace, machine, 1);
        let beside = read(&mut pace, machine, (8192, 1), |_| 1.0);
        // A step that measures those that decode is made up for by a longer one.
        assert!(beside.quantile(0.9) <= 3.0 * undisturbed);
    }
}

/// Reading alone was never measured where somebody always decodes.
#[test]
fn gaps_keep_their_bounds_where_nothing_was_read_alone() {
    let mut pace = pace();
    let undisturbed = decode(&mut pace, TWO_CORES, 1);
    let beside = read(&mut pace, TWO_CORES, (8192, 1), |_| 1.0);
    assert!(beside.quantile(0.6) <= 3.0 * undisturbed);
    assert!(beside.quantile(1.0) <= 21.0 * undisturbed);
    assert!(
        beside.seconds < 1.75 * 8192.0 * TWO_CORES.row,
        "{} s",
        beside.seconds
    );
}

#[test]
fn a_first_piece_waits_for_nobody_and_what_was_owed_before_is_forgotten() {
    let mut pace = pace();
    read(&mut pace, TWO_CORES, (2048, 0), |_| 1.0);
    decode(&mut pace, TWO_CORES, 1);
    read(&mut pace, TWO_CORES, (2048, 1), |_| 1.0);
    decode(&mut pace, TWO_CORES, 1);
    let first = pace.allowance(Who::InStep(1));
    assert!((16..128).contains(&first), "{first}");
}

#[test]
fn what_decodes_is_measured_again_where_every_step_reads() {
    let mut pace = pace();
    read(&mut pace, LARGE, (1024, 0), |_| 1.0);
    decode(&mut pace, LARGE, 1);
    let mut without = 0;
    for _ in 0..200 {
        let prefill = pace.allowance(Who::InStep(1));
        without += u32::from(prefill == 0);
        let work = Work {
            prefill,
            decodes: 1,
            is_reading: true,
        };
        pace.observe(work, LARGE.seconds(work));
    }
    assert!((4..=8).contains(&without), "{without} of 200 steps");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever the machine and its noise, two of three gaps are short, every prompt is read, and
    /// no step passes the share of prompts by more than the noise.
    #[test]
    fn two_of_three_gaps_are_short_on_any_machine(
        step in 0.0..0.2f64, row in 0.000_001..0.003f64, small in 0.0..0.002f64,
        decodes in 1..20u64, noises in prop::collection::vec(0.8..1.25f64, 7),
    ) {
        let machine = Machine { step, row, small };
        let noise = |step: usize| noises[step % noises.len()];
        let mut pace = pace();
        read(&mut pace, machine, (2048, 0), noise);
        let undisturbed = decode(&mut pace, machine, decodes);
        let beside = read(&mut pace, machine, (4096, decodes), noise);
        let (regular, longest) = (beside.quantile(0.6), beside.quantile(1.0));
        prop_assert!(regular <= 3.0 * 1.6 * undisturbed, "{regular} of {undisturbed}");
        prop_assert!(longest <= (21.0 * 3.0 * undisturbed).max(2.5), "{longest} of {undisturbed}");
    }
}
