//! Open-loop load: work is due at fixed times, whatever the server does, and latency counts from when it was due. So a server
//! that stalls shows up in the figures instead of slowing the load down (no coordinated omission).

use std::time::Duration;

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use crate::frames::now_nanos;

/// Work that waits for one worker, at most.
const WAITING: usize = 65_536;

/// Tells `outputs` in turn when work is due (as [`now_nanos`]), `per_second` times a second for `duration`. The thread sleeps between, because
/// the runtime's timers only know milliseconds.
pub fn start(
    per_second: f64,
    duration: Duration,
    workers: usize,
) -> (Vec<mpsc::Receiver<u64>>, Pacer) {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..workers).map(|_| mpsc::channel(WAITING)).unzip();
    let total = (per_second * duration.as_secs_f64()).round() as u64;
    let handle = std::thread::spawn(move || run(per_second, total, &senders));
    (receivers, Pacer { handle, total })
}

/// A running pacer.
pub struct Pacer {
    handle: std::thread::JoinHandle<Result<()>>,
    /// How much work it gives out.
    pub total: u64,
}

impl Pacer {
    /// After its workers ended: whether it could give out everything.
    pub fn finish(self) -> Result<()> {
        self.handle
            .join()
            .map_err(|_| anyhow!("the pacing thread panicked"))?
    }
}

fn run(per_second: f64, total: u64, outputs: &[mpsc::Sender<u64>]) -> Result<()> {
    const SHORTEST_SLEEP: u64 = 50_000;
    let start = now_nanos() + 1_000_000;
    for index in 0..total {
        let due = start + (index as f64 * 1e9 / per_second) as u64;
        let now = now_nanos();
        if due > now {
            std::thread::sleep(Duration::from_nanos((due - now).max(SHORTEST_SLEEP)));
        }
        let output = &outputs[(index % outputs.len() as u64) as usize];
        match output.try_send(due) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(anyhow!(
                    "{WAITING} pieces of work wait for one worker: the load of {per_second:.0}/s is too high"
                ));
            }
            // The workers ended early, and say themselves why.
            Err(mpsc::error::TrySendError::Closed(_)) => return Ok(()),
        }
    }
    Ok(())
}

/// Latencies up to a minute, in microseconds, three digits exact.
pub fn histogram() -> Histogram<u64> {
    // Constant bounds that the library accepts.
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds of a histogram")
}

/// Notes how long ago `due` was.
pub fn record(histogram: &mut Histogram<u64>, due: u64, now: u64) {
    histogram.saturating_record((now.saturating_sub(due) / 1_000).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_given_out_in_turn_and_in_time() {
        let begun = now_nanos();
        let (receivers, pacer) = start(2_000.0, Duration::from_millis(100), 2);
        assert_eq!(pacer.total, 200);
        let mut due = Vec::new();
        for mut receiver in receivers {
            let mut count = 0;
            while let Some(at) = receiver.recv().await {
                due.push(at);
                count += 1;
            }
            assert_eq!(count, 100);
        }
        pacer.finish().unwrap();
        due.sort_unstable();
        let span = due[199] - due[0];
        assert!((span as i64 - 99_500_000).abs() < 1_000, "{span}");
        assert!(due[0] >= begun);
    }

    #[test]
    fn a_latency_counts_from_when_it_was_due() {
        let mut histogram = histogram();
        record(&mut histogram, 1_000_000, 6_000_000);
        assert_eq!(histogram.max(), 5_003);
        record(&mut histogram, 5, 4);
        assert_eq!(histogram.min(), 1);
    }
}
