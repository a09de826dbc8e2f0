//! Which lists of commands are started one by one, captured, or replayed.
//!
//! A list that comes for the second time is captured: the first time loads its kernels and connects its ranks. With sums over ranks in
//! it, all ranks have to do the same, and with graphs of one and the same capture: that is what NCCL asks for. A rank cannot know by
//! itself, since the lists of ranks change apart from each other, as where their heads keep other numbers of slots. So each tells
//! the others how far it is with its own list, a word that goes over the host before the step begins.

use super::{Command, Device};
use crate::error::{Error, Result};
use crate::sums::DeviceSums;
use std::sync::Arc;

/// Lists that are remembered; the one that was not used for longest makes room.
const MOST_GRAPHS: usize = 64;
/// What a rank says of a list that it sees for the first time, or cannot capture.
const NEW: u64 = 0;
/// Of one that it has no graph of. Captures with sums in them count from here on.
const KNOWN: u64 = 1;

/// Lists of commands, and their graphs.
pub(super) struct Graphs<D: Device> {
    known: Vec<List<D>>,
    /// Whether lists are captured at all.
    wanted: bool,
    sums: Option<Arc<dyn DeviceSums>>,
    /// Number of the group's last capture, the same on all ranks.
    captures: u64,
}

struct List<D: Device> {
    commands: Vec<Command>,
    /// With the number of its capture; 0 for one that other ranks have no part in.
    graph: Option<(u64, D::Graph)>,
}

impl<D: Device> Default for Graphs<D> {
    fn default() -> Self {
        Self { known: Vec::new(), wanted: true, sums: None, captures: KNOWN }
    }
}

impl<D: Device> Graphs<D> {
    /// Captures graphs from now on, or does not.
    pub(super) fn want(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    /// Other ranks, or none, from now on. Graphs of the group before are dropped.
    pub(super) fn join_sums(&mut self, sums: Option<Arc<dyn DeviceSums>>) {
        self.known.retain(|list| !list.commands.iter().any(Command::is_sum));
        (self.sums, self.captures) = (sums, KNOWN);
    }

    /// Starts commands, as a graph where this list is known.
    ///
    /// # Safety
    /// As [`Command::start`], for all of them.
    pub(super) unsafe fn start(&mut self, device: &D, commands: Vec<Command>) -> Result<()> {
        let has_sums = commands.iter().any(Command::is_sum);
        // SAFETY: by the caller's contract.
        let replayed = match self.sums.clone().filter(|_| has_sums) {
            Some(sums) => unsafe { self.replay_together(device, &*sums, &commands) }?,
            None => unsafe { self.replay_alone(device, &commands) },
        };
        if replayed {
            return Ok(());
        }
        // SAFETY: by the caller's contract.
        commands.iter().try_for_each(|command| unsafe { command.start(device) })
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
                self.known.insert(0, List { commands: commands.to_vec(), graph: None });
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
        // SAFETY: by the caller's contract.
        let replayed = match &self.known[0].graph {
            Some((_, graph)) => unsafe { device.replay(graph) },
            None => unsafe { self.capture(device, commands, 0).and_then(|()| self.replay(device)) },
        };
        replayed.inspect_err(|error| self.give_up(error)).is_ok()
    }

    /// The same together with the other ranks.
    ///
    /// # Safety
    /// As [`Self::start`].
    ///
    /// # Errors
    /// [`Error::Sums`]; [`Error::Device`] where the others may have started what this rank could not.
    unsafe fn replay_together(&mut self, device: &D, sums: &dyn DeviceSums, commands: &[Command]) -> Result<bool> {
        let own = match self.wanted && device.captures() && self.recall(commands) {
            false => NEW,
            true => self.known[0].graph.as_ref().map_or(KNOWN, |(number, _)| *number),
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
        self.known[0].graph = None;
        // SAFETY: by the caller's contract.
        self.known[0].graph = Some((number, unsafe { device.capture(commands) }?));
        Ok(())
    }

    /// Starts the graph of the list that was asked for last.
    ///
    /// # Safety
    /// As [`Self::start`]: the list that the graph was captured from is asked for again.
    unsafe fn replay(&self, device: &D) -> Result<()> {
        let none = || Error::Device { op: "replay", what: "nothing was captured".into() };
        let (_, graph) = self.known.first().and_then(|list| list.graph.as_ref()).ok_or_else(none)?;
        // SAFETY: by the caller's contract.
        unsafe { device.replay(graph) }
    }
}
