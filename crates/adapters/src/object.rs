//! [`BlobStore`] over object stores: a directory, or anything that speaks S3 (MEDIA-03).
//!
//! The bytes of a media id never change, so nothing is ever overwritten with something else, and readers may cache.

use std::{
    ops::Range,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_domain::{
    Error, ErrorCode, MediaId, Result,
    ports::{BlobStore, Probe},
};
use futures::StreamExt;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    aws::AmazonS3Builder, local::LocalFileSystem, path::Path,
};

/// A bucket of an S3-compatible store.
#[derive(Clone)]
pub struct S3Options {
    /// The bucket; it must exist.
    pub bucket: String,
    /// For example `https://s3.example.com`; `None` for AWS.
    pub endpoint: Option<String>,
    /// For example `eu-central-1`; stores without regions take any.
    pub region: String,
    /// Access key id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// Keys begin with it; may be empty.
    pub prefix: String,
    /// `bucket.endpoint` instead of `endpoint/bucket`.
    pub virtual_hosted: bool,
}

impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Options")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// Blobs in an object store.
pub struct ObjectBlobs {
    store: Box<dyn ObjectStore>,
    prefix: Path,
    /// Where they are, if that is a directory.
    directory: Option<PathBuf>,
}

/// Blobs in a directory, made if it isn't there. A write is synced before it is answered.
pub fn directory(path: &FilePath) -> Result<Arc<ObjectBlobs>> {
    let unusable = |cause: &dyn std::fmt::Display| {
        Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "the media directory {} can't be used ({cause}): give this user the right to write there, or name another directory",
                path.display()
            ),
        )
    };
    std::fs::create_dir_all(path).map_err(|cause| unusable(&cause.kind()).caused_by(cause))?;
    let store = LocalFileSystem::new_with_prefix(path)
        .map_err(|cause| unusable(&cause))?
        .with_fsync(true);
    Ok(Arc::new(ObjectBlobs {
        store: Box::new(store),
        prefix: Path::default(),
        directory: Some(path.to_owned()),
    }))
}

/// Blobs in a bucket. Doesn't connect yet: ask the probe.
pub fn s3(options: &S3Options) -> Result<Arc<ObjectBlobs>> {
    Ok(Arc::new(ObjectBlobs {
        store: bucket(options, Duration::from_secs(30))?,
        prefix: Path::from(options.prefix.as_str()),
        directory: None,
    }))
}

/// A client of a bucket; one try takes at most `timeout`.
pub(crate) fn bucket(options: &S3Options, timeout: Duration) -> Result<Box<dyn ObjectStore>> {
    // The HTTP client takes the process's provider. An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&options.bucket)
        .with_region(&options.region)
        .with_access_key_id(&options.access_key_id)
        .with_secret_access_key(&options.secret_access_key)
        .with_virtual_hosted_style_request(options.virtual_hosted)
        .with_client_options(
            ClientOptions::new()
                .with_connect_timeout(Duration::from_secs(3))
                .with_timeout(timeout),
        )
        // A caller waits: two more tries, then they hear of it.
        .with_retry(RetryConfig {
            max_retries: 2,
            retry_timeout: timeout.mul_f32(0.66),
            ..RetryConfig::default()
        });
    if let Some(endpoint) = &options.endpoint {
        builder = builder
            .with_allow_http(endpoint.starts_with("http://"))
            .with_endpoint(endpoint);
    }
    let store = builder.build().map_err(|cause| {
        Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "the bucket {} can't be used: check its endpoint, region and credentials",
                options.bucket
            ),
        )
        .caused_by(cause)
    })?;
    Ok(Box::new(store))
}

impl ObjectBlobs {
    /// Where an id's bytes are: spread over 256 folders by its last, random, bits.
    fn path(&self, id: MediaId) -> Path {
        let folder = format!("{:02x}", id.0.as_bytes()[15]);
        self.prefix
            .clone()
            .join("media")
            .join(folder)
            .join(id.0.to_string())
    }
}

#[async_trait]
impl BlobStore for ObjectBlobs {
    async fn put(&self, id: MediaId, bytes: Bytes) -> Result<()> {
        self.store
            .put(&self.path(id), PutPayload::from_bytes(bytes))
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn get(&self, id: MediaId, range: Option<Range<u64>>) -> Result<Bytes> {
        if range.as_ref().is_some_and(|range| range.is_empty()) {
            // No request can ask for nothing; whether the bytes are there is still told.
            self.store.head(&self.path(id)).await.map_err(failed)?;
            return Ok(Bytes::new());
        }
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        self.store
            .get_opts(&self.path(id), options)
            .await
            .map_err(failed)?
            .bytes()
            .await
            .map_err(failed)
    }

    async fn delete(&self, id: MediaId) -> Result<()> {
        match self.store.delete(&self.path(id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(failed(cause)),
        }
    }
}

#[async_trait]
impl Probe for ObjectBlobs {
    fn name(&self) -> &'static str {
        "object_store"
    }

    async fn check(&self) -> Result<()> {
        if let Some(directory) = &self.directory {
            // A listing of what isn't there is empty.
            let entries = tokio::fs::read_dir(directory).await;
            drop(entries.map_err(|cause| Error::unavailable("the media store", cause))?);
        }
        // Listing fails without the bucket; a look at one object couldn't tell the one from the other.
        let nowhere = self.prefix.clone().join("media").join("probe");
        let mut list = self.store.list(Some(&nowhere));
        match tokio::time::timeout(Duration::from_secs(2), list.next()).await {
            Ok(None | Some(Ok(_))) => Ok(()),
            Ok(Some(Err(cause))) => Err(Error::unavailable("the media store", cause)),
            Err(elapsed) => Err(Error::unavailable("the media store", elapsed)),
        }
    }
}

fn failed(cause: object_store::Error) -> Error {
    match cause {
        object_store::Error::NotFound { .. } => Error::not_found("file"),
        cause => Error::unavailable("the media store", cause),
    }
}
