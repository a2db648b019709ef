//! A small disk of a test's own, which it can fill: a tmpfs, so the test must be root.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result};

/// Mounted until it is dropped.
pub struct Disk {
    path: PathBuf,
    full: AtomicBool,
}

impl Disk {
    /// Mounts one of so many MiB at a new folder; `None` when this user may not.
    pub fn mount(path: &Path, mib: usize) -> Result<Option<Self>> {
        std::fs::create_dir_all(path)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(path)
            .output()
            .context("running mount")?;
        Ok(mounted.status.success().then(|| Self {
            path: path.to_owned(),
            full: AtomicBool::new(false),
        }))
    }

    /// Leaves not a byte; but for what a file has left of the block that it ends in.
    pub fn fill(&self) -> Result<()> {
        self.full.store(true, Ordering::SeqCst);
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.filler())?;
        for size in [1 << 20, 4096] {
            let block = vec![0xf1; size];
            loop {
                match file.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("filling the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.filler())?;
        self.full.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Whether it is filled now.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is just being killed may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[test]
fn a_full_disk_takes_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Some(disk) = Disk::mount(&directory.path().join("disk"), 4)? else {
        println!(
            "CARILLON-SKIPPED world::disk::a_full_disk_takes_nothing: this user may not mount"
        );
        return Ok(());
    };
    disk.fill()?;
    let file = directory.path().join("disk/file");
    let error = std::fs::write(&file, [1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    disk.free()?;
    std::fs::write(&file, [1])?;
    Ok(())
}
