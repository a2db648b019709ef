//! The queues: jobs, jobs that wait for another try, dead letters. Publishing goes to the default exchange, so that a queue's name
//! is all there is to know.

use std::time::Duration;

use lapin::{
    Channel, Result,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};

/// How long jobs wait for another try. Part of the queues' names: another value makes another queue.
const DELAYS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];
/// Deliveries of a job whose consumers crash or lose their connection, before it is dead-lettered.
const DELIVERY_LIMIT: i64 = 20;
/// Dead letters that are kept; the oldest go first.
const MAX_DEAD: i64 = 100_000;

/// Names of the queues.
#[derive(Clone, Debug)]
pub(super) struct Queues {
    /// Jobs.
    pub(super) push: String,
    /// Jobs that were given up.
    pub(super) dead: String,
    /// Jobs that come back after a time, ascending by time.
    delayed: Vec<(Duration, String)>,
}

impl Queues {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            push: format!("{prefix}.push"),
            dead: format!("{prefix}.push.dead"),
            delayed: DELAYS
                .into_iter()
                .map(|delay| (delay, format!("{prefix}.push.retry.{}s", delay.as_secs())))
                .collect(),
        }
    }

    /// The queue that returns a job no earlier than after `delay`, or the longest there is.
    pub(super) fn after(&self, delay: Duration) -> &str {
        let fitting = self.delayed.iter().find(|(at, _)| *at >= delay);
        fitting
            .or(self.delayed.last())
            .map_or(self.push.as_str(), |(_, name)| name.as_str())
    }
}

/// Makes the queues that aren't there.
pub(super) async fn declare(channel: &Channel, queues: &Queues) -> Result<()> {
    let mut dead = quorum();
    put_number(&mut dead, "x-max-length", MAX_DEAD);
    declare_one(channel, &queues.dead, dead).await?;
    let mut push = returning_to(&queues.dead);
    put_number(&mut push, "x-delivery-limit", DELIVERY_LIMIT);
    declare_one(channel, &queues.push, push).await?;
    for (delay, name) in &queues.delayed {
        let mut delayed = returning_to(&queues.push);
        put_number(
            &mut delayed,
            "x-message-ttl",
            i64::try_from(delay.as_millis()).unwrap_or(i64::MAX),
        );
        declare_one(channel, name, delayed).await?;
    }
    Ok(())
}

/// Jobs waiting (for another try, too), and dead letters.
pub(super) async fn depth(channel: &Channel, queues: &Queues) -> Result<(u64, u64)> {
    let mut waiting = count(channel, &queues.push).await?;
    for (_, name) in &queues.delayed {
        waiting += count(channel, name).await?;
    }
    Ok((waiting, count(channel, &queues.dead).await?))
}

async fn count(channel: &Channel, name: &str) -> Result<u64> {
    let options = QueueDeclareOptions::durable().passive();
    let queue = channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await?;
    Ok(u64::from(queue.message_count()))
}

async fn declare_one(channel: &Channel, name: &str, arguments: FieldTable) -> Result<()> {
    channel
        .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)
        .await
        .map(drop)
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    put_text(&mut arguments, "x-queue-type", "quorum");
    arguments
}

/// A queue whose expired, rejected and too often delivered messages go to another one, and aren't forgotten before it has them.
fn returning_to(queue: &str) -> FieldTable {
    let mut arguments = quorum();
    put_text(&mut arguments, "x-dead-letter-exchange", "");
    put_text(&mut arguments, "x-dead-letter-routing-key", queue);
    put_text(&mut arguments, "x-dead-letter-strategy", "at-least-once");
    put_text(&mut arguments, "x-overflow", "reject-publish");
    arguments
}

fn put_text(arguments: &mut FieldTable, name: &str, value: &str) {
    let value = LongString::from(value.as_bytes().to_vec());
    arguments.insert(ShortString::from(name), AMQPValue::LongString(value));
}

fn put_number(arguments: &mut FieldTable, name: &str, value: i64) {
    arguments.insert(ShortString::from(name), AMQPValue::LongLongInt(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_returns_no_earlier_than_asked_unless_that_is_too_long() {
        let queues = Queues::new("carillon");
        let after = |milliseconds| queues.after(Duration::from_millis(milliseconds));
        assert_eq!(after(0), "carillon.push.retry.1s");
        assert_eq!(after(1_000), "carillon.push.retry.1s");
        assert_eq!(after(1_001), "carillon.push.retry.5s");
        assert_eq!(after(3_600_000), "carillon.push.retry.600s");
    }
}
