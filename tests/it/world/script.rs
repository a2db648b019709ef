//! Chat scripts: what people do and must see, one line each. The same scripts drive embedded stores, the real ones, and pods.
//!
//! ```text
//! alice: register                       a person, on the next gateway in turn
//! alice: device phone                   a further device of hers: `alice/phone`
//! alice: connect | resume | drop        her socket
//! alice: create #general [private]      a room; `#name` is the script's name for it
//! bob: join #general | leave #general
//! bob: dm alice                         the room `@alice+bob` (names sorted)
//! alice: send #general "hi" [as c1]     over the socket
//! alice: post #general "hi" [as c1]     over REST
//! alice: edit #general "hi" "ho" | delete #general "hi"
//! bob: read #general                    marks everything read
//! bob: sees #general "hi"               waits for the event on the socket
//! bob: sees_kind #general user_joined   waits for an event of this type
//! bob: hears typing                     waits for a frame that is no room event
//! bob: history #general = "hi" "ho"     all of it, by REST; `-` is a deleted message
//! bob: unread #general 2 | mentioned #general 1
//! bob: delivered #general               confirms everything, over the socket
//! alice: receipt #general "hi" bob read  or delivered, sent, none
//! alice: ban #general bob | unban, mute, unmute, invite
//! alice: contact bob | block bob | unblock bob
//! bob: privacy read_receipts=contacts   what he shows to whom
//! bob: settings theme=dark              what else he sets
//! alice: presence bob shown             or hidden, by REST
//! alice: rules #general retention_seconds=5 edit_unread_only=true
//! bob: gone #general "hi"               waits until it is in no history
//! eve: refused 404 post #general "x"    a REST action that must be answered so
//! all: agree #general                   everybody's events are dense, and histories equal
//! ```

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::Person;

/// Longest wait for something that must happen.
const SOON: std::time::Duration = std::time::Duration::from_secs(60);

/// Runs a script against gateways; people are put onto them in turn.
pub struct Stage {
    bases: Vec<String>,
    people: BTreeMap<String, (usize, Person)>,
    usernames: BTreeMap<String, String>,
    rooms: BTreeMap<String, String>,
    next_client_id: u64,
}

impl Stage {
    /// An empty stage.
    pub fn new(bases: Vec<String>) -> Self {
        Self {
            bases,
            people: BTreeMap::new(),
            usernames: BTreeMap::new(),
            rooms: BTreeMap::new(),
            next_client_id: 0,
        }
    }

    /// The id behind a room's name.
    pub fn room(&self, name: &str) -> Result<String> {
        self.rooms
            .get(name)
            .cloned()
            .with_context(|| format!("no room {name} in this script"))
    }

    /// A person and their gateway.
    pub fn person(&mut self, name: &str) -> Result<(String, &mut Person)> {
        let (base, person) = self
            .people
            .get_mut(name)
            .with_context(|| format!("{name} is not registered"))?;
        Ok((self.bases[*base].clone(), person))
    }

