//! How `carillon backup` reads what a running `carillon up` has open: a Unix socket in the data directory.
//!
//! Who may connect is whom the system lets into a directory that only its owner may enter; the peer's user is asked besides. The
//! process reads and sends records, a line each, and the caller writes the objects: so the process learns no credentials of a
//! bucket, and paths are the caller's. A connection that ends without an end is no backup.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use carillon_backup::{Record, Section, Sink, Source, Writer};
use carillon_domain::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// The longest line: more than a record ever has.
const MAX_LINE: u64 = 256 * 1024 * 1024;

/// A line of an answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Record(Section, Record),
    Failed(ErrorCode, String),
    End,
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("control")
}

fn path(data_dir: &Path) -> PathBuf {
    folder(data_dir).join("backup.sock")
}

/// Listens until `stop`. Where that isn't possible, the platform runs on without backups of it.
pub async fn serve(
    data_dir: PathBuf,
    source: Source,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let (listener, owner) = match listen(&data_dir) {
        Ok(listening) => listening,
        Err(error) => {
            tracing::warn!(%error, path = %path(&data_dir).display(), "no backups while this runs: the socket can't be made");
            stop.cancelled().await;
            return Ok(());
        }
    };
    // One at a time: another one would only read the same.
    let turn = Arc::new(Semaphore::new(1));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let allowed = stream
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == owner || peer.uid() == 0);
        if !allowed {
            continue;
        }
        let (source, turn, stop) = (source.clone(), turn.clone(), stop.clone());
        tokio::spawn(async move {
            let answered = tokio::select! {
                () = stop.cancelled() => return,
                answered = answer(stream, &source, &turn) => answered,
            };
            if let Err(error) = answered {
                tracing::warn!(%error, cause = error.cause_chain(), "a backup was not finished");
            }
        });
    }
    // A stale one means nothing: nobody answers at it.
    let _ = fs::remove_file(path(&data_dir));
    Ok(())
}

/// The socket, and who may connect.
fn listen(data_dir: &Path) -> std::io::Result<(UnixListener, u32)> {
    let folder = folder(data_dir);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    let path = path(data_dir);
    // Of a process that was killed: this one holds the data directory.
    if let Err(error) = fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    Ok((UnixListener::bind(&path)?, fs::metadata(&folder)?.uid()))
}

async fn answer(stream: UnixStream, source: &Source, turn: &Semaphore) -> Result<()> {
    let mut lines = Lines(BufWriter::new(stream));
    let saved = match turn.try_acquire() {
        Ok(_turn) => carillon_backup::save(source, &mut lines).await,
        Err(_) => Err(Error::new(
            ErrorCode::FailedPrecondition,
            "another backup is being made, try again when it is done",
        )),
    };
    let last = match &saved {
        Ok(()) => Line::End,
        Err(error) => Line::Failed(error.code, error.detail.to_string()),
    };
    lines.write(&last).await?;
    lines.0.flush().await.map_err(gone)?;
    saved
}

/// Sends records.
struct Lines(BufWriter<UnixStream>);

impl Lines {
    async fn write(&mut self, line: &Line) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(Error::internal)?;
        bytes.push(b'\n');
        self.0.write_all(&bytes).await.map_err(gone)
    }
}

#[async_trait]
impl Sink for Lines {
    async fn take(&mut self, section: Section, record: Record) -> Result<()> {
        self.write(&Line::Record(section, record)).await
    }
}

fn gone(cause: std::io::Error) -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the other end of the backup went away",
    )
    .caused_by(cause)
}

/// The process that has a data directory open; `None` if nobody answers there.
pub async fn connect(data_dir: &Path) -> Result<Option<UnixStream>, Failure> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let path = path(data_dir);
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
        Err(error) => Err(Failure::unavailable(format!(
            "can't ask the running platform at {}: {error}; are you its user?",
            path.display()
        ))),
    }
}

/// Reads a whole backup from a running process.
pub async fn read(stream: &mut UnixStream, writer: &mut Writer) -> Result<()> {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut lines).take(MAX_LINE);
        bounded.read_until(b'\n', &mut line).await.map_err(gone)?;
        if !line.ends_with(b"\n") {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the platform stopped before the backup was done",
            ));
        }
        match serde_json::from_slice(&line).map_err(Error::internal)? {
            Line::Record(section, record) => writer.take(section, record).await?,
            Line::Failed(code, detail) => return Err(Error::new(code, detail)),
            Line::End => return Ok(()),
        }
    }
}
