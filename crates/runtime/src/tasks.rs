//! Tasks of a process that are waited for when it stops.

use std::{future::Future, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The tasks, and the token that stops them. A task that ends by itself before the stop is a failure of the process.
pub struct Tasks {
    set: JoinSet<(&'static str, Result<(), String>)>,
    stop: CancellationToken,
}

impl Tasks {
    /// None yet.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            stop,
        }
    }

    /// Starts one.
    pub fn spawn<E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.set
            .spawn(async move { (name, task.await.map_err(|error| error.to_string())) });
    }

    /// Waits until `stop` is cancelled and every task has ended, at most `patience` after the stop. A task that fails or ends
    /// early stops the others. The first failure is the result.
    pub async fn run(mut self, patience: Duration) -> Result<(), String> {
        let mut failure = None;
        let deadline = async {
            self.stop.cancelled().await;
            tokio::time::sleep(patience).await;
        };
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => {
                    return Err(failure.unwrap_or_else(|| format!("still busy {} s after the stop", patience.as_secs())));
                }
                ended = self.set.join_next() => {
                    let problem = match ended {
                        None => break,
                        Some(Ok((_, Ok(())))) if self.stop.is_cancelled() => continue,
                        Some(Ok((name, Ok(())))) => format!("{name} ended unexpectedly"),
                        Some(Ok((name, Err(error)))) => format!("{name} failed: {error}"),
                        Some(Err(panic)) => format!("a task panicked: {panic}"),
                    };
                    tracing::error!(problem, "stopping");
                    failure.get_or_insert(problem);
                    self.stop.cancel();
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// OPS-02: a stop waits for what is under way, and no longer than it may.
    #[tokio::test]
    async fn a_stop_is_bounded() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.spawn("stuck", std::future::pending::<Result<(), String>>());
        stop.cancel();
        assert!(
            tasks
                .run(Duration::from_millis(50))
                .await
                .unwrap_err()
                .contains("still busy")
        );
    }

    #[tokio::test]
    async fn a_failed_task_stops_the_others() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.spawn("fails", async { Err("port taken") });
        tasks.spawn("waits", async move {
            stop.cancelled().await;
            Ok::<_, String>(())
        });
        assert_eq!(
            tasks.run(Duration::from_secs(10)).await.unwrap_err(),
            "fails failed: port taken"
        );
    }
}
