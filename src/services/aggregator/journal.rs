//! The journal's files: `<state_dir>/replication-aggregator/<pid>-<nanoseconds>.journal`.
//!
//! Each process has a file of its own, locked with flock(2) as long as it lives; a file that nobody
//! locks was left by a process that was killed, and the next one, or one that still runs, adopts it. The
//! directory is opened before privileges are dropped and before chroot, and reached through its
//! descriptor from then on. The format is `engine::aggregator::journal`'s.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Uid, fchown, flock, fstat, open,
    openat, renameat, statat, unlinkat,
};

const DIR_NAME: &str = "replication-aggregator";
const SUFFIX: &str = ".journal";
/// A journal is written anew when it is this much longer than twice what it has to hold.
const SLACK: usize = 1 << 20;

/// The directory of all journals.
#[derive(Debug)]
pub struct JournalDir {
    fd: OwnedFd,
    path: PathBuf,
}

/// Whether an aggregator of this `state_dir` runs, or was ended before it had handed on all.
#[must_use]
pub fn is_left(state_dir: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(state_dir.join(DIR_NAME)) else {
        return false;
    };
    files
        .flatten()
        .any(|file| file.file_name().to_string_lossy().ends_with(SUFFIX))
}

fn failed(call: &str, path: &Path, error: impl Into<io::Error>) -> io::Error {
    let error: io::Error = error.into();
    let text = crate::services::aggregator::strerror(&error);
    io::Error::new(
        error.kind(),
        format!("{call}({}) failed: {text}", path.display()),
    )
}

impl JournalDir {
    /// Opens the directory and makes it if it is missing. `owner` is who the process is going to be,
    /// while it is root: the directory becomes theirs.
    ///
    /// # Errors
    /// It can be neither opened nor made.
    pub fn open(state_dir: &Path, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let path = state_dir.join(DIR_NAME);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("mkdir", &path, e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(&path, flags, Mode::empty()).map_err(|e| failed("open", &path, e))?;
        let dir = Self { fd, path };
        if let Some((uid, gid)) = owner {
            dir.give_to(uid, gid)
                .map_err(|e| failed("chown", &dir.path, e))?;
        }
        Ok(dir)
    }

    /// The files are given away only when the directory changes hands, and only plain files of
    /// the former owner's without a second name: root does not follow what others laid there.
    fn give_to(&self, uid: u32, gid: u32) -> io::Result<()> {
        let former = fstat(&self.fd)?.st_uid;
        if former == uid {
            return Ok(());
        }
        for name in self.names()? {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = openat(&self.fd, &name, flags, Mode::empty())?;
            let stat = fstat(&file)?;
            let plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if plain && stat.st_nlink == 1 && stat.st_uid == former {
                fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        }
        fchown(&self.fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(SUFFIX) || name.ends_with(".tmp") {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The journals that nobody holds, locked by us from now on.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn orphans(&self, own: Option<&Journal>) -> io::Result<Vec<Orphan>> {
        let own = own.map(|journal| journal.name.as_str());
        let mut orphans = Vec::new();
        for name in self.names()? {
            if own.is_some_and(|own| name.starts_with(own)) {
                continue;
            }
            if let Some(file) = self.lock(&name)? {
                orphans.push(Orphan { name, file });
            }
        }
        Ok(orphans)
    }

    fn lock(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = || self.path.join(name);
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed("open", &path(), e)),
        };
        if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // Its owner may have replaced it between our open and our lock.
        let ours = fstat(&fd).map_err(|e| failed("fstat", &path(), e))?;
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => {
                Ok(Some(File::from(fd)))
            }
            _ => Ok(None),
        }
    }

    /// Takes an orphan away, after what it held is elsewhere.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(&self, orphan: &Orphan) -> io::Result<()> {
        unlinkat(&self.fd, &orphan.name, AtFlags::empty())
            .map_err(|e| failed("unlink", &self.path.join(&orphan.name), e))
    }
}

/// A journal whose process is gone.
#[derive(Debug)]
pub struct Orphan {
    name: String,
    file: File,
}

impl Orphan {
    /// What it holds. A file that was never completed holds nothing.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        if self.name.ends_with(SUFFIX) {
            self.file.read_to_end(&mut content)?;
        }
        Ok(content)
    }

    /// Its name in the directory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The journal of this process.
#[derive(Debug)]
pub struct Journal {
    name: String,
    file: File,
    len: usize,
}

