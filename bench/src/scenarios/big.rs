//! Large against small: pages of a long room, joining a room of many members, and the list and socket of a person in many rooms. Nothing
//! of it may cost more because a room is larger, so every figure is set beside the same of a small room on the same server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use http::Method;
use serde_json::json;

use super::{Setting, history};
use crate::checks::{Check, Failures, Span};
use crate::frames::Stamper;
use crate::pace;
use crate::progress::Progress;
use crate::report::{Better, Measurement};
use crate::town::{Person, Town};

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Messages of the long room, against 1,000; 0 leaves this part out
    #[arg(long, default_value_t = 1_000_000)]
    pub messages: u64,
    /// Pages per second while latencies are taken
    #[arg(long, default_value_t = 1_000.0)]
    pub rate: f64,
    /// Seconds of each run of pages
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// Members of the room that is joined, against 10; 0 leaves this part out
    #[arg(long, default_value_t = 10_000)]
    pub members: usize,
    /// How often each room is joined
    #[arg(long, default_value_t = 300)]
    pub joins: usize,
    /// Rooms of the person whose list is opened, 5,000 at most; 0 leaves this part out
    #[arg(long, default_value_t = 5_000)]
    pub rooms: usize,
    /// Messages in each of them, against 1
    #[arg(long, default_value_t = 100)]
    pub room_messages: u64,
    /// How often the list and the socket are opened
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Sockets that fill the long room at the same time; each gets what the others send too, and must keep up with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub fillers: u16,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 100)]
    pub content_bytes: usize,
}

/// Messages and members of the rooms that are small.
const FEW_MESSAGES: u64 = 1_000;
const FEW_MEMBERS: usize = 10;
/// Requests at once while rooms are made and filled with members.
const AT_ONCE: usize = 64;
/// Rooms of a page of the list.
const PAGE: usize = 100;

/// Measures what is not left out.
pub async fn run(
    town: Arc<Town>,
    setting: &Setting<'_>,
    options: &Options,
) -> Result<Vec<Measurement>> {
    ensure!(!town.is_bare(), "a bare server keeps no rooms");
    let mut measurements = Vec::new();
    if options.messages > 0 {
        measurements.push(pages(&town, setting, options).await?);
    }
    if options.members > 0 {
        measurements.push(joins(&town, setting, options).await?);
    }
    if options.rooms > 0 {
        measurements.push(lists(&town, setting, options).await?);
    }
    Ok(measurements)
}

// === pages of a long room ===

async fn pages(town: &Arc<Town>, setting: &Setting<'_>, options: &Options) -> Result<Measurement> {
    let name = format!("big, pages of {} messages", options.messages);
    let mut measurement = Measurement::new(name, setting.subject);
    measurement.parameter("pages/s", options.rate);
    measurement.parameter("content bytes", options.content_bytes);
    let fillers = usize::from(options.fillers);
    let people = town.people(fillers, 1, setting.progress).await?;
    let stamper = || Stamper::new(&format!("{}-b", town.run), options.content_bytes);
    let reading = history::Options {
        rooms: 1,
        messages: 0,
        connections: 32,
        rate: options.rate,
        seconds: options.seconds,
        content_bytes: options.content_bytes,
    };
    let read = async |board: &Arc<history::Board>| {
        let alone = setting.alone().await?;
        history::fixed_rate(board, town, setting, &reading).await?;
        drop(alone);
        anyhow::Ok(std::mem::replace(
            &mut *board.latencies.lock(),
            pace::histogram(),
        ))
    };

    let few = 0..FEW_MESSAGES;
    let small = fill(town, setting, &people[..1], &stamper(), few).await?;
    let small = Arc::new(history::Board::new(stamper(), vec![small]));
    let before = read(&small).await?;
    let many = FEW_MESSAGES..FEW_MESSAGES + options.messages;
    let start = Instant::now();
    let big = fill(town, setting, &people, &stamper(), many).await?;
    let filled = options.messages as f64 / start.elapsed().as_secs_f64();
    let filled_all = big.span.count;
    let big = Arc::new(history::Board::new(stamper(), vec![big]));
    // In turns, so that what changes meanwhile is not taken for a difference of the rooms.
    let (mut of_small, mut of_big) = (read(&small).await?, read(&big).await?);
    of_small.add(read(&small).await?)?;
    of_big.add(read(&big).await?)?;

    measurement.figure("sends/s while it was filled", filled, Better::Neither);
    let before_p99 = millis(&before, 0.99);
    measurement.figure("small room, before: p99 ms", before_p99, Better::Lower);
    compare(&mut measurement, "page", &of_small, &of_big);
    measurement.checks = vec![
        Check::equal(
            "every message of the filling acknowledged",
            filled_all,
            options.messages,
        ),
        small.check_pages(),
        big.check_pages(),
    ];
    Ok(measurement)
}

