//! `carillon backup`: everything that must survive, into a directory or a bucket, while the platform goes on.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_adapters::{backups, embedded, object, scylla};
use carillon_backup::{Counts, Keep, Manifest, MediaBytes, Options, Source, Writer};
use carillon_crds::config::{BlobConfig, PlatformConfig, StoresConfig};
use carillon_domain::{
    Clock as _, ErrorCode,
    ports::{BackupStore, BlobStore},
    time::SystemClock,
};

use super::{backup_socket, stores};
use crate::{
    cli::{Backup, BackupCommand, Platform, S3},
    config,
    failure::Failure,
};

/// Saves, lists or checks.
pub async fn backup(options: Backup) -> Result<(), Failure> {
    match options.command {
        None => save(options).await,
        Some(BackupCommand::List { at, s3 }) => list(&*place(&at, &s3, false)?).await,
        Some(BackupCommand::Verify { at, s3, backup }) => {
            let store = place(&at, &s3, false)?;
            let manifest = carillon_backup::find(&*store, backup.as_deref()).await?;
            let mut progress = Progress::new();
            let all = manifest.chunks.len();
            let checked = carillon_backup::verify(&*store, &manifest, |done| {
                progress.say(|| format!("{done} of {all} chunks checked"));
            });
            checked.await?;
            println!("{} is whole: {}", manifest.backup, amounts(&manifest));
            Ok(())
        }
    }
}

async fn save(options: Backup) -> Result<(), Failure> {
    let to = options.to.as_deref().unwrap_or_default();
    let platform = platform(&options.platform)?;
    let store = place(to, &options.s3, true)?;
    let blobs = if options.without_media {
        None
    } else {
        media(&platform.config, false)?
    };
    let mut source = open(&platform, options.patience).await?;
    let mut progress = Progress::new();
    let mut writer = Writer::begin(
        store.clone(),
        Arc::new(SystemClock),
        Options {
            cluster: platform.config.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            blobs,
        },
        move |counts: &Counts| {
            progress.say(|| {
                format!(
                    "{} messages in {} rooms, {}",
                    counts.messages,
                    counts.rooms,
                    bytes(counts.bytes)
                )
            });
        },
    )?;
    let read = match &mut source {
        Opened::Running(socket) => backup_socket::read(socket, &mut writer).await,
        Opened::Here(source) => carillon_backup::save(source, &mut writer).await,
    };
    if let Err(error) = read {
        // What can't be removed is no backup without a manifest.
        if let Err(error) = writer.give_up().await {
            eprintln!("carillon: the unfinished backup could not be removed: {error}");
        }
        return Err(error.into());
    }
    let erased = writer.erased();
    let manifest = writer.end().await?;
    println!("{} in {to}: {}", manifest.backup, amounts(&manifest));
    report(options.report.as_deref(), to, &manifest)?;
    match carillon_backup::forget(&*store, &manifest.cluster, &erased).await {
        Ok(0) => {}
        Ok(_) => println!("people who were erased can't be read in older backups any more"),
        // The next backup tries again.
        Err(error) => eprintln!(
            "carillon: people who were erased can still be read in older backups: {error}"
        ),
    }
    let keep = Keep {
        last: options.keep_last.map(usize::from),
        age: options
            .keep_days
            .map(|days| Duration::from_secs(days * 24 * 3600)),
    };
    let now = SystemClock.now();
    match carillon_backup::prune(&*store, &manifest.cluster, keep, now).await {
        Ok(gone) => {
            for gone in gone {
                println!("{gone} was removed: it needn't be kept");
            }
        }
        // What was asked for is there, whole: another one would only take more room.
        Err(error) => eprintln!("carillon: older backups couldn't be removed: {error}"),
    }
    Ok(())
}

async fn list(store: &dyn BackupStore) -> Result<(), Failure> {
    for entry in carillon_backup::list(store).await? {
        match entry.manifest {
            Ok(manifest) => println!(
                "{}  {}  {}",
                entry.backup,
                manifest.cluster,
                amounts(&manifest)
            ),
            Err(error) => println!("{}  {}", entry.backup, error.detail),
        }
    }
    Ok(())
}

/// A platform, as its file or its roles' configuration says.
pub struct Found {
    pub config: PlatformConfig,
    /// On one machine: where everything is.
    pub data_dir: Option<PathBuf>,
}

/// Reads which platform is meant.
pub fn platform(options: &Platform) -> Result<Found, Failure> {
    if let Some(file) = &options.file {
        let (config, data_dir) = config::from_chat_cluster(file, options.data_dir.clone())?;
        return Ok(Found {
            config,
            data_dir: Some(data_dir),
        });
    }
    let file = options.config.as_deref().ok_or_else(|| {
        Failure::usage("name the platform: -f chatcluster.yaml, or --config with that of its roles")
    })?;
    let config = config::load(file)?;
    let data_dir = match &config.stores {
        StoresConfig::Embedded { data_dir } => Some(data_dir.clone()),
        StoresConfig::External(_) => None,
    };
    Ok(Found { config, data_dir })
}

/// Where to read.
enum Opened {
    /// A process has the data directory: it reads for us.
    Running(tokio::net::UnixStream),
    /// Nobody else is needed.
    Here(Source),
}

