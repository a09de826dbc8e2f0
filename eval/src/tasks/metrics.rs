//! LongBench's metrics (Bai et al., arXiv 2308.14508), to the quirks of the published script and of
//! the packages that it uses, so that figures compare: rouge 1.0.1 for ROUGE-L, fuzzywuzzy 0.18 on
//! difflib for code. Each gives 0 to 1.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Words in common, after normalisation as in SQuAD.
    F1,
    /// ROUGE-L over sentences.
    RougeL,
    /// One of the classes is named.
    Class,
    /// Numbers that name the right paragraph; what stands before the number in the answer.
    Retrieval(&'static str),
    /// Numbers that are the right count.
    Count,
    /// Similarity of the first line that is code.
    Code,
}

impl Metric {
    /// Score of a prediction against one of the right answers. `classes`: all that a question of
    /// classes knows.
    pub fn score(self, prediction: &str, truth: &str, classes: &[String]) -> f64 {
        match self {
            Self::F1 => f1(prediction, truth),
            Self::RougeL => rouge_l(prediction, truth),
            Self::Class => class(prediction, truth, classes),
            Self::Retrieval(before) => {
                let right = truth.find(before).map(|at| &truth[at + before.len()..]);
                numbers_right(
                    prediction,
                    right
                        .and_then(|rest| numbers(rest).first().copied())
                        .unwrap_or(""),
                )
            }
            Self::Count => numbers_right(prediction, truth),
            Self::Code => code(prediction, truth),
        }
    }
}

/// Lower case, without punctuation, articles and further white space.
fn normalise(text: &str) -> Vec<String> {
    let plain: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    plain
        .split_whitespace()
        .filter(|w| !["a", "an", "the"].contains(w))
        .map(Into::into)
        .collect()
}

fn f1(prediction: &str, truth: &str) -> f64 {
    let (prediction, truth) = (normalise(prediction), normalise(truth));
    let mut left: HashMap<&str, usize> = HashMap::new();
    truth
        .iter()
        .for_each(|word| *left.entry(word).or_default() += 1);
    let mut common = 0;
    for word in &prediction {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (
        f64::from(common) / prediction.len() as f64,
        f64::from(common) / truth.len() as f64,
    );
    2.0 * precision * recall / (precision + recall)
}

/// Sentences as the package cuts them: at every full stop, words at single spaces.
fn sentences(text: &str) -> Vec<Vec<String>> {
    let words = |s: &str| {
        let joined = s.split_whitespace().collect::<Vec<_>>().join(" ");
        joined.split(' ').map(String::from).collect()
    };
    text.split('.')
        .filter(|s| !s.is_empty())
        .map(words)
        .collect()
}

/// Words that stand in a longest common subsequence of a sentence of the truth with any of the
/// prediction, over the different words of either.
fn rouge_l(prediction: &str, truth: &str) -> f64 {
    let (prediction, truth) = (sentences(prediction), sentences(truth));
    let different = |all: &[Vec<String>]| all.iter().flatten().collect::<HashSet<_>>().len();
    let (n, m) = (different(&prediction), different(&truth));
    if n == 0 || m == 0 {
        return 0.0;
    }
    let mut union: HashSet<&str> = HashSet::new();
    for right in &truth {
        for said in &prediction {
            union.extend(common_subsequence(right, said));
        }
    }
    let (recall, precision) = (union.len() as f64 / m as f64, union.len() as f64 / n as f64);
    2.0 * (precision * recall / (precision + recall + 1e-8))
}

/// A longest common subsequence. Of several, the one found by going back from the ends, shortening
/// `b` first.
fn common_subsequence<'a>(a: &'a [String], b: &[String]) -> Vec<&'a str> {
    let mut table = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            table[i][j] = if a[i - 1] == b[j - 1] {
                table[i - 1][j - 1] + 1
            } else {
                table[i - 1][j].max(table[i][j - 1])
            };
        }
    }
    let (mut i, mut j, mut found) = (a.len(), b.len(), Vec::new());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            found.push(a[i].as_str());
        } else if table[i - 1][j] > table[i][j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    found
}

