//! Keys and certificates that change while the process runs: a kubelet replaces the files of a mounted Secret or ConfigMap.
//!
//! The files are looked at every few seconds, since what is mounted is replaced by moving links, and not every volume tells of that. What can't
//! be used changes nothing and is told once; what is taken is shown under `in_use` of `/ready`, where the operator looks for it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use carillon_runtime::ready::InUse;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Takes the texts of the files, in their order, and says under which names what is shown.
type Apply = Box<dyn Fn(&[String]) -> Result<Vec<(&'static str, String)>, String> + Send + Sync>;

struct Watched {
    what: &'static str,
    files: Vec<PathBuf>,
    apply: Apply,
    /// Of the texts that were looked at last, whether they could be used or not.
    seen: Option<[u8; 32]>,
}

/// Files to look at.
#[derive(Default)]
pub struct Reload {
    watched: Vec<Watched>,
}

impl Reload {
    /// Hands the texts of `files` to `apply` whenever one of them has changed; the first time soon.
    pub fn watch(
        &mut self,
        what: &'static str,
        files: &[&Path],
        apply: impl Fn(&[String]) -> Result<Vec<(&'static str, String)>, String> + Send + Sync + 'static,
    ) {
        self.watched.push(Watched {
            what,
            files: files.iter().map(|file| file.to_path_buf()).collect(),
            apply: Box::new(apply),
            seen: None,
        });
    }

    /// Looks until the stop.
    pub async fn run(mut self, in_use: InUse, stop: CancellationToken) {
        loop {
            for watched in &mut self.watched {
                watched.look(&in_use).await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }
}

impl Watched {
    async fn look(&mut self, in_use: &InUse) {
        let mut texts = Vec::with_capacity(self.files.len());
        let mut digest = Sha256::new();
        for file in &self.files {
            let Ok(text) = tokio::fs::read_to_string(file).await else {
                // Gone for the moment in which links are moved, or for good: what is in use stays in use.
                return;
            };
            digest.update(text.len().to_be_bytes());
            digest.update(&text);
            texts.push(text);
        }
        let digest: [u8; 32] = digest.finalize().into();
        if self.seen == Some(digest) {
            return;
        }
        let first = self.seen.replace(digest).is_none();
        match (self.apply)(&texts) {
            Ok(shown) => {
                for (name, fingerprint) in shown {
                    in_use.set(name, fingerprint);
                }
                if !first {
                    tracing::info!(what = self.what, "took what has changed");
                }
            }
            // Files of one volume may be read half before and half after a change: the next look sees the rest.
            Err(problem) => {
                tracing::warn!(what = self.what, problem, "what has changed can't be used");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[tokio::test]
    async fn a_change_is_taken_and_nonsense_isnt() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let taken = Arc::new(Mutex::new(Vec::new()));
        let seen = taken.clone();
        let mut watched = Watched {
            what: "a key",
            files: vec![file.clone()],
            apply: Box::new(move |texts| {
                seen.lock().unwrap().push(texts[0].clone());
                match texts[0].as_str() {
                    "bad" => Err("is bad".to_owned()),
                    good => Ok(vec![("key", good.to_owned())]),
                }
            }),
            seen: None,
        };
        let in_use = InUse::default();
        // Not there yet.
        watched.look(&in_use).await;
        for text in ["one", "one", "bad", "bad", "two"] {
            fs::write(&file, text).unwrap();
            watched.look(&in_use).await;
        }
        fs::remove_file(&file).unwrap();
        watched.look(&in_use).await;
        assert_eq!(*taken.lock().unwrap(), ["one", "bad", "two"]);
        let readiness = carillon_runtime::ready::Readiness::new(vec![], CancellationToken::new());
        let status = readiness.showing(in_use).status().await;
        assert_eq!(status.in_use["key"], "two");
    }
}
