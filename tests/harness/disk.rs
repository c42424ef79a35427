//! A small file system of a node's own, to be filled up.
//!
//! It is a tmpfs in the test's own mount namespace, see [`in_own_mounts`]: the machine does not see it.

use super::Outcome;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const OWN_MOUNTS: &str = "DOVECOT_TEST_OWN_MOUNTS";

/// Runs this program anew in a mount namespace of its own, unless it is in one.
///
/// # Errors
/// When that is not allowed.
pub fn in_own_mounts() -> Outcome {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return Ok(());
    }
    let error = Command::new("unshare")
        .args(["-m", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(OWN_MOUNTS, "1")
        .exec();
    Err(format!("unshare: {error}").into())
}

/// A directory that is a file system of its own.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one of so many MiB over an empty directory.
    ///
    /// # Errors
    /// When that is not allowed, or outside [`in_own_mounts`].
    pub fn mount(path: &Path, mebibytes: u32, uid: u32) -> Outcome<Disk> {
        if std::env::var_os(OWN_MOUNTS).is_none() {
            return Err("a file system would be mounted for the whole machine".into());
        }
        let options = format!("size={mebibytes}m,mode=0755,uid={uid},gid={uid}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(path)
            .status()?;
        super::check(mounted.success(), || format!("mount: {mounted}"))?;
        Ok(Disk {
            path: path.to_owned(),
        })
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When it cannot be filled.
    pub fn fill(&self) -> Outcome {
        let mut file = fs::File::create(self.ballast())?;
        for piece in [&[0_u8; 64 * 1024][..], &[0; 512]] {
            while file.write_all(piece).is_ok() {}
        }
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When nothing was taken.
    pub fn free(&self) -> Outcome {
        Ok(fs::remove_file(self.ballast())?)
    }

    /// Leaves what it holds in its directory, without being a file system any more.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn keep(self) -> Outcome {
        let path = self.path.clone();
        let copy = path.with_extension("kept");
        let copied = Command::new("cp").arg("-a").args([&path, &copy]).status()?;
        super::check(copied.success(), || format!("cp: {copied}"))?;
        drop(self);
        fs::remove_dir(&path)?;
        Ok(fs::rename(copy, path)?)
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // At the latest it goes with this process.
        let _busy = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
