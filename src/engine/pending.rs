//! Notifications that could not be handed on, merged by user: the highest priority wins.

use std::collections::BTreeMap;

use super::{Notification, Priority};

/// How many users may wait in one mail process.
pub const PENDING_USERS_MAX: usize = 65_536;

/// The users that wait, in the order of their names.
#[derive(Debug, Default)]
pub struct Pending {
    users: BTreeMap<Box<[u8]>, Priority>,
}

impl Pending {
    /// Adds a notification, or raises the priority of the one that waits already.
    ///
    /// # Errors
    /// Gives the notification back if [`PENDING_USERS_MAX`] other users wait.
    pub fn merge(&mut self, notification: Notification) -> Result<(), Notification> {
        if let Some(priority) = self.users.get_mut(&notification.username) {
            *priority = (*priority).max(notification.priority);
            return Ok(());
        }
        if self.users.len() >= PENDING_USERS_MAX {
            return Err(notification);
        }
        self.users
            .insert(notification.username, notification.priority);
        Ok(())
    }

    /// The user's notification has been handed on by other means.
    pub fn remove(&mut self, username: &[u8]) {
        self.users.remove(username);
    }

    /// Offers each waiting notification to `hand_on` and forgets those it takes; stops at the first
    /// refusal, which is returned.
    ///
    /// # Errors
    /// The refusal.
    pub fn hand_on<E>(
        &mut self,
        mut hand_on: impl FnMut(&[u8], Priority) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(entry) = self.users.first_entry() {
            hand_on(entry.key(), *entry.get())?;
            entry.remove();
        }
        Ok(())
    }

    /// How many users wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The names of the users that wait.
    pub fn usernames(&self) -> impl Iterator<Item = &[u8]> {
        self.users.keys().map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(username: &str, priority: Priority) -> Notification {
        Notification {
            username: username.as_bytes().into(),
            priority,
        }
    }

    #[test]
    fn the_highest_priority_of_a_user_wins() {
        let mut pending = Pending::default();
        for priority in [Priority::Low, Priority::High, Priority::Low] {
            pending.merge(notification("u1", priority)).unwrap();
        }
        let mut seen = Vec::new();
        let taken: Result<(), ()> = pending.hand_on(|username, priority| {
            seen.push((username.to_vec(), priority));
            Ok(())
        });
        assert_eq!(taken, Ok(()));
        assert_eq!(seen, [(b"u1".to_vec(), Priority::High)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_is_refused_keeps_waiting() {
        let mut pending = Pending::default();
        for user in ["a", "b", "c"] {
            pending.merge(notification(user, Priority::Low)).unwrap();
        }
        let refused = pending.hand_on(|u, _| if u == b"b" { Err("full") } else { Ok(()) });
        assert_eq!(refused, Err("full"));
        assert_eq!(pending.usernames().collect::<Vec<_>>(), [b"b", b"c"]);
    }

    #[test]
    fn one_user_more_than_the_maximum_is_given_back() {
        let mut pending = Pending::default();
        for i in 0..PENDING_USERS_MAX {
            pending
                .merge(notification(&i.to_string(), Priority::Low))
                .unwrap();
        }
        let more = notification("one more", Priority::Low);
        assert_eq!(pending.merge(more.clone()), Err(more));
        pending.merge(notification("0", Priority::High)).unwrap();
        assert_eq!(pending.len(), PENDING_USERS_MAX);
    }
}
