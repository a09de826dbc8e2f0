//! What ranks say to each other over TCP. The first byte is the number of the rounds that are
//! awaited, the second the longest piece of the rest, which comes in pieces: a greeting, and
//! messages. The same bytes are read as the card of a rank, too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palimpsest_collective::Place;
use palimpsest_collective::tcp::scripted::{Expected, TOKEN_BYTES, address, hear};

/// As in the corpus.
const TOKEN: [u8; TOKEN_BYTES] = *b"token of rank 1.";

fuzz_target!(|data: &[u8]| {
    let [rounds, longest, rest @ ..] = data else {
        return;
    };
    drop(address(rest));

    let rounds: Vec<usize> = (0..usize::from(rounds % 8))
        .map(|round| round * 5)
        .collect();
    let expected = Expected {
        place: Place {
            rank: 1,
            world_size: 4,
        },
        token: TOKEN,
        rounds: &rounds,
    };
    let longest = usize::from(*longest).max(1);
    let pieces: Vec<&[u8]> = rest.chunks(longest).collect();
    let heard = hear(&expected, &pieces).expect("loopback");
    assert_eq!(
        heard,
        hear(&expected, &[rest]).expect("loopback"),
        "a cut changes nothing"
    );

    assert!(heard.rank.is_none_or(|rank| (2..4).contains(&rank)));
    assert!(heard.rank.is_none() || rest.starts_with(&TOKEN));
    let lengths = heard.rounds.iter().map(Vec::len);
    assert!(lengths.eq(rounds.iter().copied().take(heard.rounds.len())));
});
