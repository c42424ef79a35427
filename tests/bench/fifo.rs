//! The plugin's fifo, read and thrown away by the bench.

use crate::Outcome;
use crate::node::VMAIL;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, spawn};

/// No user name has it.
const END: u8 = 0;

/// The fifo with a thread that reads it. Like Dovecot's master it is also held open for writing.
pub struct Fifo {
    file: File,
    lines: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Fifo {
    /// Makes the fifo and begins to read it.
    ///
    /// # Errors
    /// When it is there already.
    pub fn create(path: &Path) -> Outcome<Fifo> {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        chown(path, Some(VMAIL), Some(VMAIL))?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut reader = file.try_clone()?;
        let lines = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lines);
        let thread = spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(count) = reader.read(&mut buffer) {
                let input = buffer.get(..count).unwrap_or_default();
                let fresh = input.iter().filter(|&&byte| byte == b'\n').count();
                counted.fetch_add(fresh, Ordering::Relaxed);
                if input.contains(&END) {
                    break;
                }
            }
        });
        Ok(Fifo {
            file,
            lines,
            thread: Some(thread),
        })
    }

    /// How many notifications have come.
    pub fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        let told = self.file.write_all(&[END]).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| told) {
            // It counts and nothing else: there is nothing to hear from it.
            let _ended = thread.join();
        }
    }
}
