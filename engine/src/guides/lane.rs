//! A thread that compiles guides and makes masks, in the order that it is asked.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palimpsest_guide::{Error, Mask, Matcher};

use super::pending::Pending;
use super::rules::Rules;
use super::source::Source;

/// A handle of the thread, which ends with its last handle.
#[derive(Clone)]
pub(super) struct Lane {
    /// A sequence has one mask under way at a time, so as many jobs wait as sequences run.
    jobs: Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

/// What is known of one sequence's guide. Only its lane looks inside, so nobody ever waits.
#[derive(Clone)]
pub(super) struct Work(Arc<Mutex<State>>);

struct State {
    source: Option<Arc<Source>>,
    rules: Rules,
    matcher: Option<Result<Matcher, Error>>,
    /// For tests: by how long each mask is held back.
    delays: Arc<[Duration]>,
    masks: usize,
}

impl Work {
    pub(super) fn new(source: Option<Arc<Source>>, rules: Rules, delays: Arc<[Duration]>) -> Self {
        Self(Arc::new(Mutex::new(State {
            source,
            rules,
            matcher: None,
            delays,
            masks: 0,
        })))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // After a panic it says what it says; the library answers with an error then.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn matcher(&mut self) -> Result<&mut Matcher, Error> {
        let (source, rules) = (&self.source, &self.rules);
        let compile = || {
            let none = || Error::Tokenizer("is not on this rank".to_owned());
            let vocabulary = source.as_ref().ok_or_else(none)?.vocabulary()?;
            rules.compile(vocabulary)
        };
        self.matcher
            .get_or_insert_with(compile)
            .as_mut()
            .map_err(|error| error.clone())
    }

    fn mask_after(&mut self, tokens: &[u32]) -> Result<Mask, Error> {
        if !self.delays.is_empty() {
            std::thread::sleep(self.delays[self.masks % self.delays.len()]);
            self.masks += 1;
        }
        let matcher = self.matcher()?;
        let mask = matcher.observe(tokens).and_then(|()| matcher.mask());
        mask.inspect_err(|error| self.matcher = Some(Err(error.clone())))
    }
}

impl Lane {
    pub(super) fn start() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        // Without the thread, whoever asks is told so: the channel has no end.
        let thread = std::thread::Builder::new().name("masks".to_owned());
        let started = thread.spawn(move || inbox.into_iter().for_each(|job| job()));
        if let Err(error) = started {
            tracing::warn!(%error, "no thread for the masks of guides");
        }
        Self { jobs }
    }

    fn send(&self, job: Job) {
        // A thread that is gone drops the job, and with it whoever would have answered.
        let _ = self.jobs.send(job);
    }

    /// Compiles the guide.
    pub(super) fn compile(&self, work: &Work) {
        let work = work.clone();
        self.send(Box::new(move || {
            work.with(|state| _ = state.matcher());
        }));
    }

    /// Goes on by `tokens` and makes the mask of what may come next.
    pub(super) fn mask(&self, work: &Work, tokens: Vec<u32>) -> Pending {
        let (reply, pending) = Pending::new();
        let work = work.clone();
        self.send(Box::new(move || {
            let mask = work.with(|state| state.mask_after(&tokens));
            // The step may have been abandoned.
            let _ = reply.send(mask);
        }));
        pending
    }
}
