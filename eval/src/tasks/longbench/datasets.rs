//! LongBench's datasets: what is asked of each.

use super::super::metrics::Metric;
use crate::{Error, Result};

/// What is asked of a dataset.
pub(super) struct Spec {
    /// Its name, which its file has, too.
    pub name: &'static str,
    /// How answers are scored.
    pub metric: Metric,
    /// Tokens of an answer at most.
    pub answer_tokens: usize,
    /// `false`: the examples in the context are continued without the chat template, and only the
    /// first line counts where `first_line` says so.
    pub chat: bool,
    /// Whether only the first line of an answer counts.
    pub first_line: bool,
    /// Before the context.
    pub before: &'static str,
    /// After it; `{input}` stands for the question.
    pub after: &'static str,
}

const BRIEF: &str = "\n\nAnswer the question about the text above with as few words as you can \
                     and explain nothing.\n\nQuestion: {input}\n\nAnswer:";
const PASSAGES: &str = "Answer a question from the passages given here. Give only the answer and \
                        no other words.\n\nThe passages:\n";
const FROM_PASSAGES: &str = "\n\nAnswer the question from the passages above. Give only the \
                             answer and no other words.\n\nQuestion: {input}\nAnswer:";
const SCIENCE: &str = "\n\nAnswer the question about the article above with a phrase or a \
                       sentence and explain nothing. Write \"unanswerable\" if the article does \
                       not say, and \"yes\", \"no\" or \"unanswerable\" if it is a yes/no \
                       question.\n\nQuestion: {input}\n\nAnswer:";
const UNIQUE: &str = "\n\nHow many different paragraphs are there when repeated ones are counted \
                      once? Write only the number, such as 1, 2, 3.\n\nThe final answer is: ";
const ABSTRACT: &str = "\n\nThis is an abstract of one of them.\n\n{input}\n\nWrite the number of \
                        the paragraph that it belongs to, in the form \"Paragraph 1\", \
                        \"Paragraph 2\".\n\nThe answer is: ";
const ABSTRACT_ZH: &str = "\n\n这是其中一段的摘要。\n\n{input}\n\n请写出它属于哪一段，格式为\"\
                           段落1\"、\"段落2\"。\n\n答案是：";

/// A dataset whose question is a message of a chat.
const fn chat(
    name: &'static str,
    metric: Metric,
    answer_tokens: usize,
    before: &'static str,
    after: &'static str,
) -> Spec {
    Spec {
        name,
        metric,
        answer_tokens,
        chat: true,
        first_line: false,
        before,
        after,
    }
}

/// A dataset whose context ends with examples that the model continues; the answer is a line.
const fn examples(
    name: &'static str,
    metric: Metric,
    answer_tokens: usize,
    before: &'static str,
    after: &'static str,
) -> Spec {
    Spec {
        chat: false,
        first_line: true,
        ..chat(name, metric, answer_tokens, before, after)
    }
}

/// A dataset of programs. Its metric finds the line that counts.
const fn code(name: &'static str, after: &'static str) -> Spec {
    Spec {
        chat: false,
        ..chat(name, Metric::Code, 64, "Complete this code.\n", after)
    }
}

static SPECS: [Spec; 18] = [
    chat(
        "narrativeqa",
        Metric::F1,
        128,
        "Read this story, a novel or a film script, for a question.\n\nStory: ",
        BRIEF,
    ),
    chat(
        "qasper",
        Metric::F1,
        128,
        "Read this scientific article for a question.\n\nArticle: ",
        SCIENCE,
    ),
    chat(
        "multifieldqa_en",
        Metric::F1,
        64,
        "Read this text for a question.\n\n",
        BRIEF,
    ),
    chat("hotpotqa", Metric::F1, 32, PASSAGES, FROM_PASSAGES),
    chat("2wikimqa", Metric::F1, 32, PASSAGES, FROM_PASSAGES),
    chat("musique", Metric::F1, 32, PASSAGES, FROM_PASSAGES),
    chat(
        "gov_report",
        Metric::RougeL,
        512,
        "Read this report of a government agency.\n\nReport:\n",
        "\n\nNow summarise the report on one page.\n\nSummary:",
    ),
    chat(
        "qmsum",
        Metric::RougeL,
        512,
        "Read these minutes of a meeting for a question.\n\nMinutes:\n",
        "\n\nAnswer from the minutes above in one or a few sentences.\n\nQuestion: \
         {input}\nAnswer:",
    ),
    chat(
        "multi_news",
        Metric::RougeL,
        512,
        "Read these news articles.\n\nNews:\n",
        "\n\nNow summarise all of the news on one page.\n\nSummary:",
    ),
    examples(
        "trec",
        Metric::Class,
        64,
        "Say of what type a question is, as in these examples.\n\n",
        "\n{input}",
    ),
    examples(
        "triviaqa",
        Metric::F1,
        32,
        "Answer the question from the passage, with the answer alone, as in these examples.\n\n",
        "\n\n{input}",
    ),
    examples(
        "samsum",
        Metric::RougeL,
        128,
        "Summarise a dialogue briefly, as in these examples.\n\n",
        "\n\n{input}",
    ),
    examples(
        "lsht",
        Metric::Class,
        64,
        "请判断一条新闻属于哪一类，如以下各例。\n\n",
        "\n{input}",
    ),
    chat(
        "passage_count",
        Metric::Count,
        32,
        "Here are paragraphs from Wikipedia, some of them more than once.\n\n",
        UNIQUE,
    ),
    chat(
        "passage_retrieval_en",
        Metric::Retrieval("Paragraph "),
        32,
        "Here are 30 paragraphs from Wikipedia, for an abstract.\n\n",
        ABSTRACT,
    ),
    chat(
        "passage_retrieval_zh",
        Metric::Retrieval("段落"),
        32,
        "以下是若干段落，之后是一个摘要。\n\n",
        ABSTRACT_ZH,
    ),
    code("lcc", "Next line of code:\n"),
    code("repobench-p", "{input}Next line of code:\n"),
];
/// Datasets whose metrics need words of Chinese text.
const LEFT_OUT: [&str; 3] = ["multifieldqa_zh", "dureader", "vcsum"];

/// One of the datasets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dataset(usize);

impl Dataset {
    /// The dataset called `name`.
    ///
    /// # Errors
    /// [`Error::Spec`] with the names there are.
    pub fn find(name: &str) -> Result<Self> {
        if LEFT_OUT.contains(&name) {
            return Err(Error::Spec(format!(
                "dataset {name} is left out: its metric needs words of Chinese text"
            )));
        }
        SPECS
            .iter()
            .position(|s| s.name == name)
            .map(Self)
            .ok_or_else(|| {
                let names: Vec<&str> = SPECS.iter().map(|s| s.name).collect();
                Error::Spec(format!(
                    "dataset `{name}` is not one of {}",
                    names.join(", ")
                ))
            })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        SPECS[self.0].name
    }

    /// Tokens of an answer at most.
    pub fn answer_tokens(self) -> usize {
        SPECS[self.0].answer_tokens
    }

    /// What is asked of it.
    pub(super) fn spec(self) -> &'static Spec {
        &SPECS[self.0]
    }

    /// Its place in the list of all.
    pub fn number(self) -> u64 {
        self.0 as u64
    }
}
