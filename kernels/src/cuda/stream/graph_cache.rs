//! Which lists of commands are started one by one, captured, or replayed.
//!
//! A list that comes for the second time is captured: the first time loads its kernels and connects
//! its ranks. With sums over ranks in it, all ranks have to do the same, and with graphs of one and
//! the same capture: that is what NCCL asks for. A rank cannot know by itself, since the lists of
//! ranks change apart from each other, as where their heads keep other numbers of slots. So each
//! tells the others how far it is with its own list, a word that goes over the host before the step
//! begins.

use std::sync::Arc;

use crate::cuda::device::Device;
use crate::cuda::launch::Command;
use crate::error::{Error, Result};
use crate::sums::DeviceSums;

/// Lists that are remembered; the one that was not used for longest makes room.
const MOST_GRAPHS: usize = 64;
/// What a rank says of a list that it sees for the first time, or cannot capture.
const NEW: u64 = 0;
/// Of one that it has no graph of. Captures with sums in them count from here on.
const KNOWN: u64 = 1;

/// Lists of commands, and their graphs.
pub(super) struct GraphCache<D: Device> {
    known: Vec<List<D>>,
    /// Whether lists are captured at all.
    wanted: bool,
    sums: Option<Arc<dyn DeviceSums>>,
    /// Number of the group's last capture, the same on all ranks.
    captures: u64,
}

struct List<D: Device> {
    commands: Vec<Command>,
    captured: Option<Captured<D>>,
}

struct Captured<D: Device> {
    graph: D::Graph,
    /// Number of the capture; 0 for one that other ranks have no part in.
    number: u64,
}

impl<D: Device> Default for GraphCache<D> {
    fn default() -> Self {
        Self {
            known: Vec::new(),
            wanted: true,
            sums: None,
            captures: KNOWN,
        }
    }
}