impl Journal {
    /// Makes the journal of this process, holding `snapshot`, in place of `former`.
    ///
    /// # Errors
    /// The file cannot be made, written or named; `former` is then as it was.
    pub fn write(dir: &JournalDir, snapshot: &[u8], former: Option<&Self>) -> io::Result<Self> {
        let name = former.map_or_else(new_name, |former| former.name.clone());
        let temporary = format!("{name}.tmp");
        let path = dir.path.join(&temporary);
        let flags = OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        let fd = openat(&dir.fd, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| failed("open", &path, e))?;
        flock(&fd, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| failed("flock", &path, e))?;
        let mut file = File::from(fd);
        let written = file
            .write_all(snapshot)
            .map_err(|e| failed("write", &path, e))
            .and_then(|()| {
                renameat(&dir.fd, &temporary, &dir.fd, &name)
                    .map_err(|e| failed("rename", &path, e))
            });
        if let Err(e) = written {
            // A disk that stays full is not to be filled with what is tried again and again.
            let _ = unlinkat(&dir.fd, &temporary, AtFlags::empty());
            return Err(e);
        }
        Ok(Self {
            name,
            file,
            len: snapshot.len(),
        })
    }

    /// Appends records. After an error the end of the file is torn: write it anew.
    ///
    /// # Errors
    /// As write(2).
    pub fn append(&mut self, dir: &JournalDir, records: &[u8]) -> io::Result<()> {
        self.len = self.len.saturating_add(records.len());
        self.file
            .write_all(records)
            .map_err(|e| failed("write", &dir.path.join(&self.name), e))
    }

    /// Whether it is to be written anew, when a snapshot takes about `snapshot_len` bytes.
    #[must_use]
    pub const fn is_long(&self, snapshot_len: usize) -> bool {
        self.len > snapshot_len.saturating_mul(2).saturating_add(SLACK)
    }

    /// Takes the journal away, when it has nothing to hold any more.
    pub fn remove(self, dir: &JournalDir) {
        // Left over, it is an empty orphan that the next process takes away.
        let _ = unlinkat(&dir.fd, &self.name, AtFlags::empty());
    }
}

fn new_name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    format!("{}-{nanos}{SUFFIX}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_of_a_living_process_is_no_orphan_and_that_of_a_dead_one_is() {
        let state_dir = tempfile::tempdir().unwrap();
        let dir = JournalDir::open(state_dir.path(), None).unwrap();
        let journal = Journal::write(&dir, b"one\n", None).unwrap();
        let mut journal = Journal::write(&dir, b"two\n", Some(&journal)).unwrap();
        journal.append(&dir, b"three\n").unwrap();
        assert!(dir.orphans(Some(&journal)).unwrap().is_empty());
        assert!(dir.orphans(None).unwrap().is_empty(), "it is locked");
        drop(journal);
        let mut orphans = dir.orphans(None).unwrap();
        assert_eq!(orphans.len(), 1);
        assert_eq!(orphans[0].read().unwrap(), b"two\nthree\n");
        assert!(dir.orphans(None).unwrap().is_empty(), "adopted once");
        dir.remove(&orphans[0]).unwrap();
        orphans.clear();
        assert!(dir.orphans(None).unwrap().is_empty());
    }

    #[test]
    fn file_that_was_never_completed_holds_nothing() {
        let state_dir = tempfile::tempdir().unwrap();
        let dir = JournalDir::open(state_dir.path(), None).unwrap();
        let torn = state_dir.path().join(DIR_NAME).join("1-1.journal.tmp");
        std::fs::write(torn, b"half a snap").unwrap();
        let mut orphans = dir.orphans(None).unwrap();
        assert_eq!(orphans[0].read().unwrap(), b"");
    }

    #[test]
    fn journal_that_cannot_be_written_leaves_nothing_behind() {
        let state_dir = tempfile::tempdir().unwrap();
        let dir = JournalDir::open(state_dir.path(), None).unwrap();
        let journal = Journal::write(&dir, b"one\n", None).unwrap();
        let path = state_dir.path().join(DIR_NAME).join(&journal.name);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(Journal::write(&dir, b"two\n", Some(&journal)).is_err());
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(dir.names().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn journal_is_long_past_twice_its_content_and_slack() {
        let state_dir = tempfile::tempdir().unwrap();
        let dir = JournalDir::open(state_dir.path(), None).unwrap();
        let mut journal = Journal::write(&dir, &[b'x'; 100], None).unwrap();
        journal.append(&dir, &vec![b'x'; SLACK + 100]).unwrap();
        assert!(!journal.is_long(100));
        journal.append(&dir, b"x").unwrap();
        assert!(journal.is_long(100));
    }
}
