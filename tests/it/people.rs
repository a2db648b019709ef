//! Contacts and blocks through the public API (USER-04, USER-05, PRES-03), on embedded and on real stores.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use carillon_rpc::proto::{
    auth::{GetUsersRequest, auth_service_client::AuthServiceClient},
    people::{
        BlockRequest, GetHiddenRequest, ListBlocksRequest, ListContactsRequest, PutContactRequest,
        UnblockRequest, people_service_client::PeopleServiceClient,
    },
};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::world::{
    client::{PATIENCE, Person},
    platform::{QUICK, RealCluster, RealOptions, Up},
    script::Stage,
    servers,
};

/// PRES-03, USER-04, USER-05.
#[tokio::test(flavor = "multi_thread")]
async fn contacts_and_blocks() -> Result<()> {
    let up = Up::start(QUICK).await?;
    story(vec![up.base.clone()]).await
}

/// The same with every role a process of its own, the people on different gateways.
#[tokio::test(flavor = "multi_thread")]
async fn contacts_and_blocks_over_two_gateways() -> Result<()> {
    let test = "people::contacts_and_blocks_over_two_gateways";
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
    let bases = cluster.gateways.iter().map(|gateway| gateway.base.clone());
    story(bases.collect()).await
}

async fn story(bases: Vec<String>) -> Result<()> {
    let mut stage = Stage::new(bases);
    stage
        .run("alice: register\nbob: register\nzoe: register\nalice: connect\nzoe: connect")
        .await?;
    let mut town = Town { stage, messages: 0 };
    town.a_contact_is_told_without_a_room().await?;
    town.stage
        .run("alice: create #r private\nbob: connect\nalice: add #r bob\nalice: add #r zoe\nbob: sees_kind #r user_joined\nzoe: sees_kind #r user_joined")
        .await?;
    town.rounds_until(true).await?;
    town.a_block_hides().await?;
    town.its_end_shows_again().await?;
    town.wrong_requests_are_refused().await
}

struct Town {
    stage: Stage,
    messages: usize,
}

impl Town {
    fn id(&mut self, name: &str) -> Result<String> {
        Ok(self.stage.person(name)?.1.id.clone())
    }

    /// A request of somebody; its status and body.
    async fn ask(&mut self, who: &str, method: Method, path: &str) -> Result<(u16, Value)> {
        let (base, person) = self.stage.person(who)?;
        let answer = person.call(&base, method, path, None).await?;
        Ok((answer.status.as_u16(), answer.body))
    }

    async fn expect(
        &mut self,
        who: &str,
        method: Method,
        path: &str,
        status: u16,
    ) -> Result<Value> {
        let (answered, body) = self.ask(who, method.clone(), path).await?;
        ensure!(
            answered == status,
            "{method} {path} of {who} answered {answered}, not {status}: {body}"
        );
        Ok(body)
    }

    /// Whether somebody is shown another one's presence.
    async fn sees_presence(&mut self, who: &str, of: &str) -> Result<bool> {
        let path = format!("/presence?users={}", self.id(of)?);
        let body = self.expect(who, Method::GET, &path, 200).await?;
        Ok(body["items"]
            .as_array()
            .is_some_and(|items| !items.is_empty()))
    }

    async fn a_contact_is_told_without_a_room(&mut self) -> Result<()> {
        let bob = self.id("bob")?;
        let contact = format!("/contacts/{bob}");
        self.expect("alice", Method::GET, &contact, 404).await?;
        ensure!(
            !self.sees_presence("alice", "bob").await?,
            "a stranger is seen"
        );
        for _ in 0..2 {
            self.expect("alice", Method::PUT, &contact, 204).await?;
        }
        let found = self.expect("alice", Method::GET, &contact, 200).await?;
        ensure!(
            found["user_id"] == bob.as_str() && found["since"].is_string(),
            "{found}"
        );
        let list = self.expect("alice", Method::GET, "/contacts", 200).await?;
        ensure!(list == json!({"items": [found], "next": null}), "{list}");
        ensure!(self.sees_presence("alice", "bob").await?);
        ensure!(
            !self.sees_presence("bob", "alice").await?,
            "contacts are one-sided"
        );

        for (step, kind) in [("connect", "user_online"), ("drop", "user_offline")] {
            self.stage.run(&format!("bob: {step}")).await?;
            let without_room = |person: &Person| {
                let mut told = person.others.iter().filter(|frame| {
                    frame["type"] == kind && frame["payload"]["user_id"] == bob.as_str()
                });
                told.any(|frame| frame["payload"].get("room_id").is_none())
            };
            let alice = self.stage.person("alice")?.1;
            alice.wait_until(kind, without_room).await?;
        }
        Ok(())
    }

