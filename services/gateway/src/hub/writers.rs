//! Waking the sockets that an event went to, a few at a time.
//!
//! A message passes several tasks on its way, and each waits for its turn behind those that were woken before. If a thousand sockets
//! were woken at once, each of these steps of the next message would wait for a thousand writes.

use std::task::Waker;

/// Sockets that are woken before others get their turn.
const AT_ONCE: usize = 64;

/// Sockets that have frames, and weren't woken yet. None of them is forgotten: dropping this wakes them.
#[derive(Default)]
pub struct Writers(Vec<Waker>);

impl Writers {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Wakes all of them, and lets others have their turn in between.
    pub async fn wake(&mut self) {
        // From the end: what is left, if this future is dropped, is woken by `drop`.
        let mut woken = 0;
        while let Some(writer) = self.0.pop() {
            writer.wake();
            woken += 1;
            if woken % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Extend<Waker> for Writers {
    fn extend<T: IntoIterator<Item = Waker>>(&mut self, writers: T) {
        self.0.extend(writers);
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for writer in self.0.drain(..) {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use futures::FutureExt as _;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// RT-06: others get their turn among a thousand sockets, and nobody is forgotten.
    #[tokio::test]
    async fn writers_are_woken_a_few_at_a_time() {
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::SeqCst);
        let mut writers = Writers::default();
        writers.extend((0..1_000).map(|_| Waker::from(count.clone())));
        let mut waking = Box::pin(writers.wake());
        assert!(waking.as_mut().now_or_never().is_none());
        assert_eq!(woken(), AT_ONCE);
        tokio::task::yield_now().await;
        assert!(waking.as_mut().now_or_never().is_none());
        assert_eq!(woken(), 2 * AT_ONCE);
        drop(waking);
        drop(writers);
        assert_eq!(woken(), 1_000);
    }
}
