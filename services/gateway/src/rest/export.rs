//! An archive of what the platform holds of the caller (MSG-23): a gzipped tar file that is made while it is sent, so that its size costs
//! no memory. An archive that ends early, without its last entry, isn't whole.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use carillon_domain::{
    Error, ErrorCode, MediaId, Result, RoomId, Sequence, UserId,
    account::Identity,
    event::{Message, MessageType},
    limit::Subject,
    people::Related,
    security::History,
    services::HistoryQuery,
};
use flate2::{Compression, write::GzEncoder};
use futures::StreamExt as _;
use http::{HeaderValue, header};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    edge::{Caller, Problem},
    gateway::App,
    wire::{
        MeJson, MessageJson, PrivacyJson, RelatedJson, RoomJson, SecurityEventJson, SessionJson,
        SettingsJson,
    },
};

/// Pieces of the archive that wait for the client.
const WAITING: usize = 8;
/// Their size.
const PIECE: usize = 64 * 1024;
/// How long an export may take.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long to wait before asking again for memory.
const WAIT: Duration = Duration::from_secs(1);
/// Exports that are made at once: each reads as much as there is.
const AT_ONCE: usize = 2;
/// Entries per read of a list.
const PAGE: usize = 100;
/// Messages in one entry.
const MESSAGES: usize = 1_000;

const README: &str = "\
What this platform holds of you, each file a JSON value or one JSON value a line, in the form of the public API.

account.json            profile, e-mail address, settings, devices that are logged in
login-history.ndjson    logins, logouts and failed logins that are kept
security-events.ndjson  what else happened to the account
contacts.ndjson         people you named contacts
blocks.ndjson           people you blocked
rooms.ndjson            rooms you are a member of
messages/ROOM-N.ndjson  messages that you wrote in them and didn't delete, oldest first
media/ID/NAME           files of those messages
end                     the last entry: without it the archive was cut off

What you wrote in rooms that you left is theirs to show and isn't here. Passwords and tokens are kept as hashes only.
";

/// Exports under way: few, and one of a person.
#[derive(Default)]
pub struct Exports(Arc<Mutex<HashSet<UserId>>>);

/// One of them, until it is dropped.
struct Turn {
    user: UserId,
    exports: Arc<Mutex<HashSet<UserId>>>,
}

impl Exports {
    fn begin(&self, user: UserId) -> Result<Turn> {
        let mut people = self.0.lock();
        if people.len() >= AT_ONCE || !people.insert(user) {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "another export is being made, try again in a few minutes",
            ));
        }
        Ok(Turn {
            user,
            exports: self.0.clone(),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.exports.lock().remove(&self.user);
    }
}

/// The archive.
pub async fn export(
    State(app): State<App>,
    Caller(who): Caller,
) -> std::result::Result<Response, Problem> {
    let (_, granted) = app.limits.exports.take(Subject::User(who.user)).await;
    granted?;
    let turn = app.exports.begin(who.user)?;
    let (pieces, mut waiting) = mpsc::channel(WAITING);
    let gone = CancellationToken::new();
    let dropped = gone.clone().drop_guard();
    tokio::spawn(async move {
        let _turn = turn;
        let mut archive = Archive::new(pieces.clone());
        let writing = tokio::time::timeout(LONGEST, write(&app, &who, &mut archive));
        let Some(made) = gone.run_until_cancelled(writing).await else {
            return;
        };
        let late = |_| Error::new(ErrorCode::Unavailable, "the export took too long");
        if let Err(error) = made.map_err(late).and_then(|made| made) {
            tracing::warn!(%error, cause = error.cause_chain(), "an export was cut off");
            let _ = pieces.send(Err(io::Error::other("cut off"))).await;
        }
    });
    let stream = futures::stream::poll_fn(move |context| {
        let _ = &dropped;
        waiting.poll_recv(context)
    });
    let mut response = Body::from_stream(stream.boxed()).into_response();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/gzip"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"export.tar.gz\"",
        ),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

async fn write(app: &App, who: &Identity, archive: &mut Archive) -> Result<()> {
    archive.entry("README.txt", README.as_bytes()).await?;
    account(app, who, archive).await?;
    for (name, history) in [
        ("login-history.ndjson", History::Logins),
        ("security-events.ndjson", History::Security),
    ] {
        let mut lines = Lines::default();
        let mut before = None;
        loop {
            let accounts = &app.services.accounts;
            let events = accounts.history(who, history, before, PAGE).await?;
            let Some(last) = events.last() else { break };
            before = Some(last.id);
            for event in events {
                lines.push(&SecurityEventJson::from(event))?;
            }
        }
        archive.entry(name, &lines.0).await?;
    }
    related(app, who, archive).await?;
    let mut after = None;
    let mut lines = Lines::default();
    let mut rooms: Vec<RoomId> = Vec::new();
    loop {
        let messages = &app.services.messages;
        let page = messages.my_rooms(who.user, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.room.id);
        for summary in page {
            rooms.push(summary.room.id);
            // Without the last message, which may be somebody else's.
            lines.push(&RoomJson::from(summary.room))?;
        }
    }
    archive.entry("rooms.ndjson", &lines.0).await?;
    for room in rooms {
        messages(app, who, room, archive).await?;
    }
    archive.entry("end", b"").await?;
    archive.end().await
}