    /// Bob types, then Zoe sends a message: who of Alice and Zoe got Bob's typing before the message.
    async fn round(&mut self) -> Result<[bool; 2]> {
        let bob = self.id("bob")?;
        let mut before = [0; 2];
        for (place, who) in before.iter_mut().zip(["alice", "zoe"]) {
            *place = self.stage.person(who)?.1.others.len();
        }
        self.messages += 1;
        let text = format!("round {}", self.messages);
        self.stage
            .run(&format!(
                "bob: typing #r\nzoe: send #r \"{text}\"\nalice: sees #r \"{text}\"\nzoe: sees #r \"{text}\""
            ))
            .await?;
        let mut got = [false; 2];
        for ((got, who), before) in got.iter_mut().zip(["alice", "zoe"]).zip(before) {
            let others = &self.stage.person(who)?.1.others[before..];
            *got = others.iter().any(|frame| {
                frame["type"] == "typing" && frame["payload"]["user_id"] == bob.as_str()
            });
        }
        Ok(got)
    }

    /// Rounds until Alice gets Bob's typing, or doesn't. Gateways learn of a change of blocks a moment after its answer.
    async fn rounds_until(&mut self, shown: bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let [alice, zoe] = self.round().await?;
            if alice == shown && zoe {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "Bob's typing reached Alice: {alice}, Zoe: {zoe}"
            );
        }
    }

    async fn a_block_hides(&mut self) -> Result<()> {
        let [alice, bob, zoe] = [self.id("alice")?, self.id("bob")?, self.id("zoe")?];
        let bob_name = self.expect("bob", Method::GET, "/auth/me", 200).await?["username"].clone();
        let bob_name = bob_name.as_str().context("username")?.to_owned();
        ensure!(
            self.sees_presence("bob", "alice").await?,
            "they share a room"
        );
        let block = format!("/blocks/{alice}");
        for _ in 0..2 {
            self.expect("bob", Method::PUT, &block, 204).await?;
        }
        let list = self.expect("bob", Method::GET, "/blocks", 200).await?;
        ensure!(
            list["items"][0]["user_id"] == alice.as_str() && list["next"].is_null(),
            "{list}"
        );
        let list = self.expect("alice", Method::GET, "/blocks", 200).await?;
        ensure!(
            list["items"] == json!([]),
            "who blocked somebody is told: {list}"
        );

        for path in [
            format!("/users/{bob}"),
            format!("/users/by-username/{bob_name}"),
        ] {
            self.expect("alice", Method::GET, &path, 404).await?;
            self.expect("zoe", Method::GET, &path, 200).await?;
        }
        let path = format!("/users?ids={bob},{zoe}");
        let list = self.expect("alice", Method::GET, &path, 200).await?;
        let ids: Vec<&Value> = list["items"]
            .as_array()
            .context("items")?
            .iter()
            .map(|user| &user["id"])
            .collect();
        ensure!(ids == [zoe.as_str()], "{list}");
        // A block must be undone somehow: the blocked are shown to who blocked them.
        self.expect("bob", Method::GET, &format!("/users/{alice}"), 200)
            .await?;
        for (who, of) in [("alice", "bob"), ("bob", "alice")] {
            ensure!(!self.sees_presence(who, of).await?, "{who} sees {of}");
        }
        ensure!(self.sees_presence("zoe", "bob").await?);
        self.expect("alice", Method::PUT, &format!("/contacts/{bob}"), 404)
            .await?;

        self.rounds_until(false).await?;
        let before = self.stage.person("alice")?.1.others.len();
        self.stage.run("bob: drop").await?;
        let gone = |person: &Person| {
            person.others.iter().any(|frame| {
                frame["type"] == "user_offline" && frame["payload"]["user_id"] == bob.as_str()
            })
        };
        self.stage
            .person("zoe")?
            .1
            .wait_until("user_offline", gone)
            .await?;
        self.stage
            .run("zoe: send #r \"gone\"\nalice: sees #r \"gone\"")
            .await?;
        let others = &self.stage.person("alice")?.1.others[before..];
        let told = others
            .iter()
            .find(|frame| frame["payload"]["user_id"] == bob.as_str());
        ensure!(told.is_none(), "Alice was told of Bob: {told:?}");
        self.stage.run("bob: connect").await
    }

    async fn its_end_shows_again(&mut self) -> Result<()> {
        let [alice, bob] = [self.id("alice")?, self.id("bob")?];
        for _ in 0..2 {
            self.expect("bob", Method::DELETE, &format!("/blocks/{alice}"), 204)
                .await?;
        }
        self.expect("alice", Method::GET, &format!("/users/{bob}"), 200)
            .await?;
        for (who, of) in [("alice", "bob"), ("bob", "alice")] {
            ensure!(self.sees_presence(who, of).await?, "{who} doesn't see {of}");
        }
        self.rounds_until(true).await?;
        let before = self.stage.person("alice")?.1.others.len();
        self.stage.run("bob: drop").await?;
        let both = |person: &Person| {
            let told = person.others[before..].iter().filter(|frame| {
                frame["type"] == "user_offline" && frame["payload"]["user_id"] == bob.as_str()
            });
            let (room, contact): (Vec<&Value>, Vec<&Value>) =
                told.partition(|frame| frame["payload"].get("room_id").is_some());
            !room.is_empty() && !contact.is_empty()
        };
        let alice = self.stage.person("alice")?.1;
        alice
            .wait_until("user_offline of room and contact", both)
            .await?;
        for _ in 0..2 {
            self.expect("alice", Method::DELETE, &format!("/contacts/{bob}"), 204)
                .await?;
        }
        let list = self.expect("alice", Method::GET, "/contacts", 200).await?;
        ensure!(list["items"] == json!([]), "{list}");
        Ok(())
    }

    async fn wrong_requests_are_refused(&mut self) -> Result<()> {
        let alice = self.id("alice")?;
        let nobody = uuid::Uuid::now_v7();
        for kind in ["contacts", "blocks"] {
            self.expect("alice", Method::PUT, &format!("/{kind}/{nobody}"), 404)
                .await?;
            let own = format!("/{kind}/{alice}");
            let refused = self.expect("alice", Method::PUT, &own, 400).await?;
            ensure!(refused["errors"][0]["field"] == "user_id", "{refused}");
        }
        Ok(())
    }
}