/// A named class counts whole if it is the only one. Of the others those that are part of the right
/// one's name do not count, but one that follows such a one in the list is not looked at: the
/// published script removes while it goes on.
fn class(prediction: &str, truth: &str, classes: &[String]) -> f64 {
    let mut named: Vec<&String> = classes
        .iter()
        .filter(|c| prediction.contains(c.as_str()))
        .collect();
    let mut at = 0;
    while at < named.len() {
        if truth.contains(named[at].as_str()) && named[at] != truth {
            let gone = named[at].clone();
            let first = named.iter().position(|c| **c == gone).unwrap_or(at);
            named.remove(first);
        }
        at += 1;
    }
    if named.iter().any(|c| *c == truth) {
        1.0 / named.len() as f64
    } else {
        0.0
    }
}

fn numbers(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_numeric())
        .filter(|s| !s.is_empty())
        .collect()
}

fn numbers_right(prediction: &str, truth: &str) -> f64 {
    let all = numbers(prediction);
    let right = all.iter().filter(|n| **n == truth).count();
    right as f64 / all.len().max(1) as f64
}

/// The first line without a backtick, `#` or `//` against the right one, in whole percents.
fn code(prediction: &str, truth: &str) -> f64 {
    let comment = |line: &&str| line.contains('`') || line.contains('#') || line.contains("//");
    let line = prediction
        .trim_start_matches('\n')
        .split('\n')
        .find(|line| !comment(line))
        .unwrap_or("");
    if line.is_empty() || truth.is_empty() {
        return 0.0;
    }
    (similarity(line, truth) * 100.0).round_ties_even() / 100.0
}

/// Ratcliff and Obershelp's similarity as Python's difflib computes it: twice the characters of
/// matching blocks over all characters. Characters that make up more than a hundredth of a second
/// text of 200 or more start no block.
fn similarity(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut places: HashMap<char, Vec<usize>> = HashMap::new();
    b.iter()
        .enumerate()
        .for_each(|(j, c)| places.entry(*c).or_default().push(j));
    if b.len() >= 200 {
        let most = b.len() / 100 + 1;
        places.retain(|_, at| at.len() <= most);
    }
    let texts = Texts {
        a: &a,
        b: &b,
        places,
    };
    let (mut queue, mut matched) = (vec![texts.whole()], 0);
    while let Some(part) = queue.pop() {
        let block = texts.longest_block(&part);
        if block.len > 0 {
            matched += block.len;
            queue.push(part.before(&block));
            queue.push(part.after(&block));
        }
    }
    if a.len() + b.len() == 0 {
        1.0
    } else {
        2.0 * matched as f64 / (a.len() + b.len()) as f64
    }
}

/// Two texts, and where each character that may start a block stands in the second.
struct Texts<'t> {
    a: &'t [char],
    b: &'t [char],
    places: HashMap<char, Vec<usize>>,
}

/// A part of either text.
struct Part {
    a: Range<usize>,
    b: Range<usize>,
}

/// Equal characters: where in either text, and how many.
struct Block {
    a: usize,
    b: usize,
    len: usize,
}

impl Part {
    fn before(&self, block: &Block) -> Self {
        Self {
            a: self.a.start..block.a,
            b: self.b.start..block.b,
        }
    }

    fn after(&self, block: &Block) -> Self {
        Self {
            a: block.a + block.len..self.a.end,
            b: block.b + block.len..self.b.end,
        }
    }
}

