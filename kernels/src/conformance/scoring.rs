//! Notes that move with their slots, and scores.

use super::arenas::{Arenas, heads};
use super::report::Failure;
use super::suite::{Check, Named, Random, Suite, refused};
use crate::backend::{Boundary, HeadPages, PageId, Scoring};
use crate::reference::ReferenceBackend;
use crate::score::{NoteItem, ScoreItem, ScoreRule};

impl<B: Scoring> Suite<'_, B> {
    /// Cases of [`Scoring`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn scoring(&mut self) -> Result<(), Failure> {
        for of_two in [false, true] {
            notes(self, of_two)?;
        }
        for dim in [8, 48, 128] {
            for of_two in [false, true] {
                scores(self, dim, of_two)?;
            }
        }
        refused_notes(self)?;
        refused_scores(self)
    }
}

impl<B: Scoring + Boundary> Suite<'_, B> {
    /// What [`Boundary::compact`] does to notes.
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn notes_after_compaction(&mut self) -> Result<(), Failure> {
        for of_two in [false, true] {
            compacted(self, of_two)?;
        }
        Ok(())
    }
}

/// KV heads of each sequence, and slots that they have before and after the rows of a step.
const KV_HEADS: usize = 2;
const SEQUENCES: [(usize, usize); 5] = [(0, 0), (0, 1), (31, 34), (0, 300), (63, 64)];

/// Gives every slot of `SEQUENCES` a note, of one number or of two, as two steps would.
fn annotate<B: Scoring>(
    suite: &mut Suite<'_, B>,
    arenas: &mut Arenas<B>,
    tables: &[Vec<PageId>],
    of_two: bool,
) -> Check {
    for first_step in [true, false] {
        let (mut items, mut start) = (Vec::new(), 0);
        for (sequence, &(before, after)) in SEQUENCES.iter().enumerate() {
            let (len, rows) = if first_step {
                (0, before)
            } else {
                (before, after - before)
            };
            items.extend((0..KV_HEADS).map(|kv_head| NoteItem {
                rows: start..start + rows,
                kv_head,
                second: of_two.then_some(KV_HEADS - kv_head),
                slots: HeadPages::new(&tables[sequence * KV_HEADS + kv_head], len),
                position: (1000 * sequence + len) as u32,
            }));
            start += rows;
        }
        let width = KV_HEADS + 1;
        let values = suite.random.values(start * width);
        let on_device = suite.upload(&values)?;
        suite
            .backend
            .note(&mut arenas.pages, &on_device, width, &items)
            .named("note")?;
        ReferenceBackend
            .note(&mut arenas.reference, &values, width, &items)
            .named("note")?;
    }
    Ok(())
}

fn lens() -> Vec<usize> {
    SEQUENCES
        .iter()
        .flat_map(|sequence| [sequence.1; KV_HEADS])
        .collect()
}

fn compare<B: Scoring>(
    suite: &mut Suite<'_, B>,
    case: &str,
    arenas: &Arenas<B>,
    lens: &[usize],
) -> Check {
    for (index, &len) in lens.iter().enumerate() {
        let got = suite
            .backend
            .read_notes(&arenas.pages, arenas.head(index, len))
            .named("read_notes")?;
        let want = ReferenceBackend
            .read_notes(&arenas.reference, arenas.head(index, len))
            .named("read_notes")?;
        if got.len() != want.len() {
            return Err(Failure::Length {
                case: case.into(),
                got: got.len(),
                want: want.len(),
            });
        }
        if let Some(slot) = got.iter().zip(&want).position(|(got, want)| got != want) {
            return Err(Failure::Note {
                case: case.into(),
                slot,
                got: got[slot],
                want: want[slot],
            });
        }
    }
    Ok(())
}

/// `note` and `read_notes`.
fn notes<B: Scoring>(suite: &mut Suite<'_, B>, of_two: bool) -> Check {
    let lens = lens();
    let mut arenas = Arenas::new(suite, 8, &lens)?;
    let tables = arenas.tables.clone();
    annotate(suite, &mut arenas, &tables, of_two)?;
    compare(suite, "note", &arenas, &lens)
}

