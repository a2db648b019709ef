//! Devices, history and changes of accounts (AUTH-05, AUTH-08, AUTH-09, AUTH-12), profiles and search (AUTH-15, USER-01, USER-03) through
//! the public API, on embedded and on real stores.

use anyhow::{Context as _, Result, ensure};
use carillon_rpc::proto::auth::{
    ChangeUsernameRequest, ListHistoryRequest, account_service_client::AccountServiceClient,
};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::world::{
    client::{Person, http, request},
    platform::{QUICK, RealCluster, RealOptions, Up},
    servers,
};

const PASSWORD: &str = "correct horse battery";
const NEW_PASSWORD: &str = "another horse battery";

#[tokio::test(flavor = "multi_thread")]
async fn devices_history_and_changes() -> Result<()> {
    let up = Up::start(QUICK).await?;
    story([&up.base, &up.base]).await
}

/// The same with every role a process of its own, the devices on different gateways.
#[tokio::test(flavor = "multi_thread")]
async fn devices_history_and_changes_over_two_gateways() -> Result<()> {
    let test = "accounts::devices_history_and_changes_over_two_gateways";
    let Some(servers) = servers::stores(test) else {
        return Ok(());
    };
    let options = RealOptions {
        gateways: 2,
        messages: 1,
        spec: QUICK.into(),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    let [one, two] = [&cluster.gateways[0].base, &cluster.gateways[1].base];
    story([one, two]).await
}

async fn story([one, two]: [&str; 2]) -> Result<()> {
    let town = Town { one, two };
    let phone = Person::register(one, "alice").await?;
    town.devices_are_listed_and_ended(&phone).await?;
    town.reuse_reaches_the_other_device(&phone).await?;
    town.people_are_shown_and_found(&phone).await?;
    town.names_are_changed_once(&phone).await?;
    town.a_new_password_ends_other_devices(&phone).await
}

struct Town<'a> {
    one: &'a str,
    two: &'a str,
}

fn items(body: &Value) -> Result<&Vec<Value>> {
    body["items"].as_array().context("items")
}

/// Logs in with whatever the body says; the answer's status and body.
async fn log_in(base: &str, body: Value) -> Result<(u16, Value)> {
    let url = format!("{base}/api/v1/auth/login");
    let answer = request(&http(), Method::POST, &url, None, Some(&body)).await?;
    Ok((answer.status.as_u16(), answer.body))
}

/// Reads frames until the socket is closed.
async fn until_closed(person: &mut Person) -> Result<Option<u16>> {
    while person.is_connected() {
        let Some(frame) = person.frame(std::time::Duration::from_secs(20)).await? else {
            break;
        };
        person.take(frame)?;
    }
    Ok(person.closed)
}

