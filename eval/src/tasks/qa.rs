//! Questions about documents, from files in the formats of SQuAD and HotpotQA.

use std::collections::HashMap;

use serde::Deserialize;

use super::filler::{Filler, digest};
use super::haystack::Needle;
use super::question::{Draw, Judge, Question};
use super::task::Task;
use crate::draws::Draws;
use crate::{Error, Result};

/// Documents and questions about them.
#[derive(Debug, Clone)]
pub struct Corpus {
    task: Task,
    documents: Vec<String>,
    items: Vec<Item>,
    digest: String,
}

#[derive(Debug, Clone)]
struct Item {
    question: String,
    answers: Vec<String>,
    /// Documents that answer it.
    own: Vec<usize>,
    /// Documents on the same subject.
    near: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Squad { data: Vec<Article> },
    Hotpot(Vec<Hop>),
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<SquadItem>,
}

#[derive(Deserialize)]
struct SquadItem {
    question: String,
    #[serde(default)]
    is_impossible: bool,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

#[derive(Deserialize)]
struct Hop {
    question: String,
    answer: String,
    context: Vec<(String, Vec<String>)>,
}

/// Documents by their text, each once.
#[derive(Default)]
struct Shelf {
    documents: Vec<String>,
    places: HashMap<String, usize>,
}

impl Shelf {
    fn place(&mut self, text: String) -> usize {
        if let Some(&place) = self.places.get(&text) {
            return place;
        }
        self.documents.push(text.clone());
        self.places.insert(text, self.documents.len() - 1);
        self.documents.len() - 1
    }
}

impl Corpus {
    /// Reads a file of SQuAD (1.1 or 2.0; questions without an answer are left out), for
    /// [`Task::Qa1`], or of HotpotQA, for [`Task::Qa2`].
    ///
    /// # Errors
    /// [`Error::Spec`] for text in neither format, or without questions.
    pub fn parse(text: &str) -> Result<Self> {
        let file = serde_json::from_str(text).map_err(|e| {
            let what = if e.is_data() {
                "neither SQuAD's nor HotpotQA's format".into()
            } else {
                e.to_string()
            };
            Error::Spec(format!("the file of questions: {what}"))
        })?;
        let mut shelf = Shelf::default();
        let (task, items) = match file {
            File::Squad { data } => (
                Task::Qa1,
                data.into_iter()
                    .flat_map(|a| squad(a, &mut shelf))
                    .collect(),
            ),
            File::Hotpot(hops) => (
                Task::Qa2,
                hops.into_iter()
                    .map(|h| hotpot(h, &mut shelf))
                    .collect::<Vec<_>>(),
            ),
        };
        if items.is_empty() {
            return Err(Error::Spec(
                "the file of questions has none with an answer".into(),
            ));
        }
        Ok(Self {
            task,
            documents: shelf.documents,
            items,
            digest: digest(text),
        })
    }

