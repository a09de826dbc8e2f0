//! What a chat template wrote, and where in it a client's words are.

/// Characters that Unicode keeps for use within a program ("noncharacters"), one of which stands in
/// texts of this process where no control token may continue.
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// The text of a conversation, as its template wrote it.
///
/// A control token is one only where the template wrote it. What a client's words spell is plain
/// text: a break stands behind its first character, and [`super::Tokenizer::encode_rendered`] sees
/// none of the model's control tokens across it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    /// Increasing places between characters of `text`, in bytes.
    breaks: Vec<usize>,
    /// The end of `text` that the answer goes on with as if the model had written it: the opening
    /// of a call.
    forced: String,
}

impl Rendered {
    /// A text in which `mark` stands where no control token may continue.
    pub(super) fn from_marked(marked: &str, mark: char) -> Self {
        let mut rendered = Self::default();
        rendered.push_marked(marked, mark);
        rendered
    }

    /// A client's words, with `mark` where no control token may continue.
    pub(super) fn push_marked(&mut self, marked: &str, mark: char) {
        for (index, piece) in marked.split(mark).enumerate() {
            if index > 0 {
                self.breaks.push(self.text.len());
            }
            self.text.push_str(piece);
        }
    }

    /// Puts something behind it that is not a client's.
    pub(super) fn push_own(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Begins the answer in the model's place.
    pub(super) fn force(&mut self, opening: &str) {
        self.push_own(opening);
        self.forced = opening.to_owned();
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All of it, for those who take its control tokens at their word.
    pub fn into_text(self) -> String {
        self.text
    }

    /// What the answer begins with as if the model had written it; empty for most.
    pub fn forced(&self) -> &str {
        &self.forced
    }

    /// Places at which no control token may continue.
    pub(super) fn breaks(&self) -> &[usize] {
        &self.breaks
    }

    /// What stands behind the first `bytes`.
    ///
    /// # Panics
    /// If that is not between two characters.
    #[must_use]
    pub fn behind(&self, bytes: usize) -> Self {
        let breaks = self.breaks.iter();
        Self {
            text: self.text[bytes..].to_owned(),
            breaks: breaks.filter_map(|at| at.checked_sub(bytes)).collect(),
            forced: self.forced.clone(),
        }
    }
}

/// The first `N` marks that none of the texts has.
pub(super) fn unused_marks<const N: usize>(has: impl Fn(char) -> bool) -> Option<[char; N]> {
    let mut unused = MARKS.filter(|mark| !has(*mark));
    let mut found = ['\0'; N];
    for place in &mut found {
        *place = unused.next()?;
    }
    Some(found)
}

/// The text with a mark at each of these places.
pub(super) fn with_marks(text: &str, breaks: &[usize], mark: char) -> String {
    let mut marked = String::with_capacity(text.len() + breaks.len() * mark.len_utf8());
    let mut from = 0;
    for &at in breaks {
        marked.push_str(&text[from..at]);
        marked.push(mark);
        from = at;
    }
    marked.push_str(&text[from..]);
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_places_and_places_marks() {
        let rendered = Rendered::from_marked("a<\u{FDD0}b\u{FDD0}é", '\u{FDD0}');
        assert_eq!((rendered.text(), rendered.breaks()), ("a<bé", &[2, 3][..]));
        assert_eq!(
            with_marks(rendered.text(), rendered.breaks(), '!'),
            "a<!b!é"
        );
        let rest = rendered.behind(2);
        assert_eq!((rest.text(), rest.breaks()), ("bé", &[0, 1][..]));
    }

    #[test]
    fn a_mark_is_one_that_the_text_does_not_have() {
        let text = "\u{FDD0}\u{FDD2}";
        assert_eq!(
            unused_marks(|mark| text.contains(mark)),
            Some(['\u{FDD1}', '\u{FDD3}'])
        );
        assert_eq!(unused_marks::<1>(|_| true), None);
    }
}
