//! The mailboxes that a user has, asked of `doveadm-server` before a sync that follows one that was cut off.
//!
//! Of a mailbox that is not in the state dsync looks for what both nodes have in common, and may take a mail that is half over for
//! one that was expunged. Put into the state as one without common mails
//! ([how](crate::engine::sync_state::with_mailboxes)), it only gains mails.

use log::warn;

use super::dsync::{WaitingForState, send_command};
use super::socket::{Input, Socket};
use super::{Peer, Replicator, Turn};
use crate::engine::protocol::doveadm_command::{CommandReader, Event};
use crate::engine::protocol::doveadm_server::{self, Code};
use crate::engine::protocol::replicator_notify::printable;
use crate::engine::replicator::{Mailboxes, SyncId, SyncType};
use crate::engine::sync_state::{self, Guid, Mailbox};
use crate::engine::time::Now;

const COMMAND: &str = "mailbox status";
/// Dovecot has an order of its own for them: this one.
const FIELDS: &[u8] = b"uidnext uidvalidity highestmodseq guid";
/// Those, behind the name.
const COLUMNS: usize = 5;
/// With two masks Dovecot lists all private namespaces, with one only those without a prefix.
const ARGUMENTS: [&[u8]; 4] = [b"--", FIELDS, b"*", b"*"];
/// Nobody has that many mailboxes; a value that goes on for ever is none.
const MAILBOXES_MAX: usize = 100_000;
const VALUE_BYTES_MAX: usize = 4096;

/// The answer as it comes.
#[derive(Debug, Default)]
struct Rows {
    value: Vec<u8>,
    /// Of the row that is not whole yet.
    values: Vec<Vec<u8>>,
    mailboxes: Vec<Mailbox>,
}

impl Rows {
    /// False: this is no answer.
    fn add(&mut self, part: &[u8], ends: bool) -> bool {
        self.value.extend_from_slice(part);
        if !ends {
            return self.value.len() <= VALUE_BYTES_MAX;
        }
        self.values.push(std::mem::take(&mut self.value));
        if self.values.len() < COLUMNS {
            return true;
        }
        let values = std::mem::take(&mut self.values);
        self.add_row(&values).is_some() && self.mailboxes.len() <= MAILBOXES_MAX
    }

    fn add_row(&mut self, values: &[Vec<u8>]) -> Option<()> {
        let [_, uidnext, uidvalidity, highest_modseq, guid] = values else {
            return None;
        };
        let text = |value| std::str::from_utf8(value).ok();
        let uidvalidity = text(uidvalidity)?.parse().ok()?;
        let guid = text(guid).filter(|guid| guid.len() == 2 * size_of::<Guid>())?;
        let guid = u128::from_str_radix(guid, 16).ok()?;
        let uidnext: u32 = text(uidnext)?.parse().ok()?;
        self.mailboxes.push(Mailbox {
            guid: guid.to_be_bytes(),
            uidvalidity,
            had_mail: uidnext > 1,
            modseq: text(highest_modseq)?.parse().ok()?,
        });
        Some(())
    }

    /// The state with them. None: as it is.
    fn put_into(mut self, state: &[u8], how: Mailboxes) -> Option<Vec<u8>> {
        match how {
            Mailboxes::AsTheyAre => None,
            Mailboxes::WithFirstModseq => {
                self.mailboxes
                    .iter_mut()
                    .for_each(Mailbox::begin_with_first);
                sync_state::with_mailboxes(state, &self.mailboxes)
            }
            Mailboxes::WithLastModseq => sync_state::with_mailboxes(state, &self.mailboxes),
            Mailboxes::WithoutModseqs => {
                let state = sync_state::with_mailboxes(state, &self.mailboxes)?;
                sync_state::without_modseqs(&state)
            }
            Mailboxes::WithFirstMail => sync_state::from_first_mails(state, &self.mailboxes),
        }
    }
}

/// A listing that runs, and the sync that waits for it.
pub(super) struct MailboxList {
    sync: SyncId,
    waiting: WaitingForState,
    state: Vec<u8>,
    reader: CommandReader,
    /// Until the server is ready for it.
    command: Option<Vec<u8>>,
    rows: Rows,
    last_error: String,
    is_whole: bool,
}

impl MailboxList {
    pub(super) fn username(&self) -> &[u8] {
        &self.waiting.username
    }

    pub(super) const fn sync_type(&self) -> SyncType {
        self.waiting.sync_type()
    }
}

impl Replicator {
    /// The sync can begin, but for the mailboxes where it follows one that was cut off.
    pub(super) fn handle_state(
        &mut self,
        now: Now,
        sync: SyncId,
        waiting: WaitingForState,
        state: Vec<u8>,
    ) {
        if waiting.mailboxes == Mailboxes::AsTheyAre {
            return self.connect_dsync(now, sync, waiting, &state);
        }
        let mut command = Vec::new();
        doveadm_server::append_command(&mut command, &waiting.username, COMMAND, ARGUMENTS);
        let mut list = MailboxList {
            sync,
            waiting,
            state,
            reader: CommandReader::new(),
            command: None,
            rows: Rows::default(),
            last_error: String::new(),
            is_whole: false,
        };
        let slot = self.free_slot();
        match self.connect_to_doveadm(slot, command) {
            Ok((socket, command)) => {
                list.command = command;
                self.syncs.insert(sync, slot);
                self.put(slot, socket, Peer::MailboxList(list));
            }
            Err(reason) => self.not_connected(now, slot, sync, &reason),
        }
    }