/// A room with all of these people, filled through a socket of each.
async fn fill(
    town: &Arc<Town>,
    setting: &Setting<'_>,
    people: &[Person],
    stamper: &Stamper,
    numbers: std::ops::Range<u64>,
) -> Result<history::Room> {
    let id = town.room("big", people, setting.progress).await?;
    let spans = pour(
        town,
        setting,
        people,
        stamper,
        std::slice::from_ref(&id),
        numbers,
    )
    .await?;
    let span = spans.into_iter().next().context("one room was filled")?;
    span.ensure_dense()?;
    let token = people[0].tokens[0].clone();
    Ok(history::Room { id, token, span })
}

/// Fills rooms through a socket of each of these people; a span of acks per room.
async fn pour(
    town: &Arc<Town>,
    setting: &Setting<'_>,
    people: &[Person],
    stamper: &Stamper,
    rooms: &[String],
    numbers: std::ops::Range<u64>,
) -> Result<Vec<Span>> {
    let (done, wanted) = (AtomicU64::new(0), numbers.end - numbers.start);
    let failures = Failures::default();
    let share = wanted.div_ceil(people.len() as u64);
    let pouring = people.iter().zip(0..).map(|(person, index)| {
        let from = (numbers.start + index * share).min(numbers.end);
        let to = (from + share).min(numbers.end);
        history::pour(town, &person.tokens[0], stamper, rooms, from..to, &done)
    });
    let watching = setting.progress.wait(
        "messages of the filling",
        town.patience(),
        &failures,
        || (done.load(Relaxed), wanted),
    );
    let all = futures::future::try_join_all(pouring);
    let (poured, ()) = futures::future::try_join(all, watching).await?;
    let mut spans = vec![Span::default(); rooms.len()];
    for part in poured {
        spans
            .iter_mut()
            .zip(&part)
            .for_each(|(span, part)| span.add(part));
    }
    Ok(spans)
}

// === joining a room of many ===

async fn joins(town: &Arc<Town>, setting: &Setting<'_>, options: &Options) -> Result<Measurement> {
    const JOINERS: usize = 10;
    let progress = setting.progress;
    let name = format!("big, joining {} members", options.members);
    let mut measurement = Measurement::new(name, setting.subject);
    measurement.parameter("joins", options.joins);
    let people = town.people(1 + JOINERS, 1, progress).await?;
    let (owner, joiners) = (&people[..1], &people[1..]);
    let members = town.strangers(options.members, progress).await?;
    let mut rooms = Vec::new();
    for count in [FEW_MEMBERS.min(members.len()), members.len()] {
        let room = town.room("members", owner, progress).await?;
        let (token, path) = (&owner[0].tokens[0], format!("/api/v1/rooms/{room}/members"));
        let put = stream::iter(&members[..count]).map(|member| {
            let path = format!("{path}/{member}");
            async move {
                town.rest()
                    .call(Method::PUT, &path, Some(token), None)
                    .await
            }
        });
        let mut put = put.buffer_unordered(AT_ONCE);
        let mut done = 0;
        while put.try_next().await?.is_some() {
            done += 1;
            progress.step("members", || format!("{done} of {count}"));
        }
        rooms.push(room);
    }

    let alone = setting.alone().await?;
    let mut histograms = [pace::histogram(), pace::histogram()];
    for round in 0..options.joins {
        let token = &joiners[round % JOINERS].tokens[0];
        for (room, histogram) in rooms.iter().zip(&mut histograms) {
            let (join, leave) = (
                format!("/api/v1/rooms/{room}/join"),
                format!("/api/v1/rooms/{room}/leave"),
            );
            let start = Instant::now();
            town.rest()
                .call(Method::POST, &join, Some(token), None)
                .await?;
            record(histogram, start);
            town.rest()
                .call(Method::POST, &leave, Some(token), None)
                .await?;
        }
        progress.step("joins", || format!("{round} of {}", options.joins));
    }
    drop(alone);
    let [small, big] = &histograms;
    compare(&mut measurement, "join", small, big);
    // Everybody who was put into the large room is in it, and nobody who left.
    let found = count_members(town, &owner[0], &rooms[1]).await?;
    measurement.checks = vec![Check::equal(
        "members of the large room, with its owner",
        found,
        members.len() as u64 + 1,
    )];
    Ok(measurement)
}

async fn count_members(town: &Town, owner: &Person, room: &str) -> Result<u64> {
    let path = format!("/api/v1/rooms/{room}/members?limit=1000");
    let mut found = 0;
    each_page(town, owner, &path, |count, _| found += count as u64).await?;
    Ok(found)
}

/// Reads a list to its end; `on_page` gets how many items each page had, and when it was asked for.
async fn each_page(
    town: &Town,
    reader: &Person,
    path: &str,
    mut on_page: impl FnMut(usize, Instant),
) -> Result<()> {
    let token = Some(reader.tokens[0].as_str());
    let mut cursor = String::new();
    loop {
        let path = format!("{path}{cursor}");
        let start = Instant::now();
        let page = town.rest().call(Method::GET, &path, token, None).await?;
        let items = page["items"].as_array().context("a page has no items")?;
        on_page(items.len(), start);
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(()),
        }
    }
}

// === the list of a person in many rooms ===