impl<D: Device> GraphCache<D> {
    /// Captures graphs from now on, or does not.
    pub(super) fn want(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    /// Other ranks, or none, from now on. Graphs of the group before are dropped.
    pub(super) fn join_sums(&mut self, sums: Option<Arc<dyn DeviceSums>>) {
        self.known
            .retain(|list| !list.commands.iter().any(Command::is_sum));
        (self.sums, self.captures) = (sums, KNOWN);
    }

    /// Starts commands, as a graph where this list is known.
    ///
    /// # Safety
    /// As [`Device::start`], for all of them.
    pub(super) unsafe fn start(&mut self, device: &D, commands: Vec<Command>) -> Result<()> {
        let has_sums = commands.iter().any(Command::is_sum);
        let replayed = match self.sums.clone().filter(|_| has_sums) {
            // SAFETY: by the caller's contract.
            Some(sums) => unsafe { self.replay_together(device, &*sums, &commands) }?,
            // SAFETY: by the caller's contract.
            None => unsafe { self.replay_alone(device, &commands) },
        };
        if replayed {
            return Ok(());
        }
        // SAFETY: by the caller's contract.
        commands
            .iter()
            .try_for_each(|command| unsafe { device.start(command) })
    }

    /// Puts a list before all others; whether it was known.
    fn recall(&mut self, commands: &[Command]) -> bool {
        match self.known.iter().position(|list| list.commands == commands) {
            Some(found) => {
                self.known[..=found].rotate_right(1);
                true
            }
            None => {
                self.known.truncate(MOST_GRAPHS - 1);
                self.known.insert(
                    0,
                    List {
                        commands: commands.to_vec(),
                        captured: None,
                    },
                );
                false
            }
        }
    }

    /// Nothing is captured any more.
    fn give_up(&mut self, error: &Error) {
        tracing::warn!("steps of decoding are not captured, and cost the host more: {error}");
        (self.wanted, self.known) = (false, Vec::new());
    }

    /// Replays a list's graph, or captures and replays it; `false`: its commands are to be started.
    ///
    /// # Safety
    /// As [`Self::start`].
    unsafe fn replay_alone(&mut self, device: &D, commands: &[Command]) -> bool {
        if !self.wanted || !device.captures() || !self.recall(commands) {
            return false;
        }
        let captured = match self.known[0].captured {
            Some(_) => Ok(()),
            // SAFETY: by the caller's contract.
            None => unsafe { self.capture(device, commands, 0) },
        };
        // SAFETY: by the caller's contract.
        let replayed = captured.and_then(|()| unsafe { self.replay(device) });
        replayed.inspect_err(|error| self.give_up(error)).is_ok()
    }

    /// Replays a list's graph together with the other ranks, or captures and replays it together;
    /// `false`: its commands are to be started.
    ///
    /// # Safety
    /// As [`Self::start`].
    ///
    /// # Errors
    /// [`Error::Sums`]; [`Error::Device`] where the others may have started what this rank could
    /// not.
    unsafe fn replay_together(
        &mut self,
        device: &D,
        sums: &dyn DeviceSums,
        commands: &[Command],
    ) -> Result<bool> {
        let own = match self.wanted && device.captures() && self.recall(commands) {
            false => NEW,
            true => self.known[0]
                .captured
                .as_ref()
                .map_or(KNOWN, |captured| captured.number),
        };
        let told = sums.gather(own)?;
        if told.contains(&NEW) {
            return Ok(false);
        }
        if own == KNOWN || told.iter().any(|&other| other != own) {
            self.captures += 1;
            // SAFETY: by the caller's contract.
            let captured = unsafe { self.capture(device, commands, self.captures) };
            let is_captured = captured.is_ok();
            if let Err(error) = captured {
                self.give_up(&error);
            }
            // Who replays a graph waits for all others to replay theirs.
            if sums.gather(u64::from(is_captured))?.contains(&0) {
                return Ok(false);
            }
        }
        // SAFETY: by the caller's contract.
        unsafe { self.replay(device) }?;
        Ok(true)
    }

    /// Captures the list that was asked for last.
    ///
    /// # Safety
    /// As [`Self::start`].
    unsafe fn capture(&mut self, device: &D, commands: &[Command], number: u64) -> Result<()> {
        // The old one goes first.
        self.known[0].captured = None;
        // SAFETY: by the caller's contract.
        let graph = unsafe { device.capture(commands) }?;
        self.known[0].captured = Some(Captured { graph, number });
        Ok(())
    }

    /// Starts the graph of the list that was asked for last.
    ///
    /// # Safety
    /// As [`Self::start`]: the list that the graph was captured from is asked for again.
    unsafe fn replay(&self, device: &D) -> Result<()> {
        let none = || Error::Device {
            op: "replay",
            what: "nothing was captured".into(),
        };
        let captured = self
            .known
            .first()
            .and_then(|list| list.captured.as_ref())
            .ok_or_else(none)?;
        // SAFETY: by the caller's contract.
        unsafe { device.replay(&captured.graph) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;
    use crate::cuda::launch::{Launch, Product, Sum};
    use crate::sums::{SumElement, Summand};

    /// A device that writes down what it starts.
    #[derive(Default)]
    struct Log {
        calls: Mutex<Vec<&'static str>>,
        refuses: bool,
    }

    impl Log {
        fn note(&self, call: &'static str) -> Result<()> {
            self.calls.lock().expect("no panic").push(call);
            Ok(())
        }
    }

    impl Device for Log {
        type Memory = ();
        type Graph = ();

        fn name(&self) -> String {
            String::new()
        }
        fn shared_bytes(&self) -> usize {
            0
        }
        fn alloc(&self, _: &'static str, _: usize) -> Result<()> {
            Ok(())
        }
        fn address((): &()) -> u64 {
            0
        }
        fn upload(&self, _: &[u8], (): &(), _: usize) -> Result<()> {
            Ok(())
        }
        fn download(&self, (): &(), _: usize, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        unsafe fn launch(&self, _: &Launch) -> Result<()> {
            self.note("launch")
        }
        fn has_products(&self) -> bool {
            false
        }
        unsafe fn product(&self, _: &Product) -> Result<()> {
            self.note("product")
        }
        fn join_sums(&self, _: Option<Arc<dyn DeviceSums>>) {}
        unsafe fn sum(&self, _: &Sum) -> Result<()> {
            self.note("sum")
        }
        fn captures(&self) -> bool {
            true
        }
        unsafe fn capture(&self, _: &[Command]) -> Result<()> {
            self.note("capture")?;
            if self.refuses {
                Err(Error::Device {
                    op: "capture",
                    what: "refused".into(),
                })
            } else {
                Ok(())
            }
        }
        unsafe fn replay(&self, (): &()) -> Result<()> {
            self.note("replay")
        }
    }

    /// Another rank that says what is written for it.
    struct Other(Mutex<Vec<u64>>);

    impl DeviceSums for Other {
        fn set_deadline(&self, _: Instant) {}
        fn all_reduce(&self, _: Summand<'_>) -> Result<()> {
            Ok(())
        }
        fn check(&self) -> Result<()> {
            Ok(())
        }
        fn gather(&self, word: u64) -> Result<Vec<u64>> {
            Ok(vec![word, self.0.lock().expect("no panic").remove(0)])
        }
    }

    fn list(address: u64) -> Vec<Command> {
        vec![Command::Sum(Sum {
            address,
            count: 1,
            element: SumElement::U64,
        })]
    }

    /// What the device is asked for when the other rank says all of `told`.
    fn step(
        graphs: &mut GraphCache<Log>,
        device: &Log,
        address: u64,
        told: &[u64],
    ) -> Vec<&'static str> {
        let other = Arc::new(Other(Mutex::new(told.to_vec())));
        graphs.sums = Some(other.clone());
        // SAFETY: the device starts nothing.
        unsafe { graphs.start(device, list(address)) }.expect("nothing fails");
        assert!(
            other.0.lock().expect("no panic").is_empty(),
            "it is asked as often as it answers"
        );
        std::mem::take(&mut device.calls.lock().expect("no panic"))
    }

    #[test]
    fn ranks_replay_graphs_of_one_capture_or_none() {
        let (mut graphs, device) = (GraphCache::default(), Log::default());
        assert_eq!(
            step(&mut graphs, &device, 1, &[KNOWN]),
            ["sum"],
            "a list that is new here"
        );
        assert_eq!(
            step(&mut graphs, &device, 1, &[NEW]),
            ["sum"],
            "a list that is new there"
        );
        assert_eq!(
            step(&mut graphs, &device, 1, &[KNOWN, 1]),
            ["capture", "replay"]
        );
        assert_eq!(step(&mut graphs, &device, 1, &[2]), ["replay"]);
        assert_eq!(
            step(&mut graphs, &device, 1, &[KNOWN, 1]),
            ["capture", "replay"],
            "another list there"
        );
        assert_eq!(
            step(&mut graphs, &device, 1, &[2, 1]),
            ["capture", "replay"],
            "a graph of another capture there"
        );
        assert_eq!(step(&mut graphs, &device, 1, &[4]), ["replay"]);
        assert_eq!(
            step(&mut graphs, &device, 2, &[4]),
            ["sum"],
            "another list here"
        );
        assert_eq!(
            step(&mut graphs, &device, 2, &[4, 0]),
            ["capture", "sum"],
            "what was captured here was not there"
        );
        assert_eq!(
            step(&mut graphs, &device, 2, &[NEW]),
            ["sum"],
            "from then on it says so"
        );
    }

    #[test]
    fn another_group_captures_anew() {
        let (mut graphs, device) = (GraphCache::default(), Log::default());
        step(&mut graphs, &device, 1, &[KNOWN]);
        step(&mut graphs, &device, 1, &[KNOWN, 1]);
        graphs.join_sums(None);
        assert_eq!(step(&mut graphs, &device, 1, &[NEW]), ["sum"]);
        assert_eq!(
            step(&mut graphs, &device, 1, &[KNOWN, 1]),
            ["capture", "replay"]
        );
        assert_eq!(
            step(&mut graphs, &device, 1, &[2]),
            ["replay"],
            "captures are counted anew"
        );
    }

    #[test]
    fn who_cannot_capture_keeps_the_others_from_it() {
        let (mut graphs, device) = (
            GraphCache::default(),
            Log {
                refuses: true,
                ..Log::default()
            },
        );
        step(&mut graphs, &device, 1, &[NEW]);
        assert_eq!(
            step(&mut graphs, &device, 1, &[KNOWN, 1]),
            ["capture", "sum"]
        );
        assert_eq!(step(&mut graphs, &device, 1, &[2]), ["sum"]);
    }
}