    /// The task it is for.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Names the file in records.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

fn squad(article: Article, shelf: &mut Shelf) -> Vec<Item> {
    let places: Vec<usize> = article
        .paragraphs
        .iter()
        .map(|p| shelf.place(p.context.clone()))
        .collect();
    let mut items = Vec::new();
    for (paragraph, &place) in article.paragraphs.into_iter().zip(&places) {
        let near = || places.iter().copied().filter(|p| *p != place).collect();
        let answered = paragraph
            .qas
            .into_iter()
            .filter(|q| !q.is_impossible && !q.answers.is_empty());
        items.extend(answered.map(|q| Item {
            question: q.question,
            answers: q.answers.into_iter().map(|a| a.text).collect(),
            own: vec![place],
            near: near(),
        }));
    }
    items
}

fn hotpot(hop: Hop, shelf: &mut Shelf) -> Item {
    let own = hop
        .context
        .into_iter()
        .map(|(title, lines)| shelf.place(format!("{title}\n{}", lines.concat())))
        .collect();
    Item {
        question: hop.question,
        answers: vec![hop.answer],
        own,
        near: Vec::new(),
    }
}

const INSTRUCTION: &str = "Answer the question from the documents given here. Give only the \
                           answer and no other words.\n\n";

/// The question of the draw's index in the order that its seed gives them: its documents at random
/// depths among others, those on the same subject first.
pub(super) fn question<'a>(corpus: &'a Corpus, draws: &mut Draws, draw: Draw) -> Question<'a> {
    let mut order: Vec<usize> = (0..corpus.items.len()).collect();
    Draws::new(&[draw.seed]).shuffle(&mut order);
    let item = &corpus.items[order[draw.index % order.len()]];
    let mut near = item.near.clone();
    draws.shuffle(&mut near);
    let mut far: Vec<usize> = (0..corpus.documents.len())
        .filter(|d| !item.own.contains(d) && !near.contains(d))
        .collect();
    draws.shuffle(&mut far);
    let others: Vec<&str> = near
        .iter()
        .chain(&far)
        .map(|&d| &*corpus.documents[d])
        .collect();
    let document = |&d: &usize| Needle {
        text: corpus.documents[d].clone(),
        depth: draws.unit(),
    };
    let needles = item.own.iter().map(document).collect();
    // A corpus with no other document repeats its own.
    let documents = if others.is_empty() {
        corpus.documents.iter().map(|d| &**d).collect()
    } else {
        others
    };
    Question {
        instruction: format!("{INSTRUCTION}These are the documents.\n\n"),
        filler: Filler::Documents {
            documents,
            draws: draws.clone(),
        },
        needles,
        question: format!("\n\n{}Question: {}", INSTRUCTION, item.question),
        answer_prefix: "Answer:".into(),
        expected: format!(" {}", item.answers[0]),
        answers: item.answers.clone(),
        judge: Judge::Any,
        chat: true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::haystack;
    use super::*;

    fn draw(index: usize) -> Draw {
        Draw {
            seed: 1,
            index,
            depth: None,
            length: 2048,
            key: 0,
        }
    }

    const SQUAD: &str = r#"{"version": "v2.0", "data": [
        {"title": "A", "paragraphs": [
            {"context": "The tower was built in 1871.", "qas": [
                {"id": "1", "question": "When was the tower built?", "is_impossible": false,
                 "answers": [{"text": "1871", "answer_start": 23},
                             {"text": "in 1871", "answer_start": 20}]},
                {"id": "2", "question": "Who paid?", "is_impossible": true, "answers": []}]},
            {"context": "The tower is red.", "qas": []}]},
        {"title": "B", "paragraphs": [{"context": "Geese fly south.", "qas": []}]}]}"#;
    const HOTPOT: &str = r#"[{"_id": "x", "question": "Which is older?", "answer": "Elm",
        "context": [["Elm", ["Elm is old.", " Very."]], ["Oak", ["Oak is young."]]],
        "supporting_facts": []}]"#;

    #[test]
    fn squad_questions_come_with_their_paragraph_and_those_of_the_same_article_first() {
        let corpus = Corpus::parse(SQUAD).expect("SQuAD");
        assert_eq!(
            (corpus.task(), corpus.items.len(), corpus.documents.len()),
            (Task::Qa1, 1, 3)
        );
        let q = question(&corpus, &mut Draws::new(&[1]), draw(7));
        assert_eq!(
            (q.answers.len(), &*q.expected, &q.judge),
            (2, " 1871", &Judge::Any)
        );
        let text = haystack::text(&q.filler, &q.needles, 1);
        assert!(
            text.contains("built in 1871") && text.contains("is red") && !text.contains("Geese"),
            "{text}"
        );
        assert!(haystack::text(&q.filler, &q.needles, 2).contains("Geese"));
    }

    #[test]
    fn hotpot_questions_come_with_all_their_documents() {
        let corpus = Corpus::parse(HOTPOT).expect("HotpotQA");
        assert_eq!(corpus.task(), Task::Qa2);
        let q = question(&corpus, &mut Draws::new(&[1]), draw(0));
        let text = haystack::text(&q.filler, &q.needles, 0);
        assert!(
            text.contains("Elm\nElm is old. Very.") && text.contains("Oak\nOak is young."),
            "{text}"
        );
    }

    #[test]
    fn other_files_are_refused() {
        for (text, says) in [
            ("{", "EOF"),
            ("{\"a\": 1}", "neither"),
            ("[]", "none"),
            ("{\"data\": []}", "none"),
        ] {
            let error = Corpus::parse(text).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