fn with_token<T>(body: T, token: &str) -> Result<Request<T>> {
    let mut request = Request::new(body);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse()?);
    Ok(request)
}

/// USER-04, USER-05, AUTH-16: the same over gRPC, in the name of the token; what gateways ask is nobody else's business.
#[tokio::test(flavor = "multi_thread")]
async fn contacts_and_blocks_over_grpc() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let alice = Person::register(&up.base, "alice").await?;
    let bob = Person::register(&up.base, "bob").await?;
    let mut people = PeopleServiceClient::connect(up.grpc.clone()).await?;
    let mut auth = AuthServiceClient::connect(up.grpc.clone()).await?;

    let put = PutContactRequest {
        user_id: bob.id.clone(),
    };
    let refused = people.put_contact(put.clone()).await.unwrap_err();
    ensure!(refused.code() == Code::Unauthenticated, "{refused:?}");
    people
        .put_contact(with_token(put, &alice.access_token)?)
        .await?;
    let list = ListContactsRequest {
        limit: None,
        after: None,
    };
    let contacts = people
        .list_contacts(with_token(list, &alice.access_token)?)
        .await?
        .into_inner()
        .contacts;
    ensure!(
        contacts.len() == 1 && contacts[0].user_id == bob.id,
        "{contacts:?}"
    );

    let users = |seen: &Person| GetUsersRequest {
        user_ids: vec![seen.id.clone()],
    };
    let block = BlockRequest {
        user_id: alice.id.clone(),
    };
    people.block(with_token(block, &bob.access_token)?).await?;
    let list = ListBlocksRequest {
        limit: Some(1),
        after: None,
    };
    let blocks = people
        .list_blocks(with_token(list, &bob.access_token)?)
        .await?
        .into_inner()
        .blocks;
    ensure!(
        blocks.len() == 1 && blocks[0].user_id == alice.id,
        "{blocks:?}"
    );
    let seen = auth
        .get_users(with_token(users(&bob), &alice.access_token)?)
        .await?;
    ensure!(
        seen.into_inner().users.is_empty(),
        "who blocked her is shown"
    );
    let seen = auth
        .get_users(with_token(users(&alice), &bob.access_token)?)
        .await?;
    ensure!(seen.into_inner().users.len() == 1);
    let hidden = with_token(GetHiddenRequest {}, &alice.access_token)?;
    let refused = people.get_hidden(hidden).await.unwrap_err();
    ensure!(refused.code() == Code::PermissionDenied, "{refused:?}");

    let unblock = UnblockRequest { user_id: alice.id };
    people
        .unblock(with_token(unblock, &bob.access_token)?)
        .await?;
    let again = GetUsersRequest {
        user_ids: vec![bob.id],
    };
    let seen = auth
        .get_users(with_token(again, &alice.access_token)?)
        .await?;
    ensure!(seen.into_inner().users.len() == 1);
    Ok(())
}
