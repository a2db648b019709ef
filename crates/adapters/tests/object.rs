//! Blobs over S3, against a server in this process, and what is said when a store can't be used.

use std::path::Path;

use carillon_adapters::{
    conformance,
    object::{self, S3Options},
};
use carillon_domain::{
    ErrorCode, MediaId,
    ports::{BlobStore, Probe},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::net::TcpListener;

const BUCKET: &str = "town";

/// An S3 server over a directory, with one bucket; where to reach it.
async fn serve(root: &Path) -> S3Options {
    std::fs::create_dir(root.join(BUCKET)).unwrap();
    let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    service.set_auth(SimpleAuth::from_single("key-id", "secret"));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let server = Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(socket), service.clone());
            tokio::spawn(connection.into_owned());
        }
    });
    S3Options {
        bucket: BUCKET.into(),
        endpoint: Some(format!("http://{address}")),
        region: "us-east-1".into(),
        access_key_id: "key-id".into(),
        secret_access_key: "secret".into(),
        prefix: "some/where".into(),
        virtual_hosted: false,
    }
}

/// MEDIA-03: every clause over S3.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_in_a_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = object::s3(&serve(folder.path()).await).unwrap();
    assert_eq!(blobs.name(), "object_store");
    blobs.check().await.unwrap();
    conformance::blobs::all(blobs).await;
}

/// MEDIA-03: keys begin with the prefix, so that a bucket can be shared.
#[tokio::test(flavor = "multi_thread")]
async fn keys_begin_with_the_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = object::s3(&serve(folder.path()).await).unwrap();
    let id = MediaId::new();
    blobs.put(id, "bytes".into()).await.unwrap();
    let text = id.to_string();
    let path = format!("{BUCKET}/some/where/media/{}/{text}", &text[34..]);
    assert_eq!(std::fs::read(folder.path().join(path)).unwrap(), b"bytes");
}

/// OPS-01: wrong credentials, a missing bucket and an absent server are found by the probe, and are no `NotFound` of a file.
#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_bucket_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let good = serve(folder.path()).await;
    let mut wrong_secret = good.clone();
    wrong_secret.secret_access_key = "another".into();
    let mut no_bucket = good.clone();
    no_bucket.bucket = "nowhere".into();
    let mut no_server = good;
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    no_server.endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    drop(listener);
    for options in [wrong_secret, no_bucket, no_server] {
        let blobs = object::s3(&options).unwrap();
        let error = blobs.check().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable, "{options:?}");
        // The test's server makes a bucket for whoever writes to it; others refuse.
        if options.bucket == BUCKET {
            let put = blobs.put(MediaId::new(), "x".into()).await;
            assert_eq!(put.unwrap_err().code, ErrorCode::Unavailable, "{options:?}");
        }
        assert!(!format!("{options:?} {error}").contains("another"));
    }
}

/// MEDIA-03: a directory that can't be made is refused with its name and what to do.
#[test]
fn an_unusable_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = object::directory(&path).err().unwrap();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        assert!(error.detail.contains(&path.display().to_string()));
    }
}