impl Texts<'_> {
    fn whole(&self) -> Part {
        Part {
            a: 0..self.a.len(),
            b: 0..self.b.len(),
        }
    }

    /// The longest block of a part, the first of equal ones.
    fn longest_block(&self, part: &Part) -> Block {
        let (mut i, mut j, mut len) = (part.a.start, part.b.start, 0);
        // Lengths of the blocks that end at the last character of `a`, by their end in `b`.
        let mut ending: HashMap<usize, usize> = HashMap::new();
        for at in part.a.clone() {
            let mut here = HashMap::new();
            let places = self.places.get(&self.a[at]).into_iter().flatten();
            for &to in places.filter(|to| part.b.contains(to)) {
                let before = to.checked_sub(1).and_then(|before| ending.get(&before));
                let length = 1 + before.copied().unwrap_or(0);
                here.insert(to, length);
                if length > len {
                    (i, j, len) = (at + 1 - length, to + 1 - length, length);
                }
            }
            ending = here;
        }

        // Characters that start no block may still belong to one.
        while i > part.a.start && j > part.b.start && self.a[i - 1] == self.b[j - 1] {
            (i, j, len) = (i - 1, j - 1, len + 1);
        }
        while i + len < part.a.end && j + len < part.b.end && self.a[i + len] == self.b[j + len] {
            len += 1;
        }
        Block { a: i, b: j, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn f1_of_known_answers() {
        // "cat sat on mat" against "cat on mat there": 3 in common of 4 and 4.
        close(
            Metric::F1.score("The cat sat, on a mat!", "cat on the mat there", &[]),
            0.75,
        );
        close(Metric::F1.score("Paris", "in Paris", &[]), 2.0 / 3.0);
        close(Metric::F1.score("no no no", "no", &[]), 0.5);
        close(Metric::F1.score("the", "a", &[]), 0.0);
    }

    #[test]
    fn rouge_l_is_that_of_the_package() {
        // rouge 1.0.1, `Rouge().get_scores([prediction], [truth], avg=True)["rouge-l"]["f"]`.
        let rouge = |a: &str, b: &str| Metric::RougeL.score(a, b, &[]);
        close(
            rouge("the cat sat on the mat", "the cat was on the mat"),
            0.799_999_995,
        );
        let said = "Officials met on Monday. They agreed on a budget. Nobody spoke";
        let right = "On Monday officials met. A budget was agreed on by them. Nobody spoke of it";
        close(rouge(said, right), 0.399_999_995_2);
        close(rouge("a b c d", "e f g"), 0.0);
        close(rouge("x", "x"), 0.999_999_995);
        close(rouge("", "x"), 0.0);
    }

    #[test]
    fn code_similarity_is_that_of_the_package() {
        // fuzzywuzzy 0.18.0 without python-Levenshtein, `fuzz.ratio`.
        let code = |a: &str, b: &str| Metric::Code.score(a, b, &[]);
        close(code("return a + b", "return b + a"), 0.83);
        close(
            code("    self.assertEqual(x, 1)", "self.assertTrue(x == 1)"),
            0.69,
        );
        close(code("abc", "xyz"), 0.0);
        close(
            code("\n\n# first\nfor i in range(10):\nx", "for i in range(10):"),
            1.0,
        );
        let (long, other) = (
            format!("{}qqq", "ab".repeat(120)),
            format!("{}zq", "ba".repeat(110)),
        );
        close(code(&long, &other), 0.0);
    }

    #[test]
    fn classes_count_when_named_alone() {
        let classes = ["Person", "Description of a person", "City", "Other"].map(String::from);
        let class = |said: &str, right: &str| Metric::Class.score(said, right, &classes);
        close(class("City", "City"), 1.0);
        close(class("City or Other", "City"), 0.5);
        close(class("a Person lives in a City", "Other"), 0.0);
        close(class("no idea", "City"), 0.0);
        let nested = ["person", "Description of a person"].map(String::from);
        close(
            Metric::Class.score(
                "Description of a person",
                "Description of a person",
                &nested,
            ),
            1.0,
        );
    }

    #[test]
    fn numbers_count_as_a_share_of_all_that_are_said() {
        close(Metric::Count.score("There are 12, not 13", "12", &[]), 0.5);
        close(Metric::Count.score("many", "12", &[]), 0.0);
        let retrieval = Metric::Retrieval("Paragraph ");
        close(retrieval.score("Paragraph 7", "Paragraph 7", &[]), 1.0);
        close(
            retrieval.score("Paragraphs 7, 17 and 3", "Paragraph 7", &[]),
            1.0 / 3.0,
        );
    }
}