async fn lists(town: &Arc<Town>, setting: &Setting<'_>, options: &Options) -> Result<Measurement> {
    let progress = setting.progress;
    ensure!(
        options.rounds > 1,
        "--rounds must be at least 2: the first one is told apart"
    );
    let name = format!("big, list of {} rooms", options.rooms);
    let mut measurement = Measurement::new(name, setting.subject);
    measurement.parameter("messages in each large room", options.room_messages);
    measurement.parameter("rounds", options.rounds);
    // Not those of the other parts, who are in other rooms too. Each kind of rooms has its reader and its filler.
    let known = 1 + usize::from(options.fillers).max(100);
    let people = town.people(known + 4, 1, progress).await?;
    let (small, big) = people[known..].split_at(2);
    // Two members each: a progress line of their joining would be noise.
    let quiet = Progress::new(true);
    let mut unread = Vec::new();
    for (people, messages, run) in [(small, 1, "small"), (big, options.room_messages, "large")] {
        let done = AtomicU64::new(0);
        let rooms: Vec<String> = stream::iter(0..options.rooms)
            .map(|_| async {
                let room = town.room("list", people, &quiet).await?;
                let count = done.fetch_add(1, Relaxed);
                progress.step("rooms", || format!("{count} of {}", options.rooms));
                anyhow::Ok(room)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let stamper = Stamper::new(&format!("{}-l{run}", town.run), options.content_bytes);
        let numbers = 0..messages * options.rooms as u64;
        let filler = &people[1..];
        let spans = pour(town, setting, filler, &stamper, &rooms, numbers).await?;
        spans.iter().try_for_each(Span::ensure_dense)?;
        unread.push(messages);
    }

    let alone = setting.alone().await?;
    let mut totals = [pace::histogram(), pace::histogram()];
    let mut pages = [pace::histogram(), pace::histogram()];
    let mut sockets = [pace::histogram(), pace::histogram()];
    let mut firsts = [0.0; 2];
    let (mut listed, mut authenticated) = (0, 0);
    for round in 0..options.rounds {
        for (kind, people) in [small, big].into_iter().enumerate() {
            let reader = &people[0];
            let start = Instant::now();
            let path = format!("/api/v1/rooms/me?limit={PAGE}");
            each_page(town, reader, &path, |count, start| {
                listed += count as u64;
                if round > 0 {
                    record(&mut pages[kind], start);
                }
            })
            .await?;
            if round == 0 {
                firsts[kind] = start.elapsed().as_secs_f64() * 1_000.0;
            } else {
                record(&mut totals[kind], start);
            }
            let start = Instant::now();
            let socket = town.connect(0, &reader.tokens[0], None).await?;
            record(&mut sockets[kind], start);
            authenticated += 1;
            socket.writer().close().await;
        }
        progress.step("lists", || format!("{round} of {}", options.rounds));
    }
    drop(alone);
    for (kind, first) in ["small", "large"].into_iter().zip(firsts) {
        let name = format!("whole list of {kind} rooms, the first time: ms");
        measurement.figure(&name, first, Better::Lower);
    }
    let [small, big] = &totals;
    compare(&mut measurement, "whole list", small, big);
    let [small, big] = &pages;
    compare(&mut measurement, "page of the list", small, big);
    let [small, big] = &sockets;
    compare(&mut measurement, "socket authenticated", small, big);
    let rounds = options.rounds as u64;
    measurement.checks = vec![
        Check::equal(
            "every list is complete",
            listed,
            rounds * 2 * options.rooms as u64,
        ),
        Check::equal("every socket was authenticated", authenticated, rounds * 2),
    ];
    for (people, messages) in [&people[known..known + 2], &people[known + 2..]]
        .into_iter()
        .zip(unread)
    {
        measurement
            .checks
            .push(check_unread(town, &people[0], messages).await?);
    }
    Ok(measurement)
}

/// That the first page of the list counts what the reader has not read.
async fn check_unread(town: &Town, reader: &Person, messages: u64) -> Result<Check> {
    let path = format!("/api/v1/rooms/me?limit={PAGE}");
    let token = Some(reader.tokens[0].as_str());
    let page = town.rest().call(Method::GET, &path, token, None).await?;
    let items = page["items"].as_array().context("a page has no items")?;
    let right = items
        .iter()
        .filter(|room| room["unread_count"] == json!(messages));
    Ok(Check::equal(
        &format!("rooms of the first page with {messages} unread"),
        right.count() as u64,
        items.len() as u64,
    ))
}

// === figures ===

fn record(histogram: &mut Histogram<u64>, start: Instant) {
    pace::record(histogram, 0, start.elapsed().as_nanos() as u64);
}

fn millis(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1_000.0
}

/// Notes the median and 99th percentile of both, and their ratios.
fn compare(
    measurement: &mut Measurement,
    what: &str,
    small: &Histogram<u64>,
    big: &Histogram<u64>,
) {
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let (small, big) = (millis(small, quantile), millis(big, quantile));
        let mut figure = |name: &str, value, better| measurement.figure(name, value, better);
        figure(&format!("{what}, small: {name} ms"), small, Better::Lower);
        figure(&format!("{what}, large: {name} ms"), big, Better::Lower);
        figure(
            &format!("{what}, {name}: large / small"),
            big / small,
            Better::Lower,
        );
    }
}