    /// Runs every line; an error names the line.
    pub async fn run(&mut self, script: &str) -> Result<()> {
        for (number, line) in script.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with("//") {
                continue;
            }
            self.line(line)
                .await
                .with_context(|| format!("line {}: {line}", number + 1))?;
        }
        Ok(())
    }

    async fn line(&mut self, line: &str) -> Result<()> {
        let (who, action) = line.split_once(": ").context("expected `name: action`")?;
        let words = words(action)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["register"] => {
                let at = self.people.len() % self.bases.len();
                let person = Person::register(&self.bases[at], who).await?;
                let username = person
                    .ask(&self.bases[at], Method::GET, "/auth/me", None)
                    .await?["username"]
                    .clone();
                self.usernames.insert(
                    who.to_owned(),
                    username.as_str().context("username")?.to_owned(),
                );
                self.people.insert(who.to_owned(), (at, person));
            }
            ["device", device] => {
                let at = self.people.len() % self.bases.len();
                let name = format!("{who}/{device}");
                let username = self.usernames.get(who).context("register first")?;
                let person = Person::login(&self.bases[at], &name, username).await?;
                self.people.insert(name, (at, person));
            }
            ["connect"] => {
                let (base, person) = self.person(who)?;
                person.connect(&base, false).await?;
            }
            ["resume"] => {
                let (base, person) = self.person(who)?;
                person.connect(&base, true).await?;
            }
            ["move"] => {
                let bases = self.bases.len();
                let (at, _) = self.people.get_mut(who).context("register first")?;
                *at = (*at + 1) % bases;
            }
            ["drop"] => self.person(who)?.1.drop_socket(),
            ["create", room, kind @ ..] => {
                let kind = kind.first().copied().unwrap_or("public");
                let (base, person) = self.person(who)?;
                let body =
                    json!({"name": room.trim_start_matches('#'), "description": "", "type": kind});
                let made = person
                    .ask(&base, Method::POST, "/rooms", Some(&body))
                    .await?;
                self.rooms.insert(
                    (*room).to_owned(),
                    made["id"].as_str().context("id")?.to_owned(),
                );
            }
            ["dm", peer] => {
                let peer_id = self.person(peer)?.1.id.clone();
                let (base, person) = self.person(who)?;
                let made = person
                    .ask(
                        &base,
                        Method::POST,
                        "/dm",
                        Some(&json!({"recipient_id": peer_id})),
                    )
                    .await?;
                let mut names = [who, *peer];
                names.sort();
                let id = made["id"].as_str().context("id")?.to_owned();
                let name = format!("@{}+{}", names[0], names[1]);
                if let Some(before) = self.rooms.insert(name, id.clone()) {
                    ensure!(
                        before == id,
                        "a second direct room of one pair: {before} and {id}"
                    );
                }
            }
            ["send", room, text, rest @ ..] => {
                let (room, id) = (self.room(room)?, self.client_id(rest));
                let payload = json!({"room_id": room, "client_message_id": id, "type": "text", "content": text});
                let answer = self
                    .person(who)?
                    .1
                    .socket_request("send_message", payload)
                    .await?;
                ensure!(answer["type"] == "ack", "expected an ack, got {answer}");
            }
            ["read", room] => {
                let room = self.room(room)?;
                let (base, person) = self.person(who)?;
                let view = person
                    .ask(&base, Method::GET, &format!("/rooms/{room}"), None)
                    .await?;
                person
                    .ask(
                        &base,
                        Method::POST,
                        &format!("/rooms/{room}/read"),
                        Some(&json!({"sequence": view["head_sequence"]})),
                    )
                    .await?;
            }
            ["typing", room] => {
                let room = self.room(room)?;
                let answer = self
                    .person(who)?
                    .1
                    .socket_request("typing", json!({"room_id": room}))
                    .await?;
                ensure!(answer["type"] == "ack", "expected an ack, got {answer}");
            }
            ["sees", room, text] => {
                let room = self.room(room)?;
                let what = format!("{text:?}");
                self.person(who)?
                    .1
                    .wait_until(&what, |p| p.texts(&room).iter().any(|seen| seen == text))
                    .await?;
            }
            ["sees_kind", room, kind] => {
                let room = self.room(room)?;
                let seen = |p: &Person| {
                    p.seen
                        .get(&room)
                        .is_some_and(|events| events.values().any(|event| event["type"] == *kind))
                };
                self.person(who)?.1.wait_until(kind, seen).await?;
            }
            ["hears", kind] => {
                self.person(who)?
                    .1
                    .wait_until(kind, |p| {
                        p.others.iter().any(|frame| frame["type"] == *kind)
                    })
                    .await?;
            }
            ["history", room, "=", expected @ ..] => {
                let room = self.room(room)?;
                let (base, person) = self.person(who)?;
                let texts = texts(&person.history(&base, &room).await?);
                ensure!(texts == expected, "the history is {texts:?}");
            }
            ["unread", room, count] => {
                let room = self.room(room)?;
                let (base, person) = self.person(who)?;
                let rooms = person.ask(&base, Method::GET, "/rooms/me", None).await?;
                let mine = rooms["items"]
                    .as_array()
                    .and_then(|items| items.iter().find(|item| item["id"] == room.as_str()));
                let mine = mine.with_context(|| format!("not in the list: {rooms}"))?;
                ensure!(mine["unread_count"] == count.parse::<u64>()?, "{mine}");
            }
            ["mentioned", room, count] => {
                let room = self.room(room)?;
                let (base, person) = self.person(who)?;
                let rooms = person.ask(&base, Method::GET, "/rooms/me", None).await?;
                let mine = rooms["items"]
                    .as_array()
                    .and_then(|items| items.iter().find(|item| item["id"] == room.as_str()));
                let mine = mine.with_context(|| format!("not in the list: {rooms}"))?;
                ensure!(mine["mention_count"] == count.parse::<u64>()?, "{mine}");
            }
            ["invited", room] => {
                let room = self.room(room)?;
                let (base, person) = self.person(who)?;
                let rooms = person
                    .ask(&base, Method::GET, "/rooms/invites", None)
                    .await?;
                let items = rooms["items"].as_array().context("items")?;
                ensure!(
                    items.iter().any(|item| item["id"] == room.as_str()),
                    "{rooms}"
                );
            }
            ["delivered", room] => {
                let room = self.room(room)?;
                let (base, person) = self.person(who)?;
                let view = person
                    .ask(&base, Method::GET, &format!("/rooms/{room}"), None)
                    .await?;
                let payload = json!({"room_id": room, "sequence": view["head_sequence"]});
                let answer = person.socket_request("delivered", payload).await?;
                ensure!(answer["type"] == "ack", "expected an ack, got {answer}");
            }
            ["receipt", room, text, peer, state] => {
                let peer = self.person(peer)?.1.id.clone();
                let id = self.message(who, room, text).await?;
                let (base, person) = self.person(who)?;
                let path = format!("/messages/{id}/receipts");
                let receipts = person.ask(&base, Method::GET, &path, None).await?;
                let of_peer = receipts["items"]
                    .as_array()
                    .and_then(|items| items.iter().find(|item| item["user_id"] == peer.as_str()));
                let found = of_peer.map_or("none", |item| item["state"].as_str().unwrap_or("?"));
                ensure!(found == *state, "it is {found}: {receipts}");
            }
            ["presence", peer, wanted] => {
                let peer = self.person(peer)?.1.id.clone();
                let (base, person) = self.person(who)?;
                let path = format!("/presence?users={peer}");
                let found = person.ask(&base, Method::GET, &path, None).await?;
                let is_shown = found["items"].as_array().is_some_and(|all| !all.is_empty());
                let found = if is_shown { "shown" } else { "hidden" };
                ensure!(found == *wanted, "it is {found}");
            }
            ["gone", room, text] => {
                let room = self.room(room)?;
                let (base, person) = self.person(who)?;
                let deadline = tokio::time::Instant::now() + SOON;
                while texts(&person.history(&base, &room).await?).contains(&(*text).to_owned()) {
                    ensure!(
                        tokio::time::Instant::now() < deadline,
                        "{text:?} is still there"
                    );
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
            ["agree", room] => self.agree(&self.room(room)?).await?,
            ["refused", status, rest @ ..] => {
                let answer = self.rest(who, rest).await?;
                ensure!(
                    answer.status.as_u16() == status.parse::<u16>()?,
                    "answered {}: {}",
                    answer.status,
                    answer.body
                );
                ensure!(
                    answer.body["code"].is_string(),
                    "no problem details: {}",
                    answer.body
                );
            }
            rest => {
                let answer = self.rest(who, rest).await?;
                ensure!(
                    answer.status.is_success(),
                    "answered {}: {}",
                    answer.status,
                    answer.body
                );
            }
        }
        Ok(())
    }

    /// Actions over REST, whatever they are answered.
    async fn rest(&mut self, who: &str, words: &[&str]) -> Result<super::client::Answer> {
        let (method, path, body) = match words {
            ["join", room] => (
                Method::POST,
                format!("/rooms/{}/join", self.room(room)?),
                None,
            ),
            ["leave", room] => (
                Method::POST,
                format!("/rooms/{}/leave", self.room(room)?),
                None,
            ),
            ["see", room] => (Method::GET, format!("/rooms/{}", self.room(room)?), None),
            ["look", room] => (
                Method::GET,
                format!("/rooms/{}/messages", self.room(room)?),
                None,
            ),
            ["remove", room] => (Method::DELETE, format!("/rooms/{}", self.room(room)?), None),
            ["add", room, peer] => {
                let peer = self.person(peer)?.1.id.clone();
                (
                    Method::PUT,
                    format!("/rooms/{}/members/{peer}", self.room(room)?),
                    Some(json!({"role": "member"})),
                )
            }
            ["kick", room, peer] => {
                let peer = self.person(peer)?.1.id.clone();
                (
                    Method::DELETE,
                    format!("/rooms/{}/members/{peer}", self.room(room)?),
                    None,
                )
            }
            ["invite", room, peer] => {
                let peer = self.person(peer)?.1.id.clone();
                (
                    Method::POST,
                    format!("/rooms/{}/invites", self.room(room)?),
                    Some(json!({"user_id": peer})),
                )
            }
            [verb @ ("ban" | "unban" | "mute" | "unmute"), room, peer] => {
                let peer = self.person(peer)?.1.id.clone();
                let method = if verb.starts_with("un") {
                    Method::DELETE
                } else {
                    Method::PUT
                };
                let kind = verb.trim_start_matches("un");
                (
                    method,
                    format!("/rooms/{}/{kind}s/{peer}", self.room(room)?),
                    None,
                )
            }
            ["rules", room, rules @ ..] => {
                let mut given = serde_json::Map::new();
                for rule in rules {
                    let (name, value) = rule.split_once('=').context("name=value")?;
                    given.insert(name.to_owned(), serde_json::from_str(value)?);
                }
                (
                    Method::PATCH,
                    format!("/rooms/{}", self.room(room)?),
                    Some(json!({"rules": given})),
                )
            }
            ["contact", peer] => {
                let peer = &self.person(peer)?.1.id;
                (Method::PUT, format!("/contacts/{peer}"), None)
            }
            ["block", peer] => {
                let peer = &self.person(peer)?.1.id;
                (Method::PUT, format!("/blocks/{peer}"), None)
            }
            ["unblock", peer] => {
                let peer = &self.person(peer)?.1.id;
                (Method::DELETE, format!("/blocks/{peer}"), None)
            }
            [kind @ ("privacy" | "settings"), given @ ..] => {
                let mut patch = serde_json::Map::new();
                for one in given {
                    let (name, value) = one.split_once('=').context("name=value")?;
                    patch.insert(name.to_owned(), value.into());
                }
                (
                    Method::PATCH,
                    format!("/users/me/{kind}"),
                    Some(patch.into()),
                )
            }
            ["post", room, text, rest @ ..] => {
                let id = self.client_id(rest);
                let body = json!({"client_message_id": id, "type": "text", "content": text});
                (
                    Method::POST,
                    format!("/rooms/{}/messages", self.room(room)?),
                    Some(body),
                )
            }
            ["edit", room, old, new] => {
                let id = self.message(who, room, old).await?;
                (
                    Method::PATCH,
                    format!("/messages/{id}"),
                    Some(json!({"content": new})),
                )
            }
            ["delete", room, text] => {
                let id = self.message(who, room, text).await?;
                (Method::DELETE, format!("/messages/{id}"), None)
            }
            other => bail!("unknown action {other:?}"),
        };
        let (base, person) = self.person(who)?;
        person.call(&base, method, &path, body.as_ref()).await
    }

    /// The id of the message with this text, whoever may read the room.
    async fn message(&mut self, who: &str, room: &str, text: &str) -> Result<String> {
        let room = self.room(room)?;
        for (base, person) in self.people.values() {
            let answer = person
                .call(
                    &self.bases[*base],
                    Method::GET,
                    &format!("/rooms/{room}/messages?limit=100"),
                    None,
                )
                .await?;
            let items = answer.body["items"].as_array().cloned().unwrap_or_default();
            if let Some(message) = items.iter().find(|message| message["content"] == text) {
                return Ok(message["id"].as_str().context("id")?.to_owned());
            }
        }
        bail!("{who}: nobody can read a message {text:?}")
    }

    /// MSG-20: everybody connected has seen dense places, everybody with access reads one history.
    async fn agree(&mut self, room: &str) -> Result<()> {
        let mut first: Option<(String, Vec<(u64, String)>)> = None;
        for (name, (base, person)) in &self.people {
            ensure!(
                person.is_dense(room),
                "{name} saw a gap: {:?}",
                person.seen.get(room).map(|e| e.keys().collect::<Vec<_>>())
            );
            let Ok(history) = person.history(&self.bases[*base], room).await else {
                continue;
            };
            let history: Vec<(u64, String)> = history
                .iter()
                .map(|message| {
                    (
                        message["sequence"].as_u64().unwrap_or(0),
                        message["content"].as_str().unwrap_or("").to_owned(),
                    )
                })
                .collect();
            match &first {
                None => first = Some((name.clone(), history)),
                Some((other, theirs)) => ensure!(
                    *theirs == history,
                    "{other} and {name} read different histories"
                ),
            }
        }
        ensure!(first.is_some(), "nobody can read the room");
        Ok(())
    }

    fn client_id(&mut self, words: &[&str]) -> String {
        self.next_client_id += 1;
        match words {
            ["as", id] => (*id).to_owned(),
            _ => format!("script-{}", self.next_client_id),
        }
    }
}

/// What a history shows; `-` for a deleted message.
pub fn texts(history: &[Value]) -> Vec<String> {
    let text = |message: &Value| match message["deleted_at"].is_null() {
        true => message["content"].as_str().unwrap_or_default().to_owned(),
        false => "-".to_owned(),
    };
    history.iter().map(text).collect()
}

/// Splits at blanks, keeping what is quoted together.
fn words(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, tail) = if let Some(quoted) = rest.strip_prefix('"') {
            quoted.split_once('"').context("a quote is not closed")?
        } else {
            rest.split_once(' ').unwrap_or((rest, ""))
        };
        words.push(word.to_owned());
        rest = tail.trim_start();
    }
    Ok(words)
}