async fn open(platform: &Found, patience: u64) -> Result<Opened, Failure> {
    if let Some(data_dir) = &platform.data_dir {
        if !data_dir.join("store").is_dir() {
            return Err(Failure::usage(format!(
                "there is no store in {}: was it the right --data-dir?",
                data_dir.display()
            )));
        }
        if let Some(socket) = backup_socket::connect(data_dir).await? {
            return Ok(Opened::Running(socket));
        }
        return Ok(Opened::Here(of_embedded(&embedded::open(data_dir)?)));
    }
    let StoresConfig::External(external) = &platform.config.stores else {
        return Err(Failure::software("a store that is neither here nor there"));
    };
    let options = stores::scylla_options(&external.scylla)?;
    let stores = patiently(patience, || scylla::connect(&options)).await?;
    Ok(Opened::Here(Source {
        archive: stores.archive,
        accounts: stores.accounts,
        person_keys: stores.person_keys,
        people: stores.people,
        rooms: stores.rooms,
        log: stores.log,
        push_targets: stores.push_targets,
        media: stores.media_index,
    }))
}

/// What a backup reads of an embedded store.
pub fn of_embedded(stores: &embedded::Stores) -> Source {
    Source {
        archive: stores.archive.clone(),
        accounts: stores.accounts.clone(),
        person_keys: stores.person_keys.clone(),
        people: stores.people.clone(),
        rooms: stores.rooms.clone(),
        log: stores.log.clone(),
        push_targets: stores.push_targets.clone(),
        media: stores.media_index.clone(),
    }
}

/// Tries until the store can be reached, for so many seconds.
pub async fn patiently<T, F>(seconds: u64, mut attempt: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = carillon_domain::Result<T>>,
{
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match attempt().await {
            Err(error) if error.code == ErrorCode::Unavailable && Instant::now() < deadline => {
                eprintln!("carillon: {}; trying again", error.detail);
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            result => return Ok(result?),
        }
    }
}

/// The bytes of uploads. `None` where they are in the media pods themselves, which nobody else reaches.
pub fn media(
    config: &PlatformConfig,
    restore: bool,
) -> Result<Option<Arc<dyn BlobStore>>, Failure> {
    let in_pods = matches!(
        (&config.stores, &config.media.blob),
        (StoresConfig::External(_), BlobConfig::Directory { .. })
    );
    if in_pods {
        eprintln!(
            "carillon: uploads are kept in the media pods; their bytes are {}",
            if restore { "not restored" } else { "left out" }
        );
        return Ok(None);
    }
    Ok(Some(stores::open_blobs(&config.media.blob)?))
}

/// Where backups are kept: `s3://bucket/prefix`, or a directory.
pub fn place(at: &str, s3: &S3, make: bool) -> Result<Arc<dyn BackupStore>, Failure> {
    let Some(bucket) = at.strip_prefix("s3://") else {
        return Ok(backups::directory(Path::new(at), make)?);
    };
    let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
    if bucket.is_empty() {
        return Err(Failure::usage(format!(
            "{at:?} names no bucket: s3://BUCKET/PREFIX"
        )));
    }
    let credential = |key: &str, variable: &str| {
        match &s3.credentials_dir {
        Some(directory) => config::secret(directory, key),
        None => std::env::var(variable).map_err(|_| {
            Failure::usage(format!(
                "a bucket needs credentials: --credentials-dir with the files access_key_id and secret_access_key, or {variable}"
            ))
        }),
    }
    };
    Ok(backups::s3(&object::S3Options {
        bucket: bucket.to_owned(),
        endpoint: s3.endpoint.clone(),
        region: s3.region.clone(),
        access_key_id: credential("access_key_id", "AWS_ACCESS_KEY_ID")?,
        secret_access_key: credential("secret_access_key", "AWS_SECRET_ACCESS_KEY")?,
        prefix: prefix.trim_matches('/').to_owned(),
        virtual_hosted: false,
    })?)
}

/// What became of it, for the operator: one line of JSON.
pub fn report(file: Option<&Path>, at: &str, manifest: &Manifest) -> Result<(), Failure> {
    let Some(file) = file else {
        return Ok(());
    };
    let report = carillon_crds::BackupReport {
        backup: manifest.backup.clone(),
        location: format!("{}/{}", at.trim_end_matches('/'), manifest.backup),
        messages: manifest.counts.messages,
        rooms: manifest.counts.rooms,
        accounts: manifest.counts.accounts,
        bytes: manifest.counts.bytes,
    };
    std::fs::write(file, report.to_line())
        .map_err(|error| Failure::unavailable(format!("can't write {}: {error}", file.display())))
}

/// How much is in a backup, for people.
pub fn amounts(manifest: &Manifest) -> String {
    let counts = &manifest.counts;
    let media = match manifest.media_bytes {
        MediaBytes::Included => format!("{} uploads", counts.media),
        MediaBytes::LeftOut => format!("{} uploads without their bytes", counts.media),
    };
    let missing = match counts.media_missing {
        0 => String::new(),
        missing => format!(" ({missing} of them had no bytes)"),
    };
    format!(
        "{} accounts, {} rooms, {} messages, {media}{missing}, {}",
        counts.accounts,
        counts.rooms,
        counts.messages,
        bytes(counts.bytes)
    )
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

/// Says how far it is, not too often; on a terminal on one line.
pub struct Progress {
    said: Instant,
    terminal: bool,
}

impl Progress {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self {
            said: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Says it if the last word is a while ago.
    pub fn say(&mut self, what: impl FnOnce() -> String) {
        let pause = Duration::from_secs(if self.terminal { 1 } else { 10 });
        if self.said.elapsed() >= pause {
            self.said = Instant::now();
            eprintln!("carillon: {}", what());
        }
    }
}
