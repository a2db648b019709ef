//! [`BackupStore`] over object stores: a directory, or anything that speaks S3.

use std::{os::unix::fs::DirBuilderExt as _, path::Path as FilePath, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_domain::{Error, ErrorCode, Result, ports::BackupStore};
use futures::TryStreamExt as _;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutPayload, local::LocalFileSystem, path::Path,
};

use crate::object::{S3Options, bucket};

/// How long one object may take, the tries together: they are a few MiB, uploads up to 64.
const OBJECT_TIMEOUT: Duration = Duration::from_secs(120);
/// Objects that are removed at once.
const REMOVALS: usize = 16;

/// Backups in an object store.
pub struct ObjectBackups {
    store: Box<dyn ObjectStore>,
    prefix: Path,
    /// As a person named it.
    name: String,
}

/// Backups in a directory, made if it isn't there and `make`. A write is synced before it is answered.
pub fn directory(path: &FilePath, make: bool) -> Result<Arc<ObjectBackups>> {
    let unusable = |cause: &dyn std::fmt::Display| {
        Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "the backup directory {} can't be used ({cause})",
                path.display()
            ),
        )
    };
    if make {
        // A backup is as secret as the database.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|cause| unusable(&cause.kind()).caused_by(cause))?;
    }
    let store = LocalFileSystem::new_with_prefix(path)
        .map_err(|cause| unusable(&cause))?
        .with_fsync(true);
    Ok(Arc::new(ObjectBackups {
        store: Box::new(store),
        prefix: Path::default(),
        name: path.display().to_string(),
    }))
}

/// Backups in a bucket, below [`S3Options::prefix`]. Doesn't connect yet.
pub fn s3(options: &S3Options) -> Result<Arc<ObjectBackups>> {
    Ok(Arc::new(ObjectBackups {
        store: bucket(options, OBJECT_TIMEOUT)?,
        prefix: Path::from(options.prefix.as_str()),
        name: format!("bucket {}", options.bucket),
    }))
}

impl ObjectBackups {
    fn path(&self, path: &str) -> Path {
        path.split('/')
            .fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn failed(&self, path: &str, cause: object_store::Error) -> Error {
        if let object_store::Error::NotFound { .. } = cause {
            return Error::new(
                ErrorCode::NotFound,
                format!("{path} isn't in {}", self.name),
            );
        }
        Error::new(
            ErrorCode::Unavailable,
            format!("{} can't be used for {path}", self.name),
        )
        .caused_by(cause)
    }
}

#[async_trait]
impl BackupStore for ObjectBackups {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.store
            .put(&self.path(path), PutPayload::from_bytes(bytes))
            .await
            .map(drop)
            .map_err(|cause| self.failed(path, cause))
    }

    async fn get(&self, path: &str) -> Result<Bytes> {
        let got = async { self.store.get(&self.path(path)).await?.bytes().await };
        got.await.map_err(|cause| self.failed(path, cause))
    }

    async fn folders(&self) -> Result<Vec<String>> {
        let list = self
            .store
            .list_with_delimiter(Some(&self.prefix))
            .await
            .map_err(|cause| self.failed("a list", cause))?;
        let mut folders: Vec<String> = list
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .collect();
        folders.sort_unstable();
        Ok(folders)
    }

    async fn remove(&self, path: &str) -> Result<()> {
        match self.store.delete(&self.path(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(self.failed(path, cause)),
        }
    }

    async fn remove_folder(&self, folder: &str) -> Result<()> {
        let failed = |cause| self.failed(folder, cause);
        self.store
            .list(Some(&self.path(folder)))
            .map_err(failed)
            .map_ok(|object| async move {
                match self.store.delete(&object.location).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(cause) => Err(failed(cause)),
                }
            })
            .try_buffer_unordered(REMOVALS)
            .try_collect::<Vec<()>>()
            .await
            .map(drop)
    }
}
