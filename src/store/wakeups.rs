//! Who waits is told after the commit: a hint, never the truth. A waiter looks at the database again when it
//! is woken and, because a hint may be lost with its process, every few seconds anyway.

use std::sync::Arc;

use tokio::sync::watch;

/// What there is to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A row was added to the event log.
    Events,
    /// A work item became available.
    Work,
    /// A delivery became due.
    Queue,
    /// An inbox or a policy was made, changed or deleted.
    Inboxes,
    /// A domain became ours or ceased to be, or its keys changed.
    Domains,
}

impl Topic {
    pub(super) const ALL: [Topic; 5] =
        [Topic::Events, Topic::Work, Topic::Queue, Topic::Inboxes, Topic::Domains];

    pub(super) fn name(self) -> &'static str {
        match self {
            Topic::Events => "events",
            Topic::Work => "work",
            Topic::Queue => "queue",
            Topic::Inboxes => "inboxes",
            Topic::Domains => "domains",
        }
    }
}

#[derive(Clone)]
pub struct Wakeups(Arc<[watch::Sender<u64>; 5]>);

impl Wakeups {
    pub(super) fn new() -> Wakeups {
        Wakeups(Arc::new(std::array::from_fn(|_| watch::Sender::new(0))))
    }

    /// A receiver whose `changed()` ends when the topic is next told. Many tellings may be seen as one.
    pub fn subscribe(&self, topic: Topic) -> watch::Receiver<u64> {
        self.sender(topic).subscribe()
    }

    /// How often the topic was told.
    pub(super) fn count(&self, topic: Topic) -> u64 {
        *self.sender(topic).borrow()
    }

    pub(super) fn tell(&self, topic: Topic) {
        self.sender(topic).send_modify(|n| *n = n.wrapping_add(1));
    }

    fn sender(&self, topic: Topic) -> &watch::Sender<u64> {
        let [events, work, queue, inboxes, domains] = &*self.0;
        match topic {
            Topic::Events => events,
            Topic::Work => work,
            Topic::Queue => queue,
            Topic::Inboxes => inboxes,
            Topic::Domains => domains,
        }
    }
}
