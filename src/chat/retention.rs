//! How much of a context a cache keeps, as a line of shades.

use palimpsest_proto::v1::RetentionReport;

/// Cells of the line.
const CELLS: usize = 64;
/// From nothing to everything.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

/// The share of KV heads that hold a position, over all of `tokens` positions.
pub fn picture(report: &RetentionReport, tokens: u64) -> String {
    let (heads, tokens) = (report.heads.len(), tokens as usize);
    if heads == 0 || tokens == 0 {
        return "nothing is held yet".into();
    }
    let cells = CELLS.min(tokens);
    let cell_of = |position: usize| position * cells / tokens;
    let mut held = vec![0usize; cells];
    let positions = report.heads.iter().flat_map(|head| &head.positions);
    for &position in positions.filter(|&&position| (position as usize) < tokens) {
        held[cell_of(position as usize)] += 1;
    }
    let mut sizes = vec![0usize; cells];
    (0..tokens).for_each(|position| sizes[cell_of(position)] += 1);
    let shade = |(&held, &size): (&usize, &usize)| {
        let all = size * heads;
        // What is held at all is never shown as nothing.
        SHADES[(held * (SHADES.len() - 1))
            .div_ceil(all)
            .min(SHADES.len() - 1)]
    };
    let line: String = held.iter().zip(&sizes).map(shade).collect();
    let mean = held.iter().sum::<usize>() as f64 / heads as f64;
    format!(
        "[{line}]\n{tokens} tokens from the first to the last; a KV head holds {mean:.0} of them \
         on average ({:.0} %)",
        100.0 * mean / tokens as f64
    )
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::v1::HeadRetention;

    use super::*;

    fn report(heads: &[&[u32]]) -> RetentionReport {
        let head = |positions: &&[u32]| HeadRetention {
            positions: positions.to_vec(),
            ..Default::default()
        };
        RetentionReport {
            heads: heads.iter().map(head).collect(),
        }
    }

    #[test]
    fn shades_say_how_many_heads_hold_a_position() {
        let report = report(&[&[0, 1], &[0]]);
        let picture = picture(&report, 4);
        assert!(picture.starts_with("[█▒  ]\n4 tokens"), "{picture}");
        assert!(picture.contains("holds 2 of them"), "{picture}");
    }

    #[test]
    fn a_long_context_is_as_wide_as_a_short_one() {
        let all: Vec<u32> = (0..10_000).collect();
        let one = report(&[&all]);
        let picture_of_all = picture(&one, 10_000);
        let line: Vec<char> = picture_of_all.lines().next().unwrap().chars().collect();
        assert_eq!(line.len(), CELLS + 2);
        assert!(line[1..=CELLS].iter().all(|&c| c == '█'));
        assert_eq!(picture(&report(&[]), 3), "nothing is held yet");
    }
}
