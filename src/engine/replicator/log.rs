//! What the engine has to say to an administrator: plain data, once per change of state.

use std::collections::VecDeque;

use super::config::MAX_LOG_EVENTS;

/// Who has to act. The driver maps it to Dovecot's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The rest.
    Debug,
    /// A state an administrator cares for.
    Info,
    /// An administrator may have to act.
    Warning,
    /// An administrator must act.
    Error,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// How grave.
    pub level: Level,
    /// The user it is about, if it is about one.
    pub username: Option<Vec<u8>>,
    /// The replica it is about, if it is about one.
    pub target: Option<Vec<u8>>,
    /// The message, without user and replica.
    pub text: String,
}

/// The events that the driver has not taken.
#[derive(Debug, Default)]
pub(super) struct Log {
    events: VecDeque<LogEvent>,
    lost: u64,
}

impl Log {
    pub(super) fn push(&mut self, event: LogEvent) {
        if self.events.len() < MAX_LOG_EVENTS {
            self.events.push_back(event);
        } else {
            self.lost += 1;
        }
    }

    pub(super) fn say(&mut self, level: Level, text: String) {
        self.push(LogEvent {
            level,
            username: None,
            target: None,
            text,
        });
    }

    pub(super) fn pop(&mut self) -> Option<LogEvent> {
        if self.events.is_empty() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.say(Level::Warning, format!("{lost} log messages were left out"));
        }
        self.events.pop_front()
    }
}