impl Town<'_> {
    /// AUTH-08, AUTH-12: what a client said of itself, which of the devices asks, and who gets pushes.
    async fn devices_are_listed_and_ended(&self, phone: &Person) -> Result<()> {
        let device = json!({"name": "Alice's tablet", "type": "tablet", "platform": "Tab OS 3"});
        let login = json!({"username": phone.username, "password": PASSWORD, "device": device});
        let (status, tablet) = log_in(self.two, login).await?;
        ensure!(status == 200, "{tablet}");
        let id = tablet["device_id"].as_str().context("device_id")?;
        let push = json!({"provider": "fcm", "token": "a-token-of-fcm"});
        let token = tablet["access_token"].as_str().context("access_token")?;
        let devices = format!("{}/api/v1/devices", self.two);
        let pushed = request(&http(), Method::POST, &devices, Some(token), Some(&push)).await?;

        let list = phone
            .ask(self.one, Method::GET, "/auth/sessions", None)
            .await?;
        let of = |current: bool| {
            let all = list["items"].as_array().into_iter().flatten();
            let mut found = all.filter(move |session| session["current"] == current);
            found.next().context("no such session")
        };
        let (own, other) = (of(true)?, of(false)?);
        ensure!(
            other["id"] == id
                && other["device_name"] == "Alice's tablet"
                && other["device_type"] == "tablet"
                && other["platform"] == "Tab OS 3"
                && other["push"] == (pushed.status == 204)
                && other["last_seen_at"].is_string(),
            "{list}"
        );
        ensure!(own["device_name"] == "alice's device" && own["push"] == false);

        let wrong =
            json!({"username": phone.username, "password": PASSWORD, "device": {"kind": 1}});
        ensure!(log_in(self.one, wrong).await?.0 == 400);
        let end = format!("/auth/sessions/{id}");
        phone.ask(self.one, Method::DELETE, &end, None).await?;
        let refused = request(&http(), Method::POST, &devices, Some(token), Some(&push)).await?;
        ensure!(refused.status == 401, "{}", refused.body);
        let again = phone.call(self.one, Method::DELETE, &end, None).await?;
        ensure!(again.status == 404, "{}", again.body);
        Ok(())
    }

    /// AUTH-05, AUTH-12: a refresh token that is used twice ends its device; the other one hears of it and finds it in the log.
    async fn reuse_reaches_the_other_device(&self, phone: &Person) -> Result<()> {
        let mut watching = Person::login(self.one, "alice", &phone.username).await?;
        watching.connect(self.one, false).await?;
        let mut stolen = Person::login(self.two, "alice", &phone.username).await?;
        stolen.connect(self.two, false).await?;
        let refresh = json!({"refresh_token": stolen.refresh_token});
        stolen
            .ask(self.two, Method::POST, "/auth/refresh", Some(&refresh))
            .await?;
        let reused = stolen
            .call(self.one, Method::POST, "/auth/refresh", Some(&refresh))
            .await?;
        ensure!(reused.status == 401, "{}", reused.body);
        ensure!(until_closed(&mut stolen).await? == Some(4002));
        let told = |person: &Person| {
            person.others.iter().any(|frame| {
                frame["type"] == "security_event" && frame["payload"]["kind"] == "token_reused"
            })
        };
        watching.wait_until("security_event", told).await?;
        let events = watching
            .ask(self.two, Method::GET, "/auth/security-events", None)
            .await?;
        let kinds: Vec<&Value> = items(&events)?.iter().map(|event| &event["kind"]).collect();
        ensure!(kinds == ["token_reused", "session_ended"], "{events}");
        ensure!(items(&events)?[0]["ip"].is_string(), "{events}");

        let login = json!({"username": phone.username, "password": "wrong password"});
        ensure!(log_in(self.two, login).await?.0 == 401);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let path = "/auth/login-history?limit=2";
            let page = watching.ask(self.one, Method::GET, path, None).await?;
            if items(&page)?[0]["kind"] == "login_failed" {
                let next = page["next"].as_str().context("next")?;
                let path = format!("/auth/login-history?limit=100&cursor={next}");
                let rest = watching.ask(self.two, Method::GET, &path, None).await?;
                let rest = items(&rest)?;
                ensure!(rest.len() == 3, "{rest:?}");
                ensure!(rest.iter().all(|event| event["kind"] == "logged_in"));
                break;
            }
            ensure!(std::time::Instant::now() < deadline, "{page}");
        }
        watching
            .ask(self.one, Method::POST, "/auth/logout", None)
            .await?;
        Ok(())
    }

    /// USER-01, USER-03, USER-05: others see a changed profile, and find it by its new name and not by the old one, unless blocked.
    async fn people_are_shown_and_found(&self, phone: &Person) -> Result<()> {
        let zoe = Person::register(self.two, "zoe").await?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let change = json!({"display_name": format!("Ä{unique} Blume"), "bio": "one\ntwo", "status": "away"});
        phone
            .ask(self.one, Method::PATCH, "/users/me", Some(&change))
            .await?;
        let path = format!("/users/{}", phone.id);
        let seen = zoe.ask(self.two, Method::GET, &path, None).await?;
        for field in ["display_name", "bio", "status"] {
            ensure!(seen[field] == change[field], "{seen}");
        }
        let found = async |who: &Person, query: &str| -> Result<Vec<String>> {
            let path = format!("/users/search?q={query}");
            let page = who.ask(self.two, Method::GET, &path, None).await?;
            let ids = items(&page)?.iter().map(|user| user["id"].as_str());
            ids.map(|id| Ok(id.context("id")?.to_owned())).collect()
        };
        let by_shown_name = format!("%C3%A4{}%20bl", unique.to_uppercase());
        ensure!(found(&zoe, &by_shown_name).await? == [phone.id.as_str()]);
        ensure!(found(&zoe, &phone.username.to_uppercase()).await? == [phone.id.as_str()]);
        phone
            .ask(
                self.one,
                Method::PATCH,
                "/auth/me",
                Some(&json!({"display_name": null})),
            )
            .await?;
        ensure!(found(&zoe, &by_shown_name).await?.is_empty());
        let block = format!("/blocks/{}", zoe.id);
        phone.ask(self.one, Method::PUT, &block, None).await?;
        ensure!(
            found(&zoe, &phone.username).await?.is_empty(),
            "blocked, and found"
        );
        ensure!(found(phone, &zoe.username).await? == [zoe.id.as_str()]);
        phone.ask(self.one, Method::DELETE, &block, None).await?;
        ensure!(found(&zoe, &phone.username).await? == [phone.id.as_str()]);
        let short = zoe
            .call(self.two, Method::GET, "/users/search?q=a", None)
            .await?;
        ensure!(short.status == 400, "{}", short.body);
        Ok(())
    }

    /// AUTH-09: of two who want a name at once one gets it; addresses and names of others are refused.
    async fn names_are_changed_once(&self, phone: &Person) -> Result<()> {
        let bob = Person::register(self.two, "bob").await?;
        let wanted = format!("w{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let body = json!({"username": wanted, "password": PASSWORD});
        let (a, b) = tokio::try_join!(
            phone.call(self.one, Method::PATCH, "/auth/username", Some(&body)),
            bob.call(self.two, Method::PATCH, "/auth/username", Some(&body))
        )?;
        let mut statuses = [a.status.as_u16(), b.status.as_u16()];
        statuses.sort_unstable();
        ensure!(statuses == [200, 409], "{} {}", a.body, b.body);
        let (winner, loser, base) = match a.status.as_u16() {
            200 => (phone, &bob, self.two),
            _ => (&bob, phone, self.one),
        };
        let refused = if a.status == 200 { &b } else { &a };
        ensure!(refused.body["errors"][0]["field"] == "username");
        let path = format!("/users/by-username/{}", wanted.to_uppercase());
        let found = loser.ask(base, Method::GET, &path, None).await?;
        ensure!(found["id"] == winner.id.as_str(), "{found}");
        ensure!(
            log_in(base, json!({"username": wanted, "password": PASSWORD}))
                .await?
                .0
                == 200
        );
        let old = json!({"username": winner.username, "password": PASSWORD});
        ensure!(log_in(base, old).await?.0 == 401);

        let taken = json!({"email": format!("{}@EXAMPLE.com", bob.username), "password": PASSWORD});
        let refused = phone
            .call(self.one, Method::PATCH, "/auth/email", Some(&taken))
            .await?;
        ensure!(refused.status == 409, "{}", refused.body);
        let wrong = json!({"email": "new@example.com", "password": "wrong password"});
        let refused = phone
            .call(self.one, Method::PATCH, "/auth/email", Some(&wrong))
            .await?;
        ensure!(refused.status == 403, "{}", refused.body);
        let address = format!("{wanted}@bücher.example");
        let body = json!({"email": address, "password": PASSWORD});
        phone
            .ask(self.one, Method::PATCH, "/auth/email", Some(&body))
            .await?;
        let login = json!({"email": address, "password": PASSWORD});
        ensure!(log_in(self.two, login).await?.0 == 200);
        Ok(())
    }

    /// AUTH-09: sockets of other devices close, wherever they are; the old password is no longer one.
    async fn a_new_password_ends_other_devices(&self, phone: &Person) -> Result<()> {
        let me = phone.ask(self.one, Method::GET, "/auth/me", None).await?;
        let username = me["username"].as_str().context("username")?;
        let mut other = Person::login(self.two, "alice", username).await?;
        other.connect(self.two, false).await?;
        let body = json!({"current_password": "wrong password", "new_password": NEW_PASSWORD});
        let refused = phone
            .call(self.one, Method::PATCH, "/auth/password", Some(&body))
            .await?;
        ensure!(
            refused.status == 403 && refused.body["errors"][0]["field"] == "current_password",
            "{}",
            refused.body
        );
        let body = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
        phone
            .ask(self.one, Method::PATCH, "/auth/password", Some(&body))
            .await?;
        ensure!(until_closed(&mut other).await? == Some(4002));
        let refused = other.call(self.two, Method::GET, "/auth/me", None).await?;
        ensure!(refused.status == 401, "{}", refused.body);
        for (password, status) in [(PASSWORD, 401), (NEW_PASSWORD, 200)] {
            let login = json!({"username": username, "password": password});
            ensure!(log_in(self.two, login).await?.0 == status);
        }
        phone.ask(self.one, Method::GET, "/auth/me", None).await?;
        Ok(())
    }
}

