//! Errors across a real connection.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use carillon_domain::{
    Error, ErrorCode, RoomId, UserId,
    services::{AuthService, MediaService, MessageService, NewMedia},
};
use tokio::net::TcpListener;

use super::{
    MAX_UPLOAD, all_of, credentials,
    fakes::{FakeServices, uuid},
    start,
};
use crate::{AuthClient, MediaClient, MessageClient, status::is_transport};

#[tokio::test]
async fn every_code_crosses_with_its_details() {
    let fake = Arc::new(FakeServices::default());
    let server = start(all_of(&fake)).await;
    let client = AuthClient::connect_lazy(&server.address, credentials()).unwrap();
    for code in ErrorCode::ALL {
        let sent = Error::new(code, format!("it is {code} – really"))
            .with_field("a", "what is wrong with ä")
            .retry_after(Duration::from_millis(1500))
            .caused_by(std::io::Error::other("password=hunter2"));
        fake.fail_next([sent.clone()]);
        let got = client.send_otp("+1").await.unwrap_err();
        assert_eq!(got.code, code);
        assert_eq!(got.detail, sent.detail);
        assert_eq!(got.fields, sent.fields);
        assert_eq!(got.retry_after, sent.retry_after);
        assert!(!format!("{got:?}").contains("hunter2"));
        assert!(!is_transport(&got));
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = AuthClient::connect_lazy(&address, credentials()).unwrap();
    let error = client.send_otp("+1").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(is_transport(&error));
}

#[tokio::test]
async fn a_server_that_goes_during_the_call_is_unavailable() {
    let fake = Arc::new(FakeServices::hanging());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    // Its own runtime, so that its end cuts the connection as the end of a process does.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let std_listener = listener.into_std().unwrap();
    let services = all_of(&fake);
    runtime.spawn(async move {
        crate::serve(
            TcpListener::from_std(std_listener).unwrap(),
            services,
            super::options(),
            crate::Serving::default(),
            tokio_util::sync::CancellationToken::new(),
        )
        .await
    });
    let client = AuthClient::connect_lazy(&address, credentials()).unwrap();
    let call = tokio::spawn(async move { client.send_otp("+1").await });
    while fake.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    runtime.shutdown_background();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(is_transport(&error));
}

#[tokio::test]
async fn no_answer_in_time_is_deadline_exceeded() {
    let fake = Arc::new(FakeServices::hanging());
    let server = start(all_of(&fake)).await;
    let deadline = Duration::from_millis(100);
    let client = MessageClient::with_deadline(&server.address, credentials(), deadline).unwrap();
    let error = client
        .room(UserId(uuid(1)), RoomId(uuid(2)))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(is_transport(&error));
}

/// MEDIA-01: above the limit nothing reaches the service.
#[tokio::test]
async fn an_upload_above_the_limit_is_refused_before_it_is_taken() {
    let fake = Arc::new(FakeServices::default());
    let server = start(all_of(&fake)).await;
    let client = MediaClient::connect_lazy(&server.address, credentials()).unwrap();
    let file = NewMedia {
        room: RoomId(uuid(1)),
        file_name: "large.png".into(),
        bytes: Bytes::from(vec![0; MAX_UPLOAD + 1024 * 1024]),
    };
    let error = client.upload(UserId(uuid(1)), file).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PayloadTooLarge);
    assert!(fake.calls().is_empty());
}

#[tokio::test]
async fn lists_and_pages_beyond_the_contract_are_refused_with_the_field() {
    let fake = Arc::new(FakeServices::default());
    let server = start(all_of(&fake)).await;
    let auth = AuthClient::connect_lazy(&server.address, credentials()).unwrap();
    let too_many = vec![UserId(uuid(1)); 1001];
    let error = auth.users(None, &too_many).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    assert_eq!(error.fields[0].field, "user_ids");

    let messages = MessageClient::connect_lazy(&server.address, credentials()).unwrap();
    let error = messages.public_rooms(None, 101).await.unwrap_err();
    assert_eq!(error.fields[0].field, "limit");
    assert!(fake.calls().is_empty());
}
