//! The embedded store on a disk that is full: what was acknowledged stays, what can't be written is `Unavailable`, and it heals by
//! itself once there is room. The disk is a tmpfs, so these tests need the right to mount one.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use carillon_adapters::{
    conformance::room_log::{Writer, text},
    embedded::{self, Stores},
};
use carillon_domain::{ErrorCode, RoomId, UserId, event::RoomEvent};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// How long healing may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const DISK_MIB: usize = 96;

struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` after saying that `test` is skipped.
    fn mount(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_MIB}m"), "tmpfs"])
            .arg(folder.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        println!("CARILLON-SKIPPED {test}: this user may not mount a disk");
        None
    }

    /// Leaves about so many bytes.
    fn fill_but_for(&self, left: usize) {
        let room = self.0.path().join("room");
        std::fs::write(&room, vec![1; left]).unwrap();
        let mut filler = File::create(self.filler()).unwrap();
        for size in [1 << 20, 4096] {
            let block = vec![1; size];
            while match filler.write_all(&block) {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull);
                    false
                }
            } {}
        }
        std::fs::remove_file(room).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

async fn heals(stores: &Stores) {
    let began = Instant::now();
    while let Err(error) = stores.probe.check().await {
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(began.elapsed() < PATIENCE, "it doesn't heal: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the room holds is what was acknowledged, in order; what wasn't may be there as well, since nobody was told.
fn is_all_there(history: &[RoomEvent], acknowledged: &[RoomEvent]) {
    let mut rest = history.iter();
    for event in acknowledged {
        assert!(
            rest.any(|stored| stored == event),
            "lost: place {}",
            event.sequence.0
        );
    }
}

/// Promises 1 and 8: a record that the disk ends in the middle of is not there, and what was acknowledged before it is. Records of
/// many lengths, so that they end anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_within_a_record() {
    let Some(disk) = Disk::mount("a_disk_that_is_full_within_a_record") else {
        return;
    };
    let mut random = StdRng::seed_from_u64(1);
    let stores = embedded::open(&disk.data()).unwrap();
    let (room, user) = (RoomId::new(), UserId::new());
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        let mut writer = Writer::open(&*stores.log, room).await;
        is_all_there(&writer.history().await, &acknowledged);
        for n in 0..20 {
            acknowledged.push(writer.send(user, &format!("{round}.{n}")).await);
        }
        disk.fill_but_for(random.random_range(0..3) * 4096);
        let error = loop {
            let length = random.random_range(1..9000);
            let content: String = (0..length).map(|_| random.random::<char>()).collect();
            let event = writer.event(user, text(&content));
            match writer.try_append(std::slice::from_ref(&event)).await {
                Ok(()) => acknowledged.push(event),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code, ErrorCode::Unavailable, "round {round}: {error}");
        disk.free();
        heals(&stores).await;
    }
    let writer = Writer::open(&*stores.log, room).await;
    is_all_there(&writer.history().await, &acknowledged);
    stores.close().await.unwrap();
    drop(stores);
    let stores = embedded::open(&disk.data()).unwrap();
    let writer = Writer::open(&*stores.log, room).await;
    is_all_there(&writer.history().await, &acknowledged);
}

/// Promises 1 and 8: the same when it is no record that finds no room, but a table that moves from memory to a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_when_a_table_is_written_out() {
    let Some(disk) = Disk::mount("a_disk_that_is_full_when_a_table_is_written_out") else {
        return;
    };
    let mut random = StdRng::seed_from_u64(2);
    let stores = embedded::open(&disk.data()).unwrap();
    let ttl = Duration::from_secs(3600);
    // 8 MiB of these are moved to a file. Nothing of them can be compressed.
    let mut value = vec![0; 4096];
    let mut acknowledged = Vec::new();
    for round in 0..2 {
        for left in [6 << 20, 0] {
            // First nearly as much as fits into memory, then more than there is room for.
            if left > 0 {
                for n in 0..1400 {
                    random.fill(value.as_mut_slice());
                    let key = format!("{round}.{n}");
                    stores.ephemeral.put(&key, &value, ttl).await.unwrap();
                    acknowledged.push((key, value.clone()));
                }
            }
            disk.fill_but_for(left);
            let error = loop {
                random.fill(value.as_mut_slice());
                let key = format!("{round}.{left}.{}", acknowledged.len());
                match stores.ephemeral.put(&key, &value, ttl).await {
                    Ok(()) => acknowledged.push((key, value.clone())),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
            disk.free();
            heals(&stores).await;
            for (key, value) in &acknowledged {
                let stored = stores.ephemeral.get(key).await.unwrap();
                assert_eq!(stored.as_ref(), Some(value), "lost: {key}");
            }
        }
    }
    stores.close().await.unwrap();
    drop(stores);
    let stores = embedded::open(&disk.data()).unwrap();
    for (key, value) in &acknowledged {
        let stored = stores.ephemeral.get(key).await.unwrap();
        assert_eq!(stored.as_ref(), Some(value), "lost: {key}");
    }
}