/// AUTH-09, AUTH-12, AUTH-16: the same over gRPC, in the name of the token.
#[tokio::test(flavor = "multi_thread")]
async fn accounts_over_grpc() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let alice = Person::register(&up.base, "alice").await?;
    let mut accounts = AccountServiceClient::connect(up.grpc.clone()).await?;
    let with_token = |body| -> Result<Request<ListHistoryRequest>> {
        let mut request = Request::new(body);
        let token = format!("Bearer {}", alice.access_token);
        request
            .metadata_mut()
            .insert("authorization", token.parse()?);
        Ok(request)
    };
    let list = ListHistoryRequest::default();
    let refused = accounts.list_login_history(list.clone()).await.unwrap_err();
    ensure!(refused.code() == Code::Unauthenticated, "{refused:?}");
    let logins = accounts
        .list_login_history(with_token(list.clone())?)
        .await?
        .into_inner()
        .events;
    ensure!(
        logins.len() == 1 && logins[0].kind == "logged_in",
        "{logins:?}"
    );

    let change = |password: &str| -> Result<Request<ChangeUsernameRequest>> {
        let mut request = Request::new(ChangeUsernameRequest {
            username: "somebody-else".into(),
            password: Some(password.into()),
        });
        let token = format!("Bearer {}", alice.access_token);
        request
            .metadata_mut()
            .insert("authorization", token.parse()?);
        Ok(request)
    };
    let refused = accounts
        .change_username(change("wrong")?)
        .await
        .unwrap_err();
    ensure!(refused.code() == Code::PermissionDenied, "{refused:?}");
    let changed = accounts
        .change_username(change(PASSWORD)?)
        .await?
        .into_inner();
    ensure!(changed.user.context("user")?.username == "somebody-else");
    let events = accounts
        .list_security_events(with_token(list)?)
        .await?
        .into_inner()
        .events;
    ensure!(
        events.len() == 1 && events[0].kind == "username_changed",
        "{events:?}"
    );
    Ok(())
}
