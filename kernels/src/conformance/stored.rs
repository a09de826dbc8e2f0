//! Slots and notes that leave a device as they are stored, and come back.

use super::arenas::{Arenas, heads};
use super::report::Failure;
use super::suite::{Check, Named, Suite, refused};
use crate::backend::{Cache, HeadPages, PageId, Scoring};
use crate::reference::ReferenceBackend;
use crate::stored::StoredParts;

/// Slots of heads that go in one call: none, one, whole pages, ragged ones, more than goes at once.
const LENS: [usize; 6] = [0, 1, 64, 333, 0, 31];

impl<B: Cache> Suite<'_, B> {
    /// Cases of [`Cache::save_slots`] and [`Cache::load_slots`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn stored(&mut self) -> Result<(), Failure> {
        for dim in [8, 48, 128] {
            round_trip(self, dim, &LENS)?;
        }
        // More bytes than go at once, in few slots.
        round_trip(self, 512, &[300, 33, 900])?;
        refusals(self)
    }
}

impl<B: Scoring> Suite<'_, B> {
    /// Cases of [`Scoring::write_notes`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn stored_notes(&mut self) -> Result<(), Failure> {
        let mut arenas = Arenas::new(self, 8, &LENS)?;
        for (index, len) in LENS.into_iter().enumerate() {
            let notes: Vec<u32> = (0..len).map(|_| self.random.next() as u32).collect();
            let positions: Vec<u32> = (0..len as u32).map(|slot| 7 * slot).collect();
            let table = arenas.tables[index].clone();
            let head = HeadPages::new(&table, len);
            self.backend
                .write_notes(&mut arenas.pages, head, &notes, &positions)
                .named("write_notes")?;
            let got = self
                .backend
                .read_notes(&arenas.pages, head)
                .named("read_notes")?;
            let differs = got.iter().zip(&notes).position(|(got, want)| got != want);
            if let Some(slot) = differs.or((got.len() != len).then_some(0)) {
                return Err(Failure::Note {
                    case: "write_notes".into(),
                    slot,
                    got: got.get(slot).copied().unwrap_or_default(),
                    want: notes.get(slot).copied().unwrap_or_default(),
                });
            }
        }
        let head = arenas.head(3, 333);
        let (table, len) = (head.pages.to_vec(), head.len);
        let head = HeadPages::new(&table, len);
        refused(
            "positions of fewer slots",
            self.backend
                .write_notes(&mut arenas.pages, head, &[0; 333], &[0; 332]),
        )
    }
}

fn bytes_of<B>(suite: &Suite<'_, B>, dim: usize, lens: &[usize]) -> usize {
    let shape = suite.shape(dim);
    lens.iter()
        .map(|&len| StoredParts::of(shape, len).bytes())
        .sum()
}

/// What both arenas hold of `lens` slots of each head, as bytes of the host.
fn saved<B: Cache>(
    suite: &Suite<'_, B>,
    arenas: &Arenas<B>,
    lens: &[usize],
) -> Check<(Vec<u8>, Vec<u8>)> {
    let mut got = vec![0xa5; bytes_of(suite, arenas.dim, lens)];
    let mut want = got.clone();
    let heads = heads(&arenas.tables, lens);
    suite
        .backend
        .save_slots(&arenas.pages, &heads, &mut got)
        .named("save_slots")?;
    ReferenceBackend
        .save_slots(&arenas.reference, &heads, &mut want)
        .named("save_slots")?;
    Ok((got, want))
}

fn same_bytes(case: &str, got: &[u8], want: &[u8]) -> Check {
    match got.iter().zip(want).position(|(got, want)| got != want) {
        Some(index) => Err(Failure::Differs {
            case: case.into(),
            index,
            got: f32::from(got[index]),
            want: f32::from(want[index]),
            difference: 1.0,
            allowed: 0.0,
        }),
        None => Ok(()),
    }
}

/// What the reference holds is what the device gives; put into other pages, it is there again.
fn round_trip<B: Cache>(suite: &mut Suite<'_, B>, dim: usize, lens: &[usize]) -> Check {
    let mut arenas = Arenas::new(suite, dim, lens)?;
    for (head, &len) in lens.iter().enumerate() {
        arenas.fill(suite, head, len)?;
    }
    let (got, want) = saved(suite, &arenas, lens)?;
    same_bytes(&format!("save_slots D {dim}"), &got, &want)?;

    let mut others = Arenas::new(suite, dim, lens)?;
    let tables = others.tables.clone();
    let all = heads(&tables, lens);
    suite
        .backend
        .load_slots(&mut others.pages, &all, &got)
        .named("load_slots")?;
    ReferenceBackend
        .load_slots(&mut others.reference, &all, &got)
        .named("load_slots")?;
    let (again, want) = saved(suite, &others, lens)?;
    same_bytes("save_slots after load_slots", &again, &got)?;
    same_bytes("load_slots of the reference", &want, &got)?;
    for (head, &len) in lens.iter().enumerate() {
        others.compare(suite, &format!("load_slots D {dim}"), head, len, 0.0)?;
    }
    Ok(())
}

/// Pages that are not there, and bytes of other slots, are refused.
fn refusals<B: Cache>(suite: &mut Suite<'_, B>) -> Check {
    let mut arenas = Arenas::new(suite, 8, &[40])?;
    let mut bytes = vec![0; bytes_of(suite, 8, &[40])];
    let (table, bad) = (arenas.tables[0].clone(), [PageId(0), PageId(9)]);
    let backend = suite.backend;
    for (case, pages, less) in [
        ("saved page out of range", &bad[..], 0),
        ("saved slots past the table", &table[..1], 0),
        ("bytes of fewer slots", &table, 1),
    ] {
        let head = [HeadPages::new(pages, 40)];
        let end = bytes.len() - less;
        let some = &mut bytes[..end];
        refused(case, backend.save_slots(&arenas.pages, &head, some))?;
        refused(case, backend.load_slots(&mut arenas.pages, &head, some))?;
    }
    Ok(())
}