/// Two slots of three stay, and their notes with them.
fn compacted<B: Scoring + Boundary>(suite: &mut Suite<'_, B>, of_two: bool) -> Check {
    let lens = lens();
    let mut arenas = Arenas::new(suite, 8, &lens)?;
    let tables = arenas.tables.clone();
    annotate(suite, &mut arenas, &tables, of_two)?;
    let list =
        |len: usize, random: &mut Random| (0..len as u32).filter(|_| random.below(3) > 0).collect();
    let lists: Vec<Vec<u32>> = lens
        .iter()
        .map(|&len| list(len, &mut suite.random))
        .collect();
    let heads = heads(&tables, &lens);
    let kept = suite
        .backend
        .keep_lists(&lens, &lists)
        .named("keep_lists")?;
    suite
        .backend
        .compact(&mut arenas.pages, &heads, &kept)
        .named("compact")?;
    let kept = ReferenceBackend
        .keep_lists(&lens, &lists)
        .named("keep_lists")?;
    ReferenceBackend
        .compact(&mut arenas.reference, &heads, &kept)
        .named("compact")?;
    let left: Vec<usize> = lists.iter().map(Vec::len).collect();
    compare(suite, "notes after compact", &arenas, &left)
}

/// Rules of one number, or of two, and those of keys, in the order that heads take them.
fn rules(of_two: bool) -> [ScoreRule; 4] {
    let fading = |rate| ScoreRule::Fading { rate, scale: 256.0 };
    let either = |rate| ScoreRule::Either { rate, scale: 256.0 };
    let [first, second] = if of_two {
        [either(-0.7), either(0.0)]
    } else {
        [fading(-0.7), fading(0.0)]
    };
    [first, ScoreRule::KeyNorm, second, ScoreRule::KeyDirection]
}

/// `score` by every rule, heads of different rules in one call.
fn scores<B: Scoring>(suite: &mut Suite<'_, B>, dim: usize, of_two: bool) -> Check {
    let lens = lens();
    let mut arenas = Arenas::new(suite, dim, &lens)?;
    let tables = arenas.tables.clone();
    for (head, &len) in lens.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
    annotate(suite, &mut arenas, &tables, of_two)?;
    let (rules, total) = (rules(of_two), lens.iter().sum());
    for first in 0..rules.len() {
        let item = |(i, slots)| ScoreItem {
            slots,
            rule: rules[(first + i) % rules.len()],
        };
        let heads = heads(&tables, &lens);
        let items: Vec<_> = heads.into_iter().enumerate().map(item).collect();
        let case = format!("score D {dim}");
        let mut want = vec![0.0; total];
        ReferenceBackend
            .score(&arenas.reference, 4100, &items, &mut want)
            .named(&case)?;
        let mut out = suite.backend.alloc(total).named(&case)?;
        suite
            .backend
            .score(&arenas.pages, 4100, &items, &mut out)
            .named(&case)?;
        let got = suite.download(&out, total)?;
        suite.compare(&case, &got, &want, suite.tolerance.elementwise)?;
    }
    Ok(())
}

/// Notes whose rows, columns or slots are not there are refused.
fn refused_notes<B: Scoring>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let mut arenas = Arenas::new(suite, 8, &[40])?;
    let (table, bad) = (arenas.tables[0].clone(), [PageId(1), PageId(9)]);
    let values = suite.upload(&[0.0; 6])?;
    let item = NoteItem {
        rows: 0..3,
        kv_head: 1,
        second: None,
        slots: HeadPages::new(&table, 30),
        position: 7,
    };
    let mut note = |case, item| refused(case, backend.note(&mut arenas.pages, &values, 2, &[item]));
    note(
        "rows past the notes",
        NoteItem {
            rows: 1..4,
            ..item.clone()
        },
    )?;
    note(
        "KV head past the notes",
        NoteItem {
            kv_head: 2,
            ..item.clone()
        },
    )?;
    note(
        "second number past the notes",
        NoteItem {
            second: Some(2),
            ..item.clone()
        },
    )?;
    note(
        "noted page out of range",
        NoteItem {
            slots: HeadPages::new(&bad, 30),
            ..item.clone()
        },
    )?;
    note(
        "noted slots past the table",
        NoteItem {
            slots: HeadPages::new(&table, 62),
            ..item
        },
    )
}

/// Slots that are not there, and room for fewer scores, are refused.
fn refused_scores<B: Scoring>(suite: &mut Suite<'_, B>) -> Check {
    let arenas = Arenas::new(suite, 8, &[40])?;
    let (table, bad) = (&arenas.tables[0][..], [PageId(1), PageId(9)]);
    let mut out = suite.upload(&[0.0; 40])?;
    let mut score = |case, pages, len| {
        let item = ScoreItem {
            slots: HeadPages::new(pages, len),
            rule: ScoreRule::KeyNorm,
        };
        refused(
            case,
            suite.backend.score(&arenas.pages, 0, &[item], &mut out),
        )
    };
    score("scored page out of range", &bad[..], 40)?;
    score("more slots than scores", table, 41)
}
