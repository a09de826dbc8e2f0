//! LongBench (Bai et al., arXiv 2308.14508) from its own files: `DATASET.jsonl`, a JSON object a
//! line with `input`, `context`, `answers` and `all_classes`. Metrics, lengths of answers and the
//! cut from the middle are the published ones; prompts say the same in our own words, so figures
//! compare in kind with published ones and not to the digit.
//!
//! Three of the 21 datasets are left out: their metrics need a segmentation of Chinese text into
//! words.

mod datasets;

use std::path::Path;

use serde::Deserialize;

pub use self::datasets::Dataset;
use super::filler::{Filler, digest};
use super::metrics::Metric;
use super::question::{Judge, Question};
use crate::draws::Draws;
use crate::{Error, Result};

#[derive(Debug, Clone, Deserialize)]
struct Item {
    input: String,
    context: String,
    answers: Vec<String>,
    #[serde(default)]
    all_classes: Option<Vec<String>>,
}

/// A dataset's file.
#[derive(Debug, Clone)]
pub struct File {
    dataset: Dataset,
    items: Vec<Item>,
    digest: String,
}

impl File {
    /// Reads the lines of a dataset. `name` is that of the file without its ending; `_e` at its end
    /// (LongBench-E) is ignored.
    ///
    /// # Errors
    /// [`Error::Spec`] for an unknown dataset, no line, a line that is not of the format, or one
    /// without an answer.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let dataset = Dataset::find(name.strip_suffix("_e").unwrap_or(name))?;
        let line = |(index, line): (usize, &str)| {
            let wrong = |what: String| Error::Spec(format!("{name}, line {}: {what}", index + 1));
            let item: Item = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
            if item.answers.is_empty() {
                Err(wrong("it has no answer".into()))
            } else {
                Ok(item)
            }
        };
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty());
        let items = lines.map(line).collect::<Result<Vec<_>>>()?;
        if items.is_empty() {
            return Err(Error::Spec(format!("{name}: the file is empty")));
        }
        Ok(Self {
            dataset,
            items,
            digest: digest(text),
        })
    }

    /// Reads the `.jsonl` files of a directory, those named in `wanted`, or all that are known when
    /// it is empty. Left out in that case is what [`Dataset::find`] refuses; the names of these
    /// come second.
    ///
    /// # Errors
    /// [`Error::Io`]; those of [`Self::parse`]; [`Error::Spec`] when a wanted dataset has no file,
    /// or two.
    pub fn read_all(directory: &Path, wanted: &[String]) -> Result<(Vec<Self>, Vec<String>)> {
        let io = |source| Error::Io {
            path: directory.into(),
            source,
        };
        let entries = std::fs::read_dir(directory)
            .map_err(io)?
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(io)?;
        let mut paths: Vec<_> = entries.into_iter().map(|e| e.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
        paths.sort();
        let (mut files, mut left): (Vec<Self>, Vec<String>) = (Vec::new(), Vec::new());
        for path in paths {
            let name = path
                .file_stem()
                .map(|s| s.to_string_lossy().into_owned())
                .unwrap_or_default();
            let plain = name.strip_suffix("_e").unwrap_or(&name).to_string();
            if !wanted.is_empty() && !wanted.contains(&plain) {
                continue;
            }
            if wanted.is_empty() && Dataset::find(&plain).is_err() {
                left.push(name);
                continue;
            }
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?;
            let file = Self::parse(&name, &text)?;
            if files.iter().any(|f| f.dataset == file.dataset) {
                return Err(Error::Spec(format!(
                    "{plain} has two files in {}",
                    directory.display()
                )));
            }
            files.push(file);
        }
        for name in wanted {
            let dataset = Dataset::find(name)?;
            if !files.iter().any(|f| f.dataset == dataset) {
                return Err(Error::Spec(format!(
                    "there is no {name}.jsonl in {}",
                    directory.display()
                )));
            }
        }
        if files.is_empty() {
            return Err(Error::Spec(format!(
                "there is no dataset of LongBench in {}",
                directory.display()
            )));
        }
        Ok((files, left))
    }

    /// Which dataset it holds.
    pub fn dataset(&self) -> Dataset {
        self.dataset
    }

    /// Questions.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never: see [`Self::parse`].
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Names the file in records.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Question `index` in the order that the seed gives them.
    pub fn question(&self, seed: u64, index: usize) -> Question<'_> {
        let spec = self.dataset.spec();
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        Draws::new(&[seed]).shuffle(&mut order);
        let item = &self.items[order[index % order.len()]];
        let lead = if spec.chat || spec.metric == Metric::Code {
            ""
        } else {
            " "
        };
        Question {
            instruction: spec.before.into(),
            filler: Filler::Document(&item.context),
            needles: Vec::new(),
            question: spec.after.replace("{input}", &item.input),
            answer_prefix: String::new(),
            expected: format!("{lead}{}", item.answers[0]),
            answers: item.answers.clone(),
            judge: Judge::Long {
                metric: spec.metric,
                first_line: spec.first_line,
                classes: item.all_classes.clone().unwrap_or_default(),
            },
            chat: spec.chat,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"input": "Who?", "context": "Ann came.",
        "answers": ["Ann", "Ann B."], "length": 2, "dataset": "qasper", "language": "en",
        "all_classes": null, "_id": "1"}"#;

    fn line() -> String {
        LINE.replace('\n', "")
    }

    #[test]
    fn the_published_format_is_read() {
        let file =
            File::parse("qasper_e", &format!("{}\n\n{}\n", line(), line())).expect("two lines");
        assert_eq!((file.len(), file.dataset().name()), (2, "qasper"));
        let question = file.question(1, 0);
        assert!(
            question.question.contains("Question: Who?")
                && matches!(question.filler, Filler::Document("Ann came."))
        );
        assert_eq!(
            (question.score("Ann"), question.score("nobody")),
            (1.0, 0.0)
        );
    }

    #[test]
    fn first_lines_count_where_the_examples_go_on() {
        let text = line().replace(
            "\"all_classes\": null",
            "\"all_classes\": [\"Ann\", \"Bob\"]",
        );
        let file = File::parse("trec", &text).expect("a line");
        assert_eq!(file.question(1, 0).score("\nAnn\nType: Bob"), 1.0);
        assert!(!file.question(1, 0).chat);
    }

    #[test]
    fn bad_files_are_refused_by_line() {
        let says = |name: &str, text: &str| File::parse(name, text).expect_err(text).to_string();
        assert!(says("qasper", "{}").contains("line 1"));
        assert!(
            says(
                "qasper",
                &format!(
                    "{}\n{}",
                    line(),
                    line().replace("[\"Ann\", \"Ann B.\"]", "[]")
                )
            )
            .contains("line 2")
        );
        assert!(says("qasper", "").contains("empty") && says("x", &line()).contains("not one of"));
        assert!(says("vcsum", &line()).contains("Chinese"));
    }

    #[test]
    fn directories_say_what_they_lack() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = |wanted: &[&str]| {
            File::read_all(
                dir.path(),
                &wanted.iter().map(|w| w.to_string()).collect::<Vec<_>>(),
            )
        };
        assert!(
            read(&[])
                .expect_err("empty")
                .to_string()
                .contains("no dataset")
        );
        for name in ["qasper.jsonl", "dureader.jsonl", "lcc_e.jsonl", "notes.txt"] {
            std::fs::write(dir.path().join(name), line()).expect("written");
        }
        let (files, left) = read(&[]).expect("two datasets");
        assert_eq!((files.len(), left), (2, vec!["dureader".to_string()]));
        assert_eq!(read(&["lcc"]).expect("one dataset").0.len(), 1);
        assert!(
            read(&["musique"])
                .expect_err("no such file")
                .to_string()
                .contains("musique.jsonl")
        );
        std::fs::write(dir.path().join("qasper_e.jsonl"), line()).expect("written");
        assert!(
            read(&[])
                .expect_err("two files")
                .to_string()
                .contains("two files")
        );
    }
}
