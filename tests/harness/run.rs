//! How a suite runs its trials: names, skipping, nodes that several trials share.

use super::{Failed, Node, Outcome, Target};
use libtest_mimic::{Arguments, Trial};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::cell::RefCell;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A trial of `target`; where the target is missing it is skipped, with the reason in its line.
pub fn trial(target: &Target, name: &str, run: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    let trial = Trial::test(format!("{}/{name}", target.name()), || judged(run));
    match &target.missing {
        None => trial,
        Some(missing) => trial.with_kind(missing.clone()).with_ignored_flag(true),
    }
}

thread_local! {
    static WRONG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Something was wrong with a node that its trial did not finish: the trial fails.
pub fn report(wrong: String) {
    WRONG.with_borrow_mut(|all| all.push(wrong));
}

/// What `run` ends in, and what was wrong with the nodes that it dropped.
///
/// # Errors
/// Either, or both in one message.
pub fn judged(run: impl FnOnce() -> Outcome) -> Outcome {
    WRONG.take();
    let outcome = run();
    let wrong = WRONG.take().join("\n");
    match outcome {
        Ok(()) if wrong.is_empty() => Ok(()),
        Ok(()) => Err(wrong.into()),
        Err(failed) => Err(format!("{}\n{wrong}", failed.message().unwrap_or("?")).into()),
    }
}

/// A node that several trials use; started by the first, looked at when all are through.
#[derive(Clone)]
pub struct Shared {
    name: String,
    start: Arc<dyn Fn() -> Outcome<Node> + Send + Sync>,
    node: Arc<OnceLock<Result<Node, String>>>,
}

impl Shared {
    /// A node that `start` will start.
    pub fn new(name: String, start: impl Fn() -> Outcome<Node> + Send + Sync + 'static) -> Shared {
        let shared = Shared {
            name,
            start: Arc::new(start),
            node: Arc::default(),
        };
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(shared.clone());
        shared
    }

    /// The node, started now if it was not.
    ///
    /// # Errors
    /// When it did not start.
    pub fn node(&self) -> Outcome<&Node> {
        let node = self
            .node
            .get_or_init(|| (self.start)().map_err(|error| error.message().unwrap_or("?").into()));
        node.as_ref().map_err(Failed::from)
    }
}

static ALL: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

/// Runs the trials as the command line says, then looks at the nodes that were shared: what is wrong
/// there is a failure of the suite, printed as `test <node> ... FAILED`.
#[must_use]
pub fn main(trials: Vec<Trial>) -> ExitCode {
    // A trial mostly waits for Dovecot.
    main_at_once(trials, 8)
}

/// [`main`] with so many trials at once, unless the command line says how many.
#[must_use]
pub fn main_at_once(trials: Vec<Trial>, at_once: usize) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(at_once);
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    // Without it a crash leaves no core file; the log still tells.
    let _limit = setrlimit(Resource::Core, unlimited);
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut failed = conclusion.has_failed();
    let shared = std::mem::take(&mut *ALL.lock().unwrap_or_else(PoisonError::into_inner));
    for mut shared in shared {
        let node = Arc::get_mut(&mut shared.node).and_then(OnceLock::take);
        let Some(Ok(node)) = node else { continue };
        if let Err(wrong) = node.finish() {
            failed = true;
            let message = wrong.message().unwrap_or("?");
            println!("\n{message}\ntest {} ... FAILED", shared.name);
        }
    }
    if failed {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}