    pub(super) fn serve_mailbox_list(
        &mut self,
        now: Now,
        socket: &mut Socket,
        list: &mut MailboxList,
    ) -> Turn {
        let mut buffer = std::mem::take(&mut self.buffer);
        let turn = loop {
            match socket.read(&mut buffer) {
                Input::Blocked => break Turn::Wait,
                Input::Closed => break Turn::Close,
                Input::Data(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    list.reader.push(bytes);
                }
            }
            if self.take_mailboxes(socket, list).is_none() {
                break Turn::Close;
            }
            self.engine.handle_sync_progress(now, list.sync);
        };
        self.buffer = buffer;
        turn
    }

    /// None: it is over.
    fn take_mailboxes(&mut self, socket: &mut Socket, list: &mut MailboxList) -> Option<()> {
        loop {
            match list.reader.next_event() {
                Ok(None) => return Some(()),
                Ok(Some(Event::Part { bytes, ends })) => {
                    if !list.rows.add(&bytes, ends) {
                        list.last_error = format!("{COMMAND}: Invalid answer");
                        return None;
                    }
                }
                Ok(Some(Event::Error(text))) => list.last_error = text,
                Ok(Some(Event::Finished(code))) => {
                    list.is_whole = code == Code::Ok;
                    return None;
                }
                Ok(Some(Event::Ready)) => {
                    send_command(socket, &mut list.command);
                }
                Ok(Some(Event::PasswordWanted)) => {
                    if let Err(error) = self.send_password(socket) {
                        list.last_error = error;
                        return None;
                    }
                }
                Err(error) => {
                    list.last_error = error.to_string();
                    return None;
                }
            }
        }
    }

    /// Whatever came of it, the sync begins now. One mailbox of which there is no answer does not leave out the others.
    pub(super) fn finish_mailbox_list(&mut self, now: Now, list: MailboxList) {
        let MailboxList {
            sync,
            mut waiting,
            state,
            rows,
            last_error,
            is_whole,
            ..
        } = list;
        self.syncs.remove(&sync);
        // The peer's sync may have begun meanwhile.
        if !self.engine.may_begin(now, sync) {
            return;
        }
        if !is_whole {
            warn!(
                "{}: {} could not be listed for the sync: {}",
                printable(&waiting.username),
                match rows.mailboxes.is_empty() {
                    true => "The mailboxes",
                    false => "Some mailboxes",
                },
                match last_error.is_empty() {
                    true => "no answer",
                    false => &last_error,
                }
            );
        }
        let with_mailboxes = match is_whole || !rows.mailboxes.is_empty() {
            true => rows.put_into(&state, waiting.mailboxes),
            false => None,
        };
        match with_mailboxes {
            Some(state) => {
                waiting.has_mailboxes = true;
                if waiting.full && !waiting.from_state {
                    self.engine.handle_begun_from_mailboxes(sync);
                }
                self.connect_dsync(now, sync, waiting, &state);
            }
            None => self.connect_dsync(now, sync, waiting, &state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_parts_and_what_is_none_is_refused() {
        let mut rows = Rows::default();
        for (part, ends) in [
            (&b"IN"[..], false),
            (b"BOX", true),
            (b"2", true),
            (b"1795546729", true),
            (b"501", true),
            (b"2dfc463769de056b", false),
            (b"0d1f0000a2b40ce4", true),
        ] {
            assert!(rows.add(part, ends));
        }
        let guid = "2dfc463769de056b0d1f0000a2b40ce4";
        for value in ["Drafts", "1", "1795546730", "1", guid] {
            assert!(rows.add(value.as_bytes(), true), "no mail was ever there");
        }
        let mailbox = Mailbox {
            guid: *b"\x2d\xfc\x46\x37\x69\xde\x05\x6b\x0d\x1f\x00\x00\xa2\xb4\x0c\xe4",
            uidvalidity: 1_795_546_729,
            had_mail: true,
            modseq: 501,
        };
        let drafts = Mailbox {
            uidvalidity: 1_795_546_730,
            had_mail: false,
            modseq: 1,
            ..mailbox.clone()
        };
        assert_eq!(rows.mailboxes, [mailbox, drafts]);
        for row in [
            ["a", "2", "x", "1", guid],
            ["a", "2", "1", "", guid],
            ["a", "", "1", "1", guid],
            ["a", "2", "1", "1", "2dfc"],
        ] {
            let mut rows = Rows::default();
            let added = row.map(|value| rows.add(value.as_bytes(), true));
            assert_eq!(added, [true, true, true, true, false], "{row:?}");
        }
        assert!(!Rows::default().add(&[b'x'; VALUE_BYTES_MAX + 1], false));
    }
}
