//! Taking over the queue of the stock replicator: its `replicator.db`, once.

use super::*;

impl Worker {
    /// Users and unreadable lines of a stock `replicator.db`; `None` if there is none.
    pub(super) fn import_stock(
        &mut self,
        connection: &Connection,
    ) -> Result<Option<(usize, usize)>, OpenError> {
        let path = self.options.state_dir.join(STOCK_FILE_NAME);
        let Ok(file) = File::open(&path) else {
            return Ok(None);
        };
        let target = self.options.default_target.clone();
        let (mut users, mut bad_lines) = (0, 0);
        let mut reader = BufReader::with_capacity(256 * 1024, file);
        let mut puts = Puts::prepare(connection)?;
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let text = format!("read({}) failed: {error}", path.display());
                    self.log(Level::Error, text);
                    break;
                }
            }
            let is_whole = line.pop() == Some(b'\n');
            if !is_whole || line.len() > MAX_STOCK_LINE_BYTES {
                bad_lines += 1;
                continue;
            }
            match parse_stock_line(&line, &target) {
                Some((record, state)) => {
                    users += 1;
                    self.put(connection, &mut puts, &record, &state)?;
                }
                None => bad_lines += 1,
            }
        }
        Ok(Some((users, bad_lines)))
    }
}

/// A line of a stock `replicator.db`:
/// `user, priority (0-3), last_update, last_fast_sync, last_full_sync, failed (0|1), state, last_success`.
fn parse_stock_line(line: &[u8], target: &[u8]) -> Option<(Record, StateChange)> {
    let fields: Vec<Vec<u8>> = strescape::split_tabescaped(line).collect();
    let number = |at: usize| {
        std::str::from_utf8(fields.get(at)?)
            .ok()?
            .parse::<u64>()
            .ok()
    };
    let seconds =
        |at: usize| number(at).map(|secs| UnixSecs(u32::try_from(secs).unwrap_or(u32::MAX)));
    let username = fields.first()?.clone();
    let is_name = !username.is_empty() && username.len() <= MAX_USERNAME_BYTES;
    if !is_name || username.contains(&0) || target.len() > MAX_TARGET_BYTES {
        return None;
    }
    let state = fields.get(6)?.clone();
    let record = Record {
        username,
        target: target.to_vec(),
        priority: Priority::from_number(u8::try_from(number(1)?).ok()?)?,
        last_update: seconds(2)?,
        last_fast_sync: seconds(3)?,
        last_full_sync: seconds(4)?,
        // Files of old versions end here.
        last_success: if fields.len() > 7 {
            seconds(7)?
        } else {
            UnixSecs(0)
        },
        failures: match number(5)? {
            0 => 0,
            1 => 1,
            _ => return None,
        },
        reason: String::new(),
        force_full: false,
        has_state: !state.is_empty(),
        stale: Stale::No,
    };
    let state = if state.is_empty() {
        StateChange::Keep
    } else {
        StateChange::Set(state)
    };
    Some((record, state))
}
