use proptest::prelude::*;

use super::*;

fn flow(name: impl ToString) -> Flow {
    Flow::Tenant(name.to_string().into())
}

/// Serves the flow of these that was served least, and says which.
fn serve_next(shares: &mut Shares, flows: &[Flow], tokens: u64) -> usize {
    let order = |&index: &usize| (shares.served(&flows[index]), index);
    let next = (0..flows.len()).min_by_key(order).expect("some flow");
    shares.serve(&flows[next], tokens);
    next
}

#[test]
fn an_idle_flow_does_not_save_up() {
    let mut shares = Shares::default();
    let flows = [flow("busy"), flow("idle")];
    shares.enter(&flows[0]);
    for _ in 0..100 {
        shares.serve(&flows[0], 50);
    }
    shares.enter(&flows[1]);
    let mut tokens = [0, 0];
    for _ in 0..10 {
        tokens[serve_next(&mut shares, &flows, 50)] += 50;
    }
    assert_eq!(tokens, [250, 250]);
}

/// A flow whose sequences only decode is charged, and takes nothing of that as a debt to those who
/// asked for nothing meanwhile.
#[test]
fn who_used_what_nobody_wanted_owes_nothing_for_it() {
    let mut shares = Shares::default();
    let flows = [flow("busy"), flow("new")];
    shares.enter(&flows[0]);
    shares.serve(&flows[0], 10);
    shares.leave(&flows[0]);
    shares.charge(&flows[0], 10_000);
    shares.enter(&flows[1]);
    shares.enter(&flows[0]);
    let served: Vec<_> = (0..4).map(|_| serve_next(&mut shares, &flows, 5)).collect();
    assert_eq!(served, [0, 1, 0, 1]);
}

/// One request after the other is no way around one's share.
#[test]
fn a_flow_that_goes_and_comes_back_is_where_it_was() {
    let mut shares = Shares::default();
    let flows = [flow("goes"), flow("stays")];
    shares.enter(&flows[1]);
    let mut tokens = [0, 0];
    for _ in 0..40 {
        shares.enter(&flows[0]);
        let next = serve_next(&mut shares, &flows, 7);
        tokens[next] += 7;
        shares.leave(&flows[0]);
    }
    assert_eq!(tokens, [140, 140]);
}

#[test]
fn flows_that_ask_for_nothing_are_forgotten() {
    let mut shares = Shares::default();
    shares.enter(&flow("waits"));
    for number in 0..10_000 {
        let flow = flow(number);
        shares.enter(&flow);
        shares.serve(&flow, 1 + number % 7);
        shares.leave(&flow);
    }
    assert!(shares.accounts.len() <= MOST_IDLE + 1);
    assert!(shares.accounts.contains_key(&flow("waits")));
    assert_eq!(shares.waiting, 1);
}

#[derive(Debug, Clone)]
enum Act {
    Enter,
    Leave,
    Serve(u64),
    Charge(u64),
}

/// What happens to one of five flows.
fn act() -> impl Strategy<Value = (Act, usize)> {
    let acts = prop_oneof![
        Just(Act::Enter),
        Just(Act::Leave),
        (1..100u64).prop_map(Act::Serve),
        (1..100u64).prop_map(Act::Charge),
    ];
    (acts, 0..5usize)
}

proptest! {
    /// The oracle is the bound of start-time fair queueing: at any time of two flows that wait one
    /// is ahead by one quantum at most, so over any interval they differ by two quanta at most.
    #[test]
    fn flows_that_wait_are_served_equally_over_any_interval(
        quanta in prop::collection::vec(1..300u64, 2..6),
        sizes in prop::collection::vec(1..=300u64, 200),
    ) {
        let most = *quanta.iter().max().unwrap();
        let flows: Vec<_> = (0..quanta.len()).map(flow).collect();
        let mut shares = Shares::default();
        flows.iter().for_each(|flow| shares.enter(flow));
        let mut history = vec![vec![0; flows.len()]];
        for size in sizes {
            let order = |&index: &usize| (shares.served(&flows[index]), index);
            let next = (0..flows.len()).min_by_key(order).unwrap();
            let tokens = size.min(quanta[next]);
            shares.serve(&flows[next], tokens);
            let mut total = history.last().unwrap().clone();
            total[next] += tokens;
            history.push(total);
        }
        for total in &history {
            let (least, largest) = (total.iter().min().unwrap(), total.iter().max().unwrap());
            prop_assert!(largest - least <= most, "{total:?}");
        }
        for (since, begin) in history.iter().enumerate() {
            for end in &history[since..] {
                let served = || end.iter().zip(begin).map(|(end, begin)| end - begin);
                let (least, largest) = (served().min().unwrap(), served().max().unwrap());
                prop_assert!(largest - least <= 2 * most, "{begin:?} {end:?}");
            }
        }
    }

    /// Whoever comes and goes, counters add up, and no flow that begins to wait is behind those
    /// that wait already.
    #[test]
    fn any_history_of_comings_and_goings_adds_up(
        acts in prop::collection::vec(act(), 1..200),
    ) {
        let flows: Vec<_> = (0..5).map(flow).collect();
        let mut shares = Shares::default();
        let mut waiting = [0usize; 5];
        for (act, index) in acts {
            match act {
                Act::Enter => {
                    let others = || (0..5).filter(|&other| other != index && waiting[other] > 0);
                    let least = others().map(|other| shares.served(&flows[other])).min();
                    let is_new = waiting[index] == 0;
                    shares.enter(&flows[index]);
                    waiting[index] += 1;
                    if let Some(least) = least.filter(|_| is_new) {
                        prop_assert!(shares.served(&flows[index]) >= least);
                    }
                }
                Act::Leave if waiting[index] > 0 => {
                    shares.leave(&flows[index]);
                    waiting[index] -= 1;
                }
                Act::Serve(tokens) if waiting[index] > 0 => {
                    let before = shares.served(&flows[index]);
                    shares.serve(&flows[index], tokens);
                    prop_assert_eq!(shares.served(&flows[index]), before + tokens);
                }
                Act::Charge(tokens) => shares.charge(&flows[index], tokens),
                _ => {}
            }
            prop_assert_eq!(shares.waiting, waiting.iter().filter(|count| **count > 0).count());
        }
    }
}