async fn account(app: &App, who: &Identity, archive: &mut Archive) -> Result<()> {
    let (user, email) = app.services.auth.me(who).await?;
    let sessions = app.services.auth.sessions(who).await?;
    let sessions: Vec<SessionJson> = sessions
        .into_iter()
        .map(|session| SessionJson::new(session, who.device))
        .collect();
    let me = MeJson {
        user: user.into(),
        email,
    };
    let settings = app.services.people.settings(who.user).await?;
    #[derive(Serialize)]
    struct Account {
        account: MeJson,
        privacy: PrivacyJson,
        settings: SettingsJson,
        sessions: Vec<SessionJson>,
    }
    let account = Account {
        account: me,
        privacy: settings.privacy.into(),
        settings: settings.into(),
        sessions,
    };
    let bytes = serde_json::to_vec_pretty(&account).map_err(Error::internal)?;
    archive.entry("account.json", &bytes).await
}

async fn related(app: &App, who: &Identity, archive: &mut Archive) -> Result<()> {
    let people = &app.services.people;
    for name in ["contacts.ndjson", "blocks.ndjson"] {
        let mut lines = Lines::default();
        let mut after = None;
        loop {
            let page: Vec<Related> = match name {
                "blocks.ndjson" => people.blocks(who.user, after, PAGE).await?,
                _ => people.contacts(who.user, after, PAGE).await?,
            };
            let Some(last) = page.last() else { break };
            after = Some(last.user);
            for one in page {
                lines.push(&RelatedJson::from(one))?;
            }
        }
        archive.entry(name, &lines.0).await?;
    }
    Ok(())
}

/// What the caller wrote in a room, with its files.
async fn messages(app: &App, who: &Identity, room: RoomId, archive: &mut Archive) -> Result<()> {
    let mut number = 0;
    let mut after = Sequence::ZERO;
    let mut own: Vec<Message> = Vec::new();
    loop {
        let query = HistoryQuery {
            limit: PAGE,
            before: None,
            after: Some(after),
        };
        let messages = &app.services.messages;
        let page = match messages.history(who.user, room, query).await {
            // They left it, or it was deleted, meanwhile.
            Err(error)
                if matches!(
                    error.code,
                    ErrorCode::NotFound | ErrorCode::PermissionDenied
                ) =>
            {
                Vec::new()
            }
            page => page?,
        };
        let done = page.is_empty();
        if let Some(last) = page.last() {
            after = last.sequence;
        }
        own.extend(
            page.into_iter()
                .filter(|message| message.sender == who.user && message.deleted_at.is_none()),
        );
        if own.len() >= MESSAGES || (done && !own.is_empty()) {
            number += 1;
            let mut lines = Lines::default();
            let mut files = Vec::new();
            for message in own.drain(..) {
                files.extend(file_of(&message));
                lines.push(&MessageJson::from(message))?;
            }
            let name = format!("messages/{room}-{number}.ndjson");
            archive.entry(&name, &lines.0).await?;
            for file in files {
                media(app, who, file, archive).await?;
            }
        }
        if done {
            return Ok(());
        }
    }
}

fn file_of(message: &Message) -> Option<MediaId> {
    match message.message_type {
        MessageType::Image | MessageType::Video | MessageType::Audio | MessageType::File => {
            message.content.parse().ok()
        }
        _ => None,
    }
}

async fn media(app: &App, who: &Identity, id: MediaId, archive: &mut Archive) -> Result<()> {
    let service = &app.services.media;
    let size = match service.describe(who.user, id).await {
        Ok(media) => usize::try_from(media.size).unwrap_or(usize::MAX),
        Err(error) if error.code == ErrorCode::Unavailable => return Err(error),
        Err(_) => return Ok(()),
    };
    // As it came, and as it goes out. An export can wait while others download.
    let _memory = loop {
        match app.downloads.begin(who.user, size.saturating_mul(2)) {
            Ok(memory) => break memory,
            Err(_) => tokio::time::sleep(WAIT).await,
        }
    };
    match service.download(who.user, id, None).await {
        Ok((media, bytes)) => {
            let name = format!("media/{id}/{}", media.file_name);
            archive.entry(&name, &bytes).await
        }
        // A message may name what was never uploaded, or whose bytes aren't there any more.
        Err(error) if error.code != ErrorCode::Unavailable => Ok(()),
        Err(error) => Err(error),
    }
}

/// A JSON value a line.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.0, value).map_err(Error::internal)?;
        self.0.push(b'\n');
        Ok(())
    }
}

/// The archive, as it goes out.
struct Archive {
    tar: tar::Builder<GzEncoder<Vec<u8>>>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Archive {
    fn new(pieces: mpsc::Sender<io::Result<Bytes>>) -> Self {
        let gzip = GzEncoder::new(Vec::new(), Compression::fast());
        Self {
            tar: tar::Builder::new(gzip),
            pieces,
        }
    }

    async fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        self.tar
            .append_data(&mut header, name, bytes)
            .map_err(Error::internal)?;
        let ready = std::mem::take(self.tar.get_mut().get_mut());
        self.send(ready).await
    }

    async fn end(&mut self) -> Result<()> {
        self.tar.finish().map_err(Error::internal)?;
        let gzip = self.tar.get_mut();
        gzip.try_finish().map_err(Error::internal)?;
        let ready = std::mem::take(gzip.get_mut());
        self.send(ready).await
    }

    async fn send(&self, ready: Vec<u8>) -> Result<()> {
        let gone = |_| Error::new(ErrorCode::Unavailable, "the client went away");
        let mut ready = Bytes::from(ready);
        while !ready.is_empty() {
            let piece = ready.split_to(ready.len().min(PIECE));
            self.pieces.send(Ok(piece)).await.map_err(gone)?;
        }
        Ok(())
    }
}
