//! Stop strings, found across token borders.

/// Looks for stop strings in text that arrives in pieces, and holds back what may be the beginning
/// of one.
///
/// The stop string whose last character comes first wins, the longest of several that end together;
/// so the result does not depend on how the text was cut into pieces.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// A stop string was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopMatch {
    /// Text before it that was not given out yet.
    pub before: String,
    /// The stop string.
    pub stop: String,
}

impl StopStrings {
    /// Watches for these strings, none of which may be empty.
    pub fn new(stops: Vec<String>) -> Self {
        assert!(
            stops.iter().all(|stop| !stop.is_empty()),
            "a request is validated before"
        );
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece; returns the text that is certainly free of stop strings, or the match.
    ///
    /// # Errors
    /// `Err` is the end: a stop string was found.
    pub fn push(&mut self, piece: &str) -> Result<String, StopMatch> {
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_match() {
            let stop = stop.to_owned();
            self.held.truncate(start);
            return Err(StopMatch {
                before: std::mem::take(&mut self.held),
                stop,
            });
        }
        let keep = self.longest_beginning();
        let rest = self.held.split_off(self.held.len() - keep);
        Ok(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn first_match(&self) -> Option<(usize, &str)> {
        let found = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop)?, stop.as_str())));
        found.min_by_key(|(start, stop)| (start + stop.len(), *start))
    }

    /// Bytes of the longest end of the held text that begins some stop string.
    fn longest_beginning(&self) -> usize {
        let longest = |stop: &String| {
            let most = (stop.len() - 1).min(self.held.len());
            (1..=most).rev().find(|&n| {
                let start = self.held.len() - n;
                self.held.is_char_boundary(start)
                    && stop.as_bytes().starts_with(&self.held.as_bytes()[start..])
            })
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Character by character over the whole text: the obvious reference.
    fn reference(text: &str, stops: &[String]) -> (String, Option<String>) {
        for (end, c) in text.char_indices() {
            let seen = &text[..end + c.len_utf8()];
            if let Some(stop) = stops
                .iter()
                .filter(|stop| seen.ends_with(stop.as_str()))
                .max_by_key(|s| s.len())
            {
                return (
                    seen[..seen.len() - stop.len()].to_owned(),
                    Some(stop.clone()),
                );
            }
        }
        (text.to_owned(), None)
    }

    fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0usize;
        let mut out = Vec::new();
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let end = at.saturating_add(cut).min(chars.len());
            out.push(chars[at..end].iter().collect());
            at = end;
        }
        out
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_gives(
            text in "[abé👍]{0,24}",
            stops in prop::collection::vec("[abé👍]{1,4}", 0..4),
            cuts in prop::collection::vec(0..4usize, 0..20),
        ) {
            let mut matcher = StopStrings::new(stops.clone());
            let mut out = String::new();
            let mut stopped = None;
            for piece in pieces(&text, &cuts) {
                match matcher.push(&piece) {
                    Ok(free) => out.push_str(&free),
                    Err(found) => {
                        out.push_str(&found.before);
                        stopped = Some(found.stop);
                        break;
                    }
                }
            }
            if stopped.is_none() {
                out.push_str(&matcher.finish());
            }
            prop_assert_eq!((out, stopped), reference(&text, &stops));
        }
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut matcher = StopStrings::new(vec!["</s>".into(), "\n\n".into()]);
        assert_eq!(matcher.push("one <"), Ok("one ".into()));
        assert_eq!(matcher.push("b\n"), Ok("<b".into()));
        assert_eq!(matcher.push("x</"), Ok("\nx".into()));
        assert_eq!(
            matcher.push("s>y"),
            Err(StopMatch {
                before: String::new(),
                stop: "</s>".into()
            })
        );
    }
}
