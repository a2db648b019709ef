//! AUTH-10 over a real SMTP server, and AUTH-03 with a provider that isn't the development one: REST and gRPC, on embedded and on real
//! stores.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use carillon_rpc::proto::auth::{
    ForgotPasswordRequest, ResetPasswordRequest, VerifyEmailRequest,
    account_service_client::AccountServiceClient,
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

use crate::world::{
    client::{Person, http, request},
    mail::{MailServer, Security},
    platform::{QUICK, RealCluster, RealOptions, Up},
    servers,
};

const NEW_PASSWORD: &str = "another horse battery";

async fn post(base: &str, path: &str, body: Value) -> Result<(u16, Value)> {
    let url = format!("{base}/api/v1{path}");
    let answer = request(&http(), Method::POST, &url, None, Some(&body)).await?;
    Ok((answer.status.as_u16(), answer.body))
}

/// AUTH-10 by REST: an address is confirmed by its mail, and a forgotten password set anew; nobody learns who has an account.
async fn story(bases: [&str; 2], server: &MailServer) -> Result<()> {
    let [one, two] = bases;
    let ann = Person::register(one, "ann").await?;
    let address = format!("{}@example.com", ann.username);
    let me = ann.ask(two, Method::GET, "/auth/me", None).await?;
    ensure!(me["email"].is_null(), "not confirmed yet: {me}");
    let token = server.token(1, &address, "verify").await?;
    let verify = json!({"token": token});
    ensure!(post(two, "/auth/email/verify", verify.clone()).await?.0 == 204);
    let (status, spent) = post(one, "/auth/email/verify", verify).await?;
    ensure!(
        status == 400 && spent["errors"][0]["field"] == "token",
        "{spent}"
    );
    let me = ann.ask(one, Method::GET, "/auth/me", None).await?;
    ensure!(me["email"] == address.as_str(), "{me}");

    // A stranger with the same address hears the same as with any other; its owner hears of it.
    let register = |name: &str, email: &str| json!({"username": format!("{name}-{}", ann.username), "email": email, "password": NEW_PASSWORD});
    let known = post(one, "/auth/register", register("eve", &address)).await?;
    let unknown = post(one, "/auth/register", register("eva", "fresh@example.com")).await?;
    ensure!(known.0 == 201 && unknown.0 == 201, "{known:?} {unknown:?}");
    let keys = |body: &Value| {
        body.as_object()
            .map(|body| body.keys().cloned().collect::<Vec<_>>())
    };
    ensure!(keys(&known.1) == keys(&unknown.1), "{known:?} {unknown:?}");
    let mut subjects = Vec::new();
    for number in [2, 3] {
        let mail = server.nth(number).await?;
        subjects.push((mail["to"][0].clone(), mail["subject"].clone()));
    }
    ensure!(
        subjects.contains(&(json!(address), json!("You have an account already")))
            && subjects.contains(&(
                json!("fresh@example.com"),
                json!("Confirm your e-mail address")
            )),
        "{subjects:?}"
    );

    // The server puts the mail off at first: it comes all the same.
    server.refuse(true)?;
    for email in ["nobody@example.com", &address] {
        let forgot = post(two, "/auth/password/forgot", json!({"email": email})).await?;
        ensure!(forgot.0 == 204, "{forgot:?}");
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    server.refuse(false)?;
    let token = server.token(4, &address, "reset").await?;
    let reset = |new: &str| json!({"token": token, "new_password": new});
    let (status, short) = post(one, "/auth/password/reset", reset("short")).await?;
    ensure!(
        status == 400 && short["errors"][0]["field"] == "new_password",
        "{short}"
    );
    ensure!(
        post(one, "/auth/password/reset", reset(NEW_PASSWORD))
            .await?
            .0
            == 204
    );
    ensure!(
        post(two, "/auth/password/reset", reset(NEW_PASSWORD))
            .await?
            .0
            == 400
    );
    let old = ann.call(two, Method::GET, "/auth/me", None).await?;
    ensure!(old.status == 401, "a session went on: {}", old.body);
    let login = json!({"email": address, "password": NEW_PASSWORD});
    let (status, tokens) = post(two, "/auth/login", login).await?;
    ensure!(status == 200, "{tokens}");
    let url = format!("{one}/api/v1/auth/security-events");
    let token = tokens["access_token"].as_str();
    let events = request(&http(), Method::GET, &url, token, None).await?.body;
    ensure!(events["items"][0]["kind"] == "password_reset", "{events}");
    ensure!(events["items"][0]["ip"].is_string(), "{events}");
    ensure!(server.got()?.len() == 4, "{:?}", server.got()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_on_embedded_stores() -> Result<()> {
    let Some(program) = servers::variable("mail::mail_on_embedded_stores", "CARILLON_TEST_SMTP")
    else {
        return Ok(());
    };
    let server = MailServer::start(&program, Security::StartTls).await?;
    let spec = format!("{QUICK}{}", server.spec());
    let up = Up::start_with_secrets(&spec, &server.secrets()).await?;
    story([&up.base, &up.base], &server).await?;
    let logged = up.process.output();
    ensure!(
        !logged.contains("@example.com"),
        "an address is logged:\n{logged}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_over_two_gateways() -> Result<()> {
    let test = "mail::mail_over_two_gateways";
    let Some(program) = servers::variable(test, "CARILLON_TEST_SMTP") else {
        return Ok(());
    };
    let Some(servers) = servers::stores(test) else {
        return Ok(());
    };
    let server = MailServer::start(&program, Security::Tls).await?;
    let options = RealOptions {
        gateways: 2,
        messages: 1,
        spec: format!("{QUICK}{}", server.spec()),
        secrets: Some(server.secrets()),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    let [one, two] = [&cluster.gateways[0].base, &cluster.gateways[1].base];
    story([one, two], &server).await
}

/// AUTH-10 by gRPC, without a token.
#[tokio::test(flavor = "multi_thread")]
async fn mail_by_grpc() -> Result<()> {
    let Some(program) = servers::variable("mail::mail_by_grpc", "CARILLON_TEST_SMTP") else {
        return Ok(());
    };
    let server = MailServer::start(&program, Security::None).await?;
    let up = Up::start(&format!("{QUICK}{}", server.spec())).await?;
    let ann = Person::register(&up.base, "ann").await?;
    let address = format!("{}@example.com", ann.username);
    let token = server.token(1, &address, "verify").await?;
    let mut accounts = AccountServiceClient::connect(up.grpc.clone()).await?;
    let verify = |token: &str| VerifyEmailRequest {
        token: token.to_owned(),
        client: None,
    };
    let wrong = accounts.verify_email(verify("AAAA")).await.unwrap_err();
    ensure!(wrong.code() == Code::InvalidArgument, "{wrong:?}");
    accounts.verify_email(verify(&token)).await?;
    accounts
        .forgot_password(ForgotPasswordRequest {
            email: address.clone(),
        })
        .await?;
    let token = server.token(2, &address, "reset").await?;
    let reset = ResetPasswordRequest {
        token,
        new_password: NEW_PASSWORD.to_owned(),
        client: None,
    };
    accounts.reset_password(reset.clone()).await?;
    let again = accounts.reset_password(reset).await.unwrap_err();
    ensure!(again.code() == Code::InvalidArgument, "{again:?}");
    let login = json!({"email": address, "password": NEW_PASSWORD});
    ensure!(post(&up.base, "/auth/login", login).await?.0 == 200);
    Ok(())
}

/// Codes that a provider was asked to send, by number: a Twilio Verify whose codes are the last six digits.
async fn start_verify() -> Result<(String, Arc<Mutex<Vec<String>>>)> {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    // "AC1:secret"
                    let is_ours = request
                        .headers()
                        .get("authorization")
                        .is_some_and(|value| value == "Basic QUMxOnNlY3JldA==");
                    let body = request.into_body().collect().await;
                    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                    let form: HashMap<String, String> = reqwest::Url::parse(&format!(
                        "http://f/?{}",
                        String::from_utf8_lossy(&body)
                    ))
                    .map(|url| url.query_pairs().into_owned().collect())
                    .unwrap_or_default();
                    let number = form.get("To").cloned().unwrap_or_default();
                    let (status, body) = match path.as_str() {
                        _ if !is_ours => (401, json!({})),
                        "/v2/Services/VA1/Verifications" => {
                            seen.lock()
                                .expect("no test panics while it holds this")
                                .push(number);
                            (201, json!({"status": "pending"}))
                        }
                        "/v2/Services/VA1/VerificationCheck" => {
                            let right = form
                                .get("Code")
                                .is_some_and(|code| number.ends_with(code.as_str()));
                            (
                                200,
                                json!({"status": if right { "approved" } else { "pending" }}),
                            )
                        }
                        _ => (404, json!({})),
                    };
                    Ok::<_, Infallible>(
                        Response::builder()
                            .status(status)
                            .body(Full::<Bytes>::from(body.to_string()))
                            .expect("a plain response"),
                    )
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    });
    Ok((base, asked))
}

/// AUTH-03: a phone is logged in by the provider's code, and no other; nothing of it is logged.
#[tokio::test(flavor = "multi_thread")]
async fn codes_by_a_provider() -> Result<()> {
    let (provider, asked) = start_verify().await?;
    let secrets = tempfile::tempdir()?;
    std::fs::create_dir_all(secrets.path().join("twilio"))?;
    for (key, value) in [
        ("account_sid", "AC1"),
        ("auth_token", "secret"),
        ("service_sid", "VA1"),
    ] {
        std::fs::write(secrets.path().join("twilio").join(key), value)?;
    }
    let quick = QUICK.replace(
        "devMode: true",
        &format!("otp: {{twilio: {{secretName: twilio, baseUrl: {provider:?}}}}}"),
    );
    let up = Up::start_with_secrets(&quick, secrets.path()).await?;
    let number = "+491709876543";
    let send = json!({"phone_number": number});
    ensure!(post(&up.base, "/auth/otp/send", send.clone()).await?.0 == 204);
    ensure!(post(&up.base, "/auth/otp/send", send).await?.0 == 429);
    let verify = |code: &str| json!({"phone_number": number, "otp_code": code});
    for wrong in ["123456", "000000"] {
        ensure!(
            post(&up.base, "/auth/otp/verify", verify(wrong)).await?.0 == 401,
            "{wrong}"
        );
    }
    let (status, tokens) = post(&up.base, "/auth/otp/verify", verify("876543")).await?;
    ensure!(status == 200, "{tokens}");
    ensure!(
        post(&up.base, "/auth/otp/verify", verify("876543"))
            .await?
            .0
            == 401
    );
    let asked = asked
        .lock()
        .expect("no test panics while it holds this")
        .clone();
    ensure!(asked == [number], "{asked:?}");
    let logged = up.process.output();
    ensure!(
        !logged.contains("9876543") && !logged.contains("secret"),
        "{logged}"
    );
    tokens["access_token"].as_str().context("a token").map(drop)
}
