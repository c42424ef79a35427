//! A node that goes on as another target: the same directories, ports, users and host name under another
//! release of Dovecot, or with our files in the place of stock's.
//!
//! The log is begun anew; what was wrong in the old one is said first. Left out on purpose: a package
//! manager; the files of a target are where its root or `make stage` has them.

use super::{Node, link_modules};
use crate::harness::reader::Reader;
use crate::harness::{Outcome, Target, check};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

impl Node {
    /// Makes it a node of `target`, with `config` at the end of its dovecot.conf, after [`Node::stop`];
    /// [`Node::restart`] starts it.
    ///
    /// # Errors
    /// When it runs, when something is wrong in its log, or when its directory cannot be moved.
    pub fn upgrade(&mut self, target: &Target, config: &str) -> Outcome {
        check(Self::lock(&self.master).is_none(), || {
            "it still runs".to_owned()
        })?;
        if let Some(missing) = &target.missing {
            return Err(missing.into());
        }
        let wrong = self.judge_log();
        check(wrong.is_empty(), || wrong.join("\n"))?;
        let kept = format!("log.{}", self.target.name().replace('/', "-"));
        fs::rename(self.path("log"), self.path(&kept))?;
        Self::lock(&self.messages).clear();
        Self::lock(&self.expected).clear();
        Self::lock(&self.tolerated).clear();
        Self::lock(&self.logins).clear();
        self.move_to(target)?;
        self.target = target.clone();
        self.lenient = !target.is_ours();
        let modules = self.path("modules");
        if modules.exists() {
            fs::remove_dir_all(&modules)?;
        }
        link_modules(target, &modules)?;
        fs::write(self.path("dovecot.conf"), self.dovecot_conf(config))?;
        Ok(())
    }

    /// A Dovecot in another root sees the same paths: the directory becomes that root's `/tmp/<name>`.
    fn move_to(&mut self, target: &Target) -> Outcome {
        let tmp = target.outside(Path::new("/tmp"));
        let dir = self.dir.take().ok_or("finished")?;
        if dir.path().parent() == Some(&tmp) {
            self.dir = Some(dir);
            return Ok(());
        }
        let name = dir.path().file_name().ok_or("no name")?.to_owned();
        let new = tempfile::Builder::new()
            .prefix(&name)
            .rand_bytes(0)
            .tempdir_in(tmp)?;
        rename_or_copy(dir.path(), new.path())?;
        // Gone already where it was renamed.
        let _removed = dir.close();
        self.reader = Reader::new(&new.path().join("run"), super::VMAIL);
        self.dir = Some(new);
        Ok(())
    }
}

fn rename_or_copy(from: &Path, to: &Path) -> Outcome {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {}
        renamed => return Ok(renamed?),
    }
    let copied = Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status()?;
    check(copied.success(), || format!("cp -a: {copied}"))
}
